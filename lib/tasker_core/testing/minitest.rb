# frozen_string_literal: true

require "minitest"
require_relative "../testing"

module TaskerCore
  module Testing
    # For Minitest: +require "tasker_core/testing/minitest"+ in the test's helper, +include TaskerCore::Testing::Assertions+ in the test
    # class (in Rails ActiveSupport::TestCase), and choose with {Testing.fake!} or {Testing.inline!}.
    #
    # @example
    #   assert_task_enqueued(OrderFulfillment, with: { order_id: 42 }, priority: :high) { post "/orders", params: { order_id: 42 } }
    #   assert_no_task_enqueued(SendReminder)
    #   assert_equal({ reserved: 2 }, run_step(ReserveInventory, context: { order_id: 42 }))
    module Assertions
      # @api private
      def before_setup
        Testing.clear
        super
      end

      # That the block enqueues such tasks; without a block, that they were enqueued since the test began.
      # @param workflow [Class<Workflow>, String]
      # @param with [Object] the input, or what is +===+ to it
      # @param priority [Symbol]
      # @param key [String]
      # @param at [Time] not before
      # @param count [Integer, nil] how many; nil: at least one
      # @return [void]
      def assert_task_enqueued(workflow, with: nil, priority: nil, key: nil, at: nil, count: nil, &block)
        expectation = expectation(workflow, input: with, priority: priority, key: key, at: at)
        tasks = enqueued(&block)
        found = expectation.among(tasks).size
        assert(count ? found == count : found.positive?,
               "expected #{expectation} to be enqueued#{count && " #{count} times"}, but #{Expectation.list(tasks)}")
      end

      # That the block enqueues no such task; without a block, that none was enqueued since the test began.
      # @param workflow [Class<Workflow>, String, nil] nil: any
      # @return [void]
      def assert_no_task_enqueued(workflow = nil, &block)
        tasks = enqueued(&block)
        found = workflow ? expectation(workflow).among(tasks) : tasks
        assert_empty(found, "expected #{workflow || 'no task'}#{' not' if workflow} to be enqueued, but #{Expectation.list(tasks)}")
      end

      # @see Testing.run_step
      def run_step(handler, **options) = Testing.run_step(handler, **options)

      private

      def expectation(workflow, **criteria)
        Expectation.new(workflow, criteria.compact) { |expected, actual| expected === actual } # rubocop:disable Style/CaseEquality
      end

      def enqueued
        before = block_given? ? Testing.tasks.size : 0
        yield if block_given?
        Testing.tasks.drop(before).map(&:to_h)
      end
    end
  end
end
