# frozen_string_literal: true

require "active_support"
require "active_support/core_ext/integer/time"
require "active_support/testing/time_helpers"
require "spec_helper"
require "tasker_core/testing"

RSpec.describe "durable blocks" do
  include ActiveSupport::Testing::TimeHelpers

  let(:did) { [] }

  def onboarding(pause)
    log = did
    handler do |step|
      account = step.once(:account) { log.push(:account) && { id: 7, at: Time.now } }
      step.publish(:stage, "created")
      begin
        step.sleep(pause)
      rescue StandardError
        log << :swallowed
      end
      step.once(:mail) { log << :mail }
      answer = step.wait_for(:answered, key: "account-#{account[:id]}", timeout: "3d")
      step.finish!({ account: account, answer: answer }) if answer
      "no answer"
    end
  end

  def flow(pause)
    welcomes = onboarding(pause)
    workflow do
      step :welcome, welcomes, retry: { max_attempts: 1 }
      step :remind, "Remind", after: :welcome
    end
  end

  it "run once, sleep and wait without a worker, and end a task early" do
    working(threads: 1) do
      task = TaskerCore.enqueue(flow(0.05))
      sleep 0.01 until TaskerCore.waiting(signal: :answered).any? { |wait| wait.task.id == task.id } && task.status == "waiting"
      expect(task.values).to eq({ stage: "created" })
      expect(TaskerCore.signal("account-7", :answered, { how: "yes" })).to eq(:awaited)
      expect(task.wait(timeout: 120)).to eq("complete")
      expect(task.steps.map { |step| [step.state, step.attempt, step.skipped_because] })
        .to eq([["complete", 1, nil], ["skipped", 0, "step welcome finished the task"]])
      expect(task.results[:welcome]).to match({ account: { id: 7, at: String }, answer: { how: "yes" } })
      expect([did, task.steps.first.errors]).to eq([%i[account mail], []])
    end
  end

  it "are not for transactional steps, which happen once or not at all" do
    moves = handler { |step| step.once(:move) { 1 } }
    TaskerCore::Testing.fake! do
      allow(TaskerCore.configuration).to receive(:transaction).and_return(->(&work) { work.call(nil) })
      task = TaskerCore.enqueue(workflow { step :move, moves, transactional: true, retry: { max_attempts: 1 } })
      TaskerCore::Testing.drain
      expect(task.steps.first.errors.first[:message]).to match(/step.once is not for transactional steps/)
    end
  end

  describe "in memory" do
    before { TaskerCore::Testing.clear }

    it "sleep by a time that can be travelled, and wait for signals" do
      TaskerCore::Testing.fake! do
        task = TaskerCore.enqueue(flow("14d"))
        TaskerCore::Testing.drain
        expect([task.status, did, task.values]).to eq(["waiting", [:account], { stage: "created" }])
        travel((14 * 86_400) + 1) do
          TaskerCore::Testing.drain
          expect([did, task.steps.first.waits_for]).to eq([%i[account mail], "the signal answered (key account-7)"])
          expect(TaskerCore.signal("account-7", :answered, "yes")).to eq(:awaited)
          TaskerCore::Testing.drain
        end
        expect([task.status, *task.steps.map(&:state)]).to eq(%w[complete complete skipped])
        expect(task.results[:welcome]).to include(answer: "yes")
      end
    end

    it "go on without the signal once their time is over" do
      handler("Remind") { |_step| "reminded" }
      TaskerCore::Testing.fake! do
        task = TaskerCore.enqueue(flow("1h"))
        TaskerCore::Testing.drain
        travel(3601) { TaskerCore::Testing.drain }
        travel(3602 + (3 * 86_400)) { TaskerCore::Testing.drain }
        expect(task.results).to eq({ welcome: "no answer", remind: "reminded" })
      end
    end

    it "sleep for no time where tasks run inline" do
      TaskerCore::Testing.inline! do
        task = TaskerCore.enqueue(flow("14d"))
        expect([task.status, did]).to eq(["waiting", %i[account mail]])
        TaskerCore.signal("account-7", :answered, 1)
        expect(task.status).to eq("complete")
      end
    end

    it "run in a single handler, with the signals that it waits for" do
      asks = handler { |step| [step.once(:ask) { "asked" }, step.sleep("1d"), step.wait_for(:answered)] }
      expect(TaskerCore::Testing.run_step(asks, signals: { answered: { ok: true } })).to eq(["asked", nil, { ok: true }])
    end
  end
end
