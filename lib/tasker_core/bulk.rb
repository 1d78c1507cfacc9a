# frozen_string_literal: true

module TaskerCore
  # What is done to many tasks at once: to those that a filter lets through. The filter is that of {TaskerCore.tasks} (+workflow+, +key+,
  # +state+, +error+, +since+, +tags+); one that lets everything through has to be asked for (+all: true+). With +dry_run: true+ nothing
  # is done. Each returns how many tasks it concerned; what it does not apply to (those that have ended, mostly) does not count.
  #
  # @example
  #   TaskerCore::Bulk.cancel(tags: { customer: 7 }, dry_run: true) # => 0
  #   TaskerCore.enqueue_all(OrderFulfillment, [{ order_id: 1 }, { order_id: 2 }], run_at: Time.now + 60, tags: { customer: 7 })
  #   TaskerCore::Bulk.prioritize(:high, tags: { customer: 7 }) # => 2
  #   TaskerCore::Bulk.cancel(workflow: OrderFulfillment, tags: { customer: 7 }) # => 2
  module Bulk
    class << self
      # @param undo [Boolean] whether what they did is undone, also what those did that have ended
      # @param filter [Hash] see {Bulk}
      # @return [Integer]
      # @raise [InvalidInput] where nothing is chosen
      def cancel(undo: false, **filter) = request({ verb: "cancel", undo: undo }, filter)

      # @param who [String] a person's name, or a program's
      # @param why [String, nil]
      # @param filter [Hash] see {Bulk}
      # @return [Integer]
      # @raise [InvalidInput] where nothing is chosen
      def pause(who:, why: nil, **filter) = request({ verb: "pause", who: who, why: why }, filter)

      # @param filter [Hash] see {Bulk}
      # @return [Integer]
      # @raise [InvalidInput] where nothing is chosen
      def resume(**filter) = request({ verb: "resume" }, filter)

      # Lets their dead steps start over.
      # @param who [String] a person's name, or a program's
      # @param why [String, nil]
      # @param per_second [Numeric, nil] how many steps begin in a second, in any 200 tasks; nil: all at once
      # @param filter [Hash] see {Bulk}
      # @return [Integer]
      # @raise [InvalidInput] where nothing is chosen
      def replay(who:, why: nil, per_second: nil, **filter)
        request({ verb: "replay", how: { per_second: per_second }, by: { who: who, why: why } }, filter)
      end

      # Gives them another priority, and the tasks that are their steps.
      # @param priority [Symbol, String] :low, :normal, :high, :urgent
      # @param filter [Hash] see {Bulk}
      # @return [Integer]
      # @raise [InvalidInput] where nothing is chosen
      def prioritize(priority, **filter) = request({ verb: "prioritize", priority: priority.to_s }, filter)

      private

      def request(action, filter)
        options = filter.slice(:all, :dry_run)
        filter = TaskerCore.client.filter(**filter.except(:all, :dry_run))
        raise InvalidInput, "which tasks? give a filter, or all: true" if filter.empty? && !options[:all]

        TaskerCore.client.native.bulk({ action: action, filter: filter, dry_run: options.fetch(:dry_run, false) })
      end
    end
  end
end
