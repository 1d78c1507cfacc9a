# frozen_string_literal: true

require "spec_helper"
require "net/http"

RSpec.describe "TaskerCore.healthy?" do
  describe "in a worker's own process" do
    it "is true while the worker's threads live" do
      handler("Work") { |_| nil }
      workflow { step :work, "Work" }
      expect(TaskerCore).to be_healthy
      working do |worker|
        expect(TaskerCore.health).to include(healthy: true, failed: [], kind: "worker", database: true)
        worker.instance_variable_get(:@supervisor).kill.join
        expect(TaskerCore.health).to include(healthy: false, failed: ["the supervisor of the handlers is dead"])
      end
      expect(TaskerCore.health).to include(healthy: true, kind: "client")
    end
  end

  describe "from another process of the same container" do
    let(:run_dir) { Dir.mktmpdir }
    let(:code) do
      <<~RUBY
        class Idle < TaskerCore::StepHandler
          def call(_step) = nil
        end
        class Idling < TaskerCore::Workflow
          namespace #{namespace.inspect}
          step :idle, Idle
        end
      RUBY
    end

    def worker(*arguments) = start_worker(code, "--namespace", namespace, *arguments, TASKER_RUN_DIR: run_dir)

    # What an exec probe runs.
    def probe(code = "exit TaskerCore.healthy?", environment = {})
      run(RbConfig.ruby, "-I", File.join(Processes::ROOT, "lib"), "-rtasker_core", "-e", code,
          environment: { "TASKER_RUN_DIR" => run_dir, **environment })
    end

    # As Kubernetes asks several times: on a machine that is busy an answer may not come in time.
    def until_healthy(*arguments) = 50.times.lazy.map { probe(*arguments) }.find { |answer| answer == ["", 0] }

    it "is true for a worker that works, and false for one that stands still, is dead, or is not there" do
      expect(probe).to eq(["", 1])
      working = worker
      expect(until_healthy).to be_truthy
      working.signal("STOP")
      expect(probe("print TaskerCore.health[:failed]; exit TaskerCore.healthy?"))
        .to eq(["[\"worker #{working.pid}: it stands still: no answer in time\"]", 1])
      working.signal("CONT")
      expect(until_healthy).to be_truthy
      working.signal("KILL")
      working.wait
      expect(probe).to eq(["", 1])
      worker
      expect(until_healthy).to be_truthy
    end

    it "asks no database, so that one that is away fails nobody before its grace is over" do
      worker
      expect(until_healthy("exit TaskerCore.healthy?", { "DATABASE_URL" => "postgres://nobody:x@127.0.0.1:1/x" })).to be_truthy
    end

    it "is no longer true, and leaves nothing behind, once the worker has stopped" do
      stopping = worker
      stopping.signal("TERM")
      stopping.wait
      expect(Dir.children(run_dir)).to be_empty
      expect(tasker("health", "--worker", environment: { "TASKER_RUN_DIR" => run_dir })).to eq(["no worker runs here\n", 1])
    end
  end

  it "is answered on a worker's port, if it has one" do
    started = start_worker("", "--namespace", namespace, "--listen", "127.0.0.1:0")
    address = started.wait_for(/answering GET.*address=(\S+)/).output_so_far[/answering GET.*address=(\S+)/, 1]
    expect(Net::HTTP.get_response(URI("http://#{address}/ready")).code).to eq("200")
    # On a machine that is busy the database may not tell in time, which is an answer, too.
    fleet = Timeout.timeout(60) do
      loop do
        told = JSON.parse(Net::HTTP.get(URI("http://#{address}/health/detailed"))).fetch("fleet")
        break told unless told.key?("error")
      end
    end
    expect(fleet.dig("namespaces", namespace, "workers")).to eq(1)
  end
end
