# frozen_string_literal: true

require "set"
require "timeout"

module TaskerCore
  class Worker
    # Runs one step, or those of one call of a bulk handler: finds their handler, bounds its time, and reports what became of each. Whatever
    # the handler does hurts only its steps, and nothing that an error does while it is recorded hurts anything.
    # @api private
    class Executor
      # rubocop:disable Lint/RescueException
      # What a stored backtrace is cut to.
      BACKTRACE_LINES = 20
      # What it leaves out.
      OWN_LINES = %r{/lib/tasker_core/|/timeout\.rb:}

      # @param native_steps [Array<Native::Step>] those of one call
      # @return [Float, nil] how long it may take, in seconds
      def self.timeout(native_steps) = native_steps.filter_map(&:timeout).min

      def initialize(native, configuration)
        @native = native
        @logger = configuration.logger
        @around = configuration.around_step || ->(&block) { block.call }
        @transaction = configuration.transaction
        @strict = configuration.strict_results
        @told = Set.new
        @gathered = {}
      end

      # @param native_steps [Array<Native::Step>] one, or those of one call
      def call(native_steps)
        calls = native_steps.one? || bulk?(native_steps) ? [native_steps] : native_steps.map { |alone| [alone] }
        calls.each { |together| call_handler(together) }
      end

      # Reports that a handler did not stop when its time was over.
      def overdue(native_steps)
        failing(native_steps, steps(native_steps), StepTimeout.new(timeout_message(native_steps))).each(&:call)
      end

      # Has a bulk handler's steps come together.
      # @param name [String]
      # @param handler [Class]
      def gather(name, handler)
        return unless handler <= BulkHandler

        rule = [handler.batch_size, handler.within]
        @native.gather(name, *rule) unless @gathered[name] == rule
        @gathered[name] = rule
      end

      # @param names [Array<String>]
      # @return [Array<String>] those of them that are handlers of this process
      def handlers_among(names) = around.call { names.uniq.select { |name| Handlers.known?(name) } }

      private

      attr_reader :around

      def call_handler(native_steps)
        steps = steps(native_steps)
        reports = nil
        begin
          around.call { reports = attempt(native_steps, steps) }
        rescue Exception => e
          reports = failing(native_steps, steps, e)
        ensure
          # None: the handler ended this thread.
          reports ||= failing(native_steps, steps, RetryableError.new("the handler ended its thread"))
          native_steps.zip(steps, reports) { |native_step, step, report| surely(native_step, step, &report) }
        end
      end

      def steps(native_steps) = native_steps.map { |native_step| Step.new(native_step, @native, @logger) }

      # Where code was loaded anew, it may be none any more.
      def bulk?(native_steps)
        around.call { Handlers.find(native_steps.first.handler) <= BulkHandler }
      rescue StandardError, ScriptError
        false
      end

      def failing(native_steps, steps, error)
        native_steps.zip(steps).map { |native_step, step| -> { fail(native_step, step, error) } }
      end

      # @return [Array<Proc>] what reports how each ended
      def attempt(native_steps, steps)
        begin
          handler = Handlers.find(native_steps.first.handler)
        rescue UnknownHandler
          return native_steps.map { |native_step| -> { @native.decline(native_step) } }
        end
        return attempt_all(handler, native_steps, steps) if handler <= BulkHandler

        [attempt_one(handler, native_steps.first, steps.first)]
      end

      def attempt_one(handler, native_step, step)
        result = limited([native_step]) { observed(step) { run(handler.new, native_step, step) } }
        return -> { @native.fail(native_step, result.report) } if result.is_a?(Suspension)

        native_step.transactional? ? -> { @native.forget(native_step) } : -> { complete(native_step, step, result) }
      end

      def attempt_all(handler, native_steps, steps)
        gather(native_steps.first.handler, handler)
        raise PermanentError, Handlers::NO_BULK_TRANSACTION if native_steps.any?(&:transactional?)

        steps.each(&:share_call!)
        outcomes = limited(native_steps) { Instrumentation.instrument("bulk", { steps: steps }) { handler.new.call(steps) } }
        unless outcomes.is_a?(Array) && outcomes.size == steps.size
          raise Error, "#{handler.name}#call must return an array with one outcome for each of its #{steps.size} steps, in their order"
        end

        native_steps.zip(steps, outcomes).map do |native_step, step, outcome|
          -> { outcome.is_a?(Exception) ? fail(native_step, step, outcome) : complete(native_step, step, outcome) }
        end
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

      def limited(native_steps, &block)
        seconds = Executor.timeout(native_steps)
        seconds ? Timeout.timeout(seconds, StepTimeout, timeout_message(native_steps), &block) : block.call
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

      def timeout_message(native_steps) = "the handler ran longer than #{Executor.timeout(native_steps)} s"

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
