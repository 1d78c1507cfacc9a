# frozen_string_literal: true

require_relative "tasker_core/errors"
# The native extension. A precompiled gem has one for each Ruby.
abi = RUBY_VERSION[/\d+\.\d+/]
require File.directory?(File.join(__dir__, "tasker_core", abi)) ? "tasker_core/#{abi}/tasker_core" : "tasker_core/tasker_core"
require_relative "tasker_core/native_logger"
require_relative "tasker_core/configuration"
require_relative "tasker_core/conversion"
require_relative "tasker_core/children"
require_relative "tasker_core/results"
require_relative "tasker_core/span"
require_relative "tasker_core/instrumentation"
require_relative "tasker_core/tracing"
require_relative "tasker_core/step_handler"
require_relative "tasker_core/bulk_handler"
require_relative "tasker_core/workflow"
require_relative "tasker_core/signals"
require_relative "tasker_core/client"
require_relative "tasker_core/task"
require_relative "tasker_core/server"
require_relative "tasker_core/dlq"
require_relative "tasker_core/schedules"
require_relative "tasker_core/pauses"
require_relative "tasker_core/bulk"
require_relative "tasker_core/orchestrator"
require_relative "tasker_core/worker"
require_relative "tasker_core/local"
require_relative "tasker_core/web"
require_relative "tasker_core/railtie" if defined?(Rails::Railtie)

# Workflows for Ruby, on nothing but PostgreSQL.
#
# @example Enqueue a task and wait for its end
#   TaskerCore.configure { |config| config.database_url = ENV["DATABASE_URL"] }
#   task = TaskerCore.enqueue(OrderFulfillment, { order_id: 42 }, priority: :high, key: "order-42")
#   task.wait(timeout: 10) # => "complete"
#   task.results[:ship]    # => { tracking: "TR-42" }
module TaskerCore
  # The gem's version, and that of the core inside it.
  VERSION = Native::VERSION

  autoload :Jobs, "tasker_core/active_job"

  @lock = Mutex.new
  @configuration = Configuration.new

  class << self
    # @return [Configuration]
    attr_reader :configuration

    # Changes the settings. The next call uses a new connection pool.
    # @yieldparam config [Configuration]
    # @return [void]
    def configure
      yield configuration
      @lock.synchronize do
        @client = nil
        @configured = true
      end
    end

    # This process's client: connected on first use, and anew in a forked child.
    # @return [Client]
    # @raise [ConfigurationError] when no database is configured
    # @raise [DatabaseError] when the database cannot be reached
    def client
      @lock.synchronize do
        @client = Client.new(configuration) unless @client&.usable?
        @client
      end
    end

    # Creates a task: a run of a workflow. Where a transaction is open on this thread, on a connection to the same database (ActiveRecord's
    # in Rails; see {Configuration#open_transaction}), the task is created inside it: it exists if, and only if, that commits.
    # @param workflow [Class<Workflow>, String] a workflow, or the name ("name" or "namespace/name") of a registered one
    # @param input [Hash] what JSON can hold; checked against the workflow's input_schema
    # @param priority [Symbol, String, nil] :low, :normal, :high, :urgent; nil: the workflow's own
    # @param key [String, nil] idempotency key: the same key of the same workflow is the same task
    # @param run_at [Time, nil] not before then; its deadline and its limits count from there
    # @param wait [Numeric, String, ActiveSupport::Duration, nil] not before so many seconds from now (or "5m"), in place of +run_at+
    # @param version [String, nil] of a workflow given by name; nil: the current one
    # @param tags [Hash, nil] by which it can be found ({.tasks}), such as { customer: 42 }; above those of the workflow ({Workflow.tags})
    # @param unique [Hash, nil] of which other tasks it is the same, in place of what the workflow says ({Workflow.unique})
    # @return [Task] where the key is known, or it is unique: the one that there is ({Task#created?} is false)
    # @raise [InvalidInput] when the input, the key, the priority or the time is not acceptable, or an option is unknown
    # @raise [NotUnique] when there is one that is the same, and the rule says so
    # @raise [NotFound] when there is no such workflow
    def enqueue(workflow, input = {}, priority: nil, key: nil, run_at: nil, wait: nil, version: nil, tags: nil, unique: nil, **unknown)
      refuse_options(unknown, %i[priority key run_at wait version tags unique], "enqueue(#{workflow}, { order_id: 1 }, priority: :high)")
      run_at ||= wait && (Time.now + Span.seconds(wait, "wait"))
      key_of = ->(_) { key } if key
      client.enqueue_all(workflow, [input], priority: priority, key: key_of, run_at: run_at, version: version, tags: tags, unique: unique)
            .first
    end

    # Creates many tasks of one workflow in one transaction: all, or none.
    # @param inputs [Enumerable<Hash>]
    # @param priority [Symbol, String, Proc, nil] for all, or called with each input
    # @param key [Proc, nil] called with each input
    # @param run_at [Time, Proc, nil] for all, or called with each input
    # @param tags [Hash, Proc, nil] for all, or called with each input
    # @param unique [Hash, Proc, nil] for all, or called with each input
    # @return [Array<Task>] in the order of the inputs
    # @raise (see .enqueue)
    def enqueue_all(workflow, inputs, priority: nil, key: nil, run_at: nil, version: nil, tags: nil, unique: nil, **unknown)
      refuse_options(unknown, %i[priority key run_at version tags unique], "enqueue_all(#{workflow}, [{ order_id: 1 }])")
      client.enqueue_all(workflow, inputs, priority: priority, key: key, run_at: run_at, version: version, tags: tags, unique: unique)
    end

    # @param id [String]
    # @return [Task]
    # @raise [NotFound] when there is no such task
    def task(id)
      Task.new(client, id).reload
    end

    # The newest tasks first.
    # @param workflow [Class<Workflow>, String, nil] only of this one; a class, "name" or "namespace/name"
    # @param key [String, nil] only with this idempotency key
    # @param state [String, Symbol, nil] only in this state (see {Task#status})
    # @param error [String, Class, nil] only with a dead step whose last error is of this class
    # @param since [Time, Numeric, String, nil] only those created since then, or so long ago: seconds, or "2h"
    # @param before [Task, String, nil] only those created before this one: the last of the page before
    # @param tags [Hash, nil] only with all of these tags, such as { customer: 42 }
    # @param limit [Integer] at most so many, up to 10,000
    # @return [Array<Task>]
    # @raise [InvalidInput]
    # @see Bulk
    def tasks(workflow = nil, key: nil, state: nil, error: nil, since: nil, before: nil, tags: nil, limit: 100)
      client.tasks(workflow, key: key, state: state, error: error, since: since, before: before, tags: tags, limit: limit)
    end

    # @param tasks [Enumerable<Task, String>] tasks or their ids
    # @return [Hash{String => String}] their statuses by id, in one query; ids that do not exist are left out
    def statuses(tasks) = client.statuses(tasks)

    # Sends a signal: to a task, or by a key to all that wait with that key (see {Workflow.wait}). One that comes before its wait is kept.
    # Where a transaction is open on this thread, on a connection to the same database, it is sent if, and only if, that commits.
    # @example
    #   TaskerCore.signal("order-17", "paid", { amount: 90 }, id: "evt_1") # => :kept
    #   TaskerCore.signal("order-17", "paid", { amount: 90 }, id: "evt_1") # => :duplicate
    # @param addressee [Task, String] a task, or its id; or a key
    # @param name [String, Symbol] what the step waits for
    # @param payload [Object, nil] what JSON can hold: the result of the step that waits
    # @param id [String, nil] the sender's own id of it: for its addressee, the same counts once
    # @param by [Symbol, nil] :key or :task; nil: a UUID is a task's id, any other text a key
    # @param keep [Numeric, String, nil] how long it is kept, in seconds or as "1h"; nil: a week. One to a task is kept as long as that
    #   has not ended.
    # @return [Symbol] :awaited (a step waits for it now), :kept (none does yet), :duplicate (its id is known), :late (the task has ended)
    # @raise [NotFound] when there is no such task
    # @raise [InvalidInput] when the name, the key, the id or the payload is not acceptable, or no step that waits for it would accept it
    def signal(addressee, name, payload = nil, id: nil, by: nil, keep: nil)
      client.signal(addressee, name, payload, id: id, by: by, keep: keep)
    end

    # What waits for a signal, such as a person's approval; those first that have waited longest.
    # @param signal [String, Symbol, nil] only for this one
    # @param assignee [String, nil] only what this person is asked for
    # @param namespace [String, nil] only of tasks of this namespace
    # @param after [Task, String, nil] only behind this task's: that of the last of the page before
    # @param limit [Integer] at most so many, up to 10,000
    # @return [Array<Wait>]
    def waiting(signal: nil, assignee: nil, namespace: nil, after: nil, limit: 100)
      client.waiting(signal: signal, assignee: assignee, namespace: namespace, after: after, limit: limit)
    end

    # Whether it works, for liveness probes (see {.health}). Never raises. As a probe: +exit(TaskerCore.healthy?)+; note that
    # +exit 0 if TaskerCore.healthy?+, as often written, exits with 0 even when it is not.
    # @return [Boolean]
    def healthy? = health.fetch(:healthy)

    # How it is. In a worker or orchestrator, in Rails, and in any process that has configured or used this library, of that process: its
    # loops come round, its memory is under the limit, and the database has not been away for longer than TASKER_DATABASE_GRACE (default
    # +5m+). In any other, such as an exec probe, of the workers that run in the same container, found by their sockets in TASKER_RUN_DIR:
    # that there is one, and that all of them answer in time and are healthy. Never raises.
    # @return [Hash{Symbol => Object}] +:healthy+, +:failed+ (what has failed, in words), and what else is known
    def health
      own = [Orchestrator.current, Worker.current].compact.select(&:own?)
      return takes_part? ? client.health : Local.health if own.empty?

      healths = own.map(&:health)
      failed = healths.flat_map { |health| health[:failed] }
      healths.reduce(:merge).merge(healthy: failed.empty?, failed: failed)
    rescue Error => e
      { healthy: false, failed: [e.message] }
    end

    private

    def refuse_options(unknown, known, example)
      return if unknown.empty?

      named = unknown.keys.map do |name|
        nearest = DidYouMean::SpellChecker.new(dictionary: known).correct(name).first if defined?(DidYouMean::SpellChecker)
        nearest ? "#{name} (did you mean #{nearest}?)" : name
      end
      raise InvalidInput, "unknown option #{named.join(', ')}: the options are #{known.join(', ')}; " \
                          "the input is a Hash of its own, as in TaskerCore.#{example}"
    end

    def takes_part? = @configured || !@client.nil? || (defined?(Rails.application) && !Rails.application.nil?)
  end
end

at_exit { TaskerCore::Native.flush_telemetry }
