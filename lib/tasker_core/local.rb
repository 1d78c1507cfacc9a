# frozen_string_literal: true

module TaskerCore
  # The workers that run in the same container.
  # @api private
  module Local
    # @return [Hash{Symbol => Object}] see {TaskerCore.health}
    def self.health
      workers = Native.local_workers
      failed = workers.flat_map { |pid, failures| failures.map { |failure| "worker #{pid}: #{failure}" } }
      failed << "no worker runs here" if workers.empty?
      { healthy: failed.empty?, failed: failed, workers: workers.map { |pid, _| pid.to_i } }
    end
  end
end
