# frozen_string_literal: true

module TaskerCore
  module Testing
    # A task in memory.
    # @api private
    class TaskRun
      attr_reader :id

      def initialize(template, input, key:, priority:, run_at:)
        @id = SecureRandom.uuid
        @template = template
        @definition = template[:definition]
        @input = input
        @key = key
        @priority = priority || @definition[:priority]
        @run_at = run_at
        @created_at = Time.now
        @steps = []
        @definition[:steps].each { |step| @steps << StepRun.new(step, @steps.values_at(*step[:parents])) }
      end

      def due? = !@started_at && !@cancelled && (@run_at.nil? || @run_at <= Time.now)

      def start = @started_at = Time.now

      def finish = @finished_at = Time.now

      def cancel
        return false if @cancelled || Task::ENDED.include?(state)

        finish
        @cancelled = true
      end

      # @return [StepRun, nil]
      def next_step = @cancelled ? nil : @steps.find(&:ready?)

      def attempt(step)
        StepRun::Attempt.new(
          step: step, number: step.failures + 1, task_id: @id, template: @definition[:name], version: @template[:version],
          input: @input, results: step.results_before, cancelled: -> { @cancelled }
        )
      end

      def state
        return "cancelled" if @cancelled
        return @run_at && @run_at > Time.now ? "waiting" : "pending" unless @started_at
        return "complete" if @steps.all?(&:complete?)
        return "running" if @steps.any?(&:ready?) || @steps.none?(&:dead?)

        @definition[:on_failure] == "fail" ? "failed" : "blocked"
      end

      # As the core writes it down.
      def to_h
        {
          id: @id, template: @definition[:name], namespace: @definition[:namespace], version: @template[:version], state: state,
          priority: @priority, key: @key, input: JSON.parse(@input), created_at: at(@created_at), run_at: at(@run_at),
          started_at: at(@started_at), finished_at: at(Task::ENDED.include?(state) ? @finished_at : nil),
          steps: @steps.map { |step| step.to_h(cancelled: @cancelled) }
        }
      end

      private

      def at(time) = time&.getutc&.iso8601(6)
    end
  end
end
