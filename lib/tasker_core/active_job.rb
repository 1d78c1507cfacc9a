# frozen_string_literal: true

require "active_job"
require "tasker_core"
require_relative "active_job/run"

module TaskerCore
  # Runs ActiveJob's jobs: +config.active_job.queue_adapter = :tasker_core+, and a worker for the queues
  # (+tasker worker --namespace default,mailers+).
  #
  # A job is a task of one step, in the namespace of its queue's name, of a workflow that is called as its class; its key is the job's id.
  # It is retried and discarded as its class says (+retry_on+, +discard_on+), and by nothing else: each retry is another attempt of its
  # step, what is discarded ends as +discarded+, and an error that its class does not know makes it a dead letter. One that is enqueued
  # inside a transaction on the application's connection exists if, and only if, that commits.
  #
  # Priorities are ActiveJob's, where smaller is more urgent: below -10 is urgent, below 0 high, 0 and none are normal, above 0 is low.
  module Jobs
    # What a namespace's name may have.
    LONGEST_NAME = 37
    private_constant :LONGEST_NAME

    # The one step of every job.
    # @api private
    class Perform < StepHandler
      # @param step [Step]
      # @return [Hash, nil] nothing, since what jobs return is not kept; or the task in which the job goes on
      # @raise [PermanentError] for a job that this task is not for: whoever may create tasks may not choose what runs where
      # @raise [Run::Retried, Run::Discarded, Run::Failed]
      def call(step)
        job = (step.checkpoint || step.context.fetch(:job)).deep_stringify_keys
        Jobs.check(job, step)
        Run.new(job, step).call
      end
    end

    Worker::Handlers.adapt(ActiveJob::Base, Perform)

    @workflows = {}
    @lock = Mutex.new

    class << self
      # Creates the tasks of some jobs: those of one queue and class in one transaction.
      # @param jobs [Array<ActiveJob::Base>]
      # @return [Integer] how many
      # @raise [Error]
      def enqueue(jobs)
        anew = jobs.reject { |job| Run.current&.again(job) }
        anew.group_by { |job| workflow(job) }.each { |workflow, alike| create(workflow, alike) }
        jobs.size
      end

      # All tasks of a job: one, unless it was enqueued more than once, or went on in another queue, at another priority or after a thousand
      # attempts.
      # @param job_id [String] ActiveJob's own id of it
      # @return [Array<Task>] in the order in which they were enqueued
      def tasks(job_id)
        numbers = (1..).lazy.map { |number| TaskerCore.tasks(key: key(job_id, number)) }
        numbers.take_while(&:any?).to_a.flatten.sort_by(&:id)
      end

      # @param queue [String] a queue's name
      # @return [String] that of its namespace: what a namespace's name cannot have is an underscore
      def namespace(queue)
        name = queue.downcase.gsub(/[^a-z0-9_]/, "_")
        (name.match?(/\A[a-z]/) ? name : "q#{name}")[0, LONGEST_NAME]
      end

      # @param job [Hash] a serialized job
      # @param step [Step] that is to run it
      # @raise [PermanentError]
      # @api private
      def check(job, step)
        name, queue = job.values_at("job_class", "queue_name").map(&:to_s)
        raise PermanentError, "a task of #{step.workflow} cannot run #{name}" unless name == step.handler
        raise PermanentError, "#{name} of the queue #{queue} cannot run in #{step.namespace}" unless namespace(queue) == step.namespace
      end

      # @api private
      def priority(number)
        case number.to_i
        when ...-10 then :urgent
        when -10...0 then :high
        when 0 then :normal
        else :low
        end
      end

      # When a job is to run.
      # @return [Time, nil] nil: at once
      # @api private
      def time(job) = job.scheduled_at&.then { |time| Time.at(time.to_f) }

      # @api private
      def accept(job, id)
        job.provider_job_id = id
        job.successfully_enqueued = true if job.respond_to?(:successfully_enqueued=)
        true
      end

      private

      # The same job may be enqueued again: each of its tasks has a key of its own.
      def create(workflow, jobs, number = 1)
        by_input = {}.compare_by_identity
        jobs.each { |job| by_input[{ job: job.serialize }] = job }
        tasks = TaskerCore.enqueue_all(
          workflow, by_input.keys,
          key: ->(input) { key(by_input[input].job_id, number) },
          priority: ->(input) { priority(by_input[input].priority) }, run_at: ->(input) { time(by_input[input]) }
        )
        known = jobs.zip(tasks).reject { |job, task| task.created? && accept(job, task.id) }
        create(workflow, known.map(&:first), number + 1) if known.any?
      end

      def key(job_id, number) = number == 1 ? job_id : "#{job_id}/#{number}"

      def template_name(job_class) = job_class.underscore.tr("/", "_")

      def workflow(job)
        namespace = namespace(job.queue_name)
        template = template_name(job.class.name)
        @lock.synchronize do
          @workflows[[namespace, job.class.name]] ||= Class.new(Workflow) do
            namespace namespace
            template_name template
            step :perform, job.class.name, retry: { max_attempts: 1000 }
          end
        end
      end
    end
  end
end

# Rails' own.
module ActiveJob
  # Where Rails looks for what its setting names.
  module QueueAdapters
    # See {TaskerCore::Jobs}.
    class TaskerCoreAdapter < (const_defined?(:AbstractAdapter) ? AbstractAdapter : Object)
      # @param job [ActiveJob::Base]
      def enqueue(job) = TaskerCore::Jobs.enqueue([job])

      # @param job [ActiveJob::Base]
      # @param timestamp [Float] when to run it at the earliest, in seconds since the epoch
      def enqueue_at(job, timestamp)
        job.scheduled_at ||= timestamp
        TaskerCore::Jobs.enqueue([job])
      end

      # For +perform_all_later+.
      # @param jobs [Array<ActiveJob::Base>]
      # @return [Integer] how many were enqueued
      def enqueue_all(jobs) = TaskerCore::Jobs.enqueue(jobs)

      # Rails need not wait for the transaction's end: the task is part of it.
      def enqueue_after_transaction_commit? = false

      # For jobs with continuations: whether it is time to stop between two of their steps.
      def stopping? = TaskerCore::Worker.current&.stopping? || false
    end
  end
end
