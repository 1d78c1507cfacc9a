# frozen_string_literal: true

require "spec_helper"

RSpec.describe "the settings of a worker" do
  let(:folder) { Dir.mktmpdir }

  # Its handlers begin, and end when they are told to.
  def start_worker_here(**environment)
    Database.query("CREATE TABLE #{namespace}_steps (began int, may_end boolean)")
    File.write(File.join(folder, "app.rb"), <<~RUBY)
      require "pg"
      class Begin < TaskerCore::StepHandler
        def call(step)
          connection = PG.connect(ENV.fetch("DATABASE_URL"))
          connection.exec("INSERT INTO #{namespace}_steps (began) VALUES (1)")
          sleep 0.05 until connection.exec("SELECT 1 FROM #{namespace}_steps WHERE may_end").ntuples.positive?
        ensure
          connection&.close
        end
      end

      class Flow < TaskerCore::Workflow
        namespace #{namespace.inspect}
        step :begin, Begin
      end
    RUBY
    launch(*Processes::TASKER, "worker", "-r", "app.rb", folder: folder, environment: environment.transform_keys(&:to_s))
      .wait_for(/worker started/)
  end

  def begun = Database.query("SELECT count(*) FROM #{namespace}_steps WHERE began = 1").dig(0, "count").to_i

  def settle_at(count)
    sleep 0.05 until begun == count # a wrong count ends with the suite's own patience
  end

  def write_settings(settings) = File.write(File.join(folder, "tasker.yml"), settings)

  it "come from tasker.yml, then from the environment, and change while it runs" do
    write_settings("shared:\n  worker:\n    namespaces: [#{namespace}]\n    threads: 7\n")
    start_orchestrator
    start_worker_here(TASKER__WORKER__THREADS: "2")
    TaskerCore.enqueue_all("#{namespace}/flow", [{}] * 20)
    settle_at(2)
    expect(tasker("config", "set", "worker.threads", "5", "--why", "more machines").last).to eq(0)
    settle_at(5)
  ensure
    Database.query("UPDATE #{namespace}_steps SET may_end = true")
    tasker("config", "unset", "worker.threads")
  end

  it "change in all workers and orchestrators at once, and a bad change in none of them" do
    2.times { start("serve", "--listen", "127.0.0.1:0", TASKER__ORCHESTRATOR__LEASE: "3s").wait_for(/orchestrator started/) }
    write_settings("shared: { worker: { namespaces: [#{namespace}], lease: 3s } }")
    3.times { start_idle_worker }
    settle_on("worker.batch" => 500, "orchestrator.batch" => 200)
    expect(tasker("config", "set", "worker.batch", "7").last).to eq(0)
    settle_on("worker.batch" => 7, "orchestrator.batch" => 200)
    expect(tasker("config", "set", "worker.linger", "soon")).to match([/expected a duration/, 1])
    expect(tasker("config", "rollback", versions.last.to_s).last).to eq(0)
    settle_on("worker.batch" => 500, "orchestrator.batch" => 200)
  end

  def start_idle_worker
    file = File.join(folder, "idle.rb")
    File.write(file, "")
    launch(*Processes::TASKER, "worker", "-r", file, folder: folder).wait_for(/worker started/)
  end

  # The last two, the newest first.
  def versions = JSON.parse(tasker("config", "history", "--limit", "2", "--json").first).map { |version| version["version"] }

  # Waits until all five say that they have these.
  def settle_on(expected)
    told = -> { Database.query("SELECT report -> 'configuration' -> 'values' AS of FROM tasker.members WHERE left_at IS NULL") }
    has = ->(values) { values && JSON.parse(values).slice(*expected.keys) == expected }
    sleep 0.05 until told.call.map { |member| has.call(member["of"]) } == [true] * 5
  end

  it "are refused all at once, with the place of each" do
    write_settings("shared:\n  worker:\n    threds: 7\n    lease: soon\n")
    File.write(File.join(folder, "app.rb"), "")
    output, code = run(*Processes::TASKER, "worker", "-r", "app.rb", folder: folder)
    expect(code).to eq(3)
    expect(output).to include("tasker.yml:3: shared.worker.threds is not known: did you mean threads?")
      .and include('tasker.yml:4: shared.worker.lease is "soon": expected a duration')
  end
end
