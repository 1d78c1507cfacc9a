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

  # What was named does not exist.
  class NotFound < Error; end

  # The step is no longer this worker's: its task was cancelled, or its lease ran out and it runs elsewhere. Raised by {Step#heartbeat}.
  class LeaseLost < Error; end

  # Raise it in a handler when another attempt cannot help: the step is dead-lettered at once.
  class PermanentError < Error; end

  # Raise it in a handler to be tried again, and when. Any other StandardError is tried again by the step's own rules.
  class RetryableError < Error
    # @return [Numeric, nil] seconds; nil: the step's own backoff
    attr_reader :retry_after

    # @param message [String]
    # @param retry_after [Numeric, nil] seconds until the next attempt
    def initialize(message = nil, retry_after: nil)
      super(message)
      @retry_after = retry_after
    end
  end
end
