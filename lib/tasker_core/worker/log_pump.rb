# frozen_string_literal: true

module TaskerCore
  class Worker
    # Carries the core's own lines to the application's logger, while a worker runs.
    # @api private
    class LogPump
      def initialize(logger)
        @logs = Native::Logs.open
        @thread = Thread.new do
          while (severity, line = @logs.next)
            write(logger, severity, line)
          end
        end
        @thread.name = "tasker logs"
      end

      # What is still on its way is written; after that, lines go where they went before.
      def stop
        @logs.close
        @thread.join
      end

      private

      # A logger that fails loses its line, not those after it.
      def write(logger, severity, line)
        logger.add(severity, line)
      rescue StandardError => e
        warn("the application's logger failed (#{e.class}): #{line}")
      end
    end
  end
end
