# frozen_string_literal: true

module TaskerCore
  module Testing
    # A task in memory.
    # @api private
    class TaskRun
      attr_accessor :priority
      attr_reader :id, :input, :steps, :parent, :template, :created_at, :tags

      # @param parent [Hash, nil] task, step and item, where it is another's child
      # @param above [TaskRun, nil] that other
      def initialize(template, input, signals, pauses, key: nil, priority: nil, run_at: nil, parent: nil, above: nil, tags: nil)
        @parent = parent
        @above = above
        @pauses = pauses
        @id = SecureRandom.uuid
        @signals = signals
        @values = {}
        @key = key
        @created_at = Time.now
        reschedule(template, input, priority: priority, run_at: run_at, tags: tags)
      end

      # Before it has begun.
      def reschedule(template, input, priority:, run_at:, tags:)
        @template = template
        @definition = template[:definition]
        @input = input
        @priority = priority || @definition[:priority]
        @run_at = run_at
        @tags = tags_of(tags)
        @steps = @definition[:steps].map { |step| StepRun.new(step, step[:wait] && WaitRun.new(step[:wait], self, @signals)) }
        @steps.each { |step| step.parents = @steps.values_at(*step.definition[:parents]) }
      end

      def due?
        return false if @running || paused? || (!begun? && @pauses.of_namespace(self))
        return may_begin(@undos).any?(&:ready?) if undoing?
        return false if @cancelled || finished_by || (@run_at && @run_at > Time.now)
        return true unless @started_at

        skip
        !discarded? && may_begin(@steps).any?(&:ready?)
      end

      # Yields until it has ended, or waits for its time.
      def run
        @started_at ||= Time.now
        @running = true
        yield
      ensure
        @running = false
        @steps.each { |step| step.children&.each(&:cancel) } if finished_by
        @finished_at = Time.now
      end

      # @param undo [Boolean] whether what it did is undone then
      def cancel(undo = false) # rubocop:disable Style/OptionalBooleanParameter
        return !@undos && !(@parent && Task::ENDED.include?(state)) && self.undo if undo
        return false if Task::ENDED.include?(state)

        @steps.each { |step| step.children&.each(&:cancel) }
        @finished_at = Time.now
        @cancelled = true
      end

      # It is a fork: of the other's steps, what is complete beside one, and before it, is its own; without one, nothing is.
      # @param other [TaskRun]
      # @param from [String, nil]
      def take_over(other, from)
        @forked_from = other.id
        return unless from

        first = @steps.find { |step| step.name == from } or raise NotFound, "task #{other.id} has no step #{from}"
        @started_at = Time.now
        @steps.zip(other.steps) do |mine, theirs|
          kept = theirs.complete? || (theirs.skipped? && !other.finished_early?)
          mine.take_over(theirs) unless mine.equal?(first) || mine.below?(first) || !kept
        end
      end

      # What it did is undone from now on.
      def undo(as = %w[failed discarded].include?(state) ? state : "cancelled")
        @undo_as = as
        @steps.each { |step| step.children&.each(&:cancel) }
        @undos ||= @steps.select { |step| step.effect? && (step.children || step.definition[:undo]) }.map { |step| UndoRun.new(step) }
        @undos.each { |undo| undo.among(@undos) }
        @cancelled = true
      end

      # Whether nothing new may begin of it.
      def paused? = !own_pause.nil?

      # That of it, or of one that it is a step of.
      def own_pause = @pauses.of(self) || @above&.own_pause

      def finished_early? = !finished_by.nil?

      def undone? = !@undo_as.nil?

      def undoing? = !@undos.nil? && !@undos.all?(&:undone?)

      def begun? = !@started_at.nil?

      def ended? = %w[complete discarded].include?(state)

      def dead? = %w[blocked failed cancelled].include?(state)

      # What it has to say to its parent, as JSON.
      def output
        results = @steps.select(&:complete?).map(&:named_result)
        Native.output(@definition[:output], %({"input":#{@input},"results":{#{results.join(',')}}}))
      end

      def read_children(step, after, dead) = @steps.find { |candidate| candidate.name == step }.read_children(after, dead)

      def new_wait(definition, key) = WaitRun.new(definition, self, @signals).begin_with(key)

      # @param value [String] JSON
      def publish(name, value) = @values[name] = value

      # @return [String] JSON
      def values = "{#{@values.map { |name, value| "#{name.to_json}:#{value}" }.join(',')}}"

      # Its steps that wait for a signal.
      def waits = Task::ENDED.include?(state) ? [] : @steps.select(&:waits?)

      # Those of its dead steps.
      def errors = @steps.select(&:dead?).flat_map { |step| step.to_h[:errors] }

      # @param impatient [Boolean] whether one that is to be tried again later may run now
      # @return [StepRun, nil]
      def next_step(impatient)
        undo("failed") if !@undos && @definition[:on_failure] == "undo" && @steps.any? { |step| step.dead? || step.overwhelmed? }
        return if !@undos && (@cancelled || discarded? || finished_by)

        loop do
          skip unless @undos
          ready = may_begin(@undos || @steps).select { |step| impatient && step.own_time? ? step.open? : step.ready? }
          step = ready.select(&:waits?).min_by { |wait| wait.wait.since } || ready.first
          return step unless step&.settles_itself?

          step.settle_itself
        end
      end

      def attempt(step, impatient)
        step.end_own_wait
        StepRun::Attempt.new(
          step: step, number: step.failures + 1, task_id: @id, template: @definition[:name], version: @template[:version],
          input: @input, results: step.results_before, cancelled: -> { @cancelled && !@undos }, task: self, impatient: impatient
        )
      end

      def state
        state = unpaused_state
        %w[pending running waiting].include?(state) && pause ? "paused" : state
      end

      def unpaused_state
        return undoing? ? "undoing" : @undo_as if @undos
        return "cancelled" if @cancelled
        return "discarded" if discarded?
        return "complete" if finished_by
        return @run_at && @run_at > Time.now ? "waiting" : "pending" unless @started_at
        return "complete" if @steps.all?(&:done?)
        return after_death if @steps.any?(&:overwhelmed?)
        return "waiting" if !@running && @steps.any?(&:open?) && @steps.none? { |step| step.ready? || (step.open? && step.children) }
        return "running" if @steps.any?(&:open?) || @steps.none?(&:dead?)

        after_death
      end

      # As the core writes it down.
      def to_h
        {
          id: @id, template: @definition[:name], namespace: @definition[:namespace], version: @template[:version], state: state,
          priority: @priority, key: @key, tags: @tags, input: JSON.parse(@input), created_at: at(@created_at), run_at: at(@run_at),
          parent: @parent, started_at: at(@started_at), finished_at: at(Task::ENDED.include?(state) ? @finished_at : nil),
          trace_id: nil, forked_from: @forked_from, forks: [], pause: (pause unless Task::ENDED.include?(state)),
          steps: [*@steps, *@undos].map { |step| step.to_h(left) }
        }
      end

      private

      def pause = own_pause || @pauses.of_namespace(self)

      # Those of these steps that are not paused.
      def may_begin(steps) = paused? ? [] : steps.reject { |step| @pauses.step?(step) }

      # Those that its template finds in the input, and above them its own; as text.
      def tags_of(own)
        found = (@definition[:tags] || {}).transform_values { |path| JSON.parse(Native.output(path, %({"input":#{@input}}))) }
        found.compact.merge((own || {}).transform_keys(&:to_sym)).transform_values(&:to_s)
      end

      # What is said of steps that have not ended.
      def left
        return { state: "skipped", skipped_because: "step #{finished_by.name} finished the task" } if finished_by

        { state: "cancelled" } if @cancelled || discarded?
      end

      def after_death = @definition[:on_failure] == "fail" || @steps.any?(&:given_up?) ? "failed" : "blocked"

      def skip
        nil while @steps.any? { |step| step.skip_unless_wanted(@input) }
      end

      def finished_by = @steps.find(&:finished_task?)

      def discarded? = @steps.any?(&:discarded?)

      def at(time) = time&.getutc&.iso8601(6)
    end
  end
end
