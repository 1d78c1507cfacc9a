# frozen_string_literal: true

module TaskerCore
  module Testing
    # What a test expects to be enqueued.
    # @api private
    class Expectation
      # @param workflow [Class<Workflow>, String]
      # @param criteria [Hash] any of input, priority, key, at
      # @param same [Proc] compares what is expected with what there is
      def initialize(workflow, criteria, &same)
        @workflow = workflow
        @criteria = criteria
        @same = same
      end

      # @param tasks [Array<Hash>] of {Task#to_h}
      # @return [Array<Hash>] those that are as expected
      def among(tasks)
        tasks.select do |task|
          named?(task) && @criteria.all? { |name, expected| @same.call(comparable(name, expected), actual(name, task)) }
        end
      end

      # What there is, for people.
      def self.list(tasks)
        return "nothing was" if tasks.empty?

        tasks.map do |task|
          told = { priority: task[:priority], key: task[:key], run_at: task[:run_at] }.compact
          "\n  #{task[:namespace]}/#{task[:template]} with #{task[:input]} (#{told.map { |name, value| "#{name} #{value}" }.join(', ')})"
        end.join
      end

      def to_s
        name = @workflow.is_a?(Class) ? @workflow.name : @workflow
        [name, *@criteria.map { |criterion, expected| "#{criterion} #{expected.inspect}" }].join(", ")
      end

      private

      def named?(task)
        full = "#{task[:namespace]}/#{task[:template]}"
        return full == "#{@workflow.namespace}/#{@workflow.template_name}" if @workflow.is_a?(Class)

        [full, task[:template]].include?(@workflow.to_s)
      end

      def actual(name, task) = name == :at ? task[:run_at] && Time.iso8601(task[:run_at]) : task[name]

      # As it is stored: priorities and keys as strings, times to the microsecond.
      def comparable(name, expected)
        case name
        when :priority, :key then expected.is_a?(Symbol) ? expected.to_s : expected
        when :at then expected.respond_to?(:to_time) ? expected.to_time.floor(6) : expected
        else expected
        end
      end
    end
  end
end
