# frozen_string_literal: true

module TaskerCore
  # Events for ActiveSupport::Notifications, where it is loaded:
  #
  # - +step.tasker_core+: a handler ran. Payload: +:step+ ({Step}); +:exception+ and +:exception_object+ where it raised.
  # - +bulk.tasker_core+: a {BulkHandler} ran. Payload: +:steps+ (Array<{Step}>); +:exception+ and +:exception_object+ where it raised.
  # - +enqueue.tasker_core+: tasks were created. Payload: +:workflow+ (its name), +:count+; +:tasks+ (Array<{Task}>) unless it raised.
  #
  # @example
  #   ActiveSupport::Notifications.subscribe("step.tasker_core") do |event|
  #     StatsD.timing("step.#{event.payload[:step].name}", event.duration)
  #   end
  module Instrumentation
    # @api private
    def self.instrument(event, payload, &block)
      return yield(payload) unless defined?(ActiveSupport::Notifications)

      ActiveSupport::Notifications.instrument("#{event}.tasker_core", payload, &block)
    end
  end
end
