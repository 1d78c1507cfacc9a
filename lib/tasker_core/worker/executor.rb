# frozen_string_literal: true

require "timeout"

module TaskerCore
  class Worker
    # Runs one step: finds its handler, bounds its time, and reports what became of it. Whatever the handler does hurts only its step.
    # @api private
    class Executor
      # What a stored backtrace is cut to.
      BACKTRACE_LINES = 20
      # What it leaves out.
      OWN_LINES = %r{/lib/tasker_core/|/timeout\.rb:}

      def initialize(native, configuration)
        @native = native
        @logger = configuration.logger
        @around = configuration.around_step || ->(&block) { block.call }
        @transaction = configuration.transaction
      end

      # @param native_step [Native::Step]
      def call(native_step)
        step = Step.new(native_step, @native, @logger)
        report = nil
        begin
          result = around.call { limited(native_step) { observed(step) { run(native_step, step) } } }
          report = native_step.transactional? ? -> { @native.forget(native_step) } : -> { complete(native_step, step, result) }
        rescue Exception => e # rubocop:disable Lint/RescueException
          report = -> { fail(native_step, step, e) }
        ensure
          # None: the handler ended this thread.
          report ||= -> { fail(native_step, step, RetryableError.new("the handler ended its thread")) }
          report.call
        end
      end

      # Reports that a handler did not stop when its time was over.
      def overdue(native_step) = fail(native_step, Step.new(native_step, @native, @logger), StepTimeout.new(timeout_message(native_step)))

      private

      attr_reader :around

      def run(native_step, step)
        handler = Handlers.find(native_step.handler).new
        return handler.call(step) unless native_step.transactional?
        raise PermanentError, "a transactional step needs config.transaction, which is not set" unless @transaction

        @transaction.call do |connection|
          result = handler.call(step)
          sql, arguments = storable { @native.completion(native_step, result) }
          if connection.exec_params(sql, arguments).ntuples.zero?
            raise LeaseLost, "step #{step.name} of task #{step.task_id} is no longer this worker's: its transaction was rolled back"
          end
        end
      end

      def observed(step, &block) = Tracing.during(step) { Instrumentation.instrument("step", { step: step }, &block) }

      def limited(native_step, &block)
        seconds = native_step.timeout
        seconds ? Timeout.timeout(seconds, StepTimeout, timeout_message(native_step), &block) : block.call
      end

      def complete(native_step, step, result)
        storable { @native.complete(native_step, result) }
      rescue PermanentError => e
        fail(native_step, step, e)
      end

      # Another attempt would return the same.
      def storable
        yield
      rescue InvalidInput => e
        raise PermanentError, "the result cannot be stored: #{e.message}"
      end

      def fail(native_step, step, error)
        failure = failure(error)
        @native.fail(native_step, failure) and step.logger.failed("#{failure[:class]}: #{failure[:message]}")
      end

      def failure(error)
        {
          class: error.class.name.to_s,
          message: text(error.message),
          backtrace: (error.backtrace || []).grep_v(OWN_LINES).first(BACKTRACE_LINES).map { |line| text(line) },
          permanent: error.is_a?(PermanentError),
          retry_after: error.is_a?(RetryableError) ? error.retry_after&.to_f : nil,
          reason: reason(error)
        }
      end

      # A dead letter's reason, where it is none of those that the engine gives.
      def reason(error)
        case error
        when StepTimeout then "timeout"
        when UnknownHandler then "unknown_handler"
        else "payload_too_large" if error.cause.is_a?(PayloadTooLarge)
        end
      end

      def timeout_message(native_step) = "the handler ran longer than #{native_step.timeout} s"

      def text(string) = string.to_s.encode("UTF-8", invalid: :replace, undef: :replace).scrub
    end
  end
end
