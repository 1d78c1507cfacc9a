# frozen_string_literal: true

require "date"
require "set"
require "time"

module TaskerCore
  # What is not JSON's own, but has a natural form there: the one that Rails gives it, the same with and without ActiveSupport. The core
  # asks here for what it does not know, and converts what it gets by the same rules.
  # @api private
  module Conversion
    # It has none.
    NONE = Object.new.freeze
    # What may not be loaded, by name, and how it is converted.
    RARE = {
      "ActiveSupport::TimeWithZone" => ->(value) { time(value) },
      "ActiveSupport::Duration" => ->(value) { seconds(value) },
      "ActiveSupport::TimeZone" => ->(value) { value.name },
      "BigDecimal" => ->(value) { value.finite? ? value.to_s("F") : NONE },
      "Data" => ->(value) { value.to_h },
      "ActionController::Parameters" => ->(value) { value.to_h },
      **%w[Rational Complex Range Regexp Pathname URI::Generic IPAddr Module].to_h { |name| [name, ->(value) { value.to_s }] }
    }.freeze

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

      def rare(value)
        _, convert = RARE.find { |name, _| instance?(value, name) }
        convert ? instance_exec(value, &convert) : NONE
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
end
