# frozen_string_literal: true

require "io/console"
require "pty"
require "spec_helper"
require "timeout"

RSpec.describe "tasker top" do
  # Without what moves the cursor.
  def words(shown) = shown.scrub.gsub(/\e\[[0-9;?]*[A-Za-z]/, "")

  it "moves at a terminal, follows keys, and leaves the terminal as it was" do
    only = handler { |_step| {} }
    TaskerCore.enqueue(workflow { step :only, only }, {})
    PTY.spawn({ "DATABASE_URL" => Database.url }, *Processes::TASKER, "top") do |output, keys, pid|
      output.winsize = [40, 120]
      shown = +""
      until_shown = lambda do |text|
        Timeout.timeout(60) do
          shown << output.readpartial(1 << 16).force_encoding(Encoding::UTF_8) until words(shown).include?(text)
        end
        shown.clear
      rescue Timeout::Error
        raise "#{text} is not shown, but #{words(shown)}"
      end
      # Its namespaces may be more than a terminal has lines; the newest task is the first. (A blank is not written where there was one.)
      until_shown.call("WORKERS")
      keys.write("2")
      until_shown.call(namespace)
      keys.write("q")
      begin
        loop { shown << output.readpartial(1 << 16) }
      rescue Errno::EIO, EOFError
        nil
      end
      expect(Process.wait2(pid).last).to be_success
      expect(shown).to include("\e[?1049l")
    end
  end

  it "ends with its terminal" do
    output, keys, pid = PTY.spawn({ "DATABASE_URL" => Database.url }, *Processes::TASKER, "top")
    output.winsize = [40, 120]
    output.readpartial(1)
    [output, keys].each(&:close)
    expect(Timeout.timeout(60) { Process.wait2(pid).last }.termsig).to eq(Signal.list["HUP"])
  end
end
