# frozen_string_literal: true

require "json"

module TaskerCore
  # An orchestrator inside this process, on native threads alone: what +tasker serve+ runs in a process of its own. Any number run side by
  # side, all equal.
  #
  # @example
  #   orchestrator = TaskerCore::Orchestrator.new.start
  #   at_exit { orchestrator.stop }
  class Orchestrator
    class << self
      # @return [Orchestrator, nil] the one that runs in this process
      attr_accessor :current
    end

    # What is not given here is what the environment or tasker.yml says (+orchestrator:+).
    # @param namespaces [Array<String>] whose tasks to admit; none: all
    # @param listen [String, nil] address and port where to answer GET /health, /ready, /health/detailed and /metrics
    # @param shard [String, nil] of tasker.yml, with which it works; without it, the one of its namespaces
    # @param client [Client]
    def initialize(namespaces: [], listen: nil, shard: nil, client: TaskerCore.client)
      @options = { namespaces: Array(namespaces).map(&:to_s), listen: listen }.reject { |_, value| value.nil? || value.empty? }
      @shard = shard
      @client = client
      @pid = Process.pid
    end

    # @return [self]
    # @raise [ConfigurationError, DatabaseError]
    def start
      Native.init_logging
      @native = Native::Orchestrator.start(@client.native, { orchestrator: @options, shard: @shard }.compact, TaskerCore.configuration.file)
      self.class.current = self
    end

    # Finishes what is under way, and leaves the others.
    # @return [self]
    def stop
      @native.shutdown
      self.class.current = nil if self.class.current.equal?(self)
      self
    end

    # @return [Hash{Symbol => Object}] see {TaskerCore.health}
    def health = JSON.parse(@native.health, symbolize_names: true)

    # @return [Boolean] false in a child that was forked from its process
    # @api private
    def own? = @pid == Process.pid
  end
end
