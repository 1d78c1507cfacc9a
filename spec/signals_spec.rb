# frozen_string_literal: true

require "active_support"
require "active_support/core_ext/integer/time"
require "active_support/testing/time_helpers"
require "spec_helper"
require "tasker_core/testing"

RSpec.describe "signals" do
  include ActiveSupport::Testing::TimeHelpers

  let(:purchase) do
    buys = handler(&:results)
    workflow do
      wait :approval, signal: "approved", if: "$.input.amount > 1000", assignees: ["board", "$.input.manager"], due: "1d", timeout: "3d",
                      form: { type: "object", required: ["ok"], properties: { ok: { type: "boolean" } } }
      wait :paid, key: "$.input.order"
      step :buy, buys, after: %i[approval paid]
    end
  end
  let(:input) { { amount: 2000, manager: "ann", order: "order-#{SecureRandom.hex(4)}" } }

  describe "through the database" do
    it "wait for who sends them, before or after, and say what became of them" do
      working do
        early = TaskerCore.signal(input[:order], :paid, { amount: 2000 }, id: "evt_1")
        again = TaskerCore.signal(input[:order], :paid, { amount: 2000 }, id: "evt_1")
        task = TaskerCore.enqueue(purchase, input)
        sleep 0.01 until (wait = TaskerCore.waiting(assignee: "ann").find { |waiting| waiting.task.id == task.id })
        expect(wait.to_h).to include(step: :approval, signal: "approved", key: nil, assignees: %w[ann board],
                                     workflow: purchase.template_name, form: include(type: "object"))
        expect([wait.due_at - wait.since, wait.times_out_at - wait.since]).to eq([86_400, 3 * 86_400])
        expect { wait.answer({ ok: "yes" }) }
          .to raise_error(TaskerCore::InvalidInput, %r{step that waits for "approved" accepts: /ok: "yes" is not of type "boolean"})
        expect([early, again, wait.answer({ ok: true })]).to eq(%i[kept duplicate awaited])
        expect(task.wait(timeout: 120)).to eq("complete")
        expect(task.results[:buy]).to eq({ approval: { ok: true }, paid: { amount: 2000 } })
        expect(task.signal("approved", { ok: true })).to eq(:late)
      end
    end

    it "are sent if, and only if, the caller's own transaction commits" do
      client = TaskerCore.client
      task = TaskerCore.enqueue(purchase.tap { |flow| client.register(flow) }, input)
      connection = PG.connect(Database.url)
      allow(TaskerCore.configuration).to receive(:open_transaction).and_return(-> { [connection] if connection.transaction_status != 0 })
      sent = -> { Database.query("SELECT 1 FROM tasker.signals WHERE task_id = $1", [task.id]).size }
      connection.exec("BEGIN")
      expect([task.signal(:approved, { ok: true }, id: "1"), task.signal(:approved, { ok: true }, id: "1"),
              sent.call]).to eq([:kept, :duplicate, 0])
      connection.exec("ROLLBACK")
      connection.transaction { task.signal(:approved, { ok: true }) }
      expect(sent.call).to eq(1)
      connection.transaction do
        expect { TaskerCore.signal(SecureRandom.uuid, :approved, { ok: true }) }.to raise_error(TaskerCore::NotFound, /no task/)
        connection.exec("ROLLBACK; BEGIN")
      end
    ensure
      connection&.close
    end

    it "to nowhere are told to the log" do
      task = TaskerCore.enqueue(purchase, input)
      allow(TaskerCore.configuration.logger).to receive(:warn)
      expect(task.signal("aproved")).to eq(:kept)
      expect(TaskerCore.configuration.logger).to have_received(:warn).with(/waits for "aproved": its steps wait for approved, paid/)
      expect { TaskerCore.signal("key", "") }.to raise_error(TaskerCore::InvalidInput, /1 to 100 characters/)
      expect { TaskerCore.signal("key", "x", by: :name) }.to raise_error(TaskerCore::InvalidInput, /expected :task or :key/)
      expect(TaskerCore.signal(SecureRandom.uuid, "paid", by: :key)).to eq(:kept)
    end
  end

  describe "in memory" do
    around { |example| TaskerCore::Testing.fake! { example.run } }

    before { TaskerCore::Testing.clear }

    it "wait, before or after, by the same rules" do
      task = TaskerCore.enqueue(purchase, input)
      outcomes = [TaskerCore.signal(input[:order], :paid, 1, id: "evt_1"), TaskerCore.signal(input[:order], :paid, 1, id: "evt_1")]
      TaskerCore::Testing.drain
      expect([task.status, *task.steps.map(&:state),
              task.steps.first.waits_for]).to eq(%w[waiting waiting complete pending] + ["the signal approved"])
      waits = TaskerCore.waiting(assignee: "ann")
      expect(waits.map { |wait| [wait.task.id, wait.step, wait.assignees] }).to eq([[task.id, :approval, %w[ann board]]])
      expect { waits.first.answer(5) }.to raise_error(TaskerCore::InvalidInput, /accepts: 5 is not of type "object"/)
      outcomes << waits.first.answer({ ok: true })
      TaskerCore::Testing.drain
      outcomes << task.signal(:approved, { ok: true })
      expect([outcomes, task.status,
              task.results[:buy]]).to eq([%i[kept duplicate awaited late], "complete", { approval: { ok: true }, paid: 1 }])
    end

    it "reach a task that is there for each wait once, and the first that comes where none was" do
      both = workflow do
        wait :first, signal: :go
        wait :second, signal: :go
        wait :by_key, signal: :go, key: "$.input.key"
      end
      task = TaskerCore.enqueue(both, { key: "k" })
      TaskerCore::Testing.drain
      task.signal(:go, 1)
      TaskerCore.signal("k", :go, 2)
      TaskerCore::Testing.drain
      expect(task.results).to eq({ first: 1, by_key: 2 })
      task.signal(:go, 3)
      TaskerCore::Testing.drain
      expect(task.status).to eq("complete")
      late = TaskerCore.enqueue(both, { key: "k" })
      TaskerCore::Testing.drain
      expect(late.results).to eq({})
    end

    it "come too late when their time is over, which can be travelled" do
      flows = %i[skip fail dead].map do |what|
        workflow do
          wait :approval, timeout: "1d 1h", on_timeout: what, delay: "1h"
          step :next, "Next", after: :approval
        end
      end
      tasks = flows.map { |flow| TaskerCore.enqueue(flow, {}) }
      TaskerCore::Testing.drain
      travel(3601) { TaskerCore::Testing.drain }
      travel(3601 + 86_401) { TaskerCore::Testing.drain }
      expect(tasks.map(&:status)).to eq(%w[waiting waiting waiting])
      travel(3602 + 90_001) { TaskerCore::Testing.drain }
      expect(tasks.map(&:status)).to eq(%w[complete failed blocked])
      expect(tasks[0].steps.map(&:skipped_because)).to eq(["no signal \"approval\" came within 1 day 01:00:00", "no step before it ran"])
      expect(tasks[2].steps[0].errors.first[:message]).to eq("no signal \"approval\" came within 1 day 01:00:00")
    end

    it "whose key is not there are dead letters that say so" do
      task = TaskerCore.enqueue(purchase, input.except(:order))
      TaskerCore::Testing.drain
      expect(task.steps[1].to_h).to include(state: "dead",
                                            errors: [include(message: /\$\.input\.order finds \[\]: expected the key of a signal/)])
    end

    it "let a task go on in the thread that sends them, where tasks run inline" do
      TaskerCore::Testing.inline! do
        task = TaskerCore.enqueue(purchase, input)
        expect(task.status).to eq("waiting")
        task.signal(:approved, { ok: true })
        TaskerCore.signal(input[:order], :paid)
        expect(task.status).to eq("complete")
      end
    end
  end
end
