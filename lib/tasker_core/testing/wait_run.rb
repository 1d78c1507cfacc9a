# frozen_string_literal: true

module TaskerCore
  module Testing
    # What a step in memory waits for.
    # @api private
    class WaitRun
      attr_reader :task, :since, :key, :assignees

      # @param definition [Hash] as the template has it
      # @param task [TaskRun]
      # @param signals [Signals]
      def initialize(definition, task, signals)
        @definition = definition
        @task = task
        @signals = signals
      end

      def name = @definition[:signal]

      # @param key [String, nil]
      # @return [self]
      def begin_with(key)
        @key = key
        @assignees = []
        @since = Time.now
        self
      end

      # @param seen [String] JSON: {input, results}
      # @return [String, nil] why it cannot
      def begin(seen)
        @key, @assignees, problem = Native.begin_wait(@definition.to_json, seen)
        @since = Time.now
        problem
      end

      def for?(signal) = name == signal[:name] && (signal[:task] ? @task.id == signal[:task] : @key == signal[:key])

      # Whether there is a signal for it, or its time is over.
      def over? = !signal.nil? || timed_out?

      # @return [String, nil] its signal's payload, as JSON
      def take = signal&.tap { |signal| signal.received << @task.id }&.payload

      def on_timeout = @definition[:on_timeout] || "dead"

      def too_late = "no signal \"#{name}\" came within #{words(span(:timeout))}"

      def times_out_at = at(:timeout)

      def due_at = at(:due)

      # As the core writes it down.
      def to_h
        template, namespace = @task.template[:definition].values_at(:name, :namespace)
        { task: @task.id, template: template, namespace: namespace, signal: name, key: @key, since: @since.iso8601(6),
          due_at: due_at&.iso8601(6), times_out_at: times_out_at&.iso8601(6), assignees: @assignees, form: @definition[:form] }
      end

      private

      def signal = @signals.for(self)

      def timed_out? = !times_out_at.nil? && times_out_at <= Time.now

      def at(name) = @definition[name] && (@since + span(name))

      def span(name) = @definition[name].then { |span| span.is_a?(Hash) ? span[:secs] + (span[:nanos] / 1e9) : span }

      def words(seconds)
        days, rest = seconds.divmod(86_400)
        clock = format("%<hours>02d:%<minutes>02d:%<seconds>02d", hours: rest / 3600, minutes: rest / 60 % 60, seconds: rest % 60)
        [("#{days} day#{'s' unless days == 1}" if days.positive?), (clock if rest.positive?)].compact.join(" ")
      end
    end
  end
end
