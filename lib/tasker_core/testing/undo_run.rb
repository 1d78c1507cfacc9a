# frozen_string_literal: true

module TaskerCore
  module Testing
    # What undoes a step of a task in memory.
    # @api private
    class UndoRun < StepRun
      attr_reader :step

      # @param step [StepRun]
      def initialize(step)
        @step = step
        super({ **step.definition.slice(:namespace, :config, :transactional), **(step.definition[:undo] || {}), name: "#{step.name}.undo" })
        @parents = step.parents + [step]
      end

      # @param undos [Array<UndoRun>] of the same task: what came later is undone first
      def among(undos) = @before = undos.select { |other| other.step.below?(step) }

      def open? = !undone? && !dead? && !@told && @before.all?(&:undone?)

      def undone? = @told ? step.children.none?(&:undoing?) : done? || discarded?

      # Whether it is its children that are undone.
      def settles_itself? = !step.children.nil?

      def settle_itself
        @told = true
        step.children.each(&:undo)
      end

      # As the core writes it down.
      def to_h(_left = nil)
        state = undone? ? "complete" : "waiting"
        super(nil).merge(undoes: step.name, **(@told ? { kind: "undo", state: state } : {}))
      end
    end
  end
end
