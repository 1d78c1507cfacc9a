# frozen_string_literal: true

module TaskerCore
  # In Rails: its logger, its reloader around every step, templates in config/tasker, and ActiveRecord's transactions.
  class Railtie < Rails::Railtie
    initializer "tasker_core.configure" do |app|
      TaskerCore.configure do |config|
        config.logger = Rails.logger
        config.templates = [Rails.root.join("config/tasker/*.yml").to_s]
        config.around_step = ->(&block) { app.reloader.wrap(&block) }
        if defined?(ActiveRecord::Railtie)
          config.transaction = Railtie.method(:transaction).to_proc
          config.open_transaction = Railtie.method(:open_transaction).to_proc
        end
      end
    end

    # The adapter has to be known when the application's setting names it.
    ActiveSupport.on_load(:active_job) { require "tasker_core/active_job" }

    class << self
      # @api private
      def transaction(&work)
        ActiveRecord::Base.transaction(requires_new: true) { work.call(ActiveRecord::Base.connection.raw_connection) }
      end

      # @api private
      def open_transaction
        return unless ActiveRecord::Base.connection_pool.active_connection?

        connection = ActiveRecord::Base.connection
        return unless connection.adapter_name == "PostgreSQL" && connection.transaction_open?

        # Rails begins lazily: nothing may have been sent yet.
        connection.materialize_transactions
        connection.raw_connection
      end
    end
  end
end
