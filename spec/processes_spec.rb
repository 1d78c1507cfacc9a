# frozen_string_literal: true

require "spec_helper"

RSpec.describe "worker processes" do
  # Appends a line to a journal whenever a step begins, and does what the input says.
  def application(journal)
    <<~RUBY
      class Journalled < TaskerCore::StepHandler
        def call(step)
          File.write(#{journal.inspect}, "\#{step.task_id} \#{step.name} \#{Process.pid}\\n", mode: "a")
          sleep(step.context[:sleep]) if step.context[:sleep] && step.attempt == 1 && !File.exist?(#{"#{journal}.hurry".inspect})
          Process.pid
        end
      end

      class Journey < TaskerCore::Workflow
        namespace #{namespace.inspect}
        step :first, Journalled
        step :second, Journalled, after: :first
      end
    RUBY
  end

  let(:journal) { File.join(Dir.mktmpdir, "journal") }
  let(:lines) { -> { File.exist?(journal) ? File.readlines(journal, chomp: true) : [] } }
  let(:name) { "#{namespace}/journey" }

  def until_true
    sleep(0.01) until yield
  end

  it "runs what another one was killed over" do
    start_orchestrator
    killed = start_worker(application(journal), "--namespace", namespace, "--lease", "1")
    task = TaskerCore.enqueue(name, { sleep: 600 })
    until_true { lines.call.any? }
    killed.signal("KILL")
    File.write("#{journal}.hurry", "")
    rescuer = start_worker(application(journal), "--namespace", namespace)
    expect(task.wait(timeout: 60)).to eq("complete")
    expect(task.results).to eq({ first: rescuer.pid, second: rescuer.pid })
    expect(task.steps.first.attempt).to eq(1), "a crash is not an error of the handler"
  end

  it "runs every step once with two orchestrators and four workers" do
    2.times { start_orchestrator }
    workers = Array.new(4) { start_worker(application(journal), "--namespace", namespace, "--threads", "3") }
    tasks = TaskerCore.enqueue_all(name, [{}] * 200)
    expect(tasks.map { |task| task.wait(timeout: 60) }.uniq).to eq(["complete"])
    runs = lines.call.map { |line| line.split.first(2) }.tally
    expect([runs.size, runs.values.uniq]).to eq([400, [1]])
    workers.each { |worker| worker.signal("TERM") }
    expect(workers.map { |worker| worker.wait.exitstatus }).to eq([0, 0, 0, 0])
  end

  it "finishes what it began on TERM, hands the rest back at once, and exits with 0" do
    start_orchestrator
    stopping = start_worker(application(journal), "--namespace", namespace, "--threads", "1", "--grace", "30")
    tasks = Array.new(3) { TaskerCore.enqueue(name, { sleep: 0.5 }) }
    until_true { lines.call.any? }
    stopping.signal("TERM")
    expect(stopping.wait.exitstatus).to eq(0)
    finished, open = tasks.partition { |task| task.results.key?(:first) }
    expect([finished.size, open.size]).to eq([1, 2])
    start_worker(application(journal), "--namespace", namespace)
    expect(tasks.map { |task| task.wait(timeout: 120) }).to eq(["complete"] * 3)
    expect(lines.call.size).to eq(6), "nothing ran twice"
  end

  it "stops at once on a second signal, and hands back what was running" do
    start_orchestrator
    stopping = start_worker(application(journal), "--namespace", namespace, "--threads", "1")
    task = TaskerCore.enqueue(name, { sleep: 600 })
    until_true { lines.call.any? }
    stopping.signal("INT")
    stopping.wait_for(/worker is stopping/)
    stopping.signal("INT")
    expect(stopping.wait.exitstatus).to eq(130)
    File.write("#{journal}.hurry", "")
    start_worker(application(journal), "--namespace", namespace)
    expect(task.wait(timeout: 20)).to eq("complete"), "it did not wait for the lease to run out"
  end

  it "is told its namespace by NAMESPACE or QUEUE_NAME, as containers are" do
    start_worker(application(journal), NAMESPACE: namespace)
    start_worker(application(journal), QUEUE_NAME: "#{namespace}_queue")
    file = File.join(Dir.mktmpdir, "app.rb")
    File.write(file, "")
    expect(tasker("worker", "-r", file, environment: { "NAMESPACE" => "a", "QUEUE_NAME" => "b_queue" })).to eq(
      ["tasker: NAMESPACE (a) and QUEUE_NAME (b_queue) disagree\n", 3]
    )
    expect(tasker("worker", "-r", file)).to match([/\Atasker: no namespace: give --namespace, set NAMESPACE or QUEUE_NAME, or/, 3])
  end

  it "refuses wrong usage in one line or with its help, and never with a backtrace" do
    expect(tasker("worker", "-n", "a", "-r", "no/such.rb")).to match([%r{\Atasker: cannot load such file -- .*no/such.rb\n\z}, 3])
    expect(tasker("worker", "-n", "a")).to match([/\Atasker: no code to run/, 3])
    expect(tasker("worker", "--tea")).to match([/\Atasker: invalid option: --tea\n\nUsage: tasker worker/, 2])
    file = File.join(Dir.mktmpdir, "app.rb")
    File.write(file, "class Broken < TaskerCore::Workflow\n  namespace 'n'\n  step :a, 'H', after: :b\nend\n")
    expect(tasker("worker", "-n", "a", "-r",
                  file)).to eq(["tasker: #{file}:3: step \"a\" depends on unknown step \"b\": expected one of a\n", 3])
    expect(tasker("worker", "-n", "a", "-r", file, environment: { "DATABASE_URL" => "postgres://x@127.0.0.1:1/x" })).to match(
      [/\Atasker: cannot connect to PostgreSQL at 127.0.0.1:1/, 3]
    )
  end

  it "ends, and says why, when a part of it fails again and again" do
    file = File.join(Dir.mktmpdir, "app.rb")
    File.write(file, "")
    output, code = tasker("worker", "-n", namespace, "-r", file, environment: { "TASKER_TEST_PANICS" => "heartbeat 99" })
    expect(output.lines.last).to eq("tasker: the loop heartbeat panicked 5 times, the last time with: as it was told\n")
    expect(code).to eq(3)
  end

  it "has the binary's command line too" do
    output, code = tasker("--help")
    expect(code).to eq(0)
    expect(output).to include("serve", "worker", "task", "template", "dev")
    expect(tasker("task", "show", SecureRandom.uuid)).to match([/\Atasker: no task/, 4])
  end
end
