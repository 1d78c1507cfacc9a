# frozen_string_literal: true

require "spec_helper"

RSpec.describe "a process that cannot reach the database" do
  let(:server) do
    start("serve", "--listen", "127.0.0.1:0", TASKER__API__LISTEN: "127.0.0.1:0", TASKER__API__TRUST_LOOPBACK: "false")
      .wait_for(%r{answering pages and /api/v1 address=(\S+)})
  end
  let(:address) { "http://#{server.output_so_far[%r{answering pages and /api/v1 address=(\S+)}, 1]}" }
  let(:checks) { handler { |_step| :fine } }
  let(:charges) do
    handler { |step| step.context[:card] == "bad" ? raise(TaskerCore::PermanentError, "no funds") : { charged: step.context[:amount] } }
  end
  let(:order) do
    look = checks
    charge = charges
    workflow do
      unique by: :order, on_conflict: :reject
      step :check, look
      wait :approval, if: "$.input.amount > 1000", after: :check
      step :charge, charge, after: %i[check approval]
    end
  end

  def client(role, *more)
    token = succeed(*Processes::TASKER, "token", "create", SecureRandom.hex(4), "--role", role, *more).strip
    configuration = TaskerCore::Configuration.new.tap do |config|
      config.server = address
      config.token = token
    end
    TaskerCore::Client.new(configuration)
  end

  def enqueue(client, **input) = client.enqueue_all(order, [{ order: SecureRandom.hex(4), **input }]).first

  it "enqueues, signals, waits, shows, cancels and forks through a server" do
    TaskerCore.client.register(order)
    operator = client("operator")
    worker = TaskerCore::Worker.new(namespaces: [namespace], threads: 2).start
    task = enqueue(operator, amount: 2000)
    sleep 0.01 until (wait = operator.waiting(namespace: namespace).first)
    expect([task.status, task.wait(timeout: 0)]).to eq(%w[waiting waiting])
    expect([wait.task.id, wait.answer({ ok: true }), task.wait(timeout: 120)]).to eq([task.id, :awaited, "complete"])
    expect([task.results[:charge], task.input[:amount]]).to eq([{ charged: 2000 }, 2000])

    bad = enqueue(operator, amount: 7, card: "bad")
    expect(bad.wait(timeout: 120)).to eq("blocked")
    expect(bad.fork(input: { order: "again", amount: 8 }).wait(timeout: 120)).to eq("complete")
    expect([bad.cancel, bad.cancel, bad.status]).to eq([true, false, "cancelled"])
    listed = operator.tasks(order, limit: 2).map(&:id)
    expect(listed).to eq(operator.tasks(order, limit: 100).map(&:id).first(2))
    expect(operator.statuses([task, bad, SecureRandom.uuid])).to eq(task.id => "complete", bad.id => "cancelled")
  ensure
    worker&.stop(grace: 5)
  end

  it "is told what is not acceptable by the same errors as with a database" do
    TaskerCore.client.register(order)
    submitter = client("submitter", "--namespace", namespace)
    task = enqueue(submitter, order: "one", amount: 1)
    expect { enqueue(submitter, order: "one", amount: 2) }.to raise_error(TaskerCore::NotUnique) { |e| expect(e.task_id).to eq(task.id) }
    expect { task.status }.to raise_error(TaskerCore::ConfigurationError, /is of the role submitter: this takes reader/)
    expect { submitter.enqueue_all("elsewhere/order", [{}]) }.to raise_error(TaskerCore::ConfigurationError, /is for #{namespace}/)
    expect { submitter.enqueue_all("#{namespace}/nothing", [{}]) }.to raise_error(TaskerCore::NotFound, /no template/)
    expect { submitter.enqueue_all(order, [{ order: "a" * 1_100_000 }]) }.to raise_error(TaskerCore::PayloadTooLarge)
    expect { submitter.signal(SecureRandom.uuid, :approval) }.to raise_error(TaskerCore::NotFound, /no task/)
    expect { submitter.migrate }.to raise_error(TaskerCore::ConfigurationError, /wants the database/)
    server.signal("TERM")
    server.wait
    expect { enqueue(submitter, amount: 1) }.to raise_error(TaskerCore::DatabaseError, /does not answer/)
  end

  it "says what is wrong with a server's address" do
    configuration = TaskerCore::Configuration.new.tap { |config| config.server = "localhost:8480" }
    expect { TaskerCore::Client.new(configuration) }.to raise_error(TaskerCore::ConfigurationError, %r{expected http:// or https://})
  end
end
