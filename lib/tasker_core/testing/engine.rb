# frozen_string_literal: true

require_relative "executor"
require_relative "fan_out"
require_relative "pauses"
require_relative "schedules"
require_relative "signals"
require_relative "task_run"
require_relative "step_run"
require_relative "undo_run"
require_relative "uniques"
require_relative "wait_run"

module TaskerCore
  module Testing
    # Stands for the core: answers what Native::Client and Native::Worker answer, out of memory.
    # @api private
    class Engine
      include FanOut

      def initialize
        @lock = Monitor.new
        @templates = {}
        clear
      end

      def clear
        @lock.synchronize do
          @tasks = {}
          @keys = {}
          @uniques = Uniques.new
          @pauses = Pauses.new
          @signals = Signals.new
          @schedules = Schedules.new do |template, definition, input|
            create(template(template), input, nil, definition[:priority], nil).first
          end
        end
      end

      def ids = @tasks.values.reject(&:parent).map(&:id)

      # What a client asks.

      def register(source, origin, _use = true) # rubocop:disable Style/OptionalBooleanParameter
        name, template = keep_template(source, origin)
        @schedules.keep(name, template[:definition][:schedules])
        [name, template[:version]]
      end

      # @return [Array(String, Boolean)] id and whether it is new, of each
      def submit(name, tasks, inline:)
        template = template(name)
        inputs = Native.check_tasks(template[:source], template[:origin], tasks)
        submitted = @lock.synchronize { create_all(template, tasks, inputs) }
        submitted.each { |task, created| run(task, impatient: true) if inline && created && task.due? }
        submitted.map { |task, created| [task.id, created] }
      end

      def read_task(id) = task(id).to_h.to_json

      def read_values(id) = task(id).values

      def read_children(id, step, after, dead) = task(id).read_children(step, after, dead)

      # @return [String] JSON: the newest first
      def list_tasks(filter, limit) = matching(JSON.parse(filter, symbolize_names: true)).first(limit).map(&:to_h).to_json

      # @return [Integer]
      def bulk(request)
        action, dry_run = request.values_at(:action, :dry_run)
        filter = JSON.parse(request[:filter].to_json, symbolize_names: true)
        raise_no_letters if action[:verb] == "replay"

        tasks = matching(filter)
        tasks = tasks.reject { |task| Task::ENDED.include?(task.state) } unless action[:undo]
        dry_run ? tasks.size : tasks.count { |task| act(task, action) }
      end

      def task_states(ids) = @tasks.values_at(*ids).compact.map { |task| [task.id, task.state] }

      def wait(id, _timeout) = task(id).state

      def cancel(id, undo) = task(id).cancel(undo)

      # @param input [String, nil] JSON
      # @return [String] the id
      def fork(id, from, input)
        other = task(id)
        state = other.state
        raise InvalidInput, "task #{id} is #{state}; cancel it first" unless [*Task::ENDED, "blocked"].include?(state)
        raise InvalidInput, "what task #{id} did was undone" if from && other.undone?

        accepting(other.template, input) if input
        tags = input ? nil : other.tags
        fork = TaskRun.new(other.template, input || other.input, @signals, @pauses, priority: other.priority, tags: tags)
        fork.take_over(other, from)
        @tasks[fork.id] = fork
        fork.id
      end

      # @return [String] JSON
      def schedules(request) = @schedules.answer(request.merge(template: request[:template] && full_name(request[:template]))).to_json

      # @return [String] JSON
      def pauses(request)
        kind, name = request.values_at(:kind, :name)
        request = request.merge(name: name = full_name(name)) if kind == "template"
        raise NotFound, "no #{kind} #{name}" unless request[:verb] == :list || there?(kind, name)

        @pauses.answer(request).to_json
      end

      # @return [String] JSON
      def signals(request)
        return waits(request[:filter]).first(request[:limit]).to_json if request[:verb] == "waiting"

        send_signal(request[:signal]).to_json
      end

      def health = { healthy: true, failed: [] }.to_json

      def migrate = nil

      def close = nil

      def dead_letters(_request) = raise_no_letters

      def raise_no_letters
        raise Error, "TaskerCore::Testing keeps no dead letters: look at task.steps, or use TaskerCore::Testing.disable!"
      end

      # What a handler and its executor ask.

      def complete(attempt, result, strict)
        json, left_out = Native.result_to_json(result, strict)
        attempt.step.complete(json)
        left_out
      end

      def fail(attempt, failure) = attempt.step.fail(failure)

      # No other worker has it.
      def decline(attempt) = raise(UnknownHandler, "this process has no handler #{attempt.handler}")

      def fail_barely(attempt)
        fail(attempt, { class: "TaskerCore::Error", message: "the handler failed, and how cannot be described", backtrace: [] })
      end

      def progress(attempt, value) = attempt.step.progress = Native.to_json(value)

      def checkpoint(attempt, value) = attempt.step.checkpoint = Native.to_json(value)

      # The statement that the handler's own transaction completes the step with: here, none that changes anything.
      def completion(attempt, result, strict)
        json, left_out = Native.result_to_json(result, strict)
        attempt.step.prepare(json)
        ["SELECT 1", [], left_out]
      end

      # It was completed so.
      def forget(attempt) = attempt.step.complete(attempt.step.prepared)

      # What a test asks.

      # @param impatient [Boolean] whether what is to be tried again later may run now
      # @return [Array<String>] the ids of those that ran
      def run_due(impatient: false)
        ran = []
        @schedules.fire
        while (task = @tasks.values.find(&:due?))
          run(task, impatient: impatient)
          ran << task.id unless task.parent
        end
        ran.uniq
      end

      # @see Testing.run_step
      def run_step(handler, context:, results:, config:, attempt:, checkpoint:, signals:)
        step = StepRun.new({ name: "step", handler: handler.name, namespace: "test", config: config })
        step.checkpoint = checkpoint && Native.to_json(checkpoint)
        signals.each { |name, payload| step.remember("wait/#{name}/1", Native.to_json(payload)) }
        native = StepRun::Attempt.new(
          step: step, number: attempt, impatient: true, task_id: SecureRandom.uuid, template: "test", version: "1",
          input: Native.to_json(context), results: Native.to_json(results)
        )
        result = outcome(handler, Step.new(native, self, TaskerCore.configuration.logger))
        json, = Native.result_to_json(result, TaskerCore.configuration.strict_results)
        JSON.parse(json, symbolize_names: true)
      end

      # What a worker asks, which gathers steps; here, they are together already.
      def gather(_handler, _batch, _within) = nil

      private

      def outcome(handler, step)
        return handler.new.call(step) unless handler <= BulkHandler

        step.share_call!
        outcome, = handler.new.call([step])
        outcome.is_a?(Exception) ? raise(outcome) : outcome
      end

      def task(id) = @tasks.fetch(id) { raise NotFound, "no task #{id}" }

      def template(name)
        found = find(name)
        # Nobody registers at a test's start what a worker registers at its own.
        found = keep_all_templates && find(name) if found.empty?
        raise NotFound, "no template #{name}" if found.empty?
        raise InvalidInput, "several namespaces have a template #{name}: name one, as namespace/#{name}" if found.size > 1

        found.first
      end

      # The template, if its input_schema accepts this input.
      # @raise [InvalidInput]
      def accepting(template, input)
        Native.check_tasks(template[:source], template[:origin], [[JSON.parse(input), nil, nil, nil, nil, nil]])
        template
      end

      # @return [String] namespace/name
      def full_name(name) = template(name)[:definition].values_at(:namespace, :name).join("/")

      def find(name) = @templates.filter_map { |full, template| template if full == name || full.split("/").last == name }

      # The newest first.
      def matching(wanted)
        since, before, error = wanted.values_at(:since, :before, :error)
        newest = @tasks.values.reverse
        newest = newest.drop_while { |task| task.id != before }.drop(1) if before
        newest.select do |task|
          shown = task.to_h
          wanted.slice(:namespace, :template, :key, :state) <= shown && (wanted[:tags] || {}) <= shown[:tags] &&
            (since.nil? || shown[:created_at] >= since) && (error.nil? || task.errors.any? { |known| known[:class] == error })
        end
      end

      def act(task, action)
        case action[:verb]
        when "cancel" then task.cancel(action[:undo])
        when "prioritize" then task.priority != action[:priority] && (task.priority = action[:priority])
        else @pauses.answer({ verb: action[:verb].to_sym, kind: "task", name: task.id, **action.slice(:who, :why) })
        end
      end

      # Whether there is such a thing to pause.
      def there?(kind, name)
        return @tasks.key?(name) if kind == "task"

        steps = @templates.values.flat_map { |template| template[:definition][:steps] }
        case kind
        when "handler" then steps.any? { |step| "#{step[:namespace]}/#{step[:handler] || step.dig(:each, :handler)}" == name }
        when "namespace" then steps.any? { |step| step[:namespace] == name }
        else true
        end
      end

      # Without their schedules: a test that travels meets only those of workflows that it has used.
      def keep_all_templates = Workflow.sources(TaskerCore.configuration.templates).each { |source| keep_template(*source) }

      # @return [Array(String, Hash)] namespace/name, and the template
      def keep_template(source, origin)
        definition, version = Native.check_template(source, origin)
        definition = JSON.parse(definition, symbolize_names: true)
        name = definition.values_at(:namespace, :name).join("/")
        [name, @templates[name] = { source: source, origin: origin, definition: definition, version: version || "1" }]
      end

      # All, or none.
      def create_all(template, tasks, inputs)
        created = []
        tasks.zip(inputs).map { |task, input| create(template, input, *task.drop(1)).tap { |run, new| created << run if new } }
      rescue NotUnique
        created.each do |run|
          @tasks.delete(run.id)
          @keys.delete_if { |_, known| known == run }
          @uniques.forget(run)
        end
        raise
      end

      def create(template, input, key, priority, run_at, tags = nil, unique = nil)
        name = template[:definition].values_at(:namespace, :name).join("/")
        known = key && @keys[[name, key]]
        return [known, false] if known

        given = { priority: priority, run_at: run_at && Time.iso8601(run_at), tags: tags }
        create = lambda do
          task = TaskRun.new(template, input, @signals, @pauses, key: key, **given)
          @keys[[name, key]] = task if key
          @tasks[task.id] = task
        end
        rule = unique || template[:definition][:unique]&.to_json or return [create.call, true]
        task, created = @uniques.settle(name, rule, input, &create)
        task.reschedule(template, input, **given) if !created && rule.include?('"on_conflict":"reschedule"')
        [task, created]
      end

      def send_signal(signal)
        known = signal[:task] && task(signal[:task])
        Native.check_payload(signal[:name], signal[:payload], schemas(signal, known).to_json)
        return { outcome: "duplicate" } if @signals.known?(signal)
        return { outcome: "late" } if known && Task::ENDED.include?(known.state)

        @signals.keep(signal)
        { outcome: open_waits.any? { |wait| wait.for?(signal) } ? "awaited" : "kept" }
      end

      # Those that the payload has to satisfy.
      def schemas(signal, task)
        templates = task ? [task.template] : @templates.values
        waits = templates.flat_map { |template| template[:definition][:steps].filter_map { |step| step[:wait] } }
        waits = waits.select { |wait| wait[:signal] == signal[:name] && (task || wait[:key]) }
        waits.filter_map { |wait| wait[:schema] || wait[:form] }
      end

      def waits(filter)
        all = @tasks.values.flat_map(&:waits).map { |step| step.wait.to_h.merge(step: step.name) }
        all = all.sort_by { |wait| wait[:since] }
        all = all.drop_while { |wait| wait[:task] != filter[:after] }.drop(1) if filter[:after]
        all = all.select { |wait| wait[:assignees].include?(filter[:assignee]) } if filter[:assignee]
        all.select { |wait| filter.slice(:signal, :namespace) <= wait }
      end

      def open_waits = @tasks.values.flat_map { |task| task.waits.map(&:wait) }

      def run(task, impatient:)
        task.run do
          while (step = task.next_step(impatient))
            step.spawns? ? fan_out(task, step, impatient) : call_handler(task, step, impatient)
          end
        end
      end

      # With the steps of other tasks beside it, if its handler has several in one call.
      def call_handler(task, step, impatient)
        together = [[task, step], *beside(task, step, impatient)]
        attempts = together.map { |run, next_step| run.attempt(next_step, impatient) }
        call = -> { Executor.new(self, TaskerCore.configuration).call(attempts) }
        together.drop(1).reduce(call) { |inner, (other, _)| -> { other.run(&inner) } }.call
      end

      def beside(task, step, impatient)
        name, namespace = step.definition.values_at(:handler, :namespace)
        handler = Worker::Handlers.find(name)
        return [] unless handler <= BulkHandler

        others = @tasks.values.lazy.reject { |other| other.equal?(task) }.select(&:due?)
        others = others.map { |other| [other, other.next_step(impatient)] }
        others = others.select { |_, other| other && other.definition.values_at(:handler, :namespace) == [name, namespace] }
        others.first(handler.batch_size - 1)
      rescue UnknownHandler
        []
      end
    end
  end
end
