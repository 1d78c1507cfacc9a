# frozen_string_literal: true

require_relative "rails_database"

module TaskerCore
  # In Rails: config/tasker.yml, the application's database, its logger, its reloader around every step, templates in config/tasker, and
  # ActiveRecord's transactions.
  class Railtie < Rails::Railtie
    # The settings.
    FILE = "config/tasker.yml"
    # That of config/tasker.yml or database.yml.
    DATABASE_URL = -> { Railtie.database_url(Rails.application) }

    initializer "tasker_core.configure" do |app|
      settings = Railtie.settings(app)
      Native.worker_settings({}, [FILE, settings]) # raises what is wrong in them
      TaskerCore.configure do |config|
        config.logger = Rails.logger
        config.templates = [Rails.root.join("config/tasker/*.yml").to_s]
        config.around_step = ->(&block) { app.reloader.wrap(&block) }
        config.connections = settings[:connections] if settings[:connections]
        config.file = [FILE, settings]
        if defined?(ActiveRecord::Railtie)
          database = Railtie.database(app, settings)
          config.database_url ||= DATABASE_URL
          config.transaction = database.method(:transaction).to_proc
          config.open_transaction = database.method(:open_transactions).to_proc
        end
      end
    end

    # Whatever is missing is known at the deployment of the web processes, not when a worker starts.
    config.after_initialize do |app|
      if app.config.eager_load
        configuration = TaskerCore.configuration
        Worker::Handlers.check(Workflow.sources(configuration.templates), configuration.file.last.dig(:worker, :namespaces))
      end
    end

    # The adapter has to be known when the application's setting names it.
    ActiveSupport.on_load(:active_job) { require "tasker_core/active_job" }

    rake_tasks do
      load File.expand_path("rails_tasks.rake", __dir__)
      Railtie.keep_schema if defined?(ActiveRecord::Railtie)
    end

    # Test runners make databases by themselves.
    initializer "tasker_core.schema" do
      ActiveSupport.on_load(:active_record) { Railtie.keep_schema } if Rails.env.test?
    end

    class << self
      # @return [String, nil] where the application's tasks are
      # @api private
      def database_url(app)
        settings = settings(app)
        settings[:database_url] || (database(app, settings).url if defined?(ActiveRecord::Railtie))
      end

      # @return [RailsDatabase]
      # @api private
      def database(app, settings) = RailsDatabase.new(app.config.method(:database_configuration), settings[:database])

      # @return [Hash{Symbol => Object}] what config/tasker.yml says for this environment
      # @raise [ConfigurationError]
      # @api private
      def settings(app, environment = Rails.env)
        app.root.join(FILE).exist? ? (app.config_for(:tasker, env: environment) || {}).to_h : {}
      end

      # @see RailsSchema
      # @api private
      def keep_schema
        require_relative "rails_schema"
        RailsSchema.install
      end
    end
  end
end
