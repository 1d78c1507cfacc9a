# frozen_string_literal: true

require "json"
require "set"

module TaskerCore
  class Worker
    # Handlers, by the names that workflows give them. A name comes from the database: it finds a StepHandler, or a class that a workflow
    # of this process has named, and nothing else that happens to have a +call+.
    # @api private
    module Handlers
      NO_BULK_TRANSACTION = "a bulk handler's steps cannot be transactional: each has an outcome of its own"

      @registered = Set.new
      @adapters = {}

      class << self
        # @param handler [Class] one that a workflow names
        # @return [String] its name
        def register(handler)
          @registered << handler.name
          handler.name
        end

        # @param kind [Class] that is no handler itself, such as ActiveJob::Base
        # @param handler [Class] what runs the steps that name a class below it
        def adapt(kind, handler) = @adapters[kind] = handler

        # @return [Boolean] whether there is such a handler; one that cannot be loaded is there, and its steps' errors say why
        def known?(name)
          find(name) && true
        rescue UnknownHandler
          false
        rescue StandardError, ScriptError
          true
        end

        # @return [Class]
        # @raise [UnknownHandler]
        def find(name)
          found = Object.const_get(name)
          _, adapter = @adapters.find { |kind, _| found.is_a?(Class) && found <= kind }
          return adapter if adapter
          return found if found.is_a?(Class) && (found <= StepHandler || @registered.include?(name)) && found.method_defined?(:call)

          raise UnknownHandler, "#{name} is no handler: expected a subclass of TaskerCore::StepHandler, or a class with call(step) " \
                                "that a Workflow names"
        rescue NameError => e
          # One that the handler's own file raises says what it misses there.
          raise unless e.name && name.split("::").include?(e.name.to_s)

          raise UnknownHandler, "this worker has no handler #{name}"
        end

        # @param sources [Array(String, String)] templates and where they are written
        # @return [Hash{String => Class}] the handlers that these namespaces' steps want, by their names
        # @raise [TemplateError] which of them do not exist, or cannot do what the step wants, each with its file and line
        def check(sources, namespaces)
          found = {}
          problems = wanted(sources, Array(namespaces).map(&:to_s)).filter_map do |step, place|
            problem = problem(step, found[handler(step)] ||= find(handler(step)))
            "#{place}: #{problem}" if problem
          rescue UnknownHandler => e
            "#{place}: #{e.message}"
          end
          problems.any? ? raise(TemplateError, problems.join("\n")) : found
        end

        private

        def handler(step) = step[:handler] || step.dig(:each, :handler)

        def problem(step, handler) = (NO_BULK_TRANSACTION if step[:transactional] && handler <= BulkHandler)

        # @return [Array<Array(Hash, String)>] steps, and where each is written
        def wanted(sources, namespaces)
          sources.flat_map do |source, origin|
            definition, _version, lines = Native.check_template(source, origin)
            steps = JSON.parse(definition, symbolize_names: true).fetch(:steps).zip(lines)
            steps = steps.select { |step, _| handler(step) && namespaces.include?(step[:namespace]) }
            steps.map { |step, line| [step, "#{origin}:#{line}: step #{step[:name]}"] }
          end
        end
      end
    end
  end
end
