# frozen_string_literal: true

require "json"
require_relative "step"
require_relative "worker/executor"
require_relative "worker/handlers"
require_relative "worker/log_pump"
require_relative "worker/slot"

module TaskerCore
  # Runs the steps of some namespaces on Ruby threads. Leasing, prefetching, heartbeats and batched reports are the native core's and
  # need no Ruby thread.
  #
  # @example
  #   TaskerCore::Worker.new(namespaces: ["fulfillment"], threads: 8).run
  class Worker
    # How long a handler that was told to stop, because its time is over, may take to do so before its thread is replaced, in seconds.
    STOP_GRACE = 5

    NO_NAMESPACE = "no namespace: give --namespace, set NAMESPACE or QUEUE_NAME, or worker: namespaces: in tasker.yml"
    private_constant :NO_NAMESPACE

    class << self
      # @return [Worker, nil] the worker that runs in this process
      attr_accessor :current
    end

    # What is not given here is what the environment (+TASKER__WORKER__THREADS+), or tasker.yml says (+worker:+).
    # @param namespaces [Array<String>, nil] whose steps to run; at least one
    # @param threads [Integer, nil] how many handlers run at once; 8 where nothing else is said
    # @param grace [Numeric, nil] how many seconds running handlers get at shutdown; 25 where nothing else is said
    # @param lease [Numeric, nil] after how many seconds the steps of a worker that was killed run elsewhere; 30 where nothing else is said
    # @param listen [String, nil] address and port where to answer GET /health, /ready and /health/detailed, such as "0.0.0.0:8471"
    # @param orchestrate [Boolean, nil] whether to run an {Orchestrator}, too, so that no other process is needed
    # @param client [Client]
    def initialize(namespaces: nil, threads: nil, grace: nil, lease: nil, listen: nil, orchestrate: nil, client: TaskerCore.client)
      options = { namespaces: namespaces && Array(namespaces).map(&:to_s), threads: threads, grace: grace, lease: lease, listen: listen,
                  orchestrate: orchestrate }
      @options = options.compact
      @pid = Process.pid
      @client = client
      @slots = []
      @events = Queue.new
      @stopping = false
    end

    # Registers the workflows of this process and begins to run steps.
    # @return [self]
    # @raise [TemplateError] also when a workflow wants a handler of this worker's namespaces that does not exist
    # @raise [ConfigurationError, DatabaseError]
    def start
      settings = [{ worker: @options }, TaskerCore.configuration.file]
      own = JSON.parse(Native.worker_settings(*settings))
      namespaces, @grace, orchestrate, shard = own.values_at("namespaces", "grace", "orchestrate", "shard")
      raise ConfigurationError, NO_NAMESPACE if namespaces.empty?

      handlers = register_templates(namespaces)
      Native.init_logging
      logger = TaskerCore.configuration.logger
      @log_pump = LogPump.new(logger) unless logger.is_a?(NativeLogger)
      @orchestrator = Orchestrator.new(client: @client, shard: shard).start if orchestrate
      @native = Native::Worker.start(@client.native, *settings)
      @executor = Executor.new(@native, TaskerCore.configuration)
      handlers.each { |name, handler| @executor.gather(name, handler) }
      @slots = Array.new(@native.concurrency) { Slot.new(@native, @executor) }
      @supervisor = Thread.new { supervise }
      self.class.current = self
      self
    ensure
      @log_pump&.stop unless @supervisor
      @orchestrator&.stop unless @supervisor
    end

    # Starts, and runs until TERM or INT; a second signal stops at once.
    # @return [Integer] the exit code: 0, or 130 after a second signal
    # @raise [Error] when it cannot go on, since a part of it fails again and again
    def run
      previous = %w[TERM INT].to_h { |name| [name, trap(name) { @events << :signal }] }
      start
      ended = @events.pop
      Thread.new { stop && (@events << :stopped) }
      if @events.pop == :stopped
        raise Error, ended unless ended == :signal

        return 0
      end
      Thread.new { stop(grace: 0) && (@events << :stopped) }
      @events.pop
      130
    ensure
      previous&.each { |name, handler| trap(name, handler || "DEFAULT") }
    end

    # Takes no more steps, hands back at once what was not begun, lets handlers finish within the grace, and hands back the rest.
    # @param grace [Numeric, String] seconds, or "5m"
    # @return [self]
    def stop(grace: @grace)
      grace = Span.seconds(grace, "grace")
      @stopping = true
      @supervisor.kill
      @native.shutdown(grace)
      @slots.each(&:kill)
      @orchestrator&.stop
      @log_pump&.stop
      self.class.current = nil if self.class.current.equal?(self)
      self
    end

    # @return [Hash{Symbol => Object}] see {TaskerCore.health}
    def health
      health = JSON.parse(@native.health, symbolize_names: true)
      failed = health[:failed]
      failed << "the supervisor of the handlers is dead" unless @supervisor.alive?
      failed << "a handler's thread is dead" unless @slots.all?(&:alive?)
      failed << "a handler's thread is stuck" if @slots.any? { |slot| slot.overdue?(2 * STOP_GRACE) }
      health.merge(healthy: failed.empty?)
    end

    # @return [Boolean] whether nothing has failed
    def healthy? = health.fetch(:healthy)

    # @return [Boolean] whether it takes no more steps, and those that run should come to an end
    def stopping? = @stopping

    # @return [Boolean] false in a child that was forked from the worker's process
    # @api private
    def own? = @pid == Process.pid

    private

    # @return [Hash{String => Class}] their handlers
    def register_templates(namespaces)
      sources = Workflow.sources(TaskerCore.configuration.templates)
      Handlers.check(sources, namespaces).tap { sources.each { |source| @client.register_source(*source) } }
    end

    # Replaces what a handler took down, or holds on to after its time; and there are as many as the settings say now.
    def supervise
      loop do
        why = @native.beat and return @events << why
        answer_for_handlers
        resize(@native.concurrency)
        @slots.each_with_index do |slot, index|
          next if slot.alive? && !slot.overdue?(STOP_GRACE)

          # The replacement first: once the step is reported, nothing may be missing.
          @slots[index] = Slot.new(@native, @executor)
          slot.abandon
        end
        sleep(0.5)
      end
    end

    # Steps are held back that no worker is known to have a handler for.
    def answer_for_handlers
      asked = @native.asked
      @native.answer(@executor.handlers_among(asked)) if asked.any?
    rescue StandardError => e
      TaskerCore.configuration.logger.error("could not look for handlers: #{e.class}: #{e.message}")
    end

    def resize(count)
      @slots << Slot.new(@native, @executor) while @slots.size < count
      @slots.pop.retire while @slots.size > count
    end
  end
end
