# frozen_string_literal: true

# The suite's database, on the server of DATABASE_URL. Nothing is mocked.
module Database
  NAME = "tasker_spec_#{SecureRandom.hex(6)}".freeze

  class << self
    # @param suffix [String] to the name: of another one, which an example has for itself
    # @return [String] by way of the pooler that the run has, if it has one (bin/test)
    def url(suffix = "") = address(suffix, ENV.fetch("TEST_POOLER_PORT", nil))

    # PostgreSQL's own address.
    def direct_url(suffix = "") = address(suffix, nil)

    def create(suffix = "") = admin("CREATE DATABASE #{NAME}#{suffix}")

    def drop(suffix = "") = admin("DROP DATABASE IF EXISTS #{NAME}#{suffix} WITH (FORCE)")

    # A copy of the suite's own, which nobody may be connected to meanwhile.
    def create_copy(suffix)
      yield
      admin("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '#{NAME}'")
      admin("CREATE DATABASE #{NAME}#{suffix} TEMPLATE #{NAME}")
    end

    # @return [Array<Hash>]
    def query(sql, values = [], suffix: "")
      connection = PG.connect(direct_url(suffix))
      connection.exec_params(sql, values).to_a
    ensure
      connection&.close
    end

    private

    def address(suffix, port)
      url = server.dup
      url.port = port if port
      url.path = "/#{NAME}#{suffix}"
      url.to_s
    end

    def server
      URI.parse(ENV.fetch("DATABASE_URL") {
                  abort "set DATABASE_URL to a server where databases may be created, or run bin/test"
                })
    end

    def admin(sql)
      connection = PG.connect(server.to_s)
      connection.exec(sql)
    ensure
      connection&.close
    end
  end
end
