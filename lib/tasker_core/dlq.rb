# frozen_string_literal: true

require "json"

module TaskerCore
  # The dead letters: steps that will not be tried again by themselves, each with its reason, errors and input, and the names of the steps
  # that have results.
  #
  # Filters, wherever one is taken: namespace, template, handler, reason (attempts_exhausted, permanent_error, timeout,
  # payload_too_large, poison, deadline, stuck, timed_out, no_key, not_a_step, unknown_task, unknown_step), class (of the last error),
  # task (an id), older_than and newer_than (seconds, or "1h"). Every action is recorded with who did it and why.
  #
  # @example What is wrong, and once it is fixed, all of it again, ten a second
  #   TaskerCore::DLQ.groups(namespace: "fulfillment")
  #   TaskerCore::DLQ.replay(namespace: "fulfillment", class: "Net::ReadTimeout", per_second: 10, who: "ada", why: "gateway is back")
  module DLQ
    class << self
      # @param limit [Integer]
      # @param before [String, nil] the id of the last letter of the page before
      # @param filter [Hash]
      # @return [Array<Hash>] the newest first, without what is large: of such an input only +input_bytes+
      def list(limit: 20, before: nil, **filter) = request(:list, filter: filter.merge(before: before).compact, limit: limit)

      # @param filter [Hash]
      # @return [Array<Hash>] count, namespace, template, step, reason, class, first, last, message, example
      def groups(**filter) = request(:groups, filter: filter)

      # @param id [String] namespace/number
      # @return [Hash] with the whole input, and the results so far
      # @raise [NotFound]
      def show(id) = request(:show, id: id)

      # Lets the steps start over. A letter whose task was cancelled is left where it is.
      # @param ids [Array<String>] these letters; none: all that the filter lets through (+all: true+ where there is no filter)
      # @param who [String]
      # @param why [String, nil]
      # @param input [Hash, nil] in place of the tasks' input
      # @param max_attempts [Integer, nil] in place of the steps' own
      # @param per_second [Numeric, nil] how many begin in a second; nil: all at once
      # @param dry_run [Boolean] only say which
      # @param filter [Hash]
      # @return [Array<String>] the ids of the letters that were replayed, or would be
      def replay(*ids, who:, why: nil, input: nil, max_attempts: nil, per_second: nil, dry_run: false, **filter)
        how = { input: input, max_attempts: max_attempts, per_second: per_second&.to_f }
        act(:replay, ids, filter, dry_run, how: how, by: { who: who, why: why })
      end

      # Ends a dead step by hand; its task goes on.
      # @param id [String]
      # @param result [Object] what JSON can hold
      # @return [Array<String>] the id, or nothing when the letter is gone
      def resolve(id, result:, who:, why: nil) = request(:resolve, ids: [id], result: result, by: { who: who, why: why })

      # Ends dead steps without a result; their tasks go on.
      # @param (see .replay)
      # @return [Array<String>] the ids of the letters that were skipped, or would be
      def skip(*ids, who:, why: nil, dry_run: false, **filter) = act(:skip, ids, filter, dry_run, by: { who: who, why: why })

      # Deletes dead letters, after recording them whole. Tasks that they blocked have failed.
      # @param (see .replay)
      # @return [Array<String>] the ids of the letters that were discarded, or would be
      def discard(*ids, who:, why:, dry_run: false, **filter) = act(:discard, ids, filter, dry_run, by: { who: who, why: why })

      # Deletes the dead letters that are older than their retention; orchestrators do so by themselves.
      # @return [Integer] how many
      def purge(who:) = request(:purge, by: { who: who })

      # @param limit [Integer]
      # @return [Array<Hash>] what was done, the newest first: at, who, why, action, letter, task_id, step, details
      def actions(limit: 20) = request(:actions, limit: limit)

      private

      def act(verb, ids, filter, dry_run, **arguments)
        raise InvalidInput, "which dead letters? give ids or filters, or all: true" if ids.empty? && filter.empty?

        filter = filter.except(:all)
        ids = request(:matching, filter: ids.empty? ? filter : filter.merge(ids: ids))
        dry_run ? ids : request(verb, ids: ids, **arguments)
      end

      # Lengths of time as everywhere.
      def spans(filter)
        filter.to_h { |name, value| [name, %i[older_than newer_than].include?(name) ? Span.seconds(value, name.to_s) : value] }
      end

      def request(verb, **arguments)
        arguments[:filter] &&= spans(arguments[:filter])
        JSON.parse(TaskerCore.client.native.dead_letters({ verb: verb, **arguments }), symbolize_names: true, max_nesting: false)
      end
    end
  end
end
