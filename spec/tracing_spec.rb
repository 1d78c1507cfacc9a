# frozen_string_literal: true

require "spec_helper"

RSpec.describe TaskerCore::Tracing do
  let(:trace) { "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01" }
  let(:connection) { PG.connect(Database.url) }

  after { connection.close }

  def stored(task) = connection.exec("SELECT trace ->> 'traceparent' FROM tasker.tasks WHERE id = '#{task.id}'").getvalue(0, 0)

  it "lets what is enqueued join the trace of whoever enqueues it, and what handlers do and enqueue that of their task" do
    handler("Leaf") { |step| [step.trace, TaskerCore::Tracing.current] }
    leaf = workflow { step :leaf, "Leaf" }
    handler("Root") { |_| TaskerCore.enqueue(leaf).id }
    root = workflow { step :root, "Root" }
    working do
      task = described_class.within("traceparent" => trace, "tracestate" => nil) { TaskerCore.enqueue(root) }
      task.wait(timeout: 120)
      child = TaskerCore.task(task.results[:root])
      child.wait(timeout: 120)
      expect(child.results[:leaf]).to eq([{ traceparent: trace }] * 2)
      expect([task, child].map { |of| stored(of) }).to eq([trace] * 2)
    end
    expect(described_class.current).to be_nil
  end

  it "is none without a caller's, and with a caller's that is none" do
    handler("Leaf") { |step| step.trace.inspect }
    leaf = workflow { step :leaf, "Leaf" }
    tasks = [nil, {}, { "traceparent" => nil }, { "traceparent" => "nonsense" }, { "tracestate" => "x" * 10_000 }].map do |carrier|
      described_class.within(carrier) { TaskerCore.enqueue(leaf) }
    end
    expect(tasks.map { |task| stored(task) }).to all(be_nil)
  end

  it "goes along with what is enqueued inside the caller's transaction" do
    handler("Leaf") { |_| nil }
    leaf = workflow { step :leaf, "Leaf" }
    shared = connection
    TaskerCore.configuration.open_transaction = -> { shared }
    task = connection.transaction { described_class.within("traceparent" => trace) { TaskerCore.enqueue(leaf) } }
    expect(stored(task)).to eq(trace)
  ensure
    TaskerCore.configuration.open_transaction = nil
  end

  # The gem cannot be had where this suite runs: these are those of its methods that are called, as its API documents them
  # (https://open-telemetry.github.io/opentelemetry-ruby/opentelemetry-api).
  describe "with OpenTelemetry's gem" do
    before do
      context = Class.new do
        def self.current = Thread.current[:context]

        def self.with_current(context)
          before = current
          Thread.current[:context] = context
          yield context
        ensure
          Thread.current[:context] = before
        end
      end
      propagation = Object.new
      propagation.define_singleton_method(:inject) { |carrier| context.current&.each { |key, value| carrier[key] = value } }
      propagation.define_singleton_method(:extract, &:dup)
      stub_const("OpenTelemetry", Module.new)
      OpenTelemetry.const_set(:Context, context)
      OpenTelemetry.define_singleton_method(:propagation) { propagation }
    end

    it "goes by way of its context, without the baggage" do
      handler("Leaf") { |_| OpenTelemetry::Context.current }
      leaf = workflow { step :leaf, "Leaf" }
      working do
        task = OpenTelemetry::Context.with_current({ "traceparent" => trace, "baggage" => "secret=1" }) { TaskerCore.enqueue(leaf) }
        task.wait(timeout: 120)
        expect(task.results[:leaf]).to eq({ traceparent: trace })
      end
    end
  end
end
