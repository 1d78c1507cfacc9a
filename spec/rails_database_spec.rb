# frozen_string_literal: true

require "spec_helper"
require "tasker_core/rails_database"

# What `rails new` and people write into database.yml, and what Rails' own tasks make of it, on a server that has a socket, too.
RSpec.describe "an application's database" do
  before(:context) do
    @folder = Dir.mktmpdir
    @port = start_postgres
    @app = File.join(@folder, "shop")
    without = %w[bundle git listen javascript sprockets asset-pipeline].map { |part| "--skip-#{part}" }
    succeed("rails", "new", @app, "--quiet", "--minimal", "--database=postgresql", *without, folder: @folder)
    write("Gemfile", <<~RUBY)
      %w[railties activerecord actionpack pg puma].each { |name| gem name }
      gem "tasker_core", path: #{Processes::ROOT.inspect}
    RUBY
    application = File.read(File.join(@app, "config/application.rb"))
    format = "config.active_record.schema_format = ENV.fetch('SCHEMA_FORMAT', 'ruby').to_sym"
    write("config/application.rb", application.sub(/^ +config.load_defaults.*/, "\\0\n    #{format}"))
    rails("generate", "tasker_core:install")
    rails("generate", "migration", "create_orders", "cents:integer")
  end

  after(:context) do
    succeed(*@control, "stop", "-m", "immediate", folder: "/")
    FileUtils.rm_rf(@folder)
  end

  # Started as somebody else where we are root, which PostgreSQL refuses to run as.
  def start_postgres
    bin = Dir["/usr/lib/postgresql/*/bin"].max
    user = Process.uid.zero? ? %w[setpriv --reuid postgres --regid postgres --clear-groups] : []
    FileUtils.chmod(0o755, @folder)
    data = File.join(@folder, "postgres").tap { |path| Dir.mkdir(path) }
    FileUtils.chown("postgres", "postgres", data) if user.any?
    succeed(*user, "#{bin}/initdb", "-D", data, "-U", "admin", "-A", "trust", "--no-sync", folder: "/")
    port = TCPServer.open("127.0.0.1", 0) { |server| server.addr[1] }
    @control = [*user, "#{bin}/pg_ctl", "-D", data, "-w"]
    settings = "-p #{port} -c listen_addresses=127.0.0.1 -k #{data} -c fsync=off"
    succeed(*@control, "-l", "#{data}/log", "-o", settings, "start", folder: "/")
    port.tap { @socket = data }
  end

  def environment_with(more) = super("DATABASE_URL" => nil, "PGUSER" => "admin", **more)

  def write(file, content) = File.write(File.join(@app, file), content)

  def rails(*arguments, **environment)
    succeed("bin/rails", *arguments, folder: @app, environment: environment.transform_keys(&:to_s))
  end

  def query(database, sql)
    connection = PG.connect(host: @socket, port: @port, user: "admin", dbname: database)
    connection.exec(sql).values.flatten
  ensure
    connection&.close
  end

  # Each is asked, by ActiveRecord and by us, who it connects as, to which database, and how.
  let(:asking) { <<~'RUBY' }
    Rails.application.config.database_configuration.fetch("development").each_key do |name|
      ActiveRecord::Base.establish_connection(name.to_sym)
      ask = ->(sql) { ActiveRecord::Base.connection.select_rows(sql).first }
      theirs = ask.("SELECT current_user, current_database(), coalesce(host(inet_server_addr()), 'socket')")
      configuration = TaskerCore.configuration.dup
      configuration.database_url = TaskerCore::RailsDatabase.new(Rails.application.config.database_configuration, name).url
      client = TaskerCore::Client.new(configuration)
      client.health
      sessions = "SELECT usename, datname, coalesce(host(client_addr), 'socket') FROM pg_stat_activity WHERE application_name = 'tasker'"
      ours = ask.(sessions)
      client.close
      # PostgreSQL ends a session a moment after its client has gone; the next one is not to be taken for it.
      sleep 0.02 while ask.(sessions)
      puts "#{name}: #{ours == theirs ? 'the same' : "#{theirs} and #{ours}"}"
    rescue StandardError => error
      puts "#{name}: #{error.class}: #{error.message}"
    end
  RUBY

  it "is found as ActiveRecord finds it, whatever of database.yml says where it is" do
    query("postgres", %q(CREATE ROLE "o'brien@ho:me" LOGIN SUPERUSER PASSWORD 'p@ss:/w?rd+ %25'))
    query("postgres", %q(CREATE DATABASE "shop's own"))
    login = { username: "o'brien@ho:me", password: "p@ss:/w?rd+ %25" }
    shapes = {
      by_host: { host: "127.0.0.1", port: @port }, by_socket: { host: @socket, port: @port }, by_port: { port: @port }, by_nothing: {},
      as_rails_new_has_it: { **login, pool: 5, encoding: "unicode" }, with_a_port: { **login, port: @port },
      with_ssl: { host: "127.0.0.1", port: @port, sslmode: "prefer" }, without_ssl: { host: "127.0.0.1", port: @port, sslmode: "disable" },
      by_url: { url: "postgresql://o%27brien%40ho%3Ame:p%40ss@127.0.0.1:#{@port}/shop%27s%20own" },
      by_url_without_host: { url: "postgresql:///shop%27s%20own?host=#{@socket}&port=#{@port}" },
      with_variables: { variables: { statement_timeout: "5s" }, options: "-c work_mem=8MB", schema_search_path: "public",
                        gssencmode: "disable",
                        keepalives: 1, prepared_statements: false, connect_timeout: 5, application_name: "shop", min_messages: "warning" }
    }
    shapes.each_value { |shape| shape.merge!(adapter: "postgresql", **(shape.key?(:url) ? {} : { database: "shop's own" })) }
    write("config/database.yml", JSON.generate(development: shapes))
    told = rails("runner", asking, PGHOST: @socket, PGPORT: @port.to_s)
    expect(told.lines(chomp: true)).to eq(shapes.keys.map { |name| "#{name}: the same" })
  end

  it "may be on several hosts, as database.yml names them, of which one is the primary" do
    at = URI(Database.url)
    configuration = { adapter: "postgresql", host: "127.0.0.1,#{at.host}", port: "1,#{at.port}", username: at.user, password: at.password,
                      database: at.path.delete_prefix("/") }
    settings = TaskerCore::Configuration.new
    settings.database_url = TaskerCore::RailsDatabase.url_of(configuration)
    client = TaskerCore::Client.new(settings)
    expect(client.health).to include(healthy: true)
    client.close
  end

  it "is refused with what to do where it is no PostgreSQL" do
    configuration = { adapter: "sqlite3", database: "db/shop.sqlite3" }
    expect {
      TaskerCore::RailsDatabase.url_of(configuration)
    }.to raise_error(TaskerCore::ConfigurationError, /one of sqlite3, expected postgresql/)
  end

  def migrated?(database)
    query(database, "SELECT to_regclass('tasker._sqlx_migrations') IS NOT NULL") == ["t"] &&
      query(database,
            "SELECT count(*) > 0 FROM tasker._sqlx_migrations") == ["t"] && query(database, "SELECT count(*) FROM orders") == ["0"]
  end

  { "ruby" => "db/schema.rb", "sql" => "db/structure.sql" }.each do |format, file|
    it "is migrated by whatever makes its tables, and in no dump of them, with a schema in #{format}" do
      at = { adapter: "postgresql", host: @socket, port: @port }
      write("config/database.yml",
            JSON.generate(development: { **at, database: "shop_#{format}" }, test: { **at, database: "test_#{format}" }))
      ENV["SCHEMA_FORMAT"] = format
      rails("db:create", "db:migrate")
      expect(migrated?("shop_#{format}")).to be(true)
      expect(File.read(File.join(@app, file))).to match(/create.table.*orders/i).and(satisfy { |dump| !dump.match?(/tasker|pgmq/) })

      rails("db:test:prepare")
      expect(migrated?("test_#{format}")).to be(true)
      ["db:reset", "db:schema:load", "db:prepare", *("db:structure:load" if format == "sql")].each do |task|
        made = ["db:reset", "db:prepare"].include?(task) ? [] : ["db:create"]
        rails("db:drop", *made, task)
        expect([task, migrated?("shop_#{format}")]).to eq([task, true])
      end
      # Side by side, each process of tests has a database of its own.
      rails("runner", "ActiveRecord::TestDatabases.create_and_load_schema(1, env_name: 'test')", RAILS_ENV: "test")
      expect(migrated?("test_#{format}-1")).to be(true)
    ensure
      ENV.delete("SCHEMA_FORMAT")
    end
  end

  it "says what to do with our schemas where they come from a dump" do
    at = { adapter: "postgresql", host: @socket, port: @port, database: "dumped" }
    write("config/database.yml", JSON.generate(development: at))
    rails("db:create", "tasker_core:migrate")
    bin = Dir["/usr/lib/postgresql/*/bin"].max
    as_admin = ["-h", @socket, "-p", @port.to_s, "-U", "admin"]
    succeed("#{bin}/pg_dump", "-s", "-x", "-O", *as_admin, "-f", File.join(@folder, "dump.sql"), "dumped")
    query("postgres", "CREATE DATABASE half")
    succeed("#{bin}/psql", *as_admin, "-q", "-v", "ON_ERROR_STOP=1", "-f", File.join(@folder, "dump.sql"), "half")
    write("config/database.yml", JSON.generate(development: { **at, database: "half" }))
    output, code = run("bin/rails", "tasker_core:migrate", folder: @app)
    expect(code).to eq(1)
    expect(output).to include("DROP SCHEMA tasker, pgmq CASCADE, and migrate again")
    query("half", "DROP SCHEMA tasker, pgmq CASCADE")
    rails("tasker_core:migrate")
  end

  it "has tests that enqueue into memory" do
    expect(File.read(File.join(@app, "test/test_helper.rb"))).to include("TaskerCore::Testing.fake!")
  end
end
