# frozen_string_literal: true

# Submits so many tasks one by one from eight threads, and prints how many a second.
require "tasker_core"

COUNT = Integer(ARGV.fetch(0))

TaskerCore.enqueue("flow", { order: 0 })
began = Process.clock_gettime(Process::CLOCK_MONOTONIC)
threads = Array.new(8) do |first|
  Thread.new { (first...COUNT).step(8) { |n| TaskerCore.enqueue("flow", { order: n, customer: "someone@customers.example" }) } }
end
threads.each(&:join)
puts COUNT / (Process.clock_gettime(Process::CLOCK_MONOTONIC) - began)
