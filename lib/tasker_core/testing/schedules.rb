# frozen_string_literal: true

require "json"
require "time"

module TaskerCore
  module Testing
    # The schedules of tasks in memory, by Time.now.
    # @api private
    class Schedules
      Known = Struct.new(:name, :template, :definition, :owner, :since, :next_at, :paused, :ticks, keyword_init: true) do
        def running = ticks.filter_map { |tick| tick[:task] }.reject { |task| Task::ENDED.include?(task.state) || task.state == "blocked" }

        def to_h = super.merge(definition: JSON.parse(definition), ticks: shown, last: shown.first, next_at: next_at)

        def shown = ticks.sort_by { |tick| tick[:time] }.reverse.map { |tick| tick.merge(task: tick[:task]&.id) }
      end

      # @yieldparam template [String]
      # @yieldparam definition [Hash]
      # @yieldparam input [String] JSON
      # @yieldreturn [TaskRun] that it has begun
      def initialize(&begins)
        @known = {}
        @begins = begins
      end

      # @param request [Hash] as {TaskerCore::Schedules} makes it
      def answer(request)
        verb, name = request.values_at(:verb, :name)
        return @known.values.sort_by(&:name).map(&:to_h) if verb == :list
        return put(name, request[:template], Native.parse_schedule(Native.to_json(request[:schedule])), "operator") if verb == :put

        send(verb, @known.fetch(name) { raise NotFound, "no schedule #{name}" }, request)
      end

      # Those of a template, and no others of it.
      def keep(template, schedules)
        schedules = (schedules || {}).to_h { |name, definition| ["#{template}:#{name}", definition.to_json] }
        @known.reject! { |name, known| known.owner == "template" && known.template == template && !schedules.key?(name) }
        schedules.each { |name, definition| put(name, template, definition, "template") }
      end

      # Begins what is due.
      def fire
        @known.each_value do |schedule|
          next if schedule.paused

          schedule.next_at ||= Native.due_times(schedule.definition, schedule.since, nil).last
          times, following = schedule.next_at ? Native.due_times(schedule.definition, schedule.next_at, now) : [[], nil]
          schedule.next_at = following
          start_queued(schedule)
          times.each { |time| tick(schedule, time, JSON.parse(schedule.definition)["overlap"]) }
        end
      end

      private

      def put(name, template, definition, owner)
        known = @known[name]
        raise InvalidInput, "the schedule #{name} belongs to its template" if known && known.owner != owner
        return "unchanged" if known && [known.template, known.definition] == [template, definition]

        @known[name] =
          Known.new(name: name, template: template, definition: definition, owner: owner, since: now, ticks: known&.ticks || [])
        known ? "changed" : "created"
      end

      def show(schedule, request) = schedule.to_h.merge(ticks: schedule.shown.first(request[:count]))

      def pause(schedule, request)
        schedule.paused = request.slice(:who, :why).merge(at: now) if request[:paused]
        schedule.paused, schedule.since, schedule.next_at = nil, now, nil unless request[:paused] # rubocop:disable Style/ParallelAssignment
        nil
      end

      def trigger(schedule, _request) = [tick(schedule, now, "allow").id]

      def backfill(schedule, request)
        before = (Time.iso8601(request[:from]) - 1e-6).iso8601(6)
        first = Native.due_times(schedule.definition, before, nil).last
        all = JSON.parse(schedule.definition).merge("catch_up" => "all").to_json
        times = first ? Native.due_times(all, first, request[:until]).first : []
        times.filter_map { |time| tick(schedule, time, "allow")&.id }
      end

      def delete(schedule, _request)
        raise InvalidInput, "the schedule #{schedule.name} belongs to its template" unless schedule.owner == "operator"

        @known.delete(schedule.name) && nil
      end

      def tick(schedule, time, overlap)
        return if schedule.ticks.any? { |tick| tick[:time] == time }

        running = overlap == "allow" || overlap.nil? ? [] : schedule.running
        running.each(&:cancel) if overlap == "cancel_old"
        state = { "skip" => "skipped", "queue" => "queued" }[overlap] if running.any?
        schedule.ticks << { time: time, state: state || "started", task: nil, why: ("a task has not ended" if state == "skipped") }
        start(schedule, schedule.ticks.last) unless state
      end

      def start_queued(schedule)
        queued = schedule.ticks.find { |tick| tick[:state] == "queued" }
        start(schedule, queued) if queued && schedule.running.empty?
      end

      def start(schedule, tick)
        definition = JSON.parse(schedule.definition, symbolize_names: true)
        input = (definition[:input] || {}).transform_values { |value| value == "$time" ? tick[:time] : value }
        tick[:state] = "started"
        tick[:task] = @begins.call(schedule.template, definition, input.to_json)
      end

      def now = Time.now.getutc.iso8601(6)
    end
  end
end
