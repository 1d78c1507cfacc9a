# frozen_string_literal: true

module TaskerCore
  class Worker
    # One thread that runs steps, one after the other, or as many at once as a bulk handler has.
    # @api private
    class Slot
      # How long one wait for a step takes at most, in seconds.
      WAIT = 60.0

      def initialize(native, executor)
        @native = native
        @executor = executor
        @thread = start
      end

      def alive? = @thread.alive?

      # Whether a step holds the thread although its time was over that many seconds ago.
      def overdue?(grace)
        deadline = @deadline
        !deadline.nil? && now > deadline + grace
      end

      # Reports the steps and gives the thread up, whether or not it can be stopped.
      def abandon
        steps = @steps
        @executor.overdue(steps) if steps && overdue?(0)
        kill
      end

      # Ends the thread after its next step.
      def retire = @retired = true

      # Ends the thread, wherever it is.
      def kill
        @ended = true
        @thread.kill
      end

      private

      def start
        Thread.new do
          Thread.current.name = "tasker handler"
          Thread.current.report_on_exception = false
          work
        ensure
          # A handler can end its thread: the next one takes over before this one is gone, so that none is ever missing.
          @thread = start if @steps && !@ended && !@retired
        end
      end

      def work
        @deadline = @steps = nil
        until @native.stopped? || @retired
          steps = @native.next(WAIT) or next
          @steps = steps
          timeout = Executor.timeout(steps)
          @deadline = timeout && (now + timeout)
          @executor.call(steps)
          @deadline = @steps = nil
        end
      end

      def now = Process.clock_gettime(Process::CLOCK_MONOTONIC)
    end
  end
end
