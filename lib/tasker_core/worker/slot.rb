# frozen_string_literal: true

module TaskerCore
  class Worker
    # One thread that runs steps, one after the other.
    # @api private
    class Slot
      # How long one wait for a step takes at most, in seconds.
      WAIT = 60.0

      def initialize(native, executor)
        @native = native
        @executor = executor
        @thread = Thread.new { work }
        @thread.name = "tasker handler"
        @thread.report_on_exception = false
      end

      def alive? = @thread.alive?

      # Whether a step holds the thread although its time was over that many seconds ago.
      def overdue?(grace)
        deadline = @deadline
        !deadline.nil? && now > deadline + grace
      end

      # Reports the step and gives the thread up, whether or not it can be stopped.
      def abandon
        step = @step
        @executor.overdue(step) if step && overdue?(0)
        kill
      end

      # Ends the thread, wherever it is.
      def kill = @thread.kill

      private

      def work
        until @native.stopped?
          step = @native.next(WAIT) or next
          @step = step
          @deadline = step.timeout && (now + step.timeout)
          @executor.call(step)
          @deadline = @step = nil
        end
      end

      def now = Process.clock_gettime(Process::CLOCK_MONOTONIC)
    end
  end
end
