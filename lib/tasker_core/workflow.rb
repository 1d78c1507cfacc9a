# frozen_string_literal: true

require "json"

module TaskerCore
  # A workflow in Ruby: the same as a template in YAML, and checked by the same rules.
  #
  # @example
  #   class OrderFulfillment < TaskerCore::Workflow
  #     namespace "fulfillment"
  #     input_schema type: "object", required: ["order_id"]
  #
  #     limit concurrency: 5, key: "customer_id"
  #
  #     step :validate, ValidateOrder
  #     step :reserve, ReserveInventory, after: :validate, namespace: "inventory", retry: { max_attempts: 5, base: "2s" }
  #     step :charge, ChargeCard, after: :validate, timeout: 30
  #     step :ship, ShipOrder, after: [:reserve, :charge]
  #   end
  class Workflow
    class << self
      # Whose tasks these are; decides the queue of steps that name no namespace of their own.
      # @overload namespace(value) sets it
      # @overload namespace @return [String]
      def namespace(value = nil) = setting(:namespace, value)

      # Unique within the namespace. Default: the class's name in snake case.
      # @overload template_name(value) sets it
      # @overload template_name @return [String]
      def template_name(value = nil)
        setting(:name, value) || name&.gsub("::", "_")&.gsub(/([A-Z\d]+)([A-Z][a-z])/, '\1_\2')&.gsub(/([a-z\d])([A-Z])/, '\1_\2')&.downcase
      end

      # A registered version never changes. Without one, changed content gets a new version by itself.
      # @overload version(value) sets it
      # @overload version @return [String, nil]
      def version(value = nil) = setting(:version, value)

      # For people.
      # @overload description(value) sets it
      # @overload description @return [String, nil]
      def description(value = nil) = setting(:description, value)

      # The priority of tasks whose caller gives none: :low, :normal, :high, :urgent.
      # @overload priority(value) sets it
      # @overload priority @return [Symbol, nil]
      def priority(value = nil) = setting(:priority, value)

      # How long a task may take, in seconds or as "1h"; then it is given up.
      # @overload deadline(value) sets it
      # @overload deadline @return [Numeric, String, nil]
      def deadline(value = nil) = setting(:deadline, duration(value))

      # How long a task may be pending (waiting for an orchestrator), or one of its steps enqueued (waiting for a worker) or in_progress,
      # in seconds or as "1h"; then the step is dead-lettered as stuck.
      # @overload stuck_after(value) sets them: pending, enqueued, in_progress
      # @overload stuck_after @return [Hash, nil]
      def stuck_after(value = nil) = setting(:stuck_after, durations(mapping("stuck_after", value, 'pending: "1h"')))

      # What becomes of a task when one of its steps is dead-lettered: :block (until somebody settles it), :fail, or :undo (what it did is
      # undone, see {step}; then it has failed).
      # @overload on_failure(value) sets it
      # @overload on_failure @return [Symbol, nil]
      def on_failure(value = nil) = setting(:on_failure, value)

      # The rules of retrying for the steps that do not say their own: see {step}.
      # @overload retry_rules(value) sets them
      # @overload retry_rules @return [Hash, nil]
      def retry_rules(value = nil) = setting(:retry, durations(mapping("retry_rules", value, RETRY)))

      # Of the steps that do not say their own: retention_days, alert_threshold.
      # @overload dead_letters(value) sets them
      # @overload dead_letters @return [Hash, nil]
      def dead_letters(value = nil) = setting(:dead_letters, mapping("dead_letters", value, DEAD_LETTERS))

      # JSON Schema that a task's input must satisfy.
      # @overload input_schema(value) sets it
      # @overload input_schema @return [Hash, nil]
      def input_schema(value = nil) = setting(:input_schema, value)

      # What a task has to say to the one whose step it is (see {workflow}): a SQL/JSON path over +input+ and the +results+ of the steps,
      # such as "$.results.pack.tracking". Without one, its only step's result, or those of all its steps by name.
      # @overload output(value) sets it
      # @overload output @return [String, nil]
      def output(value = nil) = setting(:output, value)

      # By which its tasks can be found ({TaskerCore.tasks}): SQL/JSON paths over +input+, such as customer: "$.input.customer_id".
      # @overload tags(value) sets them
      # @overload tags @return [Hash, nil]
      def tags(value = nil) = setting(:tags, mapping("tags", value, 'customer: "$.input.customer_id"'))

      # Which of the workflow's tasks are the same, of which there is one at a time: while there is one, another is not created.
      # (One that is blocked, has failed, or was cancelled or discarded does not count; nor are tasks asked that are steps of others.)
      # - +by+: where in the input, such as :customer_id or ["customer.id", "$.input.lines[0].sku"]; without it, those with the same input
      # - +while+: as long as the other one is :queued (it has not begun), :running, or :live (either); without it, :live
      # - +within+: and for how long after the other one was created, in seconds or as "1h"; without +while+, also once it is complete
      # - +on_conflict+: :return (the new task is the other one), :reject ({NotUnique} is raised), :replace (the other one is cancelled),
      #   :reschedule (the other one, which is :queued, gets the new one's input and time)
      # @example
      #   class SyncCustomer < TaskerCore::Workflow
      #     namespace "crm"
      #     unique by: :customer_id, while: :queued
      #
      #     step :sync, "SyncOne"
      #   end
      # @overload unique(value) sets it
      # @overload unique @return [Hash, nil]
      def unique(value = nil) = setting(:unique, durations(mapping("unique", value, "by: :customer_id")))

      # How many of the workflow's tasks may be above each other, where they contain tasks of the same workflow. Without it they may not.
      # @overload max_depth(value) sets it
      # @overload max_depth @return [Integer, nil]
      def max_depth(value = nil) = setting(:max_depth, value)

      # Limits the workflow's steps in its own namespace, across all workers. An operator's limit of the name "workflow:limit" takes its
      # place.
      # @param name [Symbol, nil] nil: after its key, or its handler
      # @param handler [Class<StepHandler>, String, nil] of whose steps; nil: all
      # @param key [String, nil] where in the input: each value there is limited by itself
      # @param concurrency [Integer, nil] how many at once
      # @param rate [Integer, nil] how many starts in any stretch of per_seconds
      # @param per_seconds [Numeric, nil] 1 where nothing is said
      # @param breaker [Hash, nil] failure_rate, minimum, window_seconds, open_seconds, probes
      # @return [void]
      def limit(name = nil, handler: nil, key: nil, concurrency: nil, rate: nil, per_seconds: nil, breaker: nil)
        handler &&= handler_name(:limit, handler)
        name ||= (key || handler || "all").gsub(/([a-z\d])([A-Z])/, '\1_\2').downcase.gsub(/\W+/, "_")
        refuse "limit #{name.inspect} is there twice: name one of them (limit :slow, …)" if own_limits.key?(name.to_s)

        own_limits[name.to_s] = { handler: handler, key: key, concurrency: concurrency, rate: rate, per_seconds: duration(per_seconds),
                                  breaker: mapping("limit #{name.inspect}: breaker", breaker, "failure_rate: 0.5") }.compact
      end

      # Has tasks of the workflow begin by themselves: see {Schedules} for what can be said.
      # @example
      #   class NightlyReport < TaskerCore::Workflow
      #     namespace "reports"
      #
      #     schedule cron: "0 3 * * *", time_zone: "Europe/Berlin", overlap: :skip, input: { day: "$time" }
      #     step :write, "WriteReport"
      #   end
      # @param name [Symbol] where there are several
      # @param schedule [Hash] cron or every, and the others
      # @return [void]
      def schedule(name = :default, **schedule)
        refuse "schedule #{name.inspect} is there twice: name one of them (schedule :hourly, …)" if own_schedules.key?(name.to_s)

        own_schedules[name.to_s] = Schedules.written(schedule)
      end

      # Adds a step.
      # @param name [Symbol]
      # @param handler [Class<StepHandler>, String] its code; a string where the class lives in another team's application
      # @param after [Symbol, Array<Symbol>] the steps that must be complete before
      # @param namespace [String, nil] whose workers run it; nil: the workflow's
      # @param if [String, nil] whether it runs: a SQL/JSON path over +input+ and the +results+ of the steps before, such as
      #   "$.results.check.total > 1000"; where it is not true, the step is skipped, and with it what depends on nothing else
      # @param delay [Numeric, String, nil] how long it waits once it is ready, in seconds or as "1h"
      # @param retry [Hash, nil] max_attempts (counts the first run), backoff (:exponential, :linear, :fixed), base and max (seconds, or
      #   "2s", "5m"), jitter (0 to 1)
      # @param timeout [Numeric, String, nil] how long one attempt may run, in seconds or as "5m"
      # @param transactional [Boolean] the handler's writes on its own connection (ActiveRecord's in Rails; see
      #   {Configuration#transaction}) and the step's completion commit together: effects exactly once
      # @param undo [Class<StepHandler>, String, Hash, nil] what takes its effect back, when the task is cancelled so ({Task#cancel}) or
      #   fails and says so ({on_failure}): a handler, which has the step's results, and the step's own; or { handler:, retry:, timeout: }
      # @param dead_letters [Hash, nil] retention_days, alert_threshold
      # @param config [Hash, nil] handed to the handler as it is
      # @return [void]
      def step(name, handler, after: [], if: nil, delay: nil, namespace: nil, retry: nil, timeout: nil, transactional: false,
               undo: nil, dead_letters: nil, config: nil)
        own = binding
        add(name, { handler: handler_name(name, handler), undo: undoing(name, undo) }, after, own.local_variable_get(:if), delay,
            running(name, namespace, own.local_variable_get(:retry), timeout, transactional, config, dead_letters))
      end

      # Adds a step whose work is other tasks: one for each element of a list that is known only when the step is ready. It is complete
      # when they have ended; the steps after it read their results, in order ({Step#results}, {Children}).
      # @example
      #   class Marketplace < TaskerCore::Workflow
      #     namespace "orders"
      #
      #     step :validate, ValidateOrder
      #     each :reserve, ReserveInventory, over: "$.results.validate.lines", after: :validate, limit: 20, tolerate: "1%"
      #   end
      # @param name [Symbol]
      # @param does [Class<StepHandler>, Class<Workflow>, String] what each of the tasks does: a handler, or a workflow ("namespace/name"
      #   where its class lives in another team's application)
      # @param over [String, nil] a SQL/JSON path over +input+ and the +results+ of the steps before: it finds an array, or with [*] its
      #   elements
      # @param pages [Class<StepHandler>, String, nil] in place of +over+: a handler that returns { items: […], next: … }; it is called
      #   again, with that as its context's +cursor+, until there is no next. (Its context has the +input+ of this task, too, and the
      #   +results+.)
      # @param after [Symbol, Array<Symbol>] the steps that must be complete before
      # @param input [String, Hash, nil] where a task's input comes from: a path, or a path for each of its names, where $item is the
      #   element and $index its number; nil: the element, as { item: … } where it is no object; with +batch+ { items: […] }
      # @param limit [Integer, nil] how many of them there are at once
      # @param batch [Integer, nil] how many elements each of them is for
      # @param tolerate [Integer, String, nil] how many may be dead without blocking this task: 10, or "5%" of them
      # @param undo [Class<StepHandler>, String, Hash, nil] what takes back the effect of each of them; a workflow's steps say it themselves
      # @param if [String, nil] as of {step}, as are the others
      # @return [void]
      def each(name, does, over: nil, pages: nil, after: [], input: nil, limit: nil, batch: nil, tolerate: nil, if: nil, delay: nil,
               namespace: nil, retry: nil, timeout: nil, transactional: false, undo: nil, dead_letters: nil, config: nil)
        own = binding
        by = workflow?(does) ? { workflow: workflow_name(does) } : { handler: handler_name(name, does) }
        each = { over: over, pages: pages && handler_name(name, pages), input: input, limit: limit, batch: batch, tolerate: tolerate,
                 **by }.compact
        add(name, { each: each, undo: undoing(name, undo) }, after, own.local_variable_get(:if), delay,
            running(name, namespace, own.local_variable_get(:retry), timeout, transactional, config, dead_letters))
      end

      # Adds a step whose work is a task of another workflow; its result is that task's {output}.
      # @param name [Symbol]
      # @param does [Class<Workflow>, String] which: a class, or "namespace/name"
      # @param input [String, Hash, nil] where its input comes from: a SQL/JSON path, or a path for each of its names; nil: this task's
      # @param after [Symbol, Array<Symbol>] the steps that must be complete before
      # @param if [String, nil] as of {step}
      # @param delay [Numeric, String, nil] as of {step}
      # @return [void]
      def workflow(name, does, input: nil, after: [], if: nil, delay: nil)
        refuse "workflow #{name.inspect} names #{does.inspect}: expected a Workflow, or \"namespace/name\"" unless workflow?(does)

        add(name, { workflow: workflow_name(does), input: input }, after, binding.local_variable_get(:if), delay)
      end

      # Adds a step that only lets time pass: it is complete when it is over, and no worker has to do with it.
      # @param name [Symbol]
      # @param time [Numeric, String] in seconds, or as "14d"
      # @param after [Symbol, Array<Symbol>] the steps that must be complete before
      # @param if [String, nil] as of {step}
      # @return [void]
      def sleep(name, time, after: [], if: nil)
        add(name, { sleep: duration(time) }, after, binding.local_variable_get(:if), nil)
      end

      # Adds a step that waits for a signal ({TaskerCore.signal}): it is complete when one comes, whose payload is its result.
      # @example
      #   class Purchase < TaskerCore::Workflow
      #     namespace "orders"
      #
      #     step :validate, ValidateOrder
      #     wait :approved, after: :validate, assignees: ["$.input.manager"], timeout: "3d", if: "$.input.amount > 1000"
      #     wait :paid, key: "$.input.order_id", after: [:validate, :approved]
      #   end
      # @param name [Symbol]
      # @param signal [String, Symbol] the signal's name
      # @param key [String, nil] where a key is, beside the task's id, by which the signal may be sent: a SQL/JSON path over +input+ and the
      #   +results+ of the steps before
      # @param timeout [Numeric, String, nil] how long it waits, in seconds or as "3d"; nil: as long as it takes
      # @param on_timeout [Symbol, nil] what becomes of it then: :skip, :fail (the task has failed), or :dead (a dead letter); nil: :dead
      # @param schema [Hash, nil] JSON Schema that the payload must satisfy
      # @param form [Hash, nil] the same, where a person is asked: what they fill in
      # @param assignees [Array<String>, nil] who is asked: names, or paths (that begin with $) to names
      # @param due [Numeric, String, nil] by when an answer is wanted, in seconds or as "1d"
      # @param after [Symbol, Array<Symbol>] the steps that must be complete before
      # @param if [String, nil] as of {step}
      # @param delay [Numeric, String, nil] as of {step}
      # @return [void]
      # @see TaskerCore.waiting
      def wait(name, signal: name, key: nil, timeout: nil, on_timeout: nil, schema: nil, form: nil, assignees: nil, due: nil, after: [],
               if: nil, delay: nil)
        wait = { signal: signal, key: key, timeout: duration(timeout), on_timeout: on_timeout, schema: schema, form: form,
                 assignees: assignees && Array(assignees), due: duration(due) }
        add(name, { wait: wait.compact }, after, binding.local_variable_get(:if), delay)
      end

      # Checks the workflow without a database.
      # @return [void]
      # @raise [TemplateError] with every problem, each with its file and line
      def validate! = Native.check_template(*source)

      # The workflow as a template, in JSON, with where it was written. Each step stands on the line on which Ruby has it, so that errors
      # point there.
      # @api private
      # @return [Array(String, String)]
      def source
        written, first = @written || [name.to_s, 1]
        file = own_steps.first&.first || written
        refuse_nameless(written, first) unless namespace

        head = {
          name: template_name, namespace: namespace, version: version, description: description, priority: priority, deadline: deadline,
          stuck_after: stuck_after, on_failure: on_failure, retry: retry_rules, dead_letters: dead_letters, input_schema: input_schema,
          output: output, tags: tags, unique: unique, max_depth: max_depth, limits: (own_limits if own_limits.any?),
          schedules: (own_schedules if own_schedules.any?)
        }.compact
        lines = "\n" * [first - 1, 0].max if written == file
        settings = head.map { |key, value| "#{key.to_json}: #{value.to_json}, " }
        json = +"#{lines}{#{settings.join}\"steps\": ["
        own_steps.each_with_index do |(path, line, definition), index|
          json << "," unless index.zero?
          json << ("\n" * [line - 1 - json.count("\n"), 0].max) if path == file
          json << definition.to_json
        end
        [json << "]}", file]
      end

      # All workflows of this process: those of its classes, and those in the files that the globs find.
      # @api private
      # @return [Array<Array(String, String)>]
      def sources(globs) = globs.flat_map { |glob| Dir.glob(glob) }.map { |file| read(file) } + loaded.map(&:source)

      # @api private
      # @return [Array(String, String)]
      # @raise [TemplateError]
      def read(file)
        [File.read(file, encoding: "UTF-8"), file.to_s]
      rescue SystemCallError => e
        raise TemplateError, "#{file}: #{e.message}"
      end

      # The workflows that this process has loaded; of a reloaded class only the newest.
      # @api private
      def loaded = Workflow.subclasses.flat_map { |workflow| [workflow, *workflow.loaded_below] }.select { |workflow| current?(workflow) }

      # Where it was written, for errors.
      # @api private
      def inherited(workflow)
        super
        place = caller_locations.find { |location| location.path != __FILE__ && !%w[new initialize].include?(location.label) }
        workflow.instance_variable_set(:@written, [place.path, place.lineno]) if place
      end

      protected

      def loaded_below = subclasses.flat_map { |workflow| [workflow, *workflow.loaded_below] }

      private

      def own_steps = @own_steps ||= []

      def own_limits = @own_limits ||= {}

      def own_schedules = @own_schedules ||= {}

      def setting(key, value)
        @settings ||= {}
        value.nil? ? @settings[key] : @settings[key] = value
      end

      def current?(workflow)
        workflow.name && Object.const_defined?(workflow.name) && Object.const_get(workflow.name).equal?(workflow)
      rescue NameError
        false # inside a class without a name
      end

      # The line of the application stands for the step.
      def add(name, kind, after, condition, delay, running = {})
        line = caller_locations.find { |location| location.path != __FILE__ }
        definition = { name: name, **kind, depends_on: names_of_steps(name, after), if: condition, delay: duration(delay), **running }
        own_steps << [line.path, line.lineno, definition.compact]
      end

      # What takes a step's effect back.
      def undoing(step, undo)
        return if undo.nil?
        return { handler: handler_name(step, undo) } unless undo.respond_to?(:to_hash)

        rules = durations(undo.to_hash)
        rules.merge(handler: handler_name(step, rules[:handler]),
                    retry: durations(mapping("step #{step.inspect}: undo: retry", rules[:retry], RETRY))).compact
      end

      # How a handler is run.
      def running(name, namespace, retry_rules, timeout, transactional, config, dead_letters)
        {
          namespace: namespace, retry: durations(mapping("step #{name.inspect}: retry", retry_rules, RETRY)), timeout: duration(timeout),
          transactional: transactional || nil, dead_letters: mapping("step #{name.inspect}: dead_letters", dead_letters, DEAD_LETTERS),
          config: mapping("step #{name.inspect}: config", config, 'currency: "EUR"')
        }
      end

      def workflow?(does) = does.is_a?(Class) ? does <= Workflow : does.is_a?(String) && does.include?("/")

      def workflow_name(does) = does.is_a?(Class) ? "#{does.namespace || namespace}/#{does.template_name}" : does

      def handler_name(step, handler)
        return handler if handler.is_a?(String)
        return Worker::Handlers.register(handler) if handler.is_a?(Class) && handler.name && handler.method_defined?(:call)

        raise TemplateError, "step #{step.inspect} of #{name}: #{handler.inspect} is no handler: expected a named class with " \
                             "call(step), or the name of one"
      end

      RETRY = 'max_attempts: 5, base: "2s"'
      DEAD_LETTERS = "retention_days: 30"
      private_constant :RETRY, :DEAD_LETTERS

      def refuse_nameless(file, line)
        raise TemplateError, "#{file}:#{line}: #{name} names no namespace: add namespace \"billing\", or whose workers run it"
      end

      def mapping(what, value, such_as)
        return value if value.nil? || value.respond_to?(:to_hash)

        refuse "#{what} is #{value.inspect}: expected a Hash such as { #{such_as} }"
      end

      def names_of_steps(step, after)
        Array(after).each do |name|
          next if name.is_a?(Symbol) || name.is_a?(String)

          refuse "step #{step.inspect}: after names #{name.inspect}: expected the name of a step, such as :validate"
        end
      end

      # Points at the line of the application that says it.
      def refuse(problem)
        place = caller_locations.find { |location| location.path != __FILE__ }
        raise TemplateError, "#{place.path}:#{place.lineno}: #{name}: #{problem}"
      end

      def durations(rules) = rules&.transform_values { |value| duration(value) }

      # ActiveSupport's durations are numbers of seconds.
      def duration(value) = value.respond_to?(:in_seconds) ? value.to_f : value
    end
  end
end
