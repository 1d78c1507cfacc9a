# frozen_string_literal: true

require "spec_helper"
require "stringio"

RSpec.describe "Logs" do
  let(:code) do
    <<~RUBY
      class Talk < TaskerCore::StepHandler
        def call(step)
          step.logger.info("talking")
          TaskerCore.configuration.logger.info { "by itself" }
          step.attempt == 1 ? raise("the password is hunter2") : "a result"
        end
      end
      class Talking < TaskerCore::Workflow
        namespace #{namespace.inspect}
        step :talk, Talk, retry: { max_attempts: 2, base: 0.01 }
      end
    RUBY
  end

  # The lines of a worker that ran one task to its end and stopped, and the task.
  def lines(**environment)
    start_orchestrator
    worker = start_worker(code, "--namespace", namespace, **environment)
    task = TaskerCore.enqueue("#{namespace}/talking", { card: "an input" })
    task.wait(timeout: 120)
    worker.signal("TERM")
    worker.wait_for(/worker stopped.*$/)
    [worker.output_so_far.lines(chomp: true), task]
  end

  it "of the core are heard in a process that runs a worker and an orchestrator itself" do
    program = <<~RUBY
      require "tasker_core"
      TaskerCore::Orchestrator.new.start
      TaskerCore::Worker.new(namespaces: [#{namespace.inspect}]).run
    RUBY
    process = launch(RbConfig.ruby, "-I", File.join(Processes::ROOT, "lib"), "-e", program)
    process.wait_for(/orchestrator started.*worker started/m)
    process.signal("TERM")
    process.wait_for(/worker stopped/)
  end

  it "of Ruby and Rust are one stream of JSON, with what a line is about in fields, and without what tasks are given and return" do
    text, task = lines(TASKER_LOG_FORMAT: "json")
    parsed = text.map { |line| JSON.parse(line, symbolize_names: true) }
    expect(parsed).to all(include(:timestamp, :level, :message))
    started = parsed.find { |line| line[:message] == "worker started" }
    about = { task: task.id, step: "talk", namespace: namespace, worker: started[:member] }
    expect(parsed.select { |line| line[:message] == "talking" }.map { |line| line.except(:timestamp) }).to eq(
      [1, 2].map { |attempt| { level: "INFO", message: "talking", attempt: attempt, **about } }
    )
    expect(parsed.find { |line| line[:message] == "a step failed" }).to include(
      level: "WARN", error: "RuntimeError: the password is hunter2", attempt: 1, **about
    )
    expect(parsed.map { |line| line[:message] }).to include("by itself", "worker stopped")
    expect(text.join).not_to match(/an input|a result/)
  end

  it "have one of each finished step where the settings want it" do
    text, task = lines(TASKER_LOG_FORMAT: "json", TASKER__LOG__STEPS: "true")
    finished = text.map { |line| JSON.parse(line, symbolize_names: true) }.select { |line| line[:message] == "step finished" }
    expect(finished.map { |line| line.values_at(:level, :task, :step, :template, :handler, :attempt, :outcome) }).to eq(
      [["INFO", task.id, "talk", "talking", "Talk", 1, "failed"], ["INFO", task.id, "talk", "talking", "Talk", 2, "complete"]]
    )
    expect(finished).to all(include(seconds: be_a(Numeric), waited: be_a(Numeric)))
    expect(lines.first.grep(/step finished/)).to be_empty
  end

  it "are text unless told otherwise, and do not tell the fields that they should not" do
    text, task = lines(TASKER_LOG_REDACT: "error, namespace")
    line = /^\S+Z  WARN a step failed task=#{task.id} step=talk namespace=\[redacted\] .*error=\[redacted\]$/
    expect(text.grep(/a step failed/)).to match([line])
    expect(text.join).not_to include("hunter2")
  end

  # What the core says while the block runs, to a logger of its own.
  def told(formatter = nil)
    log = StringIO.new
    TaskerCore.configuration.logger = Logger.new(log, formatter: formatter)
    yield
    log.string
  ensure
    TaskerCore.configuration.logger = Logger.new(File::NULL)
  end

  it "of the core go to the application's logger while a worker runs" do
    handler("Work") { |_| nil }
    flow = workflow { step :work, "Work" }
    log = told { working { TaskerCore.enqueue(flow).wait(timeout: 120) } }
    expect(log).to match(/INFO -- : worker started member=\d+/).and include("worker stopped")
  end

  it "of two workers of one process go to the logger of the one that came last, then to the other's again" do
    inner = nil
    outer = told { working { inner = told { working { nil } } } }
    expect(inner.scan(/worker (?:started|is stopping|stopped)/)).to eq(["worker started", "worker is stopping", "worker stopped"])
    expect(outer.scan(/worker (?:started|is stopping|stopped)/)).to eq(["worker started", "worker is stopping", "worker stopped"])
  end

  it "go on after a line that the logger could not write" do
    failing = ->(_, _, _, line) { line.include?("started") ? raise(EncodingError, "no such letter") : "#{line}\n" }
    log = nil
    expect { log = told(failing) { working { nil } } }.to output(/logger failed \(EncodingError\): worker started/).to_stderr
    expect(log).to match(/\Aanswering.*worker is stopping.*worker stopped/m)
  end
end
