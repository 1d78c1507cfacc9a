# frozen_string_literal: true

require "securerandom"
require "tasker_core"
require_relative "testing/client"
require_relative "testing/engine"
require_relative "testing/expectation"

module TaskerCore
  # For the tests of an application: tasks are kept in memory, and need neither PostgreSQL nor a worker. What is accepted (workflows,
  # inputs, priorities, results) is decided by the core itself, as in production. See {Matchers} for RSpec, {Assertions} for Minitest.
  #
  # What memory does not know: dead letters ({DLQ}), transactions (a task stays enqueued when the caller's transaction is rolled back),
  # deadlines, and limits on how long something may be stuck. Where a test is about these, {disable!} talks to the database.
  #
  # @example The whole workflow, in the thread that enqueues
  #   TaskerCore::Testing.inline! do
  #     task = TaskerCore.enqueue(OrderFulfillment, { order_id: 42 })
  #     task.status         # => "complete"
  #     task.results[:ship] # => { tracking: "TR-42" }
  #   end
  # @example One handler alone
  #   TaskerCore::Testing.run_step(ReserveInventory, context: { order_id: 42 }, results: { validate: { units: 2 } })
  #   # => { reserved: 2 }
  # @example Time is Time.now, which Rails' time helpers and Timecop move
  #   TaskerCore::Testing.fake!
  #   TaskerCore.enqueue(SendReminder, {}, wait: 86_400)
  #   travel(1.day) { TaskerCore::Testing.drain }
  module Testing
    @engine = Engine.new
    @mode = nil

    class << self
      # @return [Symbol, nil] :fake, :inline, or nil: the database
      attr_reader :mode

      # From now on, or in the block, tasks are only remembered.
      # @return [Object] what the block returns
      def fake!(&block) = switch(:fake, &block)

      # From now on, or in the block, a task runs when it is enqueued, in the same thread, all its steps, each as often as it may be tried,
      # and without waiting. One that is to start later runs in a {drain} after that. An error of a handler is its step's, as in
      # production ({Task#steps} has it); a failed expectation in a handler fails the test.
      # @return [Object] what the block returns
      def inline!(&block) = switch(:inline, &block)

      # From now on, or in the block, tasks are created in the database.
      # @return [Object] what the block returns
      def disable!(&block) = switch(nil, &block)

      # Runs what is enqueued and due, and what that enqueues. What fails is tried again at once, as often as it may be; a step whose
      # handler says when ({RetryableError#retry_after}) is due then, and runs in a {drain} after that.
      # @return [Array<Task>] those that ran, in the order in which they were enqueued
      def drain = ids(-> { @engine.run_due })

      # @return [Array<Task>] all that were enqueued since the last {clear}
      def tasks = ids(-> { @engine.ids })

      # Forgets all tasks. The integrations with RSpec and Minitest do it before each test.
      # @return [void]
      def clear = @engine.clear

      # Runs a handler once, as a step would.
      # @param handler [Class<StepHandler>]
      # @param context [Hash] the task's input
      # @param results [Hash] those of the steps before, by their names
      # @param config [Hash] the step's
      # @param attempt [Integer]
      # @param checkpoint [Object, nil] what an earlier attempt recorded
      # @param signals [Hash] the payloads of those that it waits for ({Step#wait_for}), by their names
      # @return [Object] the result, as the steps after it would see it
      # @raise [InvalidInput] when JSON cannot hold the result
      # @raise [Exception] what the handler raises
      def run_step(handler, context: {}, results: {}, config: {}, attempt: 1, checkpoint: nil, signals: {})
        @engine.run_step(handler, context: context, results: results, config: config, attempt: attempt, checkpoint: checkpoint,
                                  signals: signals)
      end

      # @return [Client, nil] in place of the process's own
      # @api private
      def client = mode && (@client ||= Client.new(@engine))

      private

      def switch(mode)
        before = @mode
        @mode = mode
        return unless block_given?

        begin
          yield
        ensure
          @mode = before
        end
      end

      def ids(found)
        raise Error, "TaskerCore::Testing is not in use: call fake! or inline! first" unless mode

        found.call.map { |id| Task.new(client, id) }
      end
    end

    # Goes before {TaskerCore.client}.
    # @api private
    module InPlaceOfTheDatabase
      def client = Testing.client || super
    end
    TaskerCore.singleton_class.prepend(InPlaceOfTheDatabase)
  end
end
