# frozen_string_literal: true

require "spec_helper"
require "tasker_core/testing"

RSpec.describe "undo" do
  let(:journal) { [] }

  def does(result = nil)
    log = journal
    handler { |step| log.push(step.name.to_s) && (result || step.results) }
  end

  # The order is charged, its lines are reserved one by one, and shipping fails.
  def order(undo, ships: handler { |_step| raise TaskerCore::PermanentError, "no van" }, failure: :undo)
    charges = does({ charge: 7 })
    reserves = handler { |step| step.context[:item] }
    workflow do
      on_failure failure
      step :charge, charges, undo: { handler: undo, retry: { max_attempts: 2, base: "1s" } }
      each :reserve, reserves, over: "$.input.lines", after: :charge, undo: undo
      step :ship, ships, after: :reserve
    end
  end

  def undone = ["charge", "reserve.undo", "reserve.undo", "charge.undo"]

  it "takes back what a task did when it fails, the last first, and knows what its steps returned" do
    working do
      task = TaskerCore.enqueue(order(does), { lines: [1, 2] })
      expect(task.wait(timeout: 120)).to eq("failed")
      expect(journal).to eq(undone)
      expect(task.steps.last.to_h).to include(name: :"reserve.undo", state: "complete", undoes: "reserve")
      expect(task.results[:"charge.undo"]).to eq({ charge: { charge: 7 } })
    end
  end

  it "takes back what a task did that has ended, when it is cancelled so" do
    working do
      task = TaskerCore.enqueue(order(does, ships: does(1)), { lines: [1, 2] })
      expect([task.wait(timeout: 120), task.cancel]).to eq(["complete", false])
      expect([task.cancel(undo: true), task.cancel(undo: true)]).to eq([true, false])
      expect(task.wait(timeout: 120)).to eq("cancelled")
      expect(journal).to eq(["charge", "ship", *undone.drop(1)])
    end
  end

  it "says where an undo is wrong" do
    expect { workflow { step :charge, "Charge", undo: 7 }.validate! }.to raise_error(TaskerCore::TemplateError, /7 is no handler/)
    expect { workflow { step :charge, "Charge", undo: { handler: "Refund", retries: 1 } }.validate! }
      .to raise_error(TaskerCore::TemplateError, /undo_spec.rb:\d+: .*expected the name of a handler, or \{ handler/)
  end

  describe "in memory" do
    around { |example| TaskerCore::Testing.fake! { example.run } }

    before { TaskerCore::Testing.clear }

    it "is the same" do
      task = TaskerCore.enqueue(order(does), { lines: [1, 2] })
      TaskerCore::Testing.drain
      expect([task.status, journal]).to eq(["failed", undone])
      expect(task.results[:"charge.undo"]).to eq({ charge: { charge: 7 } })
    end

    it "waits until a dead undo is settled" do
      fails = handler { |_step| raise TaskerCore::PermanentError, "the bank is closed" }
      task = TaskerCore.enqueue(order(fails, ships: does(1), failure: :block), { lines: [] })
      TaskerCore::Testing.drain
      expect([task.status, task.cancel(undo: true), task.status]).to eq(["complete", true, "undoing"])
      TaskerCore::Testing.drain
      dead = task.steps.find { |step| step.name == :"charge.undo" }
      expect([task.status, dead.state]).to eq(%w[undoing dead])
    end
  end
end
