# frozen_string_literal: true

namespace :tasker_core do
  desc "Create TaskerCore's schemas in the application's database, or bring them up to date"
  task migrate: :environment do
    TaskerCore.client.migrate
  end
end
