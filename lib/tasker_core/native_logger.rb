# frozen_string_literal: true

require "logger"

module TaskerCore
  # The default logger: its lines go where those of the core go, to standard error, in the same format (TASKER_LOG_FORMAT, +text+ or +json+)
  # and at the same level (TASKER_LOG, default +info+). A line about a step has the step's fields.
  class NativeLogger < Logger
    def initialize
      super(nil, level: ENV.fetch("TASKER_LOG", "").include?("debug") ? :debug : :info)
    end

    # As {Logger#add}.
    # @return [true]
    def add(severity, message = nil, progname = nil, &block) = write(severity, message || block&.call || progname)
    alias log add

    # @param step [Native::Step, nil] what the line is about
    # @param error [String, nil] what it raised
    # @return [true]
    # @api private
    def write(severity, message, step: nil, error: nil)
      severity ||= UNKNOWN
      return true if severity < level

      @begun ||= Native.init_logging || true
      Native.log(severity, message.is_a?(String) ? message : message.inspect, step, error)
      true
    end
  end
end
