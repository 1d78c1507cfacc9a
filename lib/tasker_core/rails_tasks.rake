# frozen_string_literal: true

namespace :tasker_core do
  desc "Create TaskerCore's schemas in the application's database, or bring them up to date"
  task migrate: :environment do
    TaskerCore.client.migrate
  end
end

# What makes the application's tables makes ours.
%w[db:migrate db:prepare db:schema:load].each do |name|
  next unless Rake::Task.task_defined?(name)

  Rake::Task[name].enhance { Rake::Task["tasker_core:migrate"].invoke }
end
