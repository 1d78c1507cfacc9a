# frozen_string_literal: true

require "set"
require "timeout"

module TaskerCore
  class Worker
    # Runs one step: finds its handler, bounds its time, and reports what became of it. Whatever the handler does hurts only its step, and
    # nothing that an error does while it is recorded hurts anything.
    # @api private
    class Executor
      # rubocop:disable Lint/RescueException
      # What a stored backtrace is cut to.
      BACKTRACE_LINES = 20
      # What it leaves out.
      OWN_LINES = %r{/lib/tasker_core/|/timeout\.rb:}

      def initialize(native, configuration)
        @native = native
        @logger = configuration.logger
        @around = configuration.around_step || ->(&block) { block.call }
        @transaction = configuration.transaction
        @strict = configuration.strict_results
        @told = Set.new
      end

      # @param native_step [Native::Step]
      def call(native_step)
        step = Step.new(native_step, @native, @logger)
        report = nil
        begin
          around.call { report = attempt(native_step, step) }
        rescue Exception => e
          report = -> { fail(native_step, step, e) }
        ensure
          # None: the handler ended this thread.
          report ||= -> { fail(native_step, step, RetryableError.new("the handler ended its thread")) }
          surely(native_step, step, &report)
        end
      end

      # Reports that a handler did not stop when its time was over.
      def overdue(native_step) = fail(native_step, Step.new(native_step, @native, @logger), StepTimeout.new(timeout_message(native_step)))

      # @param names [Array<String>]
      # @return [Array<String>] those of them that are handlers of this process
      def handlers_among(names) = around.call { names.uniq.select { |name| Handlers.known?(name) } }

      private

      attr_reader :around

      # @return [Proc] what reports how it ended
      def attempt(native_step, step)
        begin
          handler = Handlers.find(native_step.handler)
        rescue UnknownHandler
          return -> { @native.decline(native_step) }
        end
        result = limited(native_step) { observed(step) { run(handler.new, native_step, step) } }
        return -> { @native.fail(native_step, result.report) } if result.is_a?(Suspension)

        native_step.transactional? ? -> { @native.forget(native_step) } : -> { complete(native_step, step, result) }
      end

      def run(handler, native_step, step)
        return suspendable { handler.call(step) } unless native_step.transactional?
        raise PermanentError, "a transactional step needs config.transaction, which is not set" unless @transaction

        @transaction.call do |connection|
          result = handler.call(step)
          sql, arguments, left_out = storable { @native.completion(native_step, result, @strict) }
          tell_left_out(step, left_out)
          if connection.exec_params(sql, arguments).ntuples.zero?
            raise LeaseLost, "step #{step.name} of task #{step.task_id} is no longer this worker's: its transaction was rolled back"
          end
        end
      end

      # To end early is no error of the handler's, to whoever observes it.
      def suspendable
        yield
      rescue Suspension => e
        e
      end

      def observed(step, &block) = Tracing.during(step) { Instrumentation.instrument("step", { step: step }, &block) }

      def limited(native_step, &block)
        seconds = native_step.timeout
        seconds ? Timeout.timeout(seconds, StepTimeout, timeout_message(native_step), &block) : block.call
      end

      def complete(native_step, step, result)
        tell_left_out(step, storable { @native.complete(native_step, result, @strict) })
      end

      # Whatever happens while a step is reported, it is.
      def surely(native_step, step)
        yield
      rescue Exception => e
        begin
          fail(native_step, step, e)
        rescue Exception
          @native.fail_barely(native_step)
        end
      end

      # Once for each step and class.
      def tell_left_out(step, left_out)
        return if left_out.empty? || !@told.add?([step.workflow, step.name, left_out.map { |place| place[/[^ ]+\z/] }.uniq])

        step.logger.warn("the result of step #{step.name} of #{step.workflow} is stored with null for what JSON cannot hold: " \
                         "#{left_out.first(5).join(', ')} (return what later steps need, or nil; strict_results makes this an error)")
      end

      # Another attempt would return the same.
      def storable
        yield
      rescue InvalidInput => e
        raise PermanentError, "the result cannot be stored: #{e.message}"
      end

      def fail(native_step, step, error)
        failure = failure(error)
        @native.fail(native_step, failure) and
          step.logger.failed("#{failure[:class]}: #{failure[:message]}", on_purpose: failure[:on_purpose])
      end

      # Each part by itself: an error may fail in saying any of them.
      def failure(error)
        {
          class: described("Exception") { text(class_name(told(error))) },
          message: described(nil) { text(told(error).message) } || "its message cannot be read",
          backtrace: described([]) { backtrace(told(error)) },
          permanent: [PermanentError, DiscardError].any? { |kind| kind === error }, # rubocop:disable Style/CaseEquality
          on_purpose: Snooze === error || (RetryableError === error && !error.respond_to?(:original)), # rubocop:disable Style/CaseEquality
          retry_after: described(nil) { retry_after(error) },
          reason: described(nil) { reason(error) }
        }
      end

      def described(otherwise)
        yield
      rescue Exception
        otherwise
      end

      def retry_after(error)
        case error
        when RetryableError then Span.read(error.retry_after)
        when Snooze then error.time
        end
      end

      # What a step is said to have failed with, where that is not what it was raised with.
      def told(error) = error.respond_to?(:original) && error.is_a?(Error) ? error.original : error

      # Of a class without a name that of the nearest one above it that has one.
      def class_name(error)
        name = Module.instance_method(:name)
        classes = Kernel.instance_method(:class).bind_call(error).ancestors.grep(Class)
        classes.filter_map { |above| name.bind_call(above) }.first
      end

      def backtrace(error)
        lines = Array(error.backtrace).map { |line| text(line) }
        lines.grep_v(OWN_LINES).first(BACKTRACE_LINES)
      end

      # A dead letter's reason, where it is none of those that the engine gives.
      def reason(error)
        case error
        when StepTimeout then "timeout"
        when DiscardError then "discarded"
        when Snooze then "snoozed"
        else "payload_too_large" if error.cause.is_a?(PayloadTooLarge)
        end
      end

      def timeout_message(native_step) = "the handler ran longer than #{native_step.timeout} s"

      # In UTF-8, whatever it was in: an encoding that Ruby cannot convert is read as bytes.
      def text(string)
        string = string.to_s
        string.encode("UTF-8", invalid: :replace, undef: :replace).scrub.delete("\0")
      rescue EncodingError
        string.b.encode("UTF-8", invalid: :replace, undef: :replace).delete("\0")
      end
      # rubocop:enable Lint/RescueException
    end
  end
end
