# frozen_string_literal: true

module TaskerCore
  module Jobs
    # One attempt of a job. It notices when ActiveJob enqueues the job again, or drops it, which both look like success from outside.
    # @api private
    class Run
      # Stands for what the job raised, which is what its step is said to have failed with.
      module InPlaceOf
        # @return [Exception]
        attr_reader :original

        def initialize(original, **more)
          super(original.message, **more)
          @original = original
        end
      end

      # The job is to be tried again.
      class Retried < RetryableError
        include InPlaceOf
      end

      # The job was dropped.
      class Discarded < DiscardError
        include InPlaceOf
      end

      # The job's class does not know the error.
      class Failed < PermanentError
        include InPlaceOf
      end

      CURRENT = :tasker_core_job
      private_constant :CURRENT

      class << self
        # @return [Run, nil] that of this fiber
        def current = Thread.current[CURRENT]

        # ActiveJob says of which job it retries or discards what.
        # @param payload [Hash]
        def note(event, payload)
          run = current
          run.note(event, payload[:error]) if run && payload[:job].job_id == run.job_id
        end
      end

      ActiveSupport::Notifications.subscribe("enqueue_retry.active_job") { |*, payload| note(:retried, payload) }
      ActiveSupport::Notifications.subscribe("discard.active_job") { |*, payload| note(:discarded, payload) }

      # @param job [Hash] serialized
      # @param step [Step] that runs it
      def initialize(job, step)
        @job = job
        @step = step
      end

      def job_id = @job["job_id"]

      # @return [Hash, nil] the task in which the job goes on
      # @raise [Retried, Snooze, Discarded, Failed]
      def call
        before = Thread.current[CURRENT]
        Thread.current[CURRENT] = self
        error = perform
        settle(error)
      ensure
        Thread.current[CURRENT] = before
      end

      # The job is enqueued while it runs: the first time, its step's next attempt is meant, if it is for the same queue and priority.
      # @param job [ActiveJob::Base]
      # @return [Boolean] false: it needs a task of its own
      def again(job)
        return false unless job.job_id == job_id

        same = Jobs.namespace(job.queue_name) == @step.namespace && Jobs.priority(job.priority) == Jobs.priority(@job["priority"])
        if @again || !same || @step.attempt >= @step.max_attempts
          @elsewhere = job
          return false
        end
        @delay = Jobs.time(job)&.then { |time| [time - Time.now, 0].max } || 0
        @again = job.serialize
        Jobs.accept(job, @step.task_id)
      end

      def note(event, error)
        @event = event
        @error = error
      end

      private

      # @return [Exception, nil] what the job's class does not know
      def perform
        ActiveJob::Base.execute(@job.merge("provider_job_id" => @step.task_id))
        nil
      rescue LeaseLost
        raise
      rescue Exception => e # rubocop:disable Lint/RescueException
        e
      end

      def settle(error)
        if @again
          @step.checkpoint(@again)
          cause = @error || error
          # By itself, as one with continuations does between two of its steps: that was no failure.
          raise cause ? Retried.new(cause, retry_after: @delay) : Snooze.new(@delay)
        end
        raise Failed, error if error
        raise Discarded, @error || Error.new("the job was discarded") if @event == :discarded

        { goes_on_as: @elsewhere.provider_job_id } if @elsewhere
      end
    end
  end
end
