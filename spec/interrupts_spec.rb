# frozen_string_literal: true

require "spec_helper"

RSpec.describe "Ruby's interrupts" do
  # Signals come all the time, so that one is on its way whenever a command begins.
  it "do not keep a command from running, or end it in silence" do
    ruby = <<~RUBY
      trap("USR1") {}
      main = Process.pid
      sender = fork { loop { Process.kill("USR1", main) } }
      codes = Array.new(300) { TaskerCore::Native.run_command(%w[tasker --version], nil) }
      Process.kill("KILL", sender)
      Process.wait(sender)
      exit!(codes.sum)
    RUBY
    output = succeed(RbConfig.ruby, "-I", File.join(Processes::ROOT, "lib"), "-r", "tasker_core", "-e", ruby)
    expect(output.lines.size).to eq(300)
  end
end
