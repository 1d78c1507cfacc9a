# frozen_string_literal: true

# Sidekiq, with its default concurrency, on a Redis that appends every write to its log (fsync once a second, Redis' own advice).
# A chain is made as its users make one: each job adds the next.
require "json"
require "sidekiq"
require "sidekiq/launcher"
require "tmpdir"

Redis.silence_deprecations = true

WORKLOAD = ARGV.fetch(0)
COUNT = Integer(ARGV.fetch(1))
WARM_UP = 20

def now = Process.clock_gettime(Process::CLOCK_MONOTONIC)

# When handlers began, and chains ended.
EVENTS = Queue.new

# One job of a chain of so many that are left.
class Step
  include Sidekiq::Worker

  def perform(left)
    EVENTS << [:began, now]
    left > 1 ? Step.perform_async(left - 1) : EVENTS << [:ended, now]
  end
end

# [first beginning, last end] of so many chains.
def chains(count)
  first = last = nil
  while count.positive?
    event, at = EVENTS.pop
    event == :began ? first ||= at : (count -= 1)
    last = at
  end
  [first, last]
end

def measure_latency
  times = { 1 => [], 4 => [] }
  (2 * (WARM_UP + COUNT)).times do |round|
    steps = round.odd? ? 4 : 1
    submitted = now
    Step.perform_async(steps)
    first, last = chains(1)
    times[steps] << (1000 * ((steps == 1 ? first : last) - submitted)) if round >= 2 * WARM_UP
    sleep 0.05
  end
  { begin: times[1], end: times[4] }
end

Dir.mktmpdir do |folder|
  # On a socket: a free port may be another's by the time Redis wants it.
  socket = File.join(folder, "redis.sock")
  settings = ["--port", "0", "--unixsocket", socket, "--dir", folder, "--appendonly", "yes", "--save", ""]
  redis = Process.spawn("redis-server", *settings, out: File::NULL)
  Sidekiq.logger.level = Logger::ERROR
  Sidekiq.configure_server { |config| config.redis = { url: "unix://#{socket}" } }
  Sidekiq.configure_client { |config| config.redis = { url: "unix://#{socket}", size: 20 } }
  begin
    Sidekiq.redis(&:ping)
  rescue Redis::CannotConnectError
    sleep 0.05
    retry
  end
  steps = WORKLOAD == "linear" ? 4 : 1
  if WORKLOAD != "latency"
    COUNT.times.each_slice(1000) { |slice| Sidekiq::Client.push_bulk("class" => Step, "args" => slice.map { [steps] }) }
  end
  launcher = Sidekiq::Launcher.new(Sidekiq.options.merge(queues: ["default"], concurrency: 10))
  launcher.run
  if WORKLOAD == "latency"
    puts JSON.generate(measure_latency)
  else
    first, last = chains(COUNT)
    puts steps * COUNT / (last - first)
  end
  launcher.stop
ensure
  Process.kill(:TERM, redis) if redis
  Process.wait(redis) if redis
end
