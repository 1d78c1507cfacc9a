# frozen_string_literal: true

require "fileutils"
require "open3"
require "pg"
require "securerandom"
require "tmpdir"
require "uri"
require "tasker_core"
require_relative "support/database"
require_relative "support/processes"
require_relative "support/workflows"

# Probes of this suite find its own workers only.
ENV["TASKER_RUN_DIR"] = Dir.mktmpdir

RSpec.configure do |config|
  config.disable_monkey_patching!
  config.expect_with(:rspec) { |expectations| expectations.syntax = :expect }
  config.order = :random
  config.example_status_persistence_file_path = nil

  config.include Workflows
  config.include Processes

  # One database for the suite; every example has a namespace of its own in it.
  config.before(:suite) do
    Database.create
    ENV["TASKER__DIRECT__URL"] = Database.direct_url if ENV.key?("TEST_POOLER_PORT")
    TaskerCore.configure do |settings|
      settings.database_url = Database.url
      settings.logger = Logger.new(File::NULL)
    end
    TaskerCore.client.migrate
  end

  config.after(:suite) do
    TaskerCore.client.close
    Database.drop
  end

  config.after { end_processes }
end
