# frozen_string_literal: true

require "English"
require "rbconfig"
require "tmpdir"

# The processes of the demo: started, restarted when they are killed, and all ended with this one.
class Processes
  attr_reader :folder

  # Yields; afterwards, whatever happened, every process is gone.
  def self.run
    processes = new
    %w[INT TERM].each { |signal| trap(signal) { raise Interrupt } }
    yield processes
  rescue Interrupt
    warn "\nstopping"
    exit 130
  ensure
    processes&.stop
  end

  def initialize
    @folder = Dir.mktmpdir("tasker-demo-")
    @running = {}
  end

  def pids = @running.keys

  # @param command [Array<String>] of the gem's `tasker`
  def start(name, *command)
    tasker = [RbConfig.ruby, "-I", File.expand_path("../../lib", __dir__), File.expand_path("../../exe/tasker", __dir__)]
    # Should this process be killed, the kernel ends its children.
    tether = system("setpriv", "--version", out: File::NULL, err: File::NULL) ? ["setpriv", "--pdeathsig", "TERM"] : []
    log = File.join(@folder, "#{name.tr(' ', '_')}.log")
    pid = Process.spawn(*tether, *tasker, *command, %i[out err] => [log, "a"], pgroup: true)
    @running[pid] = [name, command, log]
  end

  # A process that someone killed is started again. One that ended by itself has said why in its log.
  def restart_dead
    pids.each do |pid|
      next unless Process.wait(pid, Process::WNOHANG)

      name, command, log = @running.delete(pid)
      abort "\nthe #{name} ended:\n#{File.readlines(log).last(5).join}" unless $CHILD_STATUS.signaled?
      warn "\nthe #{name} was killed (#{$CHILD_STATUS.termsig}); starting another"
      start(name, *command)
    end
  end

  def stop
    Process.kill("TERM", *pids) if pids.any?
    pids.each { |pid| Process.wait(pid) }
    @running.clear
  end
end
