# frozen_string_literal: true

module TaskerCore
  module Testing
    # Which tasks in memory are the same, as the core's migrations/0033_unique.sql has it.
    # @api private
    class Uniques
      def initialize
        @same = Hash.new { |same, key| same[key] = [] }
      end

      # @param template [String] namespace/name
      # @param rule [String] JSON, as the core has it
      # @param input [String] JSON
      # @yield where it is to be created
      # @yieldreturn [TaskRun]
      # @return [Array(TaskRun, Boolean)] it, or the one in its place, and whether it is new; the latter one has to be rescheduled where
      #   the rule says so
      # @raise [NotUnique]
      def settle(template, rule, input)
        same = @same[[template, Native.sameness(rule, input)]]
        rule = JSON.parse(rule, symbolize_names: true)
        way = same.select { |task| in_the_way?(task, rule) }
        case rule[:on_conflict]
        when "reject" then refuse(template, way.last) if way.any?
        when "replace" then way.each(&:cancel)
        else return [way.last, false] if way.any?
        end
        [yield.tap { |task| same << task }, true]
      end

      def forget(task) = @same.each_value { |tasks| tasks.delete(task) }

      private

      def in_the_way?(task, rule)
        within = rule[:within]&.then { |span| span[:secs] + (span[:nanos] / 1e9) }
        return false unless %w[pending running waiting complete].include?(task.state)
        return false if within && task.created_at <= Time.now - within

        case rule.fetch(:while) { "live" unless within }
        when "queued" then !task.begun?
        when "running" then task.begun? && task.state != "complete"
        when "live" then task.state != "complete"
        else true
        end
      end

      def refuse(template, task)
        raise NotUnique.new("#{template} has a task that is the same: #{task.id}; its rule (unique) says on_conflict: reject",
                            task_id: task.id)
      end
    end
  end
end
