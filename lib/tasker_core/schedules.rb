# frozen_string_literal: true

require "json"
require "time"

module TaskerCore
  # Tasks that begin at their times, each once, however many orchestrators run. A workflow can bring its own along ({Workflow.schedule});
  # these are an operator's, or an application's.
  #
  # Who says when: +cron+ (five fields, or six with seconds first) with a +time_zone+ (one of IANA's; default UTC), or +every+ ("15m").
  # Further: +jitter+ (begin at random within that time after each), +overlap+ (when a task of it has not ended: :allow, :skip, :queue or
  # :cancel_old), +catch_up+ (what is done about times at which no orchestrator ran: :none, :last or :all), +starts_at+ and +ends_at+,
  # +input+ (a value "$time" is the time), +priority+, and the +version+ of a workflow that is given by name.
  #
  # @example
  #   TaskerCore::Schedules.create("nightly", OrderFulfillment, cron: "0 3 * * *", time_zone: "Europe/Berlin", input: { day: "$time" })
  #   TaskerCore::Schedules.show("nightly")[:template] # => "fulfillment/order_fulfillment"
  #   TaskerCore::Schedules.times(every: "15m", count: 2, after: Time.utc(2030, 1, 31)).map(&:min) # => [15, 30]
  module Schedules
    class << self
      # Creates a schedule, or changes it: its old form never begins anything from then on.
      # @param name [String] unique
      # @param workflow [Class<Workflow>, String] a workflow, or the name ("name" or "namespace/name") of a registered one
      # @param schedule [Hash] cron or every, and the others
      # @return [Symbol] :created, :changed or :unchanged
      # @raise [InvalidInput] when it is not valid, or belongs to a workflow or a file of settings
      # @raise [NotFound] when there is no such workflow
      def create(name, workflow, **schedule)
        template = workflow.is_a?(Class) ? TaskerCore.client.template_of(workflow) : workflow.to_s
        request(:put, name: name.to_s, template: template, schedule: written(schedule)).to_sym
      end

      # @return [Array<Hash>] by name: name, template, definition, owner (operator, template or file), since, next_at, last,
      #   paused (at, who, why)
      def list = request(:list)

      # @param name [String]
      # @param count [Integer]
      # @return [Hash] the same of one, with +ticks+: what became of its last times (time, state, task, why)
      # @raise [NotFound]
      def show(name, count: 10) = request(:show, name: name.to_s, count: count)

      # The next times of a schedule that need not exist.
      # @param count [Integer]
      # @param after [Time]
      # @param schedule [Hash] cron or every, and the others
      # @return [Array<Time>]
      # @raise [InvalidInput]
      def times(count: 10, after: Time.now, **schedule)
        definition = Native.parse_schedule(Native.to_json(written(schedule)))
        following = ->(time) { Native.due_times(definition, time.getutc.iso8601(6), nil).last&.then { |found| Time.iso8601(found) } }
        Enumerator.produce(after) { |time| following.call(time) || raise(StopIteration) }.lazy.drop(1).first(count)
      end

      # @param name [String]
      # @param who [String]
      # @param why [String, nil]
      # @return [void]
      # @raise [NotFound]
      def pause(name, who:, why: nil) = request(:pause, name: name.to_s, paused: true, who: who, why: why)

      # Lets it go on; what would have been meanwhile does not begin.
      # @param (see .pause)
      # @return [void]
      # @raise [NotFound]
      def resume(name, who:, why: nil) = request(:pause, name: name.to_s, paused: false, who: who, why: why)

      # Begins a task now, beside what runs.
      # @param name [String]
      # @return [Task]
      # @raise [NotFound]
      def trigger(name) = Task.new(TaskerCore.client, request(:trigger, name: name.to_s).first)

      # Begins a task for each time that lies back, beside what runs, but for those that have had one.
      # @param name [String]
      # @param from [Time]
      # @param until [Time]
      # @return [Array<Task>]
      # @raise [NotFound]
      def backfill(name, from:, until:)
        last = binding.local_variable_get(:until)
        ids = request(:backfill, name: name.to_s, from: from.to_time.getutc.iso8601(6), until: last.to_time.getutc.iso8601(6))
        ids.map { |id| Task.new(TaskerCore.client, id) }
      end

      # What it began goes on.
      # @param name [String]
      # @return [void]
      # @raise [NotFound]
      # @raise [InvalidInput] when it belongs to a workflow or a file of settings
      def delete(name) = request(:delete, name: name.to_s)

      # As templates have it.
      # @api private
      def written(schedule)
        schedule.compact.to_h do |name, value|
          next [name, value.to_time.getutc.iso8601(6)] if %i[starts_at
                                                             ends_at].include?(name) && value.respond_to?(:to_time) && !value.is_a?(String)

          [name, value.respond_to?(:in_seconds) ? value.to_f : value]
        end
      end

      private

      def request(verb, **arguments)
        JSON.parse(TaskerCore.client.native.schedules({ verb: verb, **arguments }), symbolize_names: true, max_nesting: false)
      end
    end
  end
end
