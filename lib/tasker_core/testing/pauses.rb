# frozen_string_literal: true

module TaskerCore
  module Testing
    # What is paused of the tasks in memory.
    # @api private
    class Pauses
      def initialize
        @pauses = []
      end

      # @param request [Hash] as {TaskerCore::Pauses} makes it
      def answer(request)
        known = @pauses.find { |pause| request.slice(:kind, :name) <= pause }
        case request[:verb]
        when :pause then !known && !(@pauses << { **request.slice(:kind, :name, :who, :why), since: Time.now.getutc.iso8601(6) }).nil?
        when :resume then !@pauses.delete(known).nil?
        else @pauses
        end
      end

      # @param task [TaskRun]
      # @return [Hash, nil] its own
      def of(task) = find("task", task.id) || find("template", task.template[:definition].values_at(:namespace, :name).join("/"))

      # @param task [TaskRun]
      # @return [Hash, nil] that of its namespace
      def of_namespace(task) = find("namespace", task.template[:definition][:namespace])

      # @param step [StepRun]
      def step?(step)
        namespace, handler = step.definition.values_at(:namespace, :handler)
        !handler.nil? && !(find("namespace", namespace) || find("handler", "#{namespace}/#{handler}")).nil?
      end

      private

      def find(kind, name) = @pauses.find { |pause| pause.values_at(:kind, :name) == [kind, name] }
    end
  end
end
