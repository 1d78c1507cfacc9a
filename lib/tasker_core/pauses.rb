# frozen_string_literal: true

require "json"

module TaskerCore
  # Pauses of a task, a workflow, a namespace or a handler: what runs ends, and nothing new begins until it is resumed. Time goes on
  # meanwhile: sleeps end, deadlines come. ({Task#pause} is the same for one task.)
  #
  # @example
  #   TaskerCore::Pauses.pause(workflow: OrderFulfillment, who: "ann", why: "the bank is down") # => true
  #   TaskerCore::Pauses.list.first[:name] # => "fulfillment/order_fulfillment"
  #   TaskerCore::Pauses.resume(workflow: OrderFulfillment) # => true
  module Pauses
    class << self
      # @param task [Task, String, nil] a task or its id, with the tasks that are its steps
      # @param workflow [Class<Workflow>, String, nil] all of its tasks, with those that are their steps
      # @param namespace [String, nil] what its workers do, and its tasks that have not begun; or, with +handler+, whose
      # @param handler [Class<StepHandler>, String, nil] the steps that it runs, in +namespace+
      # @param who [String] a person's name, or a program's
      # @param why [String, nil]
      # @return [Boolean] false where it was paused already, which stays as it was
      # @raise [NotFound]
      # @raise [InvalidInput] unless it is one of these
      def pause(who:, task: nil, workflow: nil, namespace: nil, handler: nil, why: nil)
        request(:pause, **what(task, workflow, namespace, handler), who: who, why: why)
      end

      # @param task [Task, String, nil]
      # @param workflow [Class<Workflow>, String, nil]
      # @param namespace [String, nil]
      # @param handler [Class<StepHandler>, String, nil]
      # @return [Boolean] false where it was not paused
      # @raise (see .pause)
      def resume(task: nil, workflow: nil, namespace: nil, handler: nil) = request(:resume, **what(task, workflow, namespace, handler))

      # @return [Array<Hash>] the oldest first: kind (task, template, namespace or handler), name, who, why, since, and how many steps are
      #   held back under it (+held+)
      def list = request(:list)

      private

      def what(task, workflow, namespace, handler)
        case [!task.nil?, !workflow.nil?, !namespace.nil?, !handler.nil?]
        when [true, false, false, false] then { kind: "task", name: task.respond_to?(:id) ? task.id : task.to_s }
        when [false, true, false, false] then { kind: "template", name: template(workflow) }
        when [false, false, true, false] then { kind: "namespace", name: namespace.to_s }
        when [false, false, true, true] then { kind: "handler", name: "#{namespace}/#{handler}" }
        else raise InvalidInput, "expected one of task:, workflow:, namespace:, or handler: with its namespace:"
        end
      end

      def template(workflow) = workflow.is_a?(Class) ? TaskerCore.client.template_of(workflow) : workflow.to_s

      def request(verb, **arguments) = JSON.parse(TaskerCore.client.native.pauses({ verb: verb, **arguments }), symbolize_names: true)
    end
  end
end
