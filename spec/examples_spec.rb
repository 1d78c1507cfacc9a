# frozen_string_literal: true

require "spec_helper"

RSpec.describe "examples/order_fulfillment" do
  let(:demo) { [RbConfig.ruby, "-I", File.join(Processes::ROOT, "lib"), File.join(Processes::ROOT, "examples/order_fulfillment/demo.rb")] }

  it "adds up, twice" do
    2.times do
      output, code = run(*demo)
      expect(code).to eq(0), output
      expect(output).to match(/shipped +177\n/).and match(/refused: card declined +11\n/).and match(/refused: out of stock +9\n/)
      expect(output).to match(/together +200 of 200\n/).and include("9 steps needed more than one attempt", "All of it adds up")
      expect(output).not_to include("WRONG")
    end
  end

  it "adds up when its workers are killed, and leaves nothing running on Ctrl-C" do
    process = launch(*demo)
    process.wait_for(/pids (\d+), (\d+), (\d+), (\d+);.*\n.* orders/m)
    pids = process.output_so_far[/pids ([\d, ]+);/, 1].split(", ").map(&:to_i)
    Process.kill("KILL", pids[1])
    process.wait_for(/the fulfillment worker was killed/).wait_for(/All of it adds up/)
    expect(process.wait.exitstatus).to eq(0)

    interrupted = launch(*demo)
    interrupted.wait_for(/pids .*\n.* orders/m)
    pids = interrupted.output_so_far[/pids ([\d, ]+);/, 1].split(", ").map(&:to_i)
    interrupted.signal("INT")
    expect(interrupted.wait.exitstatus).to eq(130)
    expect(pids.select { |pid| File.exist?("/proc/#{pid}") }).to be_empty
  end
end
