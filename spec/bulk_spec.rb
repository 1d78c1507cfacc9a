# frozen_string_literal: true

require "spec_helper"
require "tasker_core/testing"

RSpec.describe TaskerCore::Bulk do
  let(:customer) { SecureRandom.hex(4) }
  let(:order) do
    fails = handler("Fails#{customer}") { |_step| raise TaskerCore::PermanentError, "no" }
    workflow do
      tags customer: "$.input.customer"
      step :order, fails
    end
  end

  shared_examples "what is done to many" do
    it "concerns what the filter lets through, and counts first" do
      tasks = TaskerCore.enqueue_all(order, [customer, customer, "other"].map { |name| { customer: name } })
      mine = { workflow: order, tags: { customer: customer } }
      expect(described_class.prioritize(:high, **mine, dry_run: true)).to eq(2)
      expect([described_class.prioritize(:high, **mine), described_class.prioritize(:high, **mine)]).to eq([2, 0])
      expect(tasks.map { |task| task.to_h[:priority] }).to eq(%w[high high normal])
      expect([described_class.pause(who: "ann", **mine), tasks[0].status]).to eq([2, "paused"])
      expect(TaskerCore.tasks(order, state: :paused).size).to eq(2)
      expect(described_class.resume(workflow: order, state: :paused)).to eq(2)
      expect([described_class.cancel(**mine), described_class.cancel(**mine)]).to eq([2, 0])
      expect(tasks.map(&:status)).to eq(%w[cancelled cancelled pending])
      expect { described_class.cancel }.to raise_error(TaskerCore::InvalidInput, /which tasks\?/)
    end
  end

  context "with a database" do
    include_examples "what is done to many"

    it "replays what died of an error" do
      working do
        tasks = TaskerCore.enqueue_all(order, [{ customer: customer }, { customer: customer }])
        expect(tasks.map { |task| task.wait(timeout: 120) }).to eq(%w[blocked blocked])
        dead = { workflow: order, error: TaskerCore::PermanentError }
        expect(TaskerCore.tasks(order, error: "Other")).to eq([])
        expect(TaskerCore.tasks(order, error: TaskerCore::PermanentError).map(&:id)).to match_array(tasks.map(&:id))
        expect(described_class.replay(who: "ann", why: "mended", **dead)).to eq(2)
      end
    end
  end

  context "in memory" do
    around { |example| TaskerCore::Testing.fake! { example.run } }

    before { TaskerCore::Testing.clear }

    include_examples "what is done to many"

    it "finds by an error, and keeps no dead letters" do
      task = TaskerCore.enqueue(order, { customer: customer })
      TaskerCore::Testing.drain
      expect(TaskerCore.tasks(order, error: TaskerCore::PermanentError).map(&:id)).to eq([task.id])
      expect { described_class.replay(who: "ann", workflow: order) }.to raise_error(TaskerCore::Error, /keeps no dead letters/)
    end
  end
end
