# frozen_string_literal: true

module TaskerCore
  # The code of steps that one call does together, such as requests to a service that answers many at once. Steps of any tasks of a
  # namespace come together; each has an outcome of its own.
  #
  # @example
  #   class GeocodeAddress < TaskerCore::BulkHandler
  #     batch 100, within: "200ms"
  #
  #     def call(steps)
  #       places = Geocoder.look_up(steps.map { |step| step.context[:address] })
  #       places.map { |place| place || TaskerCore::PermanentError.new("there is no such address") }
  #     end
  #   end
  class BulkHandler < StepHandler
    class << self
      # How many steps one call has.
      # @param size [Integer] at most, from 1 to 10,000
      # @param within [Numeric, String] how long the first of them waits for others: seconds, or "200ms"; up to a minute
      # @return [void]
      # @raise [InvalidInput]
      def batch(size, within: DEFAULT_WITHIN)
        raise InvalidInput, "batch is #{size.inspect}: expected a whole number from 1 to 10,000" unless SIZES.include?(size)

        seconds = Span.seconds(within, "within")
        raise InvalidInput, "within is #{within.inspect}: expected a minute at most" if seconds.nil? || seconds > 60

        @batch_size = size
        @within = seconds
      end

      # @return [Integer]
      def batch_size = @batch_size || (superclass <= BulkHandler ? superclass.batch_size : DEFAULT_SIZE)

      # @return [Float] seconds
      def within = @within || (superclass <= BulkHandler ? superclass.within : DEFAULT_WITHIN)
    end

    DEFAULT_SIZE = 100
    DEFAULT_WITHIN = 0.1
    SIZES = (1..10_000)
    private_constant :DEFAULT_SIZE, :DEFAULT_WITHIN, :SIZES

    # Does the work. What is said of {StepHandler#call} holds for each step. When it raises, or its time is over, each of them fails so.
    # @param steps [Array<Step>]
    # @return [Array<Object, Exception>] for each step, in their order: its result, or the error that it fails with
    def call(steps)
      raise NotImplementedError, "#{self.class} must define call(steps)"
    end
  end
end
