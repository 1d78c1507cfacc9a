# frozen_string_literal: true

require "spec_helper"

RSpec.describe TaskerCore::Worker do
  it "runs a workflow's steps, each with what its parents returned" do
    handler("Double") { |step| { value: step.context[:n] * 2 } }
    handler("Add") { |step| step.results[:left][:value] + step.results[:right][:value] + step.config[:plus] }
    flow = workflow do
      step :left, "Double"
      step :right, "Double"
      step :sum, "Add", after: %i[left right], config: { plus: 1 }
    end
    working do
      task = TaskerCore.enqueue(flow, { n: 5 })
      expect(task.wait(timeout: 120)).to eq("complete")
      expect(task.results).to eq({ left: { value: 10 }, right: { value: 10 }, sum: 21 })
    end
  end

  it "has a task do each element of a list, and a later handler read what became of them one by one" do
    handler("Lines") { |step| { lines: (0...step.context[:lines]).map { |n| { line: n } } } }
    handler("Reserve") { |step| step.context[:line] % 10 == 3 ? raise(TaskerCore::PermanentError, "none left") : step.context[:line] * 2 }
    handler("Ship") do |step|
      reserved = step.results[:reserve]
      { size: reserved.size, sum: reserved.sum(&:to_i), third: reserved.to_a[2], tasks: reserved.each_child.first(2).map(&:item),
        errors: reserved.errors.map { |child| [child.item, child.error[:message]] } }
    end
    flow = workflow("Fan") do
      step :lines, "Lines"
      each :reserve, "Reserve", over: "$.results.lines.lines", after: :lines, tolerate: "10%"
      step :ship, "Ship", after: :reserve
    end
    outer = workflow("Outer") do
      output "$.results.inner.ship.size"
      workflow :inner, flow, input: { lines: "$.input.n" }
    end
    working do
      task = TaskerCore.enqueue(flow, { lines: 30 })
      expect(task.wait(timeout: 120)).to eq("complete")
      expect(task.results[:ship]).to eq(size: 30, sum: (0...30).sum { |n| n % 10 == 3 ? 0 : n * 2 }, third: 4, tasks: [0, 1],
                                        errors: [[3, "none left"], [13, "none left"], [23, "none left"]])
      expect(task.results[:reserve].to_a).to eq(task.children(:reserve).map(&:itself))
      expect(task.steps[1].children).to include(total: 30, ended: 27, dead: 3, tolerated: 3)
      expect { task.children(:ship) }.to raise_error(TaskerCore::NotFound, /has no tasks/)
      listed = tasker("task", "children", task.id, "reserve", "--dead").first
      expect(listed.lines.grep(/none left/).size).to eq(3)

      whole = TaskerCore.enqueue(outer, { n: 2 })
      expect(whole.wait(timeout: 120)).to eq("complete")
      expect(whole.results[:inner]).to include(lines: { lines: [{ line: 0 }, { line: 1 }] }, reserve: { size: 2, errors: 0 })
    end
  end

  it "tells a handler everything about its step" do
    log = StringIO.new
    TaskerCore.configuration.logger = Logger.new(log)
    handler("Tell") do |step|
      step.heartbeat
      step.logger.info("working")
      raise "again" if step.attempt == 1

      { name: step.name, workflow: step.workflow, version: step.version, attempt: step.attempt, max: step.max_attempts, lost: step.lost?,
        task: step.task_id }
    end
    flow = workflow("TellFlow") { step :tell, "Tell", retry: { max_attempts: 3, base: 0.01 } }
    working do
      task = TaskerCore.enqueue(flow)
      task.wait(timeout: 120)
      expect(task.results[:tell]).to eq({ name: "tell", workflow: "tell_flow", version: "1", attempt: 2, max: 3, lost: false,
                                          task: task.id })
      expect(log.string).to match(/working task=#{task.id} step=tell namespace=#{namespace} attempt=1 worker=\d+$/)
        .and match(/a step failed task=#{task.id} .* error="RuntimeError: again"$/)
        .and match(/working task=#{task.id} .* attempt=2 worker=\d+$/)
    end
  ensure
    TaskerCore.configuration.logger = Logger.new(File::NULL)
  end

  describe "an error" do
    it "is tried again, and kept with its class, message and trimmed backtrace" do
      handler("Fail") { |_| raise ArgumentError, "bad \xFF".dup.force_encoding("UTF-8") }
      flow = workflow { step :fail, "Fail", retry: { max_attempts: 2, base: 0.01 } }
      working do
        task = TaskerCore.enqueue(flow)
        expect(task.wait(timeout: 120)).to eq("blocked")
        step = task.steps.first
        expect([step.state, step.attempt]).to eq(["dead", 2])
        expect(step.errors.map { |error| error.slice(:class, :message, :attempt) }).to eq(
          [1, 2].map { |attempt| { class: "ArgumentError", message: "bad �", attempt: attempt } }
        )
        expect(step.errors.first[:backtrace].first).to include(__FILE__)
        expect(step.errors.first[:backtrace].size).to be <= 20
      end
    end

    # What a handler raises, and the class and the message that are recorded.
    unreadable = "its message cannot be read"
    {
      "whose message raises" => [-> { raise Class.new(IOError) { def message = raise("no") } }, "IOError", unreadable],
      "in an encoding that Ruby cannot convert" => [
        -> { raise ArgumentError, "\xE9-".dup.force_encoding("UTF-7") }, "ArgumentError", "\u{FFFD}-"
      ],
      "whose backtrace has invalid bytes" => [-> { raise IOError, "no", ["\xFF.rb:1"] }, "IOError", "no"],
      "whose class says nothing of its name" => [-> { raise Class.new(KeyError) { def self.name = raise("no") }, "no" }, "KeyError", "no"],
      "of a class without a name" => [-> { raise Class.new(RangeError), "no" }, "RangeError", "no"],
      "that says no time to try again" => [
        -> { raise TaskerCore::RetryableError.new("no", retry_after: :soon) }, "TaskerCore::RetryableError", "no"
      ],
      "that lies about everything" => [
        lambda {
          raise Class.new(StandardError) { %i[message backtrace class cause is_a? to_s].each { |m| define_method(m) { |*| raise "no" } } }
        }, "StandardError", unreadable
      ]
    }.each do |title, (raising, recorded, message)|
      it "#{title} is a failed attempt, and its thread goes on" do
        handler("Strange") { |step| step.context[:strange] ? raising.call : "fine" }
        flow = workflow { step :strange, "Strange", retry: { max_attempts: 2, base: 0.01 } }
        working(threads: 1) do |worker|
          task = TaskerCore.enqueue(flow, { strange: true })
          expect(task.wait(timeout: 120)).to eq("blocked")
          expect(task.steps.first.errors.last).to include(class: recorded, message: message, attempt: 2)
          expect(TaskerCore.enqueue(flow, {}).wait(timeout: 120)).to eq("complete")
          expect(worker).to be_healthy
        end
      end
    end

    it "in reporting it, too, is a failed attempt" do
      handler("Strange") { |_| Struct.new(:a) { def to_h = raise("no") }.new(1) }
      flow = workflow { step :strange, "Strange", retry: { max_attempts: 1 } }
      working(threads: 1) do
        task = TaskerCore.enqueue(flow)
        expect(task.wait(timeout: 120)).to eq("blocked")
        expect(task.steps.first.errors.first.slice(:class, :message)).to eq({ class: "RuntimeError", message: "no" })
      end
    end

    it "is recorded of a step that nobody reported before it was forgotten" do
      flow = workflow { step :lost, "Lost", retry: { max_attempts: 1 } }
      task = TaskerCore.enqueue(flow)
      orchestrator = start_orchestrator
      native = TaskerCore::Native::Worker.start(TaskerCore.client.native, { worker: { namespaces: [namespace] } }, nil)
      Thread.new { native.next(30.0).nil? and raise "no step" }.join
      Timeout.timeout(120) { GC.start && sleep(0.05) until task.status == "blocked" }
      expect(task.steps.first.errors.first[:message]).to eq("the handler failed, and how cannot be described")
    ensure
      native&.shutdown(0.0)
      orchestrator&.signal("TERM")
    end

    it "is final when it is a PermanentError" do
      handler("Refuse") { |_| raise TaskerCore::PermanentError, "never" }
      flow = workflow { step :refuse, "Refuse" }
      working do
        task = TaskerCore.enqueue(flow)
        expect(task.wait(timeout: 120)).to eq("blocked")
        expect(task.steps.first.errors.size).to eq(1)
      end
    end

    it "says when to try again when it is a RetryableError" do
      handler("Later") { |step| raise TaskerCore::RetryableError.new("later", retry_after: 0.01) if step.attempt < 3 }
      flow = workflow { step :later, "Later", retry: { max_attempts: 3, base: "1h", max: "1h" } }
      working do
        task = TaskerCore.enqueue(flow)
        expect(task.wait(timeout: 120)).to eq("complete")
        expect(task.steps.first.attempt).to eq(3)
      end
    end
  end

  it "survives whatever a handler does" do
    deeds = {
      exit: -> { exit(3) }, abort: -> { abort }, end_thread: -> { Thread.exit }, throw: -> { throw :ball }, overflow: lambda {
                                                                                                                        (deep = lambda {
                                                                                                                           deep.call
                                                                                                                         }).call
                                                                                                                      },
      hang: -> { sleep }, ignore_timeout: lambda {
                                            loop {
                                              begin
                                                sleep
                                              rescue StandardError
                                                nil
                                              end
                                            }
                                          }, proc: -> { proc {} }, binary: -> { "\xFF" }, infinite: lambda {
                                                                                                      Float::INFINITY
                                                                                                    },
      work: -> { :done }
    }
    handler("Misbehave") { |step| deeds.fetch(step.context[:deed].to_sym).call }
    flow = workflow { step :misbehave, "Misbehave", timeout: 2, retry: { max_attempts: 1 } }
    working(threads: 2) do |worker|
      tasks = deeds.keys.to_h { |deed| [deed, TaskerCore.enqueue(flow, { deed: deed })] }
      errors = tasks.transform_values { |task| [task.wait(timeout: 60), task.steps.first.errors.map { |error| error[:class] }.first] }
      expect(errors).to eq(
        exit: %w[blocked SystemExit], abort: %w[blocked SystemExit], end_thread: %w[blocked TaskerCore::RetryableError],
        throw: %w[blocked UncaughtThrowError], overflow: %w[blocked SystemStackError], hang: %w[blocked TaskerCore::StepTimeout],
        ignore_timeout: %w[blocked TaskerCore::StepTimeout], proc: ["complete", nil],
        binary: %w[blocked TaskerCore::PermanentError], infinite: ["complete", nil], work: ["complete", nil]
      )
      expect(TaskerCore.enqueue(flow, { deed: :work }).wait(timeout: 120)).to eq("complete")
      expect(worker).to be_healthy
    end
  end

  it "has all of its threads at work when there is work for all, whoever took what others were woken for" do
    arrived = Queue.new
    go_on = Queue.new
    handler("Meet") do |step|
      next unless step.context[:meet]

      arrived << true
      go_on.pop
    end
    flow = workflow { step :meet, "Meet", timeout: 60 }
    working(threads: 6) do
      5.times do
        TaskerCore.enqueue_all(flow, Array.new(300) { {} }).each { |task| task.wait(timeout: 120) }
        meeting = TaskerCore.enqueue_all(flow, Array.new(6) { { meet: true } })
        Timeout.timeout(120) { 6.times { arrived.pop } }
        6.times { go_on << true }
        expect(meeting.map { |task| task.wait(timeout: 120) }).to all(eq("complete"))
      end
    end
  end

  it "tells a result that is too large and a handler's own mistake apart" do
    handler("TooMuch") { |_| "x" * (1 << 20) }
    handler("Mistaken") { |_| NoSuchConstant }
    working do
      flow = workflow do
        step :too_much, "TooMuch"
        step :mistaken, "Mistaken", retry: { max_attempts: 1 }
      end
      task = TaskerCore.enqueue(flow)
      letters = nil
      Timeout.timeout(120) { sleep(0.02) until (letters = TaskerCore::DLQ.list(task: task.id)).size == 2 }
      expect(letters.to_h { |letter| [letter[:step], [letter[:reason], letter[:errors].last[:class]]] }).to eq(
        "too_much" => %w[payload_too_large TaskerCore::PermanentError], "mistaken" => %w[attempts_exhausted NameError]
      )
      expect { TaskerCore.enqueue(flow, { note: "x" * (1 << 20) }) }.to raise_error(TaskerCore::PayloadTooLarge, /1048576/)
    end
  end

  it "calls a handler that snoozes again later, which is no attempt and no error" do
    calls = Queue.new
    handler("Snoozing") do |step|
      raise TaskerCore::Snooze, 0.01 if calls.push(step.attempt).size < 3

      "there"
    end
    flow = workflow do
      sleep :nap, 0.01
      step :poll, "Snoozing", after: :nap, retry: { max_attempts: 1 }
    end
    working do
      task = TaskerCore.enqueue(flow)
      expect(task.wait(timeout: 120)).to eq("complete")
      expect([Array.new(3) { calls.pop }, task.results[:poll], task.steps.last.errors]).to eq([[1, 1, 1], "there", []])
    end
    expect { TaskerCore::Snooze.new("soon") }.to raise_error(TaskerCore::InvalidInput, /time is "soon"/)
  end

  it "ends a task that a handler discards, without a dead letter, and stops what runs beside it" do
    stopped = Queue.new
    begun = Queue.new
    handler("Beside") do |step|
      begun << true
      sleep(0.01) until step.cancelled?
      stopped << true
    end
    handler("Discard") { |_| begun.pop && raise(TaskerCore::DiscardError, "the account is gone") }
    flow = workflow do
      step :discard, "Discard"
      step :beside, "Beside"
      step :after, "Beside", after: :discard
    end
    working do
      task = TaskerCore.enqueue(flow)
      expect(task.wait(timeout: 120)).to eq("discarded")
      expect(stopped.pop).to be(true)
      expect(task.steps.map { |step| [step.state, step.after_cancel] })
        .to eq([["discarded", nil], %w[cancelled complete], ["cancelled", nil]])
      expect(TaskerCore::DLQ.list(task: task.id)).to be_empty
    end
  end

  it "leaves a step whose handler it has not to one that has, which may be itself later, and no attempt is used" do
    handler("Known") { |_| 1 }
    working do
      # Enqueued by a newer version of the code, as it were.
      flow = workflow { step :later, "LoadedLater" }
      task = TaskerCore.enqueue(flow)
      Timeout.timeout(120) { sleep(0.02) until task.steps.first.waits_for == "a worker that has the handler LoadedLater" }
      known = workflow { step :known, "Known" }
      expect(TaskerCore.enqueue(known).wait(timeout: 120)).to eq("complete")
      expect(task.steps.first.to_h).to include(state: "waiting", attempt: 0, errors: [])
      handler("LoadedLater") { |step| "attempt #{step.attempt}" }
      working { expect(task.wait(timeout: 120)).to eq("complete") }
      expect(task.results[:later]).to eq("attempt 1")
    end
  end

  it "does not start without the handlers that its own workflows want of it, and says where they do" do
    workflow do
      step :here, "NobodyHasThis"
      step :no_handler, "String"
      step :elsewhere, "OfAnotherTeam", namespace: "another_team"
    end
    line = __LINE__ - 4
    expect { described_class.new(namespaces: [namespace]).start }.to raise_error(TaskerCore::TemplateError) { |error|
      expect(error.message.lines(chomp: true)).to eq(
        ["#{__FILE__}:#{line}: step here: this worker has no handler NobodyHasThis",
         "#{__FILE__}:#{line + 1}: step no_handler: String is no handler: expected a subclass of TaskerCore::StepHandler, " \
         "or a class with call(step) that a Workflow names"]
      )
    }
  end

  it "stops a handler that asks, when its task is cancelled" do
    started = Queue.new
    ended = Queue.new
    handler("Long") do |step|
      started << true
      loop { step.heartbeat && sleep(0.01) }
    rescue TaskerCore::LeaseLost => e
      ended << e
      raise
    end
    flow = workflow { step :long, "Long" }
    working(lease: 1) do
      task = TaskerCore.enqueue(flow)
      started.pop
      task.cancel
      expect(ended.pop.message).to match(/no longer this worker's, or was cancelled/)
      expect(task.wait(timeout: 120)).to eq("cancelled")
      expect(task.steps.first.to_h).to include(state: "cancelled", after_cancel: "failed")
      expect(task.steps.first.errors.last).to include(class: "TaskerCore::LeaseLost")
    end
  end

  it "resumes from the checkpoint of the attempt before, and shows its progress" do
    reached = Queue.new
    go_on = Queue.new
    handler("Import") do |step|
      first = step.checkpoint || 0
      step.heartbeat({ page: first })
      reached << first
      go_on.pop
      step.checkpoint(first + 5)
      raise "interrupted" if step.attempt < 3

      step.checkpoint
    end
    flow = workflow { step :import, "Import", retry: { max_attempts: 3, base: 0.01 } }
    working(lease: 1) do
      task = TaskerCore.enqueue(flow)
      expect(reached.pop).to eq(0)
      sleep(0.05) until task.steps.first.progress == { page: 0 }
      3.times { go_on << true }
      expect(task.wait(timeout: 120)).to eq("complete")
      expect([reached.pop, reached.pop, task.results[:import]]).to eq([5, 10, 15])
    end
  end

  it "refuses options that make no sense" do
    expect { described_class.new(namespaces: []).start }.to raise_error(TaskerCore::ConfigurationError, /no namespace/)
    expect { described_class.new(namespaces: ["n"], threads: 0).start }.to raise_error(TaskerCore::ConfigurationError, /1 to 10000/)
    expect { described_class.new(namespaces: ["Team A"]).start }.to raise_error(TaskerCore::Error)
  end
end
