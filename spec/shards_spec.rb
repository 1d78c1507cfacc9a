# frozen_string_literal: true

require "spec_helper"
require "tmpdir"

RSpec.describe "namespaces that live in a database of their own" do
  let(:folder) { Dir.mktmpdir }
  let(:environment) { { "TASKER_CONFIG" => File.join(folder, "tasker.yml") } }

  def ruby(code)
    script = File.join(folder, "script.rb")
    File.write(script, <<~RUBY)
      require "tasker_core"
      class Greet < TaskerCore::StepHandler
        def call(step) = { hello: step.context[:name] }
      end
      class Greeting < TaskerCore::Workflow
        namespace "#{namespace}"
        step :greet, Greet
      end
      class Home < TaskerCore::Workflow
        namespace "#{namespace}_home"
        step :greet, Greet
      end
      #{code}
    RUBY
    succeed(RbConfig.ruby, "-I", "lib", script, environment: environment).lines.map(&:strip)
  end

  before do
    Database.create("_eu")
    eu = { number: 5, url: Database.url("_eu"), direct_url: Database.direct_url("_eu"), namespaces: [namespace] }
    File.write(environment["TASKER_CONFIG"], JSON.generate(shared: { shards: { eu: eu } }))
    succeed(*Processes::TASKER, "shard", "add", "eu", environment: environment)
  end

  after do
    Database.drop("_eu")
    FileUtils.remove_entry(folder)
  end

  it "enqueues, runs, signals and waits there, and everything else at home" do
    said = ruby(<<~RUBY)
      worker = TaskerCore::Worker.new(namespaces: ["#{namespace}"], orchestrate: true).start
      task = TaskerCore.enqueue(Greeting, { name: "Ada" })
      task.wait(timeout: 60)
      home = TaskerCore.enqueue(Home, { name: "Bob" })
      home.cancel
      puts [task.status, task.results.to_h, home.status, TaskerCore.client.statuses([task, home]).size].inspect
      worker.stop(grace: 5)
    RUBY
    expect(said.last).to include('"complete"').and include("Ada").and include('"cancelled"').and end_with("2]")
    counted = "SELECT count(*) FROM tasker.tasks t JOIN tasker.namespaces n ON n.id = t.namespace_id WHERE n.name LIKE '#{namespace}%'"
    expect(Database.query(counted, suffix: "_eu")).to eq(["count" => "1"])
    expect(Database.query(counted)).to eq(["count" => "1"])
  end

  it "has one worker for all of them, and lists what is in any" do
    said = ruby(<<~RUBY)
      worker = TaskerCore::Worker.new(namespaces: ["#{namespace}", "#{namespace}_home"], orchestrate: true).start
      tasks = [Greeting, Home].map { |workflow| TaskerCore.enqueue(workflow, { name: "Ada" }) }
      tasks.each { |task| task.wait(timeout: 60) }
      puts [tasks.map(&:status), (tasks.map(&:id) - TaskerCore.tasks(state: "complete").map(&:id)).empty?].inspect
      TaskerCore::Schedules.create("#{namespace}", Greeting, every: 86_400)
      TaskerCore::Schedules.trigger("#{namespace}")
      worker.stop(grace: 5)
    RUBY
    expect(said.last).to eq('[["complete", "complete"], true]')
    counted = "SELECT count(*) FROM tasker.schedules WHERE name = '#{namespace}'"
    expect([Database.query(counted, suffix: "_eu"), Database.query(counted)]).to eq([["count" => "1"], ["count" => "0"]])
  end

  it "goes with a namespace that moves to another" do
    said = ruby(<<~RUBY)
      require "pg"
      open = []
      TaskerCore.configure { |settings| settings.open_transaction = -> { open } }
      before = TaskerCore.enqueue(Greeting, { name: "Ada" }, key: "ada")
      connection = PG.connect(#{Database.direct_url('_eu').inspect})
      open.replace([connection])
      TaskerCore.client.statuses([before])
      system(*#{Processes::TASKER.inspect}, "shard", "move", "#{namespace}", "--to", "default", out: File::NULL, exception: true)
      connection.exec("BEGIN")
      within = begin
        TaskerCore.enqueue(Greeting, { name: "Cal" })
      rescue TaskerCore::DatabaseError => e
        e
      end
      connection.exec("ROLLBACK")
      open.clear
      worker = TaskerCore::Worker.new(namespaces: ["#{namespace}"], orchestrate: true).start
      after = TaskerCore.enqueue(Greeting, { name: "Bob" })
      [before, after].each { |task| task.wait(timeout: 60) }
      puts within.is_a?(TaskerCore::Error) ? within.message : "no part of it, " + within.wait(timeout: 60)
      again = TaskerCore.enqueue(Greeting, { name: "Ada" }, key: "ada")
      puts [before.status, after.status, again.id == before.id, ([before, after].map(&:id) - TaskerCore.tasks(limit: 1_000).map(&:id)).size].inspect
      worker.stop(grace: 5)
    RUBY
    expect(said.last).to eq('["complete", "complete", true, 0]')
    # A client looks where namespaces live every five seconds: until then the transaction of the old shard is refused.
    expect(said.join).to include("lives in shard 0").or include("no part of it, complete")
  end

  it "creates a task in the caller's own transaction where that is one of the task's own database" do
    said = ruby(<<~RUBY)
      require "pg"
      open = []
      TaskerCore.configure { |settings| settings.open_transaction = -> { open } }
      [#{Database.direct_url('_eu').inspect}, #{Database.direct_url.inspect}].each do |url|
        connection = PG.connect(url)
        open.replace([connection])
        connection.exec("BEGIN")
        task = TaskerCore.enqueue(Greeting, { name: "Ada" })
        connection.exec("ROLLBACK")
        puts TaskerCore.client.statuses([task]).size
      end
    RUBY
    # Rolled back with the first; of the second, which leads elsewhere, it is no part.
    expect(said.last(2)).to eq(%w[0 1])
  end
end
