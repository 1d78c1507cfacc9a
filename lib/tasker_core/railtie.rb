# frozen_string_literal: true

module TaskerCore
  # In Rails: its logger, its reloader around every step, and templates in config/tasker.
  class Railtie < Rails::Railtie
    initializer "tasker_core.configure" do |app|
      TaskerCore.configure do |config|
        config.logger = Rails.logger
        config.templates = [Rails.root.join("config/tasker/*.yml").to_s]
        config.around_step = ->(&block) { app.reloader.wrap(&block) }
      end
    end
  end
end
