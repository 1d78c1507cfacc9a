# frozen_string_literal: true

require "json"
require "delegate"

module TaskerCore
  # One attempt of one step, as its handler sees it.
  class Step
    # @api private
    def initialize(native, logger)
      @native = native
      @base_logger = logger
    end

    # @return [String] the task's id
    def task_id = @native.task_id

    # @return [Symbol] the step's name in its workflow
    def name = @native.name.to_sym

    # @return [String] the name of the workflow
    def workflow = @native.template

    # @return [String] the version of the workflow that the task began with
    def version = @native.version

    # @return [Integer] 1 for the first run
    def attempt = @native.attempt

    # @return [Integer] counts the first run
    def max_attempts = @native.max_attempts

    # @return [Hash{Symbol => Object}] the task's input
    def context = @context ||= parse(@native.input)

    # @return [Hash{Symbol => Object}] the results of the steps that this one depends on, by their names
    def results = @results ||= parse(@native.results)

    # @return [Hash{Symbol => Object}] the step's +config+ from its workflow
    def config = @config ||= parse(@native.config)

    # Whether the step is no longer this worker's: cancelled, or running elsewhere. Its result will be refused.
    # @return [Boolean]
    def lost? = @native.lost?

    # For long handlers, between two pieces of work. The lease is renewed without it; this stops a handler whose lease is gone.
    # @return [void]
    # @raise [LeaseLost]
    def heartbeat
      raise LeaseLost, "step #{name} of task #{task_id} is no longer this worker's" if lost?
    end

    # @return [Logger] writes to the configured logger; every line names the step, its task and the attempt
    def logger = @logger ||= StepLogger.new(@base_logger, "[#{workflow}/#{name} #{task_id} ##{attempt}]")

    private

    def parse(json) = JSON.parse(json, symbolize_names: true, max_nesting: false)

    # A logger that says for which step it speaks.
    class StepLogger < SimpleDelegator
      def initialize(logger, prefix)
        super(logger)
        @prefix = prefix
      end

      %i[debug info warn error fatal unknown].each do |level|
        define_method(level) do |message = nil, &block|
          __getobj__.public_send(level) { "#{@prefix} #{message.nil? && block ? block.call : message}" }
        end
      end
    end
    private_constant :StepLogger
  end
end
