# frozen_string_literal: true

module TaskerCore
  module Testing
    # Runs steps as a worker does, in the thread of a test.
    # @api private
    class Executor < Worker::Executor
      private

      # The test is already where the application's code may run.
      def around = ->(&block) { block.call }

      def surely(native_step, step)
        yield
      rescue StandardError => e
        fail(native_step, step, e)
      end

      # A failed expectation, or Ctrl-C, is the test's.
      def fail(native_step, step, error)
        super
        raise error unless error.is_a?(StandardError) || error.is_a?(StepTimeout)
      end
    end
  end
end
