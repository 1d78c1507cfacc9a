# frozen_string_literal: true

module TaskerCore
  # One trace follows a task through all processes (docs/traces.md). What is enqueued joins the trace of whoever enqueues it; what a
  # handler does, and enqueues, joins that of its task. Where OpenTelemetry's gem is loaded, by way of its context. Elsewhere a trace that
  # comes from outside is given to {within}.
  module Tracing
    # What W3C Trace Context propagates.
    KEYS = %w[traceparent tracestate].freeze
    private_constant :KEYS

    class << self
      # @return [Hash{String => String}, nil] the trace that this thread is in: +traceparent+ and perhaps +tracestate+
      def current
        carrier = {}
        OpenTelemetry.propagation.inject(carrier) if open_telemetry?
        carrier = carrier.slice(*KEYS)
        return carrier unless carrier.empty?

        carried = Thread.current[:tasker_core_trace]
        carried.is_a?(Step) ? carried.trace : carried
      end

      # Calls the block in that trace.
      # @param carrier [Hash{String => String, nil}, nil] as {current} returns it; nil: in no trace
      # @return [Object] what the block returns
      # @example In a Rack application
      #   TaskerCore::Tracing.within("traceparent" => env["HTTP_TRACEPARENT"]) { TaskerCore.enqueue(OrderFulfillment, { order_id: 42 }) }
      def within(carrier, &block)
        carrying(carrier&.slice(*KEYS)&.compact) do
          next yield unless carrier && open_telemetry?

          OpenTelemetry::Context.with_current(OpenTelemetry.propagation.extract(carrier), &block)
        end
      end

      # Calls the block, a step's handler, in the step's trace: which is written down only for who asks for it.
      # @api private
      def during(step, &block) = open_telemetry? ? within(step.trace, &block) : carrying(step, &block)

      private

      def carrying(trace)
        before = Thread.current[:tasker_core_trace]
        Thread.current[:tasker_core_trace] = trace
        yield
      ensure
        Thread.current[:tasker_core_trace] = before
      end

      def open_telemetry? = defined?(OpenTelemetry::Context) && OpenTelemetry.respond_to?(:propagation)
    end
  end
end
