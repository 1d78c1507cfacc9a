# frozen_string_literal: true

require "spec_helper"
require "tasker_core/testing"

RSpec.describe TaskerCore::Pauses do
  let(:ran) { Queue.new }
  let(:order) do
    log = ran
    reserves, charges = %w[reserve charge].map { |name| handler("#{name.capitalize}#{SecureRandom.hex(4)}") { |_step| log << name } }
    workflow do
      step :reserve, reserves
      each :charge, charges, over: "$.input.lines", after: :reserve
    end
  end
  let(:charges) { JSON.parse(order.source.first, symbolize_names: true)[:steps].last.dig(:each, :handler) }

  def held = described_class.list.last[:held]

  it "lets nothing begin of a task, a workflow, a namespace or a handler, until it is resumed" do
    working do
      TaskerCore.client.register(order)
      [{ workflow: order }, { namespace: namespace }, { namespace: namespace, handler: charges }].each do |what|
        expect(Array.new(2) { described_class.pause(**what, who: "ann", why: "audit") }).to eq([true, false])
        expect(described_class.list.last).to include(who: "ann", why: "audit", name: /#{namespace}/)
        task = TaskerCore.enqueue(order, { lines: [1, 2] })
        expect(task.status).to eq("paused") unless what.key?(:handler)
        sleep 0.01 until held == 2 || !what.key?(:handler)
        expect(Array.new(2) { described_class.resume(**what) }).to eq([true, false])
        expect(task.wait(timeout: 120)).to eq("complete")
      end
      expect(ran.size).to eq(9)
    end
  end

  it "says what is no such thing" do
    expect { described_class.pause(who: "ann") }.to raise_error(TaskerCore::InvalidInput, /expected one of task:, workflow:/)
    expect { described_class.pause(who: "ann", task: "x") }.to raise_error(TaskerCore::NotFound, /no task x/)
    expect { described_class.resume(namespace: namespace, handler: "Nobody") }
      .to raise_error(TaskerCore::NotFound, %r{no handler #{namespace}/Nobody})
  end

  describe "in memory" do
    around { |example| TaskerCore::Testing.fake! { example.run } }

    before { TaskerCore::Testing.clear }

    it "is the same" do
      task = TaskerCore.enqueue(order, { lines: [1, 2] })
      whats = [{ task: task }, { workflow: order }, { namespace: namespace }, { namespace: namespace, handler: charges }]
      whats.each { |what| expect(described_class.pause(**what, who: "ann")).to be(true) }
      expect(described_class.pause(task: task, who: "bob")).to be(false)
      expect(described_class.list.map { |pause| pause[:kind] }).to eq(%w[task template namespace handler])
      states = whats.map do |what|
        TaskerCore::Testing.drain
        [task.status, ran.size].tap { described_class.resume(**what) }
      end
      expect(states).to match([["paused", 0], ["paused", 0], ["paused", 0], [be_a(String), 1]])
      TaskerCore::Testing.drain
      expect([task.status, ran.size]).to eq(["complete", 3])
      expect { described_class.pause(namespace: "nowhere", who: "ann") }.to raise_error(TaskerCore::NotFound, /no namespace nowhere/)
    end

    it "holds a task in the middle" do
      pauses = handler { |step| TaskerCore.task(step.task_id).pause(who: "ann", why: "enough") }
      after = handler { |_step| 1 }
      two = workflow do
        step :first, pauses
        step :second, after, after: :first
      end
      task = TaskerCore.enqueue(two, {})
      TaskerCore::Testing.drain
      expect([task.status, *task.steps.map(&:state)]).to eq(%w[paused complete pending])
      expect([task.resume, task.resume]).to eq([true, false])
      TaskerCore::Testing.drain
      expect(task.status).to eq("complete")
    end
  end
end
