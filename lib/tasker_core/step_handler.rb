# frozen_string_literal: true

module TaskerCore
  # The code of a step. Every attempt gets a new instance.
  #
  # @example
  #   class ReserveInventory < TaskerCore::StepHandler
  #     def call(step)
  #       units = step.context[:units]
  #       raise TaskerCore::PermanentError, "nothing to reserve" if units.zero?
  #
  #       { reserved: units, warehouse: step.results[:validate][:warehouse] }
  #     end
  #   end
  class StepHandler
    # Does the work. It may run more than once for one step (a worker can die after the work and before the report), so its effects
    # should be idempotent.
    # @param step [Step]
    # @return [Object] the step's result: nil, true, false, numbers, strings, symbols, and arrays and hashes of these
    # @raise [PermanentError] when another attempt cannot help
    # @raise [RetryableError] to say when to try again; any other StandardError is tried again by the step's own rules
    def call(step)
      raise NotImplementedError, "#{self.class} must define call(step)"
    end
  end
end
