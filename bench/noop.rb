# frozen_string_literal: true

# The Ruby side of the benchmark: a handler that does nothing but say when it began, in seconds since 1970.
class Noop < TaskerCore::StepHandler
  def call(_step) = Process.clock_gettime(Process::CLOCK_REALTIME)
end

# One that waits, and does not compute.
class Pause < TaskerCore::StepHandler
  def call(_step) = sleep(0.005)
end
