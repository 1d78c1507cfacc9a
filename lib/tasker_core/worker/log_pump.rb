# frozen_string_literal: true

module TaskerCore
  class Worker
    # Carries the core's own lines to the application's logger, while a worker runs.
    # @api private
    class LogPump
      def initialize(logger)
        @logger = logger
        Native.init_logging
        Native.forward_logs
        @thread = Thread.new do
          while (severity, line = Native.next_log)
            @logger.add(severity, line)
          end
        end
        @thread.name = "tasker logs"
      end

      # What is still on its way is written; after that, lines go to standard error.
      def stop
        Native.stop_forwarding_logs
        @thread.join
      end
    end
  end
end
