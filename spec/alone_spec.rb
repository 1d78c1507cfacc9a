# frozen_string_literal: true

require "spec_helper"

# What is missing beside a process is said by it, and by everybody who is asked.
RSpec.describe "a process that lacks others" do
  before do
    Database.create("_alone")
    succeed(*Processes::TASKER, "migrate")
  end

  after { end_processes && Database.drop("_alone") }

  def environment_with(more) = super("DATABASE_URL" => Database.url("_alone"), "TASKER_RUN_DIR" => run_dir, **more)

  let(:run_dir) { Dir.mktmpdir }

  let(:app) { <<~RUBY }
    class Flaky < TaskerCore::StepHandler
      def call(step) = step.attempt > 1 || raise("the first time")
    end

    class Flow < TaskerCore::Workflow
      namespace "alone"
      step :only, Flaky, retry: { base: 0.1 }
    end
  RUBY

  def tasker(*arguments) = succeed(*Processes::TASKER, *arguments)

  it "says so where only a worker runs, until an orchestrator does" do
    worker = start_worker(app, "--namespace", "alone", "--lease", "3")
    tasker("task", "create", "flow", "--input", "{}")
    worker.wait_for(/no orchestrator looks after alone: what is to be tried again/)
    expect(tasker("queue", "list")).to match(/^alone +no orchestrator/)
    expect(tasker("health")).to match(/^worker \d+: ok; but no orchestrator looks after alone/)
    start_orchestrator
    worker.wait_for(/nothing is missing beside this process any more/)
    expect(tasker("queue", "list")).to match(/^alone +normal/)
  end

  it "says so where nobody is there for what waits" do
    start_worker(app, "--namespace", "alone").then { |worker| worker.signal("TERM") && worker.wait }
    tasker("task", "create", "flow", "--input", "{}")
    orchestrator = start("serve", "--listen", "127.0.0.1:0", TASKER__ORCHESTRATOR__LEASE: "3s").wait_for(/orchestrator started/)
    orchestrator.wait_for(/1 steps wait in alone, and no worker is there for them/)
    expect(tasker("queue", "list")).to match(/^alone +no workers/)
    expect(tasker("health")).to match(/^orchestrator \d+: ok; but 1 steps wait in alone/)
  end

  it "needs no other where a worker is the orchestrator, too" do
    start_worker(app, "--namespace", "alone", "--orchestrate").wait_for(/orchestrator started/)
    task = JSON.parse(tasker("task", "create", "flow", "--input", "{}", "--json"))
    tasker("task", "watch", task.fetch("id"))
    expect(JSON.parse(tasker("task", "show", task.fetch("id"), "--json"))).to include("state" => "complete")
  end
end
