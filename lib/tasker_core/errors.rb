# frozen_string_literal: true

module TaskerCore
  # Everything that TaskerCore raises.
  class Error < StandardError; end

  # A setting is missing or wrong, or the database is not migrated. Trying again does not help.
  class ConfigurationError < Error; end

  # PostgreSQL is away or refused something. Trying again later may help.
  class DatabaseError < Error; end

  # A template is not valid; the message lists every problem with its file and line.
  class TemplateError < Error; end

  # An input, key, priority or id is not acceptable; the message says which, and what was expected.
  class InvalidInput < Error; end

  # An input, result or checkpoint is larger than 1 MiB of JSON: keep it elsewhere, and pass where.
  class PayloadTooLarge < InvalidInput; end

  # A namespace takes no new tasks for now, because too many wait in it already, and its rules say so (+throttle_new_tasks+).
  class Backpressure < Error
    # @return [Integer] after how many seconds to try again, at a guess
    attr_reader :retry_after

    # @param message [String]
    # @param retry_after [Integer] seconds
    def initialize(message = nil, retry_after: 1)
      super(message)
      @retry_after = retry_after
    end
  end

  # There is a task that is the same, and the rule of its workflow ({Workflow.unique}) says that another one is refused.
  class NotUnique < Error
    # @return [String, nil] the id of the one that there is
    attr_reader :task_id

    # @param message [String]
    # @param task_id [String, nil]
    def initialize(message = nil, task_id: nil)
      super(message)
      @task_id = task_id
    end
  end

  # What was named does not exist.
  class NotFound < Error; end

  # The step is no longer this worker's: its task was cancelled, or its lease ran out and it runs elsewhere. Raised by {Step#heartbeat}.
  class LeaseLost < Error; end

  # The worker does not have the step's handler. Another one, of the next version perhaps, may: the step is left to it.
  class UnknownHandler < Error; end

  # Ends a handler whose time is over. No StandardError, so that a handler's own rescue does not take it for one of its errors.
  class StepTimeout < Exception; end # rubocop:disable Lint/InheritException

  # Raise it in a handler when another attempt cannot help: the step is dead-lettered at once.
  class PermanentError < Error; end

  # Raise it in a handler when the whole task is not worth anything any more: it ends as +discarded+, without a dead letter.
  class DiscardError < Error; end

  # Raise it in a handler to be called again later: that was no attempt, and no error.
  class Snooze < Error
    # @return [Numeric, String] seconds, or "30m"
    attr_reader :time

    # @param time [Numeric, String] seconds, or "30m"
    # @raise [InvalidInput] for what is no length of time
    def initialize(time)
      @time = Span.seconds(time, "time")
      super("for #{time}")
    end
  end

  # Ends a handler that is to be called again when it has slept, or a signal has come; or that has finished its task ({Step#sleep},
  # {Step#wait_for}, {Step#finish!}). No StandardError, so that a handler's own rescue does not take it for one of its errors: pass it on.
  class Suspension < Exception # rubocop:disable Lint/InheritException
    # @return [Hash] what is reported in place of a failure
    # @api private
    attr_reader :report

    # @api private
    def initialize(message, **report)
      super(message)
      @report = { class: self.class.name, message: message, backtrace: [], permanent: false, **report }
    end
  end

  # Raise it in a handler to be tried again, and when. Any other StandardError is tried again by the step's own rules.
  class RetryableError < Error
    # @return [Numeric, String, nil] seconds, or "5m"; nil: the step's own backoff
    attr_reader :retry_after

    # @param message [String]
    # @param retry_after [Numeric, String, nil] seconds until the next attempt, or "5m"; what is no length of time counts as none
    def initialize(message = nil, retry_after: nil)
      super(message)
      @retry_after = retry_after
    end
  end
end
