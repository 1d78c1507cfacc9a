# frozen_string_literal: true

require "spec_helper"
require "bigdecimal"
require "tasker_core/testing"

RSpec.describe "what JSON has no name for" do
  # Ruby code for values, and what they are as JSON.
  natural = {
    "Time.utc(2026, 1, 2, 3, 4, 5.25r)" => "2026-01-02T03:04:05.250Z",
    'Time.new(2026, 1, 2, 3, 4, 5, "+02:00")' => "2026-01-02T03:04:05.000+02:00",
    "Date.new(2026, 1, 2)" => "2026-01-02",
    "DateTime.new(2026, 1, 2, 3, 4, 5)" => "2026-01-02T03:04:05.000+00:00",
    'BigDecimal("1234567890.123456789")' => "1234567890.123456789",
    "3r" => "3/1",
    ":symbol" => "symbol",
    "Set[1, :two]" => [1, "two"],
    "Struct.new(:a, :b).new(1, [Date.new(2026, 1, 2)])" => { "a" => 1, "b" => ["2026-01-02"] },
    'URI("http://localhost/a")' => "http://localhost/a",
    'Pathname("/a/b")' => "/a/b",
    "(1..3)" => "1..3"
  }.freeze

  def converted(values, requires)
    program = <<~RUBY
      require "bigdecimal"
      require "pathname"
      require "uri"
      #{requires}
      puts TaskerCore::Native.to_json({ list: [#{values.join(', ')}] })
    RUBY
    JSON.parse(succeed(RbConfig.ruby, "-I", File.join(Processes::ROOT, "lib"), "-rtasker_core", "-e", program)).fetch("list")
  end

  it "is written as Rails writes it, the same with and without ActiveSupport" do
    plain = converted(natural.keys, "")
    expect(natural.keys.zip(plain).to_h).to eq(natural)
    expect(converted(natural.keys, 'require "active_support/all"')).to eq(plain)
    rails = succeed(RbConfig.ruby, "-e", <<~RUBY)
      require "active_support/all"
      require "bigdecimal"
      require "pathname"
      require "uri"
      puts ActiveSupport::JSON.encode([#{natural.keys.join(', ')}])
    RUBY
    expect(JSON.parse(rails)).to eq(plain)
  end

  it "of ActiveSupport is its seconds, or its time" do
    values = ["5.minutes", "1.5.seconds", 'Time.utc(2026, 1, 2).in_time_zone("Europe/Berlin")', 'ActiveSupport::TimeZone["UTC"]',
              "{ a: 1 }.with_indifferent_access"]
    expect(converted(values, 'require "active_support/all"')).to eq([300, 1.5, "2026-01-02T01:00:00.000+01:00", "UTC", { "a" => 1 }])
  end

  it "may be an input, a result, a checkpoint and a progress" do
    day = Date.new(2026, 1, 2)
    handler("Convert") do |step|
      step.heartbeat(day)
      step.checkpoint({ at: day })
      raise "again" if step.attempt == 1

      { day: day, input: step.context, checkpoint: step.checkpoint }
    end
    flow = workflow { step :convert, "Convert", retry: { base: 0.01 } }
    working do
      task = TaskerCore.enqueue(flow, { on: day })
      expect(task.wait(timeout: 120)).to eq("complete"), -> { task.to_h.inspect }
      expect(task.results[:convert]).to eq({ day: "2026-01-02", input: { on: "2026-01-02" }, checkpoint: { at: "2026-01-02" } })
    end
    TaskerCore::Testing.inline! do
      task = TaskerCore.enqueue(flow, { on: day })
      expect(task.results[:convert]).to eq({ day: "2026-01-02", input: { on: "2026-01-02" }, checkpoint: { at: "2026-01-02" } })
    end
  end

  describe "and has no natural form" do
    # By accident, the last expression of a handler.
    let(:flow) do
      stub_const("Order", Class.new)
      handler("Create") { |_| { order: Order.new, id: 7 } }
      workflow("Creating") { step :create, "Create", retry: { max_attempts: 1 } }
    end

    it "is null in a result, and the log says so once" do
      log = StringIO.new
      TaskerCore.configuration.logger = Logger.new(log)
      working(threads: 1) do
        tasks = Array.new(3) { TaskerCore.enqueue(flow) }
        expect(tasks.map { |task| task.wait(timeout: 120) }).to all(eq("complete"))
        expect(tasks.map { |task| task.results[:create] }).to all(eq({ order: nil, id: 7 }))
      end
      expect(log.string.scan(/step create of creating is stored with null .*order: Order/).size).to eq(1)
    ensure
      TaskerCore.configuration.logger = Logger.new(File::NULL)
    end

    it "is an error where results are strict" do
      TaskerCore.configuration.strict_results = true
      working(threads: 1) do
        task = TaskerCore.enqueue(flow)
        expect(task.wait(timeout: 120)).to eq("blocked")
        expect(task.steps.first.errors.first.slice(:class, :message)).to eq(
          { class: "TaskerCore::PermanentError", message: "the result cannot be stored: not JSON at order: cannot convert Order" }
        )
      end
      TaskerCore::Testing.inline! { expect(TaskerCore.enqueue(flow).status).to eq("blocked") }
    ensure
      TaskerCore.configuration.strict_results = false
    end

    it "is refused in a checkpoint" do
      handler("Check") { |step| step.checkpoint({ at: Object.new }) }
      checking = workflow { step :check, "Check", retry: { max_attempts: 1 } }
      working(threads: 1) do
        task = TaskerCore.enqueue(checking)
        expect(task.wait(timeout: 120)).to eq("blocked")
        expect(task.steps.first.errors.first[:message]).to eq("not JSON at at: cannot convert Object")
      end
    end
  end

  describe "results that are large" do
    it "are read when they are asked for, in a handler and of a task" do
      handler("Make") { |step| "x" * step.context[:bytes] }
      handler("Use") do |step|
        [step.results.class.name, step.results[:a].size, step.results.size, step.results.map { |name, text| [name, text.size] },
         step.results.fetch(:none, "no"), step.results.transform_values(&:size), step.context[:text].size]
      end
      flow = workflow do
        step :a, "Make"
        step :b, "Make"
        step :use, "Use", after: %i[a b]
      end
      working do
        task = TaskerCore.enqueue(flow, { bytes: 900_000, text: "y" * 100_000 })
        expect(task.wait(timeout: 120)).to eq("complete")
        sizes = { a: 900_000, b: 900_000 }
        used = ["TaskerCore::Results", 900_000, 2, sizes.map { |name, size| [name.to_s, size] }, "no", sizes, 100_000]
        results = task.results
        expect(results).to be_a(TaskerCore::Results)
        expect(results[:use]).to eq(used)
        expect(results.keys).to eq(%i[a b use])
        case results
        in { a: String => text } then expect(text.size).to eq(900_000)
        end
        expect([results.dig(:use, 1), results[:none], results.key?(:b), results.to_h.size]).to eq([900_000, nil, true, 3])
      end
    end
  end
end
