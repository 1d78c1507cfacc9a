# frozen_string_literal: true

require "spec_helper"

RSpec.describe "transactions on the handlers' own connection" do
  let(:connection) { PG.connect(Database.url) }

  before do
    connection.exec("CREATE TABLE #{namespace}_ledger (task uuid, cents int)")
    shared = connection
    TaskerCore.configure do |config|
      config.transaction = ->(&work) { PG.connect(Database.url).then { |own| own.transaction { work.call(own) }.tap { own.close } } }
      config.open_transaction = -> { shared if shared.transaction_status == PG::PQTRANS_INTRANS }
    end
  end

  after do
    TaskerCore.configure { |config| config.transaction = config.open_transaction = nil }
    connection.close
  end

  def ledger = connection.exec("SELECT task, cents FROM #{namespace}_ledger").values

  # The block gets the step, and the connection of its transaction.
  def transactional(&work)
    table = "#{namespace}_ledger"
    transaction = TaskerCore.configuration.transaction
    held = nil
    TaskerCore.configuration.transaction = ->(&inner) { transaction.call { |own| inner.call(held = own) } }
    handler("Move") do |step|
      held.exec_params("INSERT INTO #{table} VALUES ($1, 100)", [step.task_id])
      work&.call(step)
    end
    workflow { step :move, "Move", transactional: true, retry: { max_attempts: 2, base: 0.01 } }
  end

  it "commit the handler's writes and the step's completion together" do
    flow = transactional { |step| raise "after the writing" if step.attempt == 1 }
    working(threads: 1) do
      task = TaskerCore.enqueue(flow)
      expect(task.wait(timeout: 120)).to eq("complete")
      expect(ledger).to eq([[task.id, "100"]])
    end
  end

  it "roll back when the step is no longer this worker's" do
    written = Queue.new
    go_on = Queue.new
    flow = transactional do
      written << true
      go_on.pop
    end
    working(threads: 1) do
      task = TaskerCore.enqueue(flow)
      written.pop
      task.cancel
      go_on << true
    end
    expect(ledger).to be_empty
  end

  it "roll back when the result cannot be stored, which no other attempt can mend" do
    flow = transactional { "a\0b" }
    working(threads: 1) do
      task = TaskerCore.enqueue(flow)
      expect(task.wait(timeout: 120)).to eq("blocked")
      expect(task.steps.first.errors.map { |error| error[:class] }).to eq(["TaskerCore::PermanentError"])
      expect(ledger).to be_empty
    end
  end

  it "are joined by enqueue" do
    handler("Work") { nil }
    flow = workflow { step :work, "Work" }
    create = -> { TaskerCore.enqueue_all(flow, [{ n: 1 }, { n: 2 }]) }
    connection.exec("BEGIN")
    rolled_back = create.call
    expect(TaskerCore.statuses(rolled_back)).to be_empty, "nobody else sees them yet"
    connection.exec("ROLLBACK")
    expect(TaskerCore.statuses(rolled_back)).to be_empty

    connection.exec("BEGIN")
    committed = create.call
    connection.exec("COMMIT")
    expect(committed.map(&:input)).to eq([{ n: 1 }, { n: 2 }])
  end
end
