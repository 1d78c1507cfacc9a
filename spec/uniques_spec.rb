# frozen_string_literal: true

require "active_support"
require "active_support/testing/time_helpers"
require "spec_helper"
require "tasker_core/testing"

RSpec.describe "unique tasks" do
  include ActiveSupport::Testing::TimeHelpers

  after { travel_back }

  let(:sync) do
    syncs = handler(&:context)
    workflow do
      unique by: :customer
      step :sync, syncs
    end
  end

  shared_examples "one at a time" do
    it "returns the one that there is" do
      first = TaskerCore.enqueue(sync, { customer: 1, n: 1 })
      again, other = TaskerCore.enqueue_all(sync, [{ customer: 1, n: 2 }, { customer: 2 }])
      expect([first, again, other].map(&:created?)).to eq([true, false, true])
      expect(again.id).to eq(first.id)
      first.cancel
      expect(TaskerCore.enqueue(sync, { customer: 1 })).to be_created
    end

    it "refuses another, and creates none of those that come with it" do
      first = TaskerCore.enqueue(sync, { customer: 1 })
      reject = ->(input) { { by: %w[customer], on_conflict: :reject } if input[:careful] }
      expect { TaskerCore.enqueue_all(sync, [{ customer: 5 }, { customer: 1, careful: true }], unique: reject) }
        .to raise_error(TaskerCore::NotUnique, /a task that is the same.*on_conflict: reject/) { |e| expect(e.task_id).to eq(first.id) }
      expect(TaskerCore.tasks(sync).map(&:id)).to eq([first.id])
    end

    it "replaces the one that there is, or gives it the new one's input and time" do
      first, second = [1, 2].map { |n| TaskerCore.enqueue(sync, { customer: 1, n: n }, unique: { by: "customer", on_conflict: :replace }) }
      expect([first.status, second.status]).to eq(%w[cancelled pending])
      calm = { by: "$.input.customer", on_conflict: "reschedule" }
      tasks = Array.new(3) { |n| TaskerCore.enqueue(sync, { customer: 3, n: n }, wait: "1h", unique: calm) }
      expect(tasks.map(&:id).uniq).to eq([tasks[0].id])
      expect(tasks[0].to_h[:input]).to eq({ customer: 3, n: 2 })
      expect(tasks[0].status).to eq("waiting")
    end

    it "counts one that is complete for a time, where it says so" do
      expect { TaskerCore.enqueue(sync, {}, unique: { by: :customer, until: "1h" }) }
        .to raise_error(TaskerCore::InvalidInput, /unique: unknown field `until`/)
      expect { TaskerCore.enqueue(sync, {}, unique: "customer") }.to raise_error(TaskerCore::InvalidInput, /expected a Hash/)
      hourly = { within: 3600 }
      expect(Array.new(2) { TaskerCore.enqueue(sync, { day: 1 }, unique: hourly).created? }).to eq([true, false])
    end
  end

  context "with a database" do
    include_examples "one at a time"

    it "creates one within the caller's own transaction, or says there what stands in its way" do
      connection = PG.connect(Database.url)
      TaskerCore.configuration.open_transaction = -> { connection }
      first, again = connection.transaction { TaskerCore.enqueue_all(sync, [{ customer: 1 }, { customer: 1 }]) }
      expect([first.id, first.created?, again.created?]).to eq([again.id, true, false])
      reject = { by: :customer, on_conflict: :reject }
      expect { connection.transaction { TaskerCore.enqueue(sync, { customer: 1 }, unique: reject) } }
        .to raise_error(TaskerCore::NotUnique) { |e| expect(e.task_id).to eq(first.id) }
      own = connection.transaction { TaskerCore.enqueue(sync, { customer: 1, n: 2 }, unique: { by: "n" }) }
      expect(own).to be_created
    ensure
      TaskerCore.configuration.open_transaction = nil
      connection&.close
    end

    it "is for the command line, too" do
      TaskerCore.client.register(sync)
      create = [*Processes::TASKER, "task", "create", sync.template_name, "--input", '{"customer": 1}']
      first, again = Array.new(2) { JSON.parse(succeed(*create, "--json"), symbolize_names: true) }
      expect([first[:id], first[:created], again[:created]]).to eq([again[:id], true, false])
      expect(run(*create, "--unique", "{ by: customer, on_conflict: reject }")).to match([/a task that is the same: #{first[:id]}/, 1])
      expect(run(*create, "--unique", "{ per: customer }")).to match([/unknown field `per`/, 2])
    end
  end

  context "in memory" do
    around { |example| TaskerCore::Testing.fake! { example.run } }

    before { TaskerCore::Testing.clear }

    include_examples "one at a time"

    it "lets another one be, as soon as the first runs, is complete, or came too long ago" do
      queued = { by: :customer, while: :queued }
      first = TaskerCore.enqueue(sync, { customer: 1 }, unique: queued)
      expect(TaskerCore.enqueue(sync, { customer: 1 }, unique: queued).id).to eq(first.id)
      TaskerCore::Testing.drain
      expect(TaskerCore.enqueue(sync, { customer: 1 }, unique: queued)).to be_created
      hourly = { by: :customer, within: "1h" }
      expect(TaskerCore.enqueue(sync, { customer: 1 }, unique: hourly)).not_to be_created
      travel_to(Time.now + 3601)
      expect(TaskerCore.enqueue(sync, { customer: 1 }, unique: hourly)).to be_created
    end
  end
end
