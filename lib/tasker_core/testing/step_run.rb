# frozen_string_literal: true

module TaskerCore
  module Testing
    # A step of a task in memory.
    # @api private
    class StepRun
      # What a step whose workflow says nothing has, unless its namespace is set otherwise.
      MAX_ATTEMPTS = 5

      # What a Native::Step is for its handler.
      Attempt = Struct.new(:step, :number, :task_id, :template, :version, :input, :results, :cancelled, keyword_init: true) do
        def name = step.name
        def handler = step.definition[:handler]
        def namespace = step.definition[:namespace]
        def config = step.definition[:config].to_json
        def transactional? = step.definition[:transactional] || false
        def timeout = step.definition[:timeout]&.then { |span| span[:secs] + (span[:nanos] / 1e9) }
        def attempt = number
        def max_attempts = step.max_attempts
        def checkpoint = step.checkpoint
        def lost? = cancelled&.call || false
        def worker = nil
        def trace = nil
        def trace_id = nil
      end

      attr_reader :definition, :prepared
      attr_accessor :checkpoint, :progress

      def initialize(definition, parents)
        @definition = definition
        @parents = parents
        @errors = []
        @state = "pending"
      end

      def name = definition[:name]

      def max_attempts = definition.dig(:retry, :max_attempts) || MAX_ATTEMPTS

      def failures = @errors.size

      def complete? = @state == "complete"

      def dead? = @state == "dead"

      def ready? = !complete? && !dead? && @parents.all?(&:complete?)

      # The results of those before, by their names, as JSON.
      def results_before = "{#{@parents.map(&:named_result).join(',')}}"

      def named_result = "#{name.to_json}:#{@result}"

      # What to complete with, should the handler's transaction commit.
      def prepare(result) = @prepared = result

      def complete(result)
        @result = result
        @state = "complete"
      end

      def fail(failure)
        @errors << failure.slice(:class, :message, :backtrace).merge(attempt: failures + 1, at: Time.now.getutc.iso8601(6))
        @state = failure[:permanent] || failures >= max_attempts ? "dead" : "waiting_retry"
        true
      end

      def to_h(cancelled:)
        {
          name: name, handler: definition[:handler], namespace: definition[:namespace], depends_on: @parents.map(&:name),
          state: cancelled && @state == "pending" ? "cancelled" : @state, attempt: complete? ? failures + 1 : failures,
          max_attempts: max_attempts, worker: nil, result: value(@result), result_bytes: @result&.bytesize,
          progress: value(progress), errors: @errors,
          enqueued_at: nil, started_at: nil, finished_at: nil, retry_at: nil, waits_for: nil
        }
      end

      private

      def value(json) = json && JSON.parse(json)
    end
  end
end
