# frozen_string_literal: true

module TaskerCore
  module Testing
    # A step of a task in memory.
    # @api private
    class StepRun
      # What a step whose workflow says nothing has, unless its namespace is set otherwise.
      MAX_ATTEMPTS = 5

      # What a Native::Step is for its handler.
      Attempt = Struct.new(:step, :number, :task_id, :template, :version, :input, :results, :cancelled, :task, :impatient,
                           keyword_init: true) do
        def name = step.name
        def handler = step.definition[:handler]
        def namespace = step.definition[:namespace]
        def config = step.definition[:config].to_json
        def transactional? = step.definition[:transactional] || false
        def timeout = step.definition[:timeout]&.then { |span| span[:secs] + (span[:nanos] / 1e9) }
        def attempt = number
        def max_attempts = step.max_attempts
        def checkpoint = step.checkpoint
        def lost? = cancelled&.call || false
        def fan_outs = step.fan_outs_before
        def read_children(name, after, dead) = step.parents.find { |parent| parent.name == name }.read_children(after, dead)
        def recall(name) = step.recall(name, impatient)
        def remember(name, value) = step.remember(name, Native.to_json(value))
        def begin_sleep(name, seconds) = step.begin_sleep(name, impatient ? 0.0 : seconds)
        def begin_wait(name, signal, key, timeout) = task && step.begin_wait(name, task.new_wait({ signal: signal, timeout: timeout }, key))
        def publish(name, value) = Native.to_json(value).then { |json| task&.publish(name, json) }
        def worker = nil
        def trace = nil
        def trace_id = nil
      end

      attr_reader :definition, :prepared, :children, :wait
      attr_accessor :checkpoint, :progress, :parents

      # @param wait [WaitRun, nil]
      def initialize(definition, wait = nil)
        @definition = definition
        @wait = wait
        @parents = []
        @errors = []
        @memories = {}
        @state = "pending"
      end

      def name = definition[:name]

      def max_attempts = definition.dig(:retry, :max_attempts) || MAX_ATTEMPTS

      def failures = @errors.size

      def complete? = @state == "complete"

      def dead? = @state == "dead"

      def discarded? = @state == "discarded"

      def skipped? = @state == "skipped"

      def done? = complete? || skipped?

      def open? = !done? && !dead? && !discarded? && @parents.all?(&:done?)

      # Skips it, if it is ready and its condition is not true, or nothing before it ran.
      # @param input [String] JSON
      # @return [Boolean] whether it did
      def skip_unless_wanted(input)
        return false unless open? && @state == "pending"

        @skipped_because = if @parents.any? && @parents.all?(&:skipped?) then "no step before it ran"
                           elsif !wanted?(input) then "#{definition[:if]} is not true"
                           end
        @state = "skipped" if @skipped_because
        skipped?
      end

      # Whether its time has come: it can have a delay, or sleep, or its handler have said when it is to be called again.
      def ready?
        return false unless open?
        return @page.due? || @page.ended? if @page
        return children.any?(&:due?) || settled? || (!pages.nil? && !@last_page) if children

        wait_for_time if @state == "pending" && (definition[:delay] || definition[:sleep])
        return @wait.over? if waits?
        return false if @retry_at && @retry_at > Time.now

        @wait.nil? || begin_waiting
      end

      # Whether it is a signal that it waits for.
      def waits? = open? && !@wait&.since.nil?

      # Whether what it waits for is no more than its time, which who is impatient need not wait for.
      def own_time? = !children && !@wait && !@page

      # Whether it is the engine that does it.
      def settles_itself? = %w[sleep wait].include?(kind)

      # What it slept or waited for is there, or its time is over.
      def settle_itself
        return complete("null") unless @wait

        payload = @wait.take
        return complete(payload) if payload

        @skipped_because = @wait.too_late if @wait.on_timeout == "skip"
        @skipped_because ? @state = "skipped" : fail({ class: "TaskerError", message: @wait.too_late, permanent: true })
      end

      # Whether its task has failed with it.
      def given_up? = dead? && @wait&.on_timeout == "fail"

      def kind = %i[sleep wait each workflow].find { |kind| definition[kind] }&.to_s || "handler"

      # Whether its work is other tasks.
      def spawns? = %w[each workflow].include?(kind)

      # @param input [String] JSON of its task
      # @param page [String, nil] JSON of the page that was just read, where its elements come so
      # @yieldparam input [String] JSON of a child
      # @yieldparam item [Integer] its number
      # @yieldreturn [TaskRun]
      def spawn(input, page = nil)
        first = children&.size || 0
        inputs, problem = Native.child_inputs(definition.slice(:each, :workflow, :input).to_json, seen(input), page, first)
        return fail({ class: "TaskerError", message: problem, permanent: true }) if problem

        @state = "waiting"
        @children = (children || []) + inputs.each_with_index.map { |child, item| yield child, first + item }
      end

      # The handler of its pages.
      def pages = definition.dig(:each, :pages)

      # What is given to the next page, as JSON; nil: there is none.
      # @param input [String] JSON of its task
      def next_page(input)
        return if !pages || @last_page

        JSON.parse(seen(input)).merge(cursor: @cursor).to_json
      end

      # The page whose end is waited for.
      attr_accessor :page

      # It has ended.
      def read_page
        page = JSON.parse(@page.output)
        @cursor = page["next"] if page.is_a?(Hash)
        @last_page = @cursor.nil? || !page.is_a?(Hash)
        @page.output.tap { @page = nil }
      end

      # Completes it, if its children have ended, but for those that may be dead.
      def settle
        return unless settled?

        complete(kind == "each" ? { size: children.size, errors: dead_children.size }.to_json : children.first.output)
      end

      # @return [Array(String, Float), nil] JSON, and how long it still sleeps
      def recall(name, impatient)
        value, wakes_at = @memories[name]
        [value, wakes_at && (impatient ? 0.0 : [wakes_at - Time.now, 0.0].max)] if @memories.key?(name)
      end

      # @return [String] the value
      def remember(name, value) = (@memories[name] ||= [value]).first

      def begin_sleep(name, seconds)
        @memories[name] = [nil, Time.now + seconds]
        seconds
      end

      # @param wait [WaitRun] which will be remembered under that name
      def begin_wait(name, wait)
        @wait_name = name
        @wait = wait
      end

      # Its handler, which waited, is about to run again.
      def end_own_wait
        return unless @wait_name

        @memories[@wait_name] = [@wait.take]
        @wait = @wait_name = nil
      end

      # Whether it may have done something.
      def effect? = !@taken_over && (complete? || children&.any? || @memories.keys.any? { |name| name.start_with?("once/") })

      # Whether it depends on that step, directly or not.
      def below?(step) = @parents.any? { |parent| parent.equal?(step) || parent.below?(step) }

      # More of its children are dead than it tolerates.
      def overwhelmed? = @page&.dead? || (children ? dead_children.size > tolerated : false)

      def read_children(after, dead)
        wanted = children.each_with_index.select { |child, item| item > (after || -1) && (!dead || dead_children.include?(child)) }
        wanted.map do |child, item|
          error = child.errors.last if dead_children.include?(child)
          { item: item, id: child.id, state: child.state, result: child.state == "complete" ? value(child.output) : nil, error: error }
        end.to_json
      end

      def fan_outs_before = @parents.select { |parent| parent.kind == "each" && parent.complete? }.map(&:name)

      # The results of those before that ran, by their names, as JSON.
      def results_before = "{#{@parents.select(&:complete?).map(&:named_result).join(',')}}"

      def named_result = "#{name.to_json}:#{@result}"

      # What to complete with, should the handler's transaction commit.
      def prepare(result) = @prepared = result

      def complete(result)
        @result = result
        @state = "complete"
      end

      def fail(failure)
        @retry_at = failure[:retry_after]&.then { |seconds| Time.now + seconds }
        return @state = "waiting" if failure[:reason] == "snoozed"
        return finish(failure.dig(:ending, :finished)) if failure[:ending]&.key?(:finished)

        @errors << failure.slice(:class, :message, :backtrace).merge(attempt: failures + 1, at: Time.now.getutc.iso8601(6))
        @state = after(failure)
        true
      end

      # Whether its handler ended the task early.
      def finished_task? = @finished || false

      def finish(result)
        @finished = true
        complete(result.to_json)
      end

      # In a fork: it was done by the task that this is one of.
      # @param other [StepRun]
      def take_over(other)
        @taken_over = true
        %i[@state @result @errors @skipped_because @children @last_page @progress].each do |name|
          instance_variable_set(name, other.instance_variable_get(name))
        end
      end

      # As the core writes it down.
      # @param left [Hash, nil] what is to be said of it if it has not ended, but its task has
      def to_h(left = nil)
        {
          name: name, kind: kind, handler: definition[:handler], namespace: definition[:namespace], depends_on: @parents.map(&:name),
          state: @state, attempt: complete? ? failures + 1 : failures, max_attempts: max_attempts, worker: nil,
          result: value(@result), result_bytes: @result&.bytesize, progress: value(progress), errors: @errors,
          enqueued_at: nil, started_at: nil, finished_at: nil, waits_for: waits_for, after_cancel: nil, skipped_because: @skipped_because,
          undoes: nil, children: counts, retry_at: (time if open?)&.getutc&.iso8601(6), **(ended? || left.nil? ? {} : left)
        }
      end

      private

      def ended? = done? || dead? || discarded?

      def counts
        children && { total: children.size, created: children.size, ended: children.count(&:ended?), dead: dead_children.size,
                      tolerated: tolerated }
      end

      def time = @wait&.since ? @wait.times_out_at : @retry_at

      def waits_for = ("the signal #{@wait.name}#{" (key #{@wait.key})" if @wait.key}" if waits?)

      # Whether there is a signal already.
      def begin_waiting
        problem = @wait.begin(seen(@wait.task.input))
        return fail({ class: "TaskerError", message: problem, permanent: true }) && false if problem

        @state = "waiting"
        @wait.over?
      end

      def wait_for_time
        @retry_at = Time.now + %i[delay sleep].sum { |name| definition[name] ? span(name) : 0 }
        @state = "waiting"
      end

      def span(name) = definition[name].then { |span| span[:secs] + (span[:nanos] / 1e9) }

      def wanted?(input) = definition[:if].nil? || Native.holds?(definition[:if], seen(input))

      def seen(input) = %({"input":#{input},"results":#{results_before}})

      def settled?
        return false if children.nil? || complete? || overwhelmed? || (pages && !@last_page)

        children.all? { |child| child.ended? || child.dead? }
      end

      def dead_children = children.select(&:dead?)

      def tolerated
        tolerance = definition.dig(:each, :tolerate) || 0
        # A share is one of all: how many that is shows with the last page.
        return children.size if pages && !@last_page && !tolerance.is_a?(Integer)

        tolerance.is_a?(Integer) ? tolerance : (children.size * tolerance).floor
      end

      def after(failure)
        return "discarded" if failure[:reason] == "discarded"

        failure[:permanent] || failures >= max_attempts ? "dead" : "waiting_retry"
      end

      def value(json) = json && JSON.parse(json)
    end
  end
end
