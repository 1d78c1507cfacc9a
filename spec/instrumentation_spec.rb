# frozen_string_literal: true

require "spec_helper"
require "active_support"
require "active_support/notifications"

RSpec.describe TaskerCore::Instrumentation do
  # What was told of an event while the block ran.
  def told(event)
    queue = Queue.new
    subscriber = ActiveSupport::Notifications.subscribe("#{event}.tasker_core") { |told| queue << told }
    yield
    Array.new(queue.size) { queue.pop }
  ensure
    ActiveSupport::Notifications.unsubscribe(subscriber)
  end

  it "tells of every handler that ran, and of what it raised" do
    handler("Work") { |step| step.context[:fail] ? raise(TaskerCore::PermanentError, "no") : step.name }
    flow = workflow { step :work, "Work" }
    events = told("step") do
      working { [{}, { fail: true }].each { |input| TaskerCore.enqueue(flow, input).wait(timeout: 120) } }
    end
    expect(events.map { |event| [event.payload[:step].workflow, event.payload[:exception]] })
      .to eq([[flow.template_name, nil], [flow.template_name, ["TaskerCore::PermanentError", "no"]]])
    expect(events.map(&:duration)).to all(be >= 0)
  end

  it "tells of the tasks that were created" do
    handler("Work") { |_| nil }
    flow = workflow { step :work, "Work" }
    tasks = nil
    events = told("enqueue") { tasks = TaskerCore.enqueue_all(flow, [{}, {}]) }
    expect(events.map(&:payload)).to match([{ workflow: "#{namespace}/#{flow.template_name}", count: 2, tasks: tasks }])
  end
end
