# frozen_string_literal: true

require "spec_helper"
require "tasker_core/testing"

RSpec.describe TaskerCore do
  let!(:flow) do
    handler("Work") { nil }
    workflow("ClientFlow") do
      input_schema type: "object", properties: { id: { type: "integer" } }
      step :work, "Work"
    end
  end

  it "enqueues a workflow's class, and by name" do
    task = described_class.enqueue(flow, { id: 1 }, priority: :high)
    expect(task).to be_created
    expect(task.to_h).to include(namespace: namespace, template: "client_flow", priority: "high", state: "pending", input: { id: 1 })
    expect(described_class.enqueue("#{namespace}/client_flow", { "id" => 2 }).input).to eq({ id: 2 })
  end

  it "returns the same task for the same key, from twenty threads too" do
    tasks = Array.new(20) { |n| Thread.new { described_class.enqueue(flow, { id: n }, key: "order-1") } }.map(&:value)
    expect(tasks.map(&:id).uniq.size).to eq(1)
    expect(tasks.count(&:created?)).to eq(1)
  end

  it "finds tasks by their tags, those of each, also where they came in the caller's own transaction" do
    customer = SecureRandom.hex(4)
    mark = ->(input) { { customer: customer, id: 1 } if input[:id] == 1 }
    one, = described_class.enqueue_all(flow, [{ id: 1 }, { id: 2 }], tags: mark)
    connection = PG.connect(Database.url)
    described_class.configuration.open_transaction = -> { connection }
    other = connection.transaction { described_class.enqueue(flow, { id: 3 }, tags: { customer: customer, "region" => :eu }) }
    expect(described_class.tasks(tags: { customer: customer }).map(&:id)).to eq([other.id, one.id])
    expect(described_class.tasks(tags: { customer: customer, id: 1 }).map(&:tags)).to eq([{ customer: customer, id: "1" }])
    expect { described_class.enqueue(flow, {}, tags: "x") }.to raise_error(TaskerCore::InvalidInput, /tags is "x": expected a Hash/)
  ensure
    described_class.configuration.open_transaction = nil
    connection&.close
  end

  it "enqueues many at once, in order, with keys and priorities for each" do
    inputs = Array.new(50) { |n| { id: n } }
    tasks = described_class.enqueue_all(flow, inputs, key: ->(input) { "k#{input[:id] / 2}" }, priority: lambda { |input|
                                                                                                           input[:id].even? ? :low : nil
                                                                                                         })
    expect(tasks.map(&:id).uniq.size).to eq(25)
    expect(tasks.first.to_h[:priority]).to eq("low")
    expect(described_class.statuses(tasks).values).to eq(["pending"] * 25)
  end

  it "finds tasks by workflow, key, state and age, the newest first, page by page" do
    made = [{ key: "a" }, { key: "b" }, { key: "c", run_at: Time.now + 3600 }]
    old, new, other = made.map { |more| described_class.enqueue(flow, {}, **more) }
    ids = ->(*arguments, **filter) { described_class.tasks(*arguments, **filter).map(&:id) }
    expect(ids.call("#{namespace}/client_flow")).to eq([other, new, old].map(&:id))
    expect(ids.call(flow, limit: 1, before: other)).to eq([new.id])
    expect(ids.call(flow, key: "a")).to eq([old.id])
    expect([ids.call(flow, state: :waiting), ids.call(flow, key: "a", state: :waiting)]).to eq([[other.id], []])
    expect([ids.call(flow, since: "1h"), ids.call(flow, since: Time.now + 60)].map(&:size)).to eq([3, 0])
    expect { described_class.tasks(flow, limit: 0) }.to raise_error(TaskerCore::InvalidInput, /limit is 0: expected 1 to 10,000/)
    expect(succeed(*Processes::TASKER, "task", "list", "--key", "a", "--namespace", namespace, "--since", "90m")).to include(old.id)
    TaskerCore::Testing.fake! do
      remembered = Array.new(2) { |n| described_class.enqueue(flow, {}, key: "k#{n}") }
      expect(ids.call(flow)).to eq(remembered.reverse.map(&:id))
      expect([ids.call(flow, key: "k0"), ids.call(flow, before: remembered[1]), ids.call(flow, since: "1m").size])
        .to eq([[remembered[0].id], [remembered[0].id], 2])
    end
  end

  it "enqueues what is not to start before its time, also inside the caller's transaction" do
    later = Time.now + 3600
    tasks = [described_class.enqueue(flow, {}, run_at: later), described_class.enqueue(flow, {}, wait: 3600)]
    PG.connect(Database.url).then do |connection|
      described_class.configuration.open_transaction = -> { connection }
      tasks << connection.transaction { described_class.enqueue(flow, {}, run_at: later) }
    ensure
      described_class.configuration.open_transaction = nil
      connection.close
    end
    tasks += described_class.enqueue_all(flow, [{ id: 0 }, { id: 1 }], run_at: ->(input) { later if input[:id].zero? })
    expect(described_class.statuses(tasks).values_at(*tasks.map(&:id))).to eq((%w[waiting] * 4) + ["pending"])
    expect(tasks.map { |task| task.to_h[:run_at] }[0..3].map { |time| Time.parse(time) }).to all(be_within(60).of(later))
    expect { described_class.enqueue(flow, {}, run_at: "soon") }
      .to raise_error(TaskerCore::InvalidInput, /run_at is "soon": expected a Time/)
    expect { described_class.enqueue(flow, {}, run_at: Time.utc(10_000)) }
      .to raise_error(TaskerCore::InvalidInput, /run_at is .*before the year 10000/)
  end

  it "says what is no workflow, and which was probably meant" do
    expect { described_class.enqueue(nil) }.to raise_error(TaskerCore::InvalidInput, /\Anil is not a workflow: expected a subclass/)
    described_class.client.register(flow)
    expect { described_class.enqueue("#{namespace}/clientflow") }
      .to raise_error(TaskerCore::NotFound, %r{no template .*/clientflow; .*; did you mean #{namespace}/client_flow\?})
  end

  it "refuses bad input with what was expected, and leaves no trace" do
    loop_of_hashes = {}
    loop_of_hashes[:self] = loop_of_hashes
    {
      { id: "one" } => /id: "one" is not of type "integer"/,
      [1] => /must be a JSON object/,
      { at: $stdout } => /not JSON at at: cannot convert IO/,
      { items: [{ price: 1 }, { price: Object.new }] } => /not JSON at items\[1\].price: cannot convert Object/,
      { 1 => 2 } => /hash key 1 is not a string or symbol/,
      { text: "\xFF" } => /UTF-8/,
      { text: "a\u0000b" } => /U\+0000/,
      { number: Float::NAN } => /NaN is not a JSON number/,
      loop_of_hashes => /nested deeper than 100/
    }.each do |input, message|
      expect { described_class.enqueue(flow, input) }.to raise_error(TaskerCore::InvalidInput, message)
    end
    expect { described_class.enqueue_all(flow, [{ id: 1 }, { id: "two" }]) }.to raise_error(TaskerCore::InvalidInput, /task 2 of 2/)
    expect {
      described_class.enqueue(flow, {}, priority: :huge)
    }.to raise_error(TaskerCore::InvalidInput, /expected low, normal, high or urgent/)
    expect { described_class.enqueue(flow, {}, key: "") }.to raise_error(TaskerCore::InvalidInput, /1 to 255 characters/)
    expect { described_class.enqueue(flow, {}, key: "a\0b") }.to raise_error(TaskerCore::InvalidInput, /the key contains .* U\+0000/)
    [Float::INFINITY, "soon", :soon, -1, Time.now].each do |wait|
      expect { described_class.enqueue(flow, {}, wait: wait) }
        .to raise_error(TaskerCore::InvalidInput, /wait is .*expected seconds, or .*"5m"/)
    end
    expect { described_class.enqueue(flow, id: 1) }
      .to raise_error(TaskerCore::InvalidInput, /unknown option id.*the input is a Hash of its own, as in .*\{ order_id: 1 \}/)
    expect { described_class.enqueue(flow, {}, prioritty: :high) }.to raise_error(TaskerCore::InvalidInput, /did you mean priority\?/)
    expect { described_class.enqueue_all(flow, [{}], kee: nil) }.to raise_error(TaskerCore::InvalidInput, /did you mean key\?/)
    expect { described_class.enqueue(String, {}) }.to raise_error(TaskerCore::InvalidInput, /String is not a workflow/)
    expect { described_class.enqueue("nothing", {}) }.to raise_error(TaskerCore::NotFound, /no template nothing/)
    expect(Database.query("SELECT FROM tasker.tasks t JOIN tasker.namespaces n ON n.id = t.namespace_id WHERE n.name = $1",
                          [namespace])).to be_empty
  end

  it "is told when to try again by a namespace that takes no new tasks, in the caller's transaction too" do
    tasker("config", "set", "depth_critical", "1", "--namespace", namespace)
    tasker("config", "set", "throttle_new_tasks", "refuse", "--namespace", namespace)
    described_class.enqueue(flow, { id: 1 })
    Database.query("SELECT * FROM tasker.measure_pressure('0')")
    refused = raise_error(TaskerCore::Backpressure, /takes no new tasks/) { |error| expect(error.retry_after).to be_between(1, 60) }
    expect { described_class.enqueue(flow, { id: 2 }) }.to refused
    connection = PG.connect(Database.url)
    described_class.configuration.open_transaction = -> { connection }
    connection.transaction { expect { described_class.enqueue(flow, { id: 2 }) }.to refused }
  ensure
    described_class.configuration.open_transaction = nil
    connection&.close
  end

  it "keeps every kind of JSON value as it is" do
    input = { text: "ä\u{1F600}", symbol: :s, int: 2**53, big: -(2**63), float: 0.1, yes: true, no: false, nothing: nil,
              list: [1, [2, {}]], "string key" => {} }
    expect(described_class.enqueue(flow, input).input).to eq(input.merge(symbol: "s").transform_keys(&:to_sym))
  end

  it "keeps numbers as they are, of any size: Integers are Integers, and Floats are Floats" do
    numbers = [2**64, -(10**300), 0, 1.0, 1e22, 1.7976931348623157e308, 5e-324, -0.1, 123_456_789.125]
    read = described_class.enqueue(flow, { numbers: numbers }).input[:numbers]
    expect(read).to eq(numbers)
    expect(read.map(&:class)).to eq(numbers.map(&:class))
  end

  it "takes lengths of time as templates do" do
    task = described_class.enqueue(flow, {}, wait: "1h 30m")
    expect(Time.parse(task.to_h[:run_at])).to be_within(60).of(Time.now + 5400)
    expect(described_class.enqueue(flow, {}).wait(timeout: "10ms")).to eq("pending")
    expect { task.wait(timeout: "soon") }.to raise_error(TaskerCore::InvalidInput, /timeout is "soon"/)
  end

  it "creates what is much in pieces, in the caller's transaction too" do
    inputs = Array.new(30) { |n| { id: n, text: "x" * 900_000 } }
    PG.connect(Database.url).then do |connection|
      described_class.configuration.open_transaction = -> { connection }
      tasks = connection.transaction { described_class.enqueue_all(flow, inputs, key: ->(input) { "key #{30 - input[:id]}" }) }
      expect(tasks.map { |task| task.input[:id] }).to eq((0...30).to_a)
    ensure
      described_class.configuration.open_transaction = nil
      connection.close
    end
  end

  it "does not take a copy of its database for its own" do
    copy = "_copy"
    Database.create_copy(copy) { described_class.client.close }
    described_class.configure { nil }
    connection = PG.connect(Database.url(copy))
    described_class.configuration.open_transaction = -> { connection }
    task = connection.transaction { described_class.enqueue(flow, { id: 1 }) }
    expect(described_class.task(task.id).status).to eq("pending")
    expect(connection.exec("SELECT FROM tasker.tasks WHERE id = '#{task.id}'").ntuples).to eq(0)
  ensure
    described_class.configuration.open_transaction = nil
    connection&.close
    Database.drop(copy)
  end

  it "finds, waits for and cancels a task" do
    task = described_class.enqueue(flow)
    expect(described_class.task(task.id).status).to eq("pending")
    expect(task.wait(timeout: 0.01)).to eq("pending")
    expect([task.cancel, task.cancel]).to eq([true, false])
    expect(task.wait).to eq("cancelled")
    expect { described_class.task(SecureRandom.uuid) }.to raise_error(TaskerCore::NotFound, /no task/)
    expect { described_class.task("7") }.to raise_error(TaskerCore::InvalidInput, /expected a UUID/)
  end

  it "says what is wrong with the database" do
    settings = TaskerCore::Configuration.new
    settings.database_url = "postgres://nobody:x@127.0.0.1:1/x"
    expect { TaskerCore::Client.new(settings) }.to raise_error(TaskerCore::DatabaseError, /cannot connect to PostgreSQL at 127.0.0.1:1/)
    settings.database_url = "nonsense"
    expect { TaskerCore::Client.new(settings) }.to raise_error(TaskerCore::ConfigurationError, /expected postgres:/)
  end

  describe "a call that waits" do
    let(:task) { described_class.enqueue(flow) }

    it "returns at once on Timeout, Thread#raise and Thread#kill" do
      expect { Timeout.timeout(0.1) { task.wait } }.to raise_error(Timeout::Error)
      waiting = -> { Thread.new { task.wait }.tap { |thread| Thread.pass until thread.status == "sleep" } }
      raised = waiting.call
      raised.report_on_exception = false
      raised.raise(ArgumentError, "enough")
      expect { raised.join(10) }.to raise_error(ArgumentError, "enough")
      expect(waiting.call.tap(&:kill).join(10)).not_to be_nil
    end

    it "does not keep other threads from running" do
      waiting = Thread.new { task.wait }
      counter = 0
      counter += 1 until counter == 10_000
      expect(waiting).to be_alive
      task.cancel
      expect(waiting.value).to eq("cancelled")
    end

    it "works in a forked child, with a connection of its own" do
      id = task.id
      reader, writer = IO.pipe
      child = fork do
        writer.write(described_class.task(id).status)
        exit!(0)
      end
      writer.close
      expect(reader.read).to eq("pending")
      Process.wait(child)
      expect(task.status).to eq("pending")
    end
  end
end
