# frozen_string_literal: true

require "rails/generators"

module TaskerCore
  module Generators
    # A workflow with a handler for each of its steps, one after the other, and its test.
    class WorkflowGenerator < Rails::Generators::NamedBase
      source_root File.expand_path("templates", __dir__)
      desc "Creates a workflow, a handler for each of its steps, and its test."

      argument :steps, type: :array, default: %w[work], banner: "step step"
      class_option :namespace, type: :string, default: "default", desc: "Whose workers run it"

      # What a step may be called.
      STEP = /\A[a-z][a-z0-9_]*\z/

      # Before anything is written.
      def check_steps
        wrong = steps.grep_v(STEP)
        raise Thor::Error, "#{wrong.join(', ')}: a step's name is lower case letters, digits and underscores" if wrong.any?
        raise Thor::Error, "two steps have the same name" if steps.uniq.size < steps.size
      end

      # app/workflows/name.rb.
      def create_workflow
        template "workflow.rb", File.join("app/workflows", class_path, "#{file_name}.rb")
      end

      # app/workflows/name/step.rb, for each.
      def create_handlers
        steps.each do |step|
          @step = step
          template "handler.rb", File.join("app/workflows", class_path, file_name, "#{step}.rb")
        end
      end

      # Of the kind that the application has.
      def create_test
        kind = File.directory?(File.join(destination_root, "spec")) ? "spec" : "test"
        template "workflow_#{kind}.rb", File.join(kind, "workflows", class_path, "#{file_name}_#{kind}.rb")
      end
    end
  end
end
