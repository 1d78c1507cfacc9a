# frozen_string_literal: true

require "uri"

module TaskerCore
  # The application's own database: where it is, and its transactions.
  # @api private
  class RailsDatabase
    # What knows pg's connections.
    ADAPTERS = %w[PostgreSQL PostGIS].freeze
    # What of database.yml stands behind the question mark.
    PARAMETERS = %i[sslmode sslcert sslkey sslrootcert connect_timeout].freeze

    # @param name [String, nil] of a database in database.yml; nil: the primary one
    def initialize(app, name)
      @app = app
      @name = name
    end

    # @return [String, nil] nil: the application says nothing of it
    def url
      found = configuration or return
      return found[:url] if found[:url]

      user = found.values_at(:username, :password).compact.map { |part| escape(part) }.join(":")
      parameters = found.slice(*PARAMETERS)
      host = found[:host].to_s
      in_folder = host.start_with?("/") # that of a socket
      parameters[:host] = host if in_folder
      at = [("#{user}@" unless user.empty?), (host unless in_folder), (":#{found[:port]}" if found[:port])].join
      "postgres://#{at}/#{escape(found[:database])}#{"?#{URI.encode_www_form(parameters)}" unless parameters.empty?}"
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

    def pools = ActiveRecord::Base.connection_handler.connection_pool_list(ActiveRecord::Base.current_role)

    def configuration
      require "active_record"
      require "active_record/database_configurations"
      all = ActiveRecord::DatabaseConfigurations.new(@app.config.database_configuration)
      environment = all.configs_for(env_name: Rails.env)
      return environment.first&.configuration_hash unless @name

      found = environment.find { |candidate| candidate.name == @name }
      raise ConfigurationError, "config/tasker.yml: database.yml has no database #{@name} in #{Rails.env}" unless found

      found.configuration_hash
    end

    def escape(part) = URI.encode_www_form_component(part.to_s).gsub("+", "%20")
  end
end
