# frozen_string_literal: true

require "spec_helper"

RSpec.describe TaskerCore::Native do
  # Runs Ruby that has a worker, an orchestrator, and a workflow of this example's namespace.
  def ruby(code, **options)
    quiet = { "TASKER_LOG" => "error" }
    run(RbConfig.ruby, "-I", File.join(Processes::ROOT, "lib"), "-rtasker_core", "-e", <<~RUBY, environment: quiet, **options)
      class Echo < TaskerCore::StepHandler
        def call(step) = { text: step.context[:text] * 2, before: step.results }
      end
      class Echoes < TaskerCore::Workflow
        namespace #{namespace.inspect}
        step :first, Echo
        step :second, Echo, after: :first
      end
      def work(count = 20)
        tasks = TaskerCore.enqueue_all(Echoes, Array.new(count) { |n| { text: "t\#{n}" } })
        raise "not complete" unless tasks.all? { |task| task.wait(timeout: 60) == "complete" }
        raise "not as it was" unless tasks.last.results[:second][:before][:first][:text] == "t\#{count - 1}" * 2
      end
      def working
        orchestrator = TaskerCore::Orchestrator.new.start
        worker = TaskerCore::Worker.new(namespaces: #{namespace.inspect}, threads: 2).start
        yield worker
      ensure
        worker&.stop
        orchestrator&.stop
      end
      #{code}
    RUBY
  end

  it "works while the garbage collector runs at every allocation, and moves what it can" do
    output, code = ruby(<<~RUBY)
      working do
        work
        GC.stress = true
        work(2)
        GC.stress = false
        GC.compact
        GC.verify_compaction_references(toward: :empty, **(RUBY_VERSION < "3.2" ? { double_heap: true } : { expand_heap: true }))
        GC.auto_compact = true
        work(200)
      end
      puts "done"
    RUBY
    expect([output, code]).to eq(["done\n", 0]), output
  end

  it "says that it is for the main Ractor alone" do
    output, code = ruby(<<~RUBY)
      Warning[:experimental] = false
      begin
        Ractor.new { TaskerCore::Native.to_json(1) }.take
      rescue Ractor::RemoteError => e
        puts e.cause.class
      end
      puts TaskerCore::Native.to_json(1)
    RUBY
    expect([output.lines(chomp: true).last(2), code]).to eq([["Ractor::UnsafeError", "1"], 0]), output
  end

  it "is each process's own: a child of one that works makes a client, a worker and an orchestrator for itself" do
    output, code = ruby(<<~RUBY)
      working do |worker|
        work
        child = fork do
          inherited = [worker.own?, (worker.health rescue $!.class)]
          working { work }
          print inherited, TaskerCore.healthy?
        end
        Process.wait(child)
        print $?.exitstatus
        work
      end
    RUBY
    expect([output, code]).to eq(["[false, TaskerCore::Error]true0", 0]), output
  end

  it "ends with its process, whatever still waits or works" do
    { "exit" => 0, "abort('no')" => 1, "raise 'no'" => 1, "Process.kill(:INT, $$); sleep" => nil,
      "Thread.new { sleep 0.2; Process.kill(:INT, $$) }; task.wait" => nil, "Process.kill(:TERM, $$); sleep" => nil,
      "fork { exit! }; Process.wait" => 0, "Process.daemon(true, true); exit" => 0 }.each do |ending, expected|
      output, code = Timeout.timeout(30) { ruby(<<~RUBY) }
        TaskerCore::Orchestrator.new.start
        TaskerCore::Worker.new(namespaces: #{namespace.inspect}).start
        task = TaskerCore.enqueue(Echoes, { text: "t" }, wait: 3600)
        waiting = Thread.new { task.wait }
        Thread.pass until waiting.status == "sleep"
        #{ending}
      RUBY
      expect(code).to eq(expected), "#{ending}: #{output}"
    end
  end
end
