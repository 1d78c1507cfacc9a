# frozen_string_literal: true

module TaskerCore
  # Lengths of time, as templates and settings have them.
  # @api private
  module Span
    class << self
      # @param value [Numeric, String, ActiveSupport::Duration, nil]
      # @param name [String] of the argument
      # @return [Float, nil] seconds
      # @raise [InvalidInput]
      def seconds(value, name)
        return if value.nil?

        read(value) or raise InvalidInput, "#{name} is #{value.inspect}: expected seconds, or a length of time such as \"5m\" or \"1h 30m\""
      end

      # @return [Float, nil] nil: it is none
      def read(value)
        seconds = number(value)
        seconds if seconds && seconds.finite? && seconds >= 0 # rubocop:disable Style/SafeNavigation
      rescue RangeError, NoMethodError # a Complex
        nil
      end

      private

      def number(value)
        return Native.seconds(value) if value.is_a?(String)

        value.to_f if value.is_a?(Numeric) || value.respond_to?(:in_seconds)
      end
    end
  end
end
