# frozen_string_literal: true

require "spec_helper"
require "active_support/testing/time_helpers"
require "minitest"
require "tasker_core/testing/rspec"
require "tasker_core/testing/minitest"

# No example here needs a database but where it says so.
RSpec.describe TaskerCore::Testing do
  include ActiveSupport::Testing::TimeHelpers

  around { |example| described_class.fake! { example.run } }

  # validate, then reserve and charge, then ship.
  def diamond
    double = handler { |step| { units: step.context[:units] * 2 } }
    sum = handler { |step| step.results.values.sum { |result| result[:units] } }
    workflow do
      input_schema type: "object", required: ["units"]
      step :validate, double
      step :reserve, double, after: :validate
      step :charge, double, after: :validate
      step :ship, sum, after: %i[reserve charge]
    end
  end

  describe ".inline!" do
    around { |example| described_class.inline! { example.run } }

    it "runs the whole graph in the thread that enqueues" do
      threads = Queue.new
      seen = handler { |_| threads.push(Thread.current).size }
      task = TaskerCore.enqueue(workflow { step :look, seen }, {})
      expect([task.status, threads.pop]).to eq(["complete", Thread.current])

      task = TaskerCore.enqueue(diamond, { units: 3 })
      expect(task.wait(timeout: 0)).to eq("complete")
      expect(task.results).to eq(validate: { units: 6 }, reserve: { units: 6 }, charge: { units: 6 }, ship: 12)
    end

    it "tries again at once as often as the step may be, each attempt with what the last one recorded" do
      attempts = []
      resuming = handler do |step|
        attempts << [step.attempt, step.checkpoint]
        step.heartbeat({ at: step.attempt })
        step.checkpoint({ page: step.attempt })
        raise TaskerCore::RetryableError.new("later", retry_after: 3600) if step.attempt < 3

        :done
      end
      task = TaskerCore.enqueue(workflow { step :import, resuming, retry: { max_attempts: 3, base: "1h" } }, {})
      expect(attempts).to eq([[1, nil], [2, { page: 1 }], [3, { page: 2 }]])
      expect(task.steps.first).to have_attributes(state: "complete", attempt: 3, result: "done", progress: { at: 3 })
    end

    it "blocks a task whose step cannot be done, or fails it where its workflow says so, and goes on with the other branches" do
      broken = handler { |_| raise TaskerCore::PermanentError, "no" }
      fine = handler { |_| 1 }
      flow = workflow do
        step :broken, broken
        step :after, fine, after: :broken
        step :beside, fine
      end
      task = TaskerCore.enqueue(flow, {})
      expect(task.status).to eq("blocked")
      expect(task.steps.to_h { |step| [step.name, step.state] }).to eq(broken: "dead", after: "pending", beside: "complete")
      expect(task.steps.first.errors).to match([a_hash_including(class: "TaskerCore::PermanentError", message: "no", attempt: 1)])
      flow.on_failure(:fail)
      expect(TaskerCore.enqueue(flow, {}).status).to eq("failed")
      unknown = TaskerCore.enqueue(workflow { step :elsewhere, "OfAnotherTeam", retry: { max_attempts: 2 } }, {})
      expect(unknown.steps.first).to have_attributes(state: "dead", attempt: 2)
    end

    it "skips what its condition forbids, and what depends on nothing else" do
      check = handler { |step| { total: step.context[:total] } }
      seen = handler { |step| step.results.keys }
      flow = workflow do
        step :check, check
        step :approve, seen, after: :check, if: "$.results.check.total > 1000"
        step :thank, seen, after: :approve
        step :ship, seen, after: %i[check thank]
      end
      small = TaskerCore.enqueue(flow, { total: 1000 })
      expect([small.status, *small.steps.map(&:state)]).to eq(%w[complete complete skipped skipped complete])
      expect(small.steps.map(&:skipped_because)).to eq(
        [nil, "$.results.check.total > 1000 is not true", "no step before it ran", nil]
      )
      expect(small.results[:ship]).to eq(["check"])
      expect(TaskerCore.enqueue(flow, { total: 1001 }).results[:ship]).to eq(%w[check thank])
    end

    it "has tasks of its own do each element of a list, or a whole step" do
      line = handler { |step| step.context[:item] == 3 ? raise(TaskerCore::PermanentError, "none left") : step.context[:item] * 2 }
      sum = handler { |step| [step.results[:lines].size, step.results[:lines].sum(&:to_i), step.results[:lines].errors.map(&:item)] }
      inner = workflow do
        output "$.results.sum"
        each :lines, line, over: "$.input.lines", tolerate: 1
        step :sum, sum, after: :lines
      end
      outer = workflow { workflow :inner, inner, input: { lines: "$.input.rows[*].lines" } }
      task = TaskerCore.enqueue(inner, { lines: [1, 2, 3] })
      expect([task.status, task.results[:sum]]).to eq(["complete", [3, 6, [2]]])
      expect(task.results[:lines].to_a).to eq([2, 4, nil])
      expect(TaskerCore.enqueue(outer, { rows: [{ lines: [5] }] }).results).to eq(inner: [1, 10, []])
      expect(described_class.tasks.size).to eq(2)

      strict = workflow { each :lines, line, over: "$.input.lines" }
      expect(TaskerCore.enqueue(strict, { lines: [] }).status).to eq("complete")
      expect(TaskerCore.enqueue(strict, { lines: [3] }).status).to eq("blocked")
      wrong = TaskerCore.enqueue(strict, { lines: "none" })
      expect(wrong.steps.first.errors.first[:message]).to match(/\$\.input\.lines finds a value that is none: expected one array/)
    end

    it "gives no child an input that its workflow's input_schema does not accept" do
      fine = handler { |_| 1 }
      line = workflow do
        input_schema required: ["sku"]
        step :reserve, fine
      end
      order = workflow { each :lines, line, over: "$.input.lines" }
      task = TaskerCore.enqueue(order, { lines: [{ sku: "A" }, {}] })
      expect(task.status).to eq("blocked")
      expect(task.steps.first.errors.first[:message]).to match(/task 1: the input does not satisfy .*: "sku" is a required/)
    end

    it "ends a task that a handler discards" do
      discards = handler { |_| raise TaskerCore::DiscardError, "the account is gone" }
      fine = handler { |_| 1 }
      flow = workflow do
        step :discard, discards
        step :after, fine, after: :discard
      end
      task = TaskerCore.enqueue(flow, {})
      expect([task.status, *task.steps.map(&:state)]).to eq(%w[discarded discarded cancelled])
      expect([task.steps.first.errors.map { |error| error[:message] }, task.cancel]).to eq([["the account is gone"], false])
    end

    it "fails the test where an expectation in a handler does" do
      fails = RSpec::Expectations::ExpectationNotMetError
      checks = handler { |_| raise fails, "not as expected" }
      expect { TaskerCore.enqueue(workflow { step :check, checks }, {}) }.to raise_error(fails)
    end

    it "runs what handlers enqueue, and stops a task that was cancelled" do
      inner = diamond
      outer = handler { |_| TaskerCore.enqueue(inner, { units: 1 }).results[:ship] }
      expect(TaskerCore.enqueue(workflow { step :enqueue, outer }, {}).results).to eq(enqueue: 4)

      cancel = handler do |step|
        TaskerCore.task(step.task_id).cancel
        step.cancelled?
      end
      after = handler { |_| raise "must not run" }
      flow = workflow do
        step :cancel, cancel
        step :after, after, after: :cancel
      end
      task = TaskerCore.enqueue(flow, {})
      expect([task.status, task.steps.last.state]).to eq(%w[cancelled cancelled])
    end

    it "commits what a transactional step writes together with its completion" do
      opened = []
      connection = PG.connect(Database.url)
      allow(TaskerCore.configuration).to receive(:transaction).and_return(lambda { |&work|
        connection.transaction { work.call(opened.push(connection).last) }
      })
      counts = handler { |step| connection.exec("SELECT 2").getvalue(0, 0).to_i + step.context[:n] }
      task = TaskerCore.enqueue(workflow { step :count, counts, transactional: true }, { n: 1 })
      expect([task.results, opened.size]).to eq([{ count: 3 }, 1])
    ensure
      connection&.close
    end
  end

  describe ".fake!" do
    it "sleeps, delays and snoozes by a time that can be travelled" do
      ran = []
      note = handler { |step| ran << [step.name, step.attempt] }
      polls = handler { |step| ran.include?([step.name, 0]) ? 1 : (ran << [step.name, 0]) && raise(TaskerCore::Snooze, "1d") }
      flow = workflow do
        sleep :cool_off, "14d"
        step :remind, note, after: :cool_off, delay: "1h"
        step :poll, polls, after: :remind
      end
      task = TaskerCore.enqueue(flow, {})
      described_class.drain
      expect([task.status, *task.steps.map(&:state)]).to eq(%w[waiting waiting pending pending])
      day = 86_400
      travel((14 * day) + 1) { described_class.drain }
      expect([ran, *task.steps.map(&:state)]).to eq([[], "complete", "waiting", "pending"])
      travel((14 * day) + 3700) { described_class.drain }
      expect([ran, task.steps.last.attempt]).to eq([[[:remind, 1], [:poll, 0]], 0])
      travel(16 * day) { expect(described_class.drain.map(&:status)).to eq(["complete"]) }
      expect(task.steps.last.to_h).to include(attempt: 1, errors: [])
      described_class.inline! { expect(TaskerCore.enqueue(flow, {}).status).to eq("complete") }
    end

    it "finds tasks by their tags, those of their caller and those of their workflow" do
      flow = workflow do
        tags customer: "$.input.customer"
        each :lines, "Line", over: "$.input.lines"
      end
      task = TaskerCore.enqueue(flow, { customer: 42, lines: [1] }, tags: { region: :eu })
      TaskerCore.enqueue(flow, { lines: [] }, tags: { customer: 43 })
      expect([task.tags, TaskerCore.tasks(tags: { customer: "42" }).map(&:id)]).to eq([{ customer: "42", region: "eu" }, [task.id]])
    end

    it "asks for pages of elements, until there is no next one" do
      down = true
      lists = handler do |step|
        raise "down" if down && step.context[:cursor] == 2

        from = step.context[:cursor] || 0
        { items: [from, from + 1], next: (from + 2 if from < step.context[:input][:most]) }
      end
      rows = handler { |step| step.context[:item] * 10 }
      flow = workflow { each :rows, rows, pages: lists, retry: { max_attempts: 1 } }
      task = TaskerCore.enqueue(flow, { most: 4 })
      described_class.drain
      expect([task.status, task.children(:rows).size]).to eq(["blocked", 2])
      down = false
      described_class.inline! do
        expect(TaskerCore.enqueue(flow, { most: 4 }).results[:rows].to_a).to eq([0, 10, 20, 30, 40, 50])
        expect(TaskerCore.enqueue(flow, { most: 0 }).results[:rows].size).to eq(2)
      end
      listless = handler { |_step| [1, 2] }
      wrong = TaskerCore.enqueue(workflow { each :rows, rows, pages: listless })
      described_class.drain
      expect([wrong.status, wrong.steps.first.errors.first[:message]]).to eq(["blocked", "a page is no { items: [ … ], next: … }"])
    end

    it "waits for the tasks of a step whose time has not come" do
      slow = workflow { sleep :wait, "1h" }
      flow = workflow { each :lines, slow, over: "$.input.lines" }
      task = TaskerCore.enqueue(flow, { lines: [{}, {}] })
      described_class.drain
      expect([task.status, *task.children(:lines).each_child.map(&:state)]).to eq(%w[running waiting waiting])
      travel(3601) { expect(described_class.drain.map(&:status)).to eq(["complete"]) }
    end

    it "begins nothing of a schedule whose workflow the test has not used" do
      works = handler { |_| 1 }
      hourly = workflow do
        schedule every: "1h"
        step :work, works
      end
      child = workflow { step :work, works }
      task = TaskerCore.enqueue(workflow { workflow :part, child }, {})
      described_class.drain
      travel(3601) { expect([task.status, described_class.drain]).to eq(["complete", []]) }
      TaskerCore.client.register(hourly)
      travel(7202) { expect(described_class.drain.map { |begun| begun.to_h[:template] }).to eq([hourly.template_name]) }
    end

    it "tries again at the time that a handler says, and at once where it says none" do
      polls = handler { |step| step.attempt > 2 || raise(TaskerCore::RetryableError.new("not ready", retry_after: "1h")) }
      fails = handler { |step| step.attempt > 2 || raise("again") }
      polling = TaskerCore.enqueue(workflow { step :poll, polls }, {})
      failing = TaskerCore.enqueue(workflow { step :fail, fails }, {})
      described_class.drain
      expect([polling.status, polling.steps.first.attempt, failing.status]).to eq(["waiting", 1, "complete"])
      expect(described_class.drain).to be_empty
      travel(3601) { expect(described_class.drain.map(&:id)).to eq([polling.id]) }
      travel(7202) { expect(described_class.drain.map(&:status)).to eq(["complete"]) }
    end

    it "remembers what is enqueued, which drain runs once it is due, by a time that can be travelled" do
      ran = []
      notes = handler { |step| ran.push(step.context[:n]).size }
      flow = workflow { step :note, notes }
      now = TaskerCore.enqueue(flow, { n: 1 })
      later = TaskerCore.enqueue(flow, { n: 2 }, wait: 3600)
      expect([now.status, later.status, ran]).to eq(["pending", "waiting", []])
      expect(described_class.drain.map(&:id)).to eq([now.id])
      travel(3601) { expect(described_class.drain.map(&:id)).to eq([later.id]) }
      expect([ran, described_class.drain]).to eq([[1, 2], []])
    end

    it "refuses what the core refuses" do
      flow = diamond
      expect { TaskerCore.enqueue(flow, {}) }.to raise_error(TaskerCore::InvalidInput, /"units" is a required property/)
      expect { TaskerCore.enqueue(flow, { units: 1 }, priority: :huge) }.to raise_error(TaskerCore::InvalidInput, /huge/)
      expect { TaskerCore.enqueue("no_such_flow", {}) }.to raise_error(TaskerCore::NotFound)
      expect { TaskerCore.enqueue(workflow { step :a, "Nobody", after: :b }, {}) }.to raise_error(TaskerCore::TemplateError, /"b"/)
      expect(described_class.tasks).to be_empty
    end

    it "takes one key for one task" do
      flow = diamond
      first = TaskerCore.enqueue(flow, { units: 1 }, key: "k")
      again = TaskerCore.enqueue(flow, { units: 2 }, key: "k")
      expect([first.created?, again.created?, again.id]).to eq([true, false, first.id])
    end

    it "finds a workflow by its name, though nobody registered it" do
      diamond.template_name("found_by_name")
      expect(TaskerCore.enqueue("found_by_name", { units: 1 }).to_h).to include(template: "found_by_name", namespace: namespace)
      expect(TaskerCore.enqueue("#{namespace}/found_by_name", { units: 1 }).status).to eq("pending")
    end

    it "writes a task down as the database does" do
      flow = diamond
      in_memory = TaskerCore.enqueue(flow, { units: 1 }, priority: :high).to_h
      in_database = described_class.disable! { TaskerCore.enqueue(flow, { units: 1 }, priority: :high).to_h }
      expect(in_memory.keys).to match_array(in_database.keys)
      same = %i[template namespace state priority key input]
      expect(in_memory.slice(*same)).to eq(in_database.slice(*same))
      expect(in_memory[:steps].map(&:keys)).to all(match_array(in_database[:steps].first.keys))
      same = %i[name handler namespace depends_on state attempt max_attempts result progress errors]
      expect(in_memory[:steps].map { |step| step.slice(*same) }).to eq(in_database[:steps].map { |step| step.slice(*same) })
    end
  end

  describe ".run_step" do
    it "runs a handler alone, with what it is given, and returns what the next steps would see" do
      echo = handler { |step| [step.context, step.results, step.config, step.attempt, step.checkpoint, :symbol] }
      given = { context: { a: 1 }, results: { before: [2] }, config: { c: 3 }, attempt: 4, checkpoint: 5 }
      expect(run_step(echo, **given)).to eq([{ a: 1 }, { before: [2] }, { c: 3 }, 4, 5, "symbol"])
    end

    it "raises what the handler raises, and for a result that JSON cannot hold where that is strict" do
      expect { run_step(handler { |_| raise IOError, "gone" }) }.to raise_error(IOError, "gone")
      expect(run_step(handler { |_| { at: Date.new(2026, 1, 2), other: Object.new } })).to eq({ at: "2026-01-02", other: nil })
      TaskerCore.configuration.strict_results = true
      expect { run_step(handler { |_| Object.new }) }.to raise_error(TaskerCore::InvalidInput, /not JSON: cannot convert Object/)
    ensure
      TaskerCore.configuration.strict_results = false
    end

    it "needs no mode" do
      described_class.disable! { expect(run_step(handler { |step| step.context[:n] }, context: { n: 1 })).to eq(1) }
    end
  end

  describe "have_enqueued_task" do
    it "is about a block, or about the test so far" do
      flow = diamond
      expect { TaskerCore.enqueue(flow, { units: 1 }) }.to have_enqueued_task(flow).with(units: 1).once
      expect { nil }.not_to have_enqueued_task(flow)
      expect(TaskerCore).to have_enqueued_task(flow)
      expect(TaskerCore).to have_enqueued_task("#{namespace}/#{flow.template_name}").with(a_hash_including(units: Integer))
      expect(TaskerCore).not_to have_enqueued_task("another")
    end

    it "compares priority, key, time and how many" do
      flow = diamond
      at = Time.now + 3600
      expect { 2.times { |n| TaskerCore.enqueue(flow, { units: n }, priority: :high, key: "k#{n}", run_at: at) } }
        .to have_enqueued_task(flow).with_priority(:high).with_key(/k/).at(at).exactly(2).times
      expect(TaskerCore).to have_enqueued_task(flow).with_key("k1").once
      expect(TaskerCore).to have_enqueued_task(flow).twice
      expect(TaskerCore).not_to have_enqueued_task(flow).at(at + 1)
    end

    it "says what was enqueued instead" do
      flow = diamond
      TaskerCore.enqueue(flow, { units: 1 })
      expect { expect(TaskerCore).to have_enqueued_task(flow).with(units: 2) }
        .to raise_error(RSpec::Expectations::ExpectationNotMetError, /input \{:units=>2\}.* enqueued, but.*with \{:units=>1\}/m)
    end
  end

  describe "Assertions" do
    # A test of an application.
    def run_test(&test)
      made = Class.new(Minitest::Test) do
        include TaskerCore::Testing::Assertions
        define_method(:test_it, &test)
      end
      made.new(:test_it).run.tap { Minitest::Runnable.runnables.delete(made) }.failures.map(&:message)
    end

    it "asserts in Minitest what the matcher does in RSpec" do
      flow = diamond
      adding = handler { |step| step.context[:n] + 1 }
      failures = run_test do
        assert_no_task_enqueued
        assert_task_enqueued(flow, with: { units: 1 }, priority: :low, count: 1) { TaskerCore.enqueue(flow, { units: 1 }, priority: :low) }
        assert_task_enqueued(flow)
        assert_no_task_enqueued(flow) { nil }
        assert_equal 3, run_step(adding, context: { n: 2 })
      end
      expect(failures).to eq([])
      expect(run_test { assert_task_enqueued(flow) }).to match([/to be enqueued, but nothing was/])
      expect(run_test { assert_no_task_enqueued(flow) { TaskerCore.enqueue(flow, { units: 1 }) } }).to match([/not to be enqueued, but/])
    end
  end

  it "says that it keeps no dead letters" do
    described_class.fake! { expect { TaskerCore::DLQ.list }.to raise_error(TaskerCore::Error, /keeps no dead letters/) }
  end

  it "says that it is not in use" do
    described_class.disable! { expect { described_class.tasks }.to raise_error(TaskerCore::Error, /fake! or inline!/) }
  end
end
