# frozen_string_literal: true

require "rspec/core"
require "rspec/expectations"
require_relative "../testing"

module TaskerCore
  module Testing # rubocop:disable Style/Documentation
    # For RSpec: +require "tasker_core/testing/rspec"+ in the spec's helper, and choose with {Testing.fake!} or {Testing.inline!}.
    #
    # @example
    #   expect { post "/orders", params: { item: 7 } }.to have_enqueued_task(OrderFulfillment).with(a_hash_including(item: 7))
    #   expect(TaskerCore).to have_enqueued_task(OrderFulfillment).with(item: 7).with_priority(:high).once
    #   expect(TaskerCore).not_to have_enqueued_task(SendReminder)
    #   expect(run_step(ReserveInventory, context: { order_id: 42 })).to eq(reserved: 2)
    module Matchers
      extend RSpec::Matchers::DSL

      # @!method have_enqueued_task(workflow)
      #   Of a block: that it enqueues such a task. Of anything else: that one was enqueued since the test began. Chained: +with(input)+,
      #   +with_priority(priority)+, +with_key(key)+, +at(time)+, and how many times: +once+, +twice+, +exactly(n).times+; without, at
      #   least once.
      #   @param workflow [Class<Workflow>, String]
      matcher :have_enqueued_task do |workflow|
        criteria = {}
        expectation = Expectation.new(workflow, criteria, &RSpec::Support::FuzzyMatcher.method(:values_match?))

        supports_block_expectations
        chain(:with) { |input| criteria[:input] = input }
        chain(:with_priority) { |priority| criteria[:priority] = priority }
        chain(:with_key) { |key| criteria[:key] = key }
        chain(:at) { |time| criteria[:at] = time }
        chain(:exactly) { |count| @count = count }
        chain(:times) { nil }
        chain(:once) { @count = 1 }
        chain(:twice) { @count = 2 }

        match(notify_expectation_failures: true) do |actual|
          before = actual.is_a?(Proc) ? Testing.tasks.size : 0
          actual.call if actual.is_a?(Proc)
          @tasks = Testing.tasks.drop(before).map(&:to_h)
          found = expectation.among(@tasks).size
          @count ? found == @count : found.positive?
        end

        failure_message { "expected #{expectation} to be enqueued#{@count && " #{@count} times"}, but #{Expectation.list(@tasks)}" }
        failure_message_when_negated { "expected #{expectation} not to be enqueued, but #{Expectation.list(@tasks)}" }
        description { "enqueue #{expectation}" }
      end

      # @see Testing.run_step
      def run_step(handler, **options) = Testing.run_step(handler, **options)
    end

    RSpec.configure do |config|
      config.include Matchers
      config.before { Testing.clear }
    end
  end
end
