# frozen_string_literal: true

require "spec_helper"
require "tasker_core/testing"

RSpec.describe TaskerCore::BulkHandler do
  # How many steps each call had.
  let(:sizes) { [] }

  def bulk_handler(size, within: "200ms", &call)
    named = stub_const("BulkHandler#{SecureRandom.hex(4)}", Class.new(described_class) { batch size, within: within })
    named.tap { named.define_method(:call, &call) }
  end

  let(:geocode) do
    seen = sizes
    bulk_handler(3) do |steps|
      seen << steps.size
      steps.map do |step|
        case step.context[:address]
        when "nowhere" then TaskerCore::PermanentError.new("there is no such address")
        when "later" then step.attempt == 1 ? TaskerCore::RetryableError.new("busy", retry_after: 0) : { attempt: step.attempt }
        else { found: step.context[:address].upcase }
        end
      end
    end
  end

  let(:geocoding) do
    finds = geocode
    workflow { step :find, finds }
  end

  let(:addresses) do
    finds = geocode
    workflow { each :place, finds, over: "$.input.addresses", input: { address: "$item" }, tolerate: 1 }
  end

  # Does as each step says, or as the first says for all.
  let(:confusion) do
    confused = bulk_handler(2) do |steps|
      case steps.first.context[:what]
      when "one" then [1]
      when "raise" then raise "all at once"
      when "sleep" then steps.each { |step| step.sleep("1h") }
      else steps.map { |step| step.once(:twice) { step.context[:what] * 2 } }
      end
    end
    workflow { step :do, confused, retry: { max_attempts: 1 } }
  end

  it "has a size and a time, of its own or of the class above it, and refuses what cannot be" do
    child = Class.new(geocode)
    expect([child.batch_size, child.within]).to eq [3, 0.2]
    expect([Class.new(described_class).batch_size, Class.new(described_class).within]).to eq [100, 0.1]
    expect { child.batch(0) }.to raise_error(TaskerCore::InvalidInput, "batch is 0: expected a whole number from 1 to 10,000")
    expect { child.batch(10, within: "soon") }.to raise_error(TaskerCore::InvalidInput, /within is "soon"/)
    expect { child.batch(10, within: "2m") }.to raise_error(TaskerCore::InvalidInput, /a minute at most/)
  end

  it "is refused where a step is transactional, when the worker starts, with file and line" do
    source = "{ name: both, namespace: geocoding, steps: [{ name: find, handler: #{geocode.name}, transactional: true }] }"
    expect { TaskerCore::Worker::Handlers.check([[source, "both.yml"]], "geocoding") }
      .to raise_error(TaskerCore::TemplateError, "both.yml:1: step find: a bulk handler's steps cannot be transactional: " \
                                                 "each has an outcome of its own")
  end

  context "in memory" do
    around { |example| TaskerCore::Testing.fake! { example.run } }

    before { TaskerCore::Testing.clear }

    it "has the steps of tasks that are due together, each with its outcome" do
      inputs = %w[here nowhere there later].map { |address| { address: address } }
      tasks = TaskerCore.enqueue_all(geocoding, inputs)
      TaskerCore::Testing.drain
      expect(sizes).to eq [3, 1, 1]
      expect(tasks.map(&:status)).to eq %w[complete blocked complete complete]
      expect(tasks.map { |task| task.results[:find] }).to eq [{ found: "HERE" }, nil, { found: "THERE" }, { attempt: 2 }]
      expect(tasks[1].steps.first[:errors].first).to include(class: "TaskerCore::PermanentError", message: "there is no such address")
    end

    it "has the children of an each together" do
      task = TaskerCore.enqueue(addresses, { addresses: %w[a b nowhere c] })
      TaskerCore::Testing.drain
      expect(sizes).to eq [3, 1]
      expect(task.status).to eq "complete"
      expect(task.children(:place).to_a).to eq [{ found: "A" }, { found: "B" }, nil, { found: "C" }]
    end

    it "runs once, with one step, in a test of its own" do
      expect(TaskerCore::Testing.run_step(geocode, context: { address: "here" })).to eq(found: "HERE")
      expect { TaskerCore::Testing.run_step(geocode, context: { address: "nowhere" }) }.to raise_error(TaskerCore::PermanentError)
    end

    it "fails all steps of a call that raises, returns too little, or would end for one of them" do
      { "one" => /must return an array with one outcome for each of its 2 steps/, "raise" => /all at once/,
        "sleep" => /step.sleep is not for bulk handlers/ }.each do |what, message|
        tasks = TaskerCore.enqueue_all(confusion, [{ what: what }] * 2)
        TaskerCore::Testing.drain
        expect(tasks.map(&:status)).to eq %w[blocked blocked]
        expect(tasks.map { |task| task.steps.first[:errors].last[:message] }).to all(match(message))
      end
    end

    it "remembers what each step has done" do
      task = TaskerCore.enqueue(confusion, { what: "a" })
      TaskerCore::Testing.drain
      expect(task.results[:do]).to eq "aa"
    end
  end

  context "with a worker" do
    it "has full calls although one thread runs" do
      seen = sizes
      doubles = bulk_handler(10, within: 60) { |steps| seen.push(steps.size) && steps.map { |step| step.context[:number] * 2 } }
      doubling = workflow { step :double, doubles }
      working(threads: 1) do
        tasks = TaskerCore.enqueue_all(doubling, Array.new(50) { |number| { number: number } })
        expect(tasks.map { |task| task.wait(timeout: 120) }).to all(eq("complete"))
        expect(tasks.map { |task| task.results[:double] }).to eq(Array.new(50) { |number| number * 2 })
        expect(sizes).to eq([10] * 5)
      end
    end

    it "says what became of each step, and learns which handlers are bulk handlers as it meets them" do
      working do
        task = TaskerCore.enqueue(addresses, { addresses: %w[a b nowhere later c] })
        expect(task.wait(timeout: 120)).to eq("complete")
        expect(task.results[:place].errors.map { |child| child.error[:message] }).to eq(["there is no such address"])
        expect(task.results[:place].to_a.compact.size).to eq(4)
      end
    end

    it "fails all steps of a call that fails as a whole" do
      working(threads: 2) do
        tasks = TaskerCore.enqueue_all(confusion, [{ what: "raise" }] * 2)
        expect(tasks.map { |task| task.wait(timeout: 120) }).to eq %w[blocked blocked]
        expect(tasks.map { |task| task.steps.first[:errors].last[:message] }).to all(eq "all at once")
      end
    end
  end
end
