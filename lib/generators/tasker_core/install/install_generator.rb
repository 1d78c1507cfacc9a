# frozen_string_literal: true

require "rails/generators"

module TaskerCore
  # bin/rails generate tasker_core:…
  module Generators
    # Makes an application ready: its settings, its command, its processes, and a first workflow with its test.
    class InstallGenerator < Rails::Generators::Base
      source_root File.expand_path("templates", __dir__)
      desc "Adds TaskerCore to the application: settings, bin/tasker, Procfile.dev, and a first workflow with its test."

      # For Procfile.dev.
      PROCESSES = <<~PROCFILE
        orchestrator: bin/tasker serve
        worker: bin/tasker worker
      PROCFILE

      # For test/test_helper.rb.
      MINITEST = <<~RUBY
        require "tasker_core/testing/minitest"

        TaskerCore::Testing.fake!
        ActiveSupport::TestCase.include TaskerCore::Testing::Assertions
      RUBY

      # For spec/rails_helper.rb.
      RSPEC = <<~RUBY
        require "tasker_core/testing/rspec"

        TaskerCore::Testing.fake!
      RUBY

      # config/initializers/tasker_core.rb and config/tasker.yml.
      def create_settings
        template "initializer.rb", "config/initializers/tasker_core.rb"
        template "tasker.yml", "config/tasker.yml"
      end

      # bin/tasker.
      def create_command
        template "tasker", "bin/tasker"
        chmod "bin/tasker", 0o755, verbose: false
      end

      # To Procfile.dev.
      def add_processes
        create_file "Procfile.dev", "web: bin/rails server\n", skip: true
        append_to_file "Procfile.dev", PROCESSES
      end

      # To the helper that tests begin with: what they enqueue stays in memory.
      def add_testing
        add_to "test/test_helper.rb", MINITEST, after: %r{^require ["']rails/test_help["'].*\n}
        add_to "spec/rails_helper.rb", RSPEC, after: %r{^require ["']rspec/rails["'].*\n}
      end

      # A first workflow.
      def create_example
        invoke "tasker_core:workflow", %w[welcome greet thank]
      end

      # What remains to be done.
      def say_what_is_next
        say <<~TEXT

          Next:
            bin/rails db:create db:migrate   # makes our schemas, too
            bin/tasker serve                 # the orchestrator
            bin/tasker worker                # handlers
            bin/rails runner 'puts TaskerCore.enqueue(Welcome, {}).wait(timeout: 10)'
        TEXT
      end

      private

      def add_to(file, lines, after:)
        inject_into_file(file, lines, after: after) if File.exist?(File.join(destination_root, file))
      end
    end
  end
end
