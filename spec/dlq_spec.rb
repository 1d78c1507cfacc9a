# frozen_string_literal: true

require "spec_helper"

RSpec.describe TaskerCore::DLQ do
  let(:by) { { who: "ada", why: "fixed" } }

  # Three tasks, whose step fails for good while it is broken.
  def die
    broken = true
    handler("Fragile") { |step| broken && step.context[:fine].nil? ? raise(ArgumentError, "broken") : "done" }
    flow = workflow("Fragility") { step :fragile, "Fragile", retry: { max_attempts: 1 } }
    working do
      tasks = TaskerCore.enqueue_all(flow, [{ n: 1 }, { n: 2 }, { n: 3 }])
      expect(tasks.map { |task| task.wait(timeout: 120) }).to eq(["blocked"] * 3)
      yield tasks, -> { broken = false }
    end
  end

  it "shows what went wrong, whole and in groups" do
    die do |tasks, _|
      expect(described_class.groups(namespace: namespace).map { |group| group.slice(:class, :reason, :count) }).to eq(
        [{ class: "ArgumentError", reason: "attempts_exhausted", count: 3 }]
      )
      letter = described_class.list(namespace: namespace, task: tasks[1].id).first
      expect(described_class.show(letter[:id])).to eq(letter)
      expect(letter).to include(input: { n: 2 }, handler: "Fragile", step: "fragile")
      expect { described_class.show("#{namespace}/999") }.to raise_error(TaskerCore::NotFound)
      expect { described_class.list(colour: "red") }.to raise_error(TaskerCore::InvalidInput, /unknown field `colour`, expected one of/)
    end
  end

  it "replays, resolves, skips and discards, and says who did it" do
    die do |tasks, mend|
      ids = tasks.map { |task| described_class.list(task: task.id).first[:id] }
      expect(described_class.replay(namespace: namespace, dry_run: true, **by)).to match_array(ids)
      expect(described_class.resolve(ids[0], result: "by hand", **by)).to eq([ids[0]])
      expect(described_class.discard(ids[1], **by)).to eq([ids[1]])
      mend.call
      expect(described_class.replay(namespace: namespace, class: "ArgumentError", per_second: 100, **by)).to eq([ids[2]])
      expect(tasks.map { |task| task.wait(timeout: 120) }).to eq(%w[complete failed complete])
      expect([tasks[0], tasks[2]].map { |task| task.results[:fragile] }).to eq(["by hand", "done"])
      done = described_class.actions(limit: 3)
      expect(done.map { |action| action.slice(:action, :who, :why, :letter) }).to eq(
        [["replay", 2], ["discard", 1], ["resolve", 0]].map { |action, n| { action: action, letter: ids[n], **by } }
      )
    end
  end

  it "replays with an edited input" do
    die do |tasks, _|
      expect(described_class.replay(task: tasks[0].id, input: { fine: true }, **by).size).to eq(1)
      expect(tasks[0].wait(timeout: 120)).to eq("complete")
    end
  end

  it "does not take nothing for everything" do
    expect { described_class.replay(**by) }.to raise_error(TaskerCore::InvalidInput, /which dead letters/)
  end
end
