# frozen_string_literal: true

require "uri"

module TaskerCore
  # The application's own database: where it is, and its transactions.
  # @api private
  class RailsDatabase
    # What knows pg's connections.
    ADAPTERS = %w[PostgreSQL PostGIS].freeze
    # What of database.yml says where the database is, as libpq calls it, and what ActiveRecord calls otherwise. The rest is its sessions'.
    PARAMETERS = %i[user password host hostaddr port dbname sslmode sslcert sslkey sslrootcert connect_timeout target_session_attrs].freeze
    NAMES = { username: :user, database: :dbname }.freeze
    NO_URL = "DATABASE_URL, or a url in database.yml, is no URL: expected postgres://user:password@host:port/database"

    # @param databases [Hash, #call] what database.yml has
    # @param name [String, nil] of a database there; nil: the primary one
    def initialize(databases, name, environment = Rails.env)
      @databases = databases
      @name = name
      @environment = environment
    end

    # @return [String, nil] nil: the application says nothing of it
    def url = configuration&.then { |found| self.class.url_of(found) }

    # @param found [Hash{Symbol => Object}] what ActiveRecord would connect with
    # @return [String]
    # @raise [ConfigurationError] for another database than PostgreSQL
    def self.url_of(found)
      return found[:url] if found[:url]

      unless ADAPTERS.any? { |adapter| adapter.casecmp?(found[:adapter].to_s) }
        raise ConfigurationError, "the database of database.yml is one of #{found[:adapter]}, expected postgresql: name another by " \
                                  "`database` in config/tasker.yml, or set database_url there"
      end

      parameters = found.transform_keys(NAMES).slice(*PARAMETERS).transform_values(&:to_s).reject { |_, value| value.empty? }
      "postgres:///?#{URI.encode_www_form(parameters).gsub('+', '%20')}"
    end

    # Calls the block with the connection of a transaction that it begins.
    def transaction
      pool = pools.find { |candidate| candidate.db_config.name == (@name || "primary") }
      raise ConfigurationError, "no model connects to the database #{@name} of config/tasker.yml" unless pool

      pool.with_connection do |connection|
        connection.transaction(requires_new: true) { yield connection.raw_connection }
      end
    end

    # @return [Array<PG::Connection>] those of this thread that have a transaction open, whichever of the databases they lead to
    def open_transactions
      connections = pools.filter_map(&:active_connection?)
      connections.select { |connection| ADAPTERS.include?(connection.adapter_name) && connection.transaction_open? }.map do |connection|
        # Rails begins lazily: nothing may have been sent yet.
        connection.materialize_transactions
        connection.raw_connection
      end
    end

    private

    # What cannot be read may be a secret, and is not quoted.
    def configurations
      all.configs_for(env_name: @environment)
    rescue URI::Error
      raise ConfigurationError, NO_URL
    end

    def pools = ActiveRecord::Base.connection_handler.connection_pool_list(ActiveRecord::Base.current_role)

    # Those that ActiveRecord has, if it is in use: in tests that run side by side each process has a database of its own.
    def all
      return ActiveRecord::Base.configurations if !ActiveRecord.autoload?(:Base) && ActiveRecord::Base.configurations.any?

      ActiveRecord::DatabaseConfigurations.new(@databases.respond_to?(:call) ? @databases.call : @databases)
    end

    def configuration
      require "active_record"
      require "active_record/database_configurations"
      environment = configurations
      return environment.first&.configuration_hash unless @name

      found = environment.find { |candidate| candidate.name == @name }
      raise ConfigurationError, "config/tasker.yml: database.yml has no database #{@name} in #{@environment}" unless found

      found.configuration_hash
    end
  end
end
