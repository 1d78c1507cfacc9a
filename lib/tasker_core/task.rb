# frozen_string_literal: true

require "json"

module TaskerCore
  # One run of a workflow. Every reader but {#id} asks the database; {#reload} asks once for all.
  class Task
    # The states in which a task stays for good.
    ENDED = %w[complete failed cancelled discarded].freeze

    # A step of a task, as an operator sees it: its +name+ (Symbol) and +state+ (pending, enqueued, in_progress, waiting_retry, complete,
    # dead, cancelling, cancelled, discarded or skipped); +attempt+ (0 before the first one), +max_attempts+; +worker+, the name of who has
    # or had it; +progress+, what the handler last said with {Step#heartbeat}; +result+ (nil where those of the task are more than a
    # mebibyte: {#results} reads it); +errors+ of the attempts that failed, each with class, message, backtrace, attempt and at;
    # +waits_for+, what else than its turn it waits for; +children+, of an +each+ or +workflow+, how many tasks it has (total, created,
    # ended, dead, tolerated); +skipped_because+, where its condition was not true, or nothing before it ran; and
    # +after_cancel+, what became of a handler that ran when the task was cancelled (complete, failed or unknown; its result or error is
    # kept); and +undoes+, the name of the step that it undoes.
    StepState = Struct.new(:name, :state, :attempt, :max_attempts, :worker, :progress, :result, :errors, :waits_for, :skipped_because,
                           :after_cancel, :children, :undoes, keyword_init: true)

    # @return [String] a UUID, version 7
    attr_reader :id

    # @api private
    def initialize(client, id, created: false)
      @client = client
      @id = id
      @created = created
    end

    # @api private
    def inspect = "#<#{self.class} #{@id}>"

    # @return [Boolean] false when the idempotency key was known, and this is the earlier task
    def created? = @created

    # @return [String] pending, running, waiting, blocked, complete, failed, cancelling, cancelled, discarded, paused or undoing
    def status = read[:state]

    # @return [Hash{Symbol => Object}]
    def input = read[:input]

    # @return [Array<StepState>] in the workflow's order
    def steps
      read[:steps].map { |step| StepState.new(**step.slice(*StepState.members), name: step[:name].to_sym) }
    end

    # @return [Hash{Symbol => Object}, Results] the results of the steps that are complete, by their names; where they are large, each is
    #   read when it is asked for. That of an +each+ is {Children}.
    def results
      complete = read[:steps].select { |step| step[:state] == "complete" }.to_h { |step| [step[:name].to_sym, step] }
      see = ->(name, result) { complete[name][:kind] == "each" && result ? children(name) : result }
      return complete.to_h { |name, step| [name, see.call(name, step[:result])] } if complete.values.none? { |step| left_out?(step) }

      Results.new(complete.keys, see) { |wanted| @client.native.read_results(@id, wanted) }
    end

    # @return [Hash{Symbol => String}] by which it can be found
    def tags = read[:tags]

    # @return [Hash{Symbol => Object}] what its handlers have said so far ({Step#publish}), by name
    def values = JSON.parse(@client.native.read_values(@id), symbolize_names: true, max_nesting: false)

    # The tasks that are the work of a step, whatever has become of them so far.
    # @param step [Symbol] the name of an +each+ or +workflow+
    # @return [Children]
    # @raise [NotFound] when the task has no such step, or nothing has begun there
    def children(step)
      found = read[:steps].find { |candidate| candidate[:name] == step.to_s }
      raise NotFound, "step #{step} of task #{@id} has no tasks" unless found&.fetch(:children, nil)

      Children.new(found[:children][:created]) { |after, dead| @client.native.read_children(@id, step.to_s, after, dead) }
    end

    # Waits until the task has ended or is blocked.
    # @param timeout [Numeric, String, nil] seconds, or "5m"; nil waits for ever
    # @return [String] the status, whatever it is when the time is over
    # @raise [InvalidInput]
    def wait(timeout: nil) = @client.native.wait(@id, Span.seconds(timeout, "timeout"))

    # Sends it a signal.
    # @param name [String, Symbol] what a step waits for
    # @param payload [Object, nil] what JSON can hold: that step's result
    # @param id [String, nil] the sender's own id of it: the same counts once
    # @return [Symbol] see {TaskerCore.signal}
    # @raise (see TaskerCore.signal)
    def signal(name, payload = nil, id: nil) = @client.signal(self, name, payload, id: id)

    # Cancels the task unless it has ended. Running handlers learn of it at their next heartbeat; until they have ended, it is cancelling.
    # @param undo [Boolean] whether what it did is undone then, by the handlers that its workflow names ({Workflow.step}); also if it has
    #   ended, but for a child, whose effect is undone with its parent's. Until it is, the task is undoing.
    # @return [Boolean] whether this call cancelled it
    def cancel(undo: false) = @client.native.cancel(@id, undo)

    # Runs it again as another task, once it has ended or is blocked: of the same version, with its input, priority and tags, without its
    # key.
    # @param from [Symbol, nil] the first step that is done again: what was complete beside it, and before it, is taken over with its
    #   results; nil: all is done again
    # @param input [Hash, nil] in place of its input; checked against its workflow's input_schema
    # @return [Task] which says of what it is a fork (+to_h[:forked_from]+), as this one says which forks it has (+to_h[:forks]+)
    # @raise [InvalidInput] when it has not ended, what it did was undone, or the input is not acceptable
    # @raise [NotFound] when it has no such step
    def fork(from: nil, input: nil) = Task.new(@client, @client.native.fork(@id, from&.to_s, input && Native.to_json(input)))

    # Lets nothing new begin of it, nor of the tasks that are its steps; what runs ends.
    # @param who [String] a person's name, or a program's
    # @param why [String, nil]
    # @return [Boolean] false where it was paused already
    # @see Pauses
    def pause(who:, why: nil) = Pauses.pause(task: self, who: who, why: why)

    # Lets it go on.
    # @return [Boolean] false where it was not paused
    def resume = Pauses.resume(task: self)

    # @return [self]
    # @raise [NotFound]
    def reload
      read
      self
    end

    # @return [Hash] everything that is known of the task
    def to_h = read

    private

    # It has a result, which was too much to come along.
    def left_out?(step) = step[:result].nil? && step[:result_bytes].to_i > 4

    def read = JSON.parse(@client.native.read_task(@id), symbolize_names: true, max_nesting: false)
  end
end
