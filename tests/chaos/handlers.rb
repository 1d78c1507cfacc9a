# frozen_string_literal: true

# The Ruby workers of the suite: what worker.rs does, and transfers, whose writes and completions are one transaction.

require "json"
require "pg"
require "securerandom"
require "tasker_core"

# Every run of a handler, in a file that the checker believes before the engine.
module Journal
  def self.begin(step)
    run = SecureRandom.uuid
    line = { task: step.task_id, step: step.name, run: run, at: Process.clock_gettime(Process::CLOCK_MONOTONIC) }.to_json
    File.write(File.join(ENV.fetch("CHAOS_JOURNAL"), "ruby-#{Process.pid}"), "#{line}\n", mode: "a")
    run
  end
end

# Does what its step's config says: works, fails, hangs, refuses, or takes its worker down.
class Work < TaskerCore::StepHandler
  def call(step)
    run = Journal.begin(step)
    Process.exit!(1) if step.config[:kill]
    sleep if step.attempt < step.config.fetch(:hang_before, 0)
    sleep((step.config[:ms] || step.context.fetch(:ms, 0)) / 1000.0)
    raise TaskerCore::PermanentError, "as it was told" if step.config[:refuse]
    raise "as it was told" if step.attempt < step.config.fetch(:fail_before, 0)

    # Children are none, nor is what a sleep returns.
    { run: run, seen: step.results.transform_values { |result| result[:run] if result.is_a?(Hash) } }
  end
end

# Many in one call, of which now and then one is to be tried again.
class Many < TaskerCore::BulkHandler
  batch 10, within: "50ms"

  def call(steps)
    steps.map { |step| rand < 0.1 ? TaskerCore::RetryableError.new("as it was told") : Work.new.call(step) }
  end
end

# Moves money, or back where it undoes that, and now and then fails after it did.
class Transfer < TaskerCore::StepHandler
  def call(step)
    run = Journal.begin(step)
    connection = Thread.current[:bank]
    cents = step.name.end_with?(".undo") ? -step.context[:cents] : step.context[:cents]
    # In one order, so that two transfers between the same accounts cannot wait for each other.
    [[step.context[:from], -1], [step.context[:to], 1]].sort.each do |account, sign|
      connection.exec_params("UPDATE accounts SET cents = cents + $2 WHERE id = $1", [account, sign * cents])
    end
    connection.exec_params("INSERT INTO ledger VALUES ($1, $2, $3)", [step.task_id, run, cents])
    raise "after the writing" if rand < 0.2

    { run: run, seen: step.results.transform_values { |result| result[:run] } }
  end
end

TaskerCore.configure do |config|
  config.transaction = lambda do |&work|
    # Through the same proxy as everything else: it may be cut at any moment, the commit included.
    bank = PG.connect(ENV.fetch("DATABASE_URL"), connect_timeout: 5, application_name: "tasker", tcp_user_timeout: 5000,
                                                 options: "-c idle_in_transaction_session_timeout=5s -c statement_timeout=5s")
    Thread.current[:bank] = bank
    bank.transaction { work.call(bank) }
  ensure
    bank&.close
  end
end
