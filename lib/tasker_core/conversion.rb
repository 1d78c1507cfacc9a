# frozen_string_literal: true

require "date"
require "set"
require "time"

module TaskerCore
  # What is not JSON's own, but has a natural form there: the one that Rails gives it, the same with and without ActiveSupport. The core asks here for
  # what it does not know, and converts what it gets by the same rules.
  # @api private
  module Conversion
    # It has none.
    NONE = Object.new.freeze
    # What Rails writes as its text.
    AS_TEXT = %w[Rational Complex Range Regexp Pathname URI::Generic IPAddr Module].freeze

    class << self
      # @return [Object] nearer to JSON, or {NONE}
      def natural(value)
        case value
        when DateTime then value.strftime("%Y-%m-%dT%H:%M:%S.%L%:z")
        when Date then value.strftime("%Y-%m-%d")
        when Time then time(value)
        when Set then value.to_a
        when Struct then value.to_h
        else rare(value)
        end
      end

      private

      # The class may not be loaded.
      def rare(value)
        if instance?(value, "ActiveSupport::TimeWithZone") then time(value)
        elsif instance?(value, "ActiveSupport::Duration") then seconds(value)
        elsif instance?(value, "ActiveSupport::TimeZone") then value.name
        elsif instance?(value, "BigDecimal") then value.finite? ? value.to_s("F") : NONE
        elsif instance?(value, "Data") || instance?(value, "ActionController::Parameters") then value.to_h
        elsif AS_TEXT.any? { |name| instance?(value, name) } then value.to_s
        else NONE
        end
      end

      def time(value) = value.strftime("%Y-%m-%dT%H:%M:%S.%L") + (value.utc? ? "Z" : value.strftime("%:z"))

      def seconds(duration)
        float = duration.to_f
        float == float.to_i ? float.to_i : float
      end

      # By the class that it really has: durations say that they are Integers.
      def instance?(value, name)
        return false unless Object.const_defined?(name)

        found = Object.const_get(name)
        found.is_a?(Module) && found === value # rubocop:disable Style/CaseEquality
      end
    end
  end

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
        seconds = if value.is_a?(String) then Native.seconds(value)
                  elsif value.is_a?(Numeric) || value.respond_to?(:in_seconds) then value.to_f
                  end
        seconds if seconds&.finite? && seconds >= 0
      rescue RangeError, NoMethodError # a Complex
        nil
      end
    end
  end
end
