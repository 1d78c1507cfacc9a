# frozen_string_literal: true

require "active_support"
require "active_support/core_ext/integer/time"
require "active_support/testing/time_helpers"
require "spec_helper"
require "tasker_core/testing"

RSpec.describe TaskerCore::Schedules do
  include ActiveSupport::Testing::TimeHelpers

  after { travel_back }

  let(:report) do
    writes = handler { |step| step.context[:day] }
    workflow { step :write, writes }
  end
  let(:name) { "nightly #{SecureRandom.hex(4)}" }

  it "begin tasks at their times, and can be seen, paused, triggered, backfilled and deleted" do
    working do
      expect(described_class.create(name, report, every: 1, input: { day: "$time" })).to eq(:created)
      expect(described_class.create(name, report, every: "1s", input: { day: "$time" })).to eq(:unchanged)
      sleep 0.02 until described_class.show(name)[:ticks].size > 1
      described_class.pause(name, who: "ann", why: "enough")
      shown = described_class.show(name)
      expect(shown).to include(template: "#{namespace}/#{report.template_name}", owner: "operator", paused: include(who: "ann"))
      last = TaskerCore.task(shown[:last][:task])
      expect(last.wait(timeout: 120)).to eq("complete")
      expect(Time.iso8601(last.results[:write])).to eq(Time.iso8601(shown[:last][:time]))
      expect(described_class.trigger(name).wait(timeout: 120)).to eq("complete")
      expect(described_class.create(name, report, cron: "0 3 * * *", time_zone: "Europe/Berlin")).to eq(:changed)
      past = [Time.utc(2026, 3, 28), Time.utc(2026, 3, 31)]
      expect(Array.new(2) { described_class.backfill(name, from: past.first, until: past.last).size }).to eq([3, 0])
      described_class.resume(name, who: "ann")
      described_class.delete(name)
      expect { described_class.show(name) }.to raise_error(TaskerCore::NotFound, "no schedule #{name}")
    end
  end

  it "tell their next times, through daylight-saving changes" do
    times = described_class.times(cron: "30 2 * * *", time_zone: "Europe/Berlin", count: 2, after: Time.utc(2026, 3, 28, 12))
    expect(times).to eq([Time.utc(2026, 3, 29, 1), Time.utc(2026, 3, 30, 0, 30)])
    expect { described_class.times(every: "soon") }.to raise_error(TaskerCore::InvalidInput, /every is "soon": expected a duration/)
    expect { described_class.create(name, report, cron: "0 3 * * *", time_zone: "Mars") }
      .to raise_error(TaskerCore::InvalidInput, /the schedule is not valid: time_zone "Mars" is unknown/)
  end

  it "come along with a workflow, whose mistakes point at its lines" do
    hourly = workflow do
      schedule every: "1h", ends_at: Time.utc(2030), jitter: 60.seconds
      step :write, "Write"
    end
    TaskerCore.client.register(hourly)
    expect(described_class.show("#{namespace}/#{hourly.template_name}:default")).to include(
      owner: "template", definition: include(every: { secs: 3600, nanos: 0 }, ends_at: "2030-01-01T00:00:00Z",
                                             jitter: { secs: 60, nanos: 0 })
    )
    twice = lambda do
      workflow do
        schedule every: "1h"
        schedule every: "2h"
      end
    end
    expect { twice.call }.to raise_error(TaskerCore::TemplateError, /schedules_spec.rb:\d+: .*schedule :default is there twice/)
    wrong = workflow { schedule cron: "0 3 * *" }
    expect { wrong.validate! }.to raise_error(TaskerCore::TemplateError, /schedule "default": cron "0 3 \* \*" is no pattern/)
  end

  it "begin tasks in memory, by a time that can be travelled" do
    TaskerCore::Testing.fake! do
      TaskerCore::Testing.clear
      travel_to(Time.utc(2026, 1, 1, 12))
      described_class.create(name, report, cron: "0 3 * * *", input: { day: "$time" })
      described_class.create("#{name} all", report, cron: "0 3 * * *", catch_up: :all)
      TaskerCore::Testing.drain
      expect(TaskerCore::Testing.tasks).to be_empty
      travel_to(Time.utc(2026, 1, 4, 12))
      TaskerCore::Testing.drain
      expect([described_class.show(name)[:ticks].size, described_class.show("#{name} all")[:ticks].size]).to eq([1, 3])
      task = TaskerCore.task(described_class.show(name)[:last][:task])
      expect(Time.iso8601(task.results[:write])).to eq(Time.utc(2026, 1, 4, 3))
      expect(described_class.list.map { |schedule| Time.iso8601(schedule[:next_at]) }).to all(eq(Time.utc(2026, 1, 5, 3)))
      described_class.pause(name, who: "ann")
      travel_to(Time.utc(2026, 1, 6, 12))
      TaskerCore::Testing.drain
      expect(described_class.show(name)[:ticks].size).to eq(1)
    end
  end

  it "leave out, queue or cancel in memory what overlaps" do
    waits = workflow { wait :go }
    TaskerCore::Testing.fake! do
      TaskerCore::Testing.clear
      travel_to(Time.utc(2026, 1, 1))
      %i[skip queue cancel_old].each { |overlap| described_class.create(overlap.to_s, waits, every: "1h", overlap: overlap) }
      states = ->(overlap) { described_class.show(overlap.to_s)[:ticks].map { |tick| tick[:state] }.reverse }
      (1..3).each do |hour|
        travel_to(Time.utc(2026, 1, 1, hour, 1))
        TaskerCore::Testing.drain
      end
      expect(%i[skip queue cancel_old].to_h { |overlap| [overlap, states.call(overlap)] })
        .to eq({ skip: %w[started skipped skipped], queue: %w[started queued queued], cancel_old: %w[started] * 3 })
      TaskerCore.signal(described_class.show("queue")[:ticks].last[:task], :go)
      2.times { TaskerCore::Testing.drain }
      expect(states.call(:queue)).to eq(%w[started started queued])
    end
  end
end
