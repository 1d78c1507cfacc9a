# frozen_string_literal: true

require_relative "rails_database"

module TaskerCore
  # Our schemas beside the application's tables: what makes those makes ours in the same database, whichever task of Rails or test runner
  # does it, and a dump of those (+schema_format = :sql+) leaves ours out.
  # @api private
  module RailsSchema
    # Into ActiveRecord::Tasks::DatabaseTasks, where all of them come together.
    module Tasks
      def load_schema(db_config, ...)
        super.tap { RailsSchema.migrate(db_config) }
      end

      def migrate(...)
        super.tap { RailsSchema.migrate(ActiveRecord::Base.connection_db_config) }
      end
    end

    # Into ActiveRecord::Tasks::PostgreSQLDatabaseTasks.
    module Dump
      # pg_dump's.
      FLAGS = %w[--exclude-schema=tasker --exclude-schema=pgmq].freeze

      def structure_dump(filename, extra_flags)
        super(filename, Array(extra_flags) + FLAGS)
      end
    end

    class << self
      def install
        ActiveRecord::Tasks::DatabaseTasks.singleton_class.prepend(Tasks)
        ActiveRecord::Tasks::PostgreSQLDatabaseTasks.prepend(Dump)
      end

      # Migrates ours, if the one that was just made is it, or ours is no database of the application's. Nothing stays connected: the next
      # may be to drop it.
      # @param db_config [ActiveRecord::DatabaseConfigurations::DatabaseConfig]
      def migrate(db_config)
        url = url(db_config) or return
        configuration = TaskerCore.configuration.dup
        configuration.database_url = url
        client = Client.new(configuration)
        client.migrate
      ensure
        client&.close
      end

      private

      def url(db_config)
        given = TaskerCore.configuration.database_url
        return given unless given.equal?(Railtie::DATABASE_URL)

        settings = Railtie.settings(Rails.application, db_config.env_name)
        settings[:database_url] || (RailsDatabase.url_of(db_config.configuration_hash) if ours?(db_config, settings[:database]))
      end

      def ours?(db_config, name)
        name ||= ActiveRecord::Base.configurations.configs_for(env_name: db_config.env_name).first&.name
        db_config.name == name
      end
    end
  end
end
