# frozen_string_literal: true

require "json"
require "delegate"

module TaskerCore
  # One attempt of one step, as its handler sees it.
  class Step
    # @api private
    def initialize(native, worker, logger)
      @native = native
      @worker = worker
      @base_logger = logger
    end

    # Its handler may have others in the same call.
    # @api private
    def share_call! = @shares_call = true

    # @return [String] the task's id
    def task_id = @native.task_id

    # @return [Symbol] the step's name in its workflow
    def name = @native.name.to_sym

    # @return [String] the name of its handler
    def handler = @native.handler

    # @return [String] the name of the workflow
    def workflow = @native.template

    # @return [String] the namespace whose workers run the step
    def namespace = @native.namespace

    # @return [String] the version of the workflow that the task began with
    def version = @native.version

    # @return [Integer] 1 for the first run
    def attempt = @native.attempt

    # @return [Integer] counts the first run
    def max_attempts = @native.max_attempts

    # @return [Hash{Symbol => Object}] the task's input
    def context = @context ||= parse(@native.input)

    # @return [Hash{Symbol => Object}, Results] the results of the steps that this one depends on, by their names; where they are large,
    #   each is read when it is asked for. That of an +each+ is {Children}.
    def results
      @results ||= begin
        along = @native.results
        along ? parse(along).to_h { |name, result| [name, seen(name, result)] } : large_results
      end
    end

    # @return [Hash{Symbol => Object}] the step's +config+ from its workflow
    def config = @config ||= parse(@native.config)

    # Where what the handler does belongs in the task's trace, to be handed on to whom it calls. What it enqueues, and what
    # OpenTelemetry's gem records, is there by itself.
    # @return [Hash{String => String}, nil] +traceparent+ and perhaps +tracestate+; nil: the task is part of no trace
    def trace = @native.trace

    # Whether the handler should stop: the step's task was cancelled, or it runs elsewhere. What it returns does not count any more; after a
    # cancellation it is kept as the step's last word (+after_cancel+ in {Task#steps}).
    # @return [Boolean]
    def lost? = @native.lost?
    alias cancelled? lost?

    # For long handlers, between two pieces of work. The lease is renewed without it; this stops a handler whose lease is gone.
    # @param progress [Object, nil] how far it is, as JSON can hold it: recorded with the worker's next heartbeat, seen in {Task#steps}
    # @return [void]
    # @raise [LeaseLost]
    def heartbeat(progress = nil)
      raise LeaseLost, "step #{name} of task #{task_id} is no longer this worker's, or was cancelled" if lost?

      @worker.progress(@native, progress) unless progress.nil?
    end

    # Without an argument: what an earlier attempt of this step recorded, or nil. With one: records it, before it returns, so that the next
    # attempt can resume from it, should this one fail.
    # @example
    #   (step.checkpoint || 0).upto(pages) do |page|
    #     import(page)
    #     step.checkpoint(page + 1)
    #   end
    # @param value [Object] what JSON can hold
    # @return [Object, nil]
    # @raise [LeaseLost]
    def checkpoint(value = (reading = true))
      return @checkpoint ||= @native.checkpoint&.then { |json| parse(json) } if reading

      @worker.checkpoint(@native, value)
      @checkpoint = value
    end

    # Runs its block once for this step: what it returned is remembered, and any later attempt, and any later call with this name, has that.
    # The steps of a durable handler stand in such blocks, so that it can sleep, wait or fail between them and run again from its top.
    # @example
    #   class Subscribe < TaskerCore::StepHandler
    #     def call(step)
    #       charge = step.once(:charge) { Gateway.charge(step.context[:cents]) }
    #       step.sleep("14d")
    #       step.once(:remind) { Mail.remind(charge[:customer]) }
    #     end
    #   end
    # @param name [Symbol, String] unique in the handler, up to 190 characters
    # @return [Object] what the block returned, as JSON has it
    # @raise [InvalidInput] when JSON cannot hold it
    # @raise [LeaseLost]
    def once(name, &block)
      name = durable("once/#{name}", "once")
      known = @native.recall(name)
      parse(known ? known.first : @native.remember(name, block.call))
    end

    # Lets time pass, without a worker: the handler ends here, and is called again from its top when the time is over, where this returns.
    # That is no attempt. What it did before belongs in {#once}.
    # @param time [Numeric, String] seconds, or "14d"
    # @return [void]
    # @raise [InvalidInput] for what is no length of time
    # @raise [LeaseLost]
    def sleep(time)
      name = numbered(suspending("sleep", "sleep"))
      known = @native.recall(name)
      left = known ? known.last : @native.begin_sleep(name, Span.seconds(time, "time"))
      raise Suspension.new("sleeps", reason: "snoozed", retry_after: left) if left.positive?
    end

    # Waits for a signal ({TaskerCore.signal}), without a worker: the handler ends here, and is called again from its top when one has come,
    # where this returns its payload; or nil, when its time was over. That is no attempt. What it did before belongs in {#once}.
    # @param signal [Symbol, String] its name
    # @param key [String, nil] by which it may be sent, beside the task
    # @param timeout [Numeric, String, nil] seconds, or "3d"; nil: as long as it takes
    # @return [Object, nil]
    # @raise [InvalidInput] for what is no length of time
    # @raise [LeaseLost]
    def wait_for(signal, key: nil, timeout: nil)
      name = numbered(suspending("wait/#{signal}", "wait_for"))
      known = @native.recall(name)
      return known.first && parse(known.first) if known

      @native.begin_wait(name, signal.to_s, key&.to_s, Span.seconds(timeout, "timeout"))
      raise Suspension.new("waits for #{signal}", reason: "snoozed", retry_after: 0, ending: { waits_for: name })
    end

    # Ends the task early, with success: the step is complete with this result, and all that is left of the task is skipped.
    # @param result [Object, nil] what JSON can hold
    # @return [void] it does not return
    # @raise [InvalidInput] when JSON cannot hold the result
    def finish!(result = nil)
      suspending("finish", "finish!")
      json, = Native.result_to_json(result, true)
      raise Suspension.new("has finished its task", permanent: true, ending: { finished: JSON.parse(json, max_nesting: false) })
    end

    # Sets a value of the task, for whoever reads it while the task runs ({Task#values}), before it returns.
    # @param name [Symbol, String]
    # @param value [Object, nil] what JSON can hold
    # @return [void]
    # @raise [InvalidInput] when JSON cannot hold it
    # @raise [LeaseLost]
    def publish(name, value) = @native.publish(name.to_s, value)

    # @return [Logger] writes to the configured logger; every line names the step, its task and the attempt
    def logger = @logger ||= StepLogger.new(@base_logger, @native)

    private

    # The transaction of a transactional step would take back what was done, and not what is remembered of it.
    def durable(name, what)
      raise Error, "step.#{what} is not for transactional steps: all of these happens once, or not at all" if @native.transactional?

      name
    end

    # What ends the handler would end it for the others, too.
    def suspending(name, what)
      raise Error, "step.#{what} is not for bulk handlers: it would end the call, which is other steps', too" if @shares_call

      durable(name, what)
    end

    # What is done several times has a number, by the order in which it is done.
    def numbered(name)
      @times ||= Hash.new(0)
      "#{name}/#{@times[name] += 1}"
    end

    def large_results = Results.new(@native.names_before.map(&:to_sym), method(:seen)) { |names| @native.read_results(names) }

    def seen(name, result)
      return result unless @native.fan_outs&.include?(name.to_s)

      Children.new(result[:size]) { |after, dead| @native.read_children(name.to_s, after, dead) }
    end

    def parse(json) = JSON.parse(json, symbolize_names: true, max_nesting: false)

    # A logger that says for which step it speaks: in fields, or behind the message as the core's own lines do, where the logger knows none.
    class StepLogger < SimpleDelegator
      def initialize(logger, native)
        super(logger)
        @native = native
      end

      Logger::Severity.constants.each do |name|
        severity = Logger::Severity.const_get(name)
        define_method(name.downcase) { |message = nil, &block| tell(severity, message.nil? && block ? block : -> { message }) }
      end

      # An attempt that failed, or that only wants another one.
      # @api private
      def failed(error, on_purpose: false)
        severity, message = on_purpose ? [Logger::INFO, "a step wants to be tried again"] : [Logger::WARN, "a step failed"]
        logger = __getobj__
        return logger.write(severity, message, step: @native, error: error) if core?(logger)

        tell(severity, -> { message }, error: error)
      end

      private

      def tell(severity, message, **more)
        logger = __getobj__
        return true if severity < logger.level
        return logger.write(severity, message.call, step: @native) if core?(logger)

        logger.add(severity) { "#{message.call} #{fields(more)}" }
      end

      def core?(logger) = logger.is_a?(NativeLogger) && @native.is_a?(Native::Step)

      def fields(more)
        redacted = ENV.fetch("TASKER_LOG_REDACT", "").split(",").map(&:strip)
        fields = { task: @native.task_id, step: @native.name, namespace: @native.namespace, attempt: @native.attempt,
                   worker: @native.worker, trace_id: @native.trace_id, **more }.compact
        fields.map { |name, value| "#{name}=#{redacted.include?(name.to_s) ? '[redacted]' : plain(value.to_s)}" }.join(" ")
      end

      def plain(value) = value.match?(/[ "=\n]/) ? value.to_json : value
    end
    private_constant :StepLogger
  end
end
