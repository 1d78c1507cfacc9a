# frozen_string_literal: true

require "spec_helper"

RSpec.describe "the built gem" do
  # Everything here runs with the installed gem, in a folder without the sources, and with no other gem.
  it "installs from the built file, works on its own, and is small" do
    home = Dir.mktmpdir
    output, code = run("gem", "build", "--silent", "--output", File.join(home, "tasker_core.gem"), "tasker_core.gemspec",
                       folder: Processes::ROOT)
    expect(code).to eq(0), output
    gems = { "GEM_HOME" => File.join(home, "gems"), "GEM_PATH" => File.join(home, "gems"), "RUBYOPT" => nil, "RUBYLIB" => nil,
             "BUNDLE_GEMFILE" => nil }
    output, code = run("gem", "install", "--local", "--no-document", "tasker_core.gem", environment: gems, folder: home)
    expect(code).to eq(0), output

    expect(Dir.glob(File.join(home, "gems/**/*")).sum { |file| File.file?(file) ? File.size(file) : 0 }).to be < 40_000_000
    expect(Dir.children(File.join(home, "gems/gems"))).to eq(["tasker_core-#{TaskerCore::VERSION}"])

    File.write(File.join(home, "app.rb"), <<~RUBY)
      class Greet < TaskerCore::StepHandler
        def call(step) = "hello " + step.context[:name]
      end

      class Greeting < TaskerCore::Workflow
        namespace #{namespace.inspect}
        step :greet, Greet
      end
    RUBY
    tasker = File.join(home, "gems/bin/tasker")
    running = [["serve", "--listen", "127.0.0.1:0"], ["worker", "-r", "app.rb", "-n", namespace]].map do |arguments|
      launch(tasker, *arguments, environment: gems, folder: home)
    end
    output, code = run(RbConfig.ruby, "-rtasker_core", "-r./app.rb", "-e", <<~RUBY, environment: gems, folder: home)
      task = TaskerCore.enqueue(Greeting, { name: "gem" })
      print task.wait(timeout: 30), ": ", task.results[:greet], ", ", TaskerCore.healthy?
    RUBY
    expect([output, code]).to eq(["complete: hello gem, true", 0])
    running.each { |process| process.signal("TERM") }
    expect(running.map { |process| process.wait.exitstatus }).to eq([0, 0])
  ensure
    FileUtils.rm_rf(home)
  end
end
