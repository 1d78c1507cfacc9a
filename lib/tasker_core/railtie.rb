# frozen_string_literal: true

require_relative "rails_database"

module TaskerCore
  # In Rails: config/tasker.yml, the application's database, its logger, its reloader around every step, templates in config/tasker, and
  # ActiveRecord's transactions.
  class Railtie < Rails::Railtie
    # The settings.
    FILE = "config/tasker.yml"

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
          database = RailsDatabase.new(app, settings[:database])
          config.database_url ||= -> { Railtie.database_url(app) }
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

    rake_tasks { load File.expand_path("rails_tasks.rake", __dir__) }

    class << self
      # @return [String, nil] where the application's tasks are
      # @api private
      def database_url(app)
        settings = settings(app)
        settings[:database_url] || (RailsDatabase.new(app, settings[:database]).url if defined?(ActiveRecord::Railtie))
      end

      # @return [Hash{Symbol => Object}] what config/tasker.yml says for this environment
      # @raise [ConfigurationError]
      # @api private
      def settings(app)
        app.root.join(FILE).exist? ? (app.config_for(:tasker) || {}).to_h : {}
      end
    end
  end
end
