# frozen_string_literal: true

require "spec_helper"
require "active_job"

# What Rails' own tests ask of an adapter (activejob/test/integration/queuing_test.rb), and what ours promises beside it.
RSpec.describe TaskerCore::Jobs do
  let(:ran) { Queue.new }

  before do
    require "tasker_core/active_job"
    ActiveJob::Base.queue_adapter = :tasker_core
    ActiveJob::Base.logger = Logger.new(File::NULL)
  end

  # A job whose perform is the block, on the queue of this example.
  def job(name = "Job#{SecureRandom.hex(4)}", base: ActiveJob::Base, &perform)
    queue = namespace
    stub_const(name, Class.new(base) { queue_as(queue) }).tap { |created| created.define_method(:perform, &perform) }
  end

  def task(job) = TaskerCore.task(job.provider_job_id)

  it "runs what is performed later, with its arguments as they were" do
    queue = ran
    echo = job { |*arguments, **options| queue << [arguments, options, provider_job_id, executions] }
    working do
      later = echo.perform_later(:symbol, { "a" => [1, 2.5] }, Time.at(0).utc, at: Date.new(2030, 1, 1))
      expect(task(later).wait(timeout: 120)).to eq("complete")
      expect(ran.pop).to eq([[:symbol, { "a" => [1, 2.5] }, Time.at(0).utc], { at: Date.new(2030, 1, 1) }, later.provider_job_id, 1])
    end
  end

  it "runs it in its queue, at its priority, not before its time, and under its class's name" do
    known = job("Billing::SendInvoice") { nil }
    later = known.set(wait: 3600, priority: -1).perform_later
    expect(task(later).to_h).to include(state: "waiting", priority: "high", template: "billing_send_invoice", namespace: namespace)
    until_then = known.set(wait_until: Time.now - 1).perform_later
    expect(task(until_then).status).to eq("pending")
    expect([-11, -1, 0, 1].map { |priority| task(known.set(priority: priority).perform_later).to_h[:priority] })
      .to eq(%w[urgent high normal low])
    elsewhere = known.set(queue: "#{namespace}-Mail.er").perform_later
    expect(task(elsewhere).to_h[:namespace]).to eq("#{namespace}_mail_er")
    expect(described_class.namespace("1-#{'x' * 60}")).to eq("q1_#{'x' * 34}")
  end

  it "is retried and discarded as its class says" do
    queue = ran
    flaky = job do |fatal|
      queue << executions
      raise(fatal ? ArgumentError : IOError, "no")
    end
    flaky.retry_on(IOError, wait: 0, attempts: 3) { |_, error| queue << error.message }
    flaky.discard_on(ArgumentError) { |_, error| queue << error.class.name }
    working do
      expect(task(flaky.perform_later(true)).wait(timeout: 120)).to eq("discarded")
      expect(Array.new(2) { ran.pop }).to eq([1, "ArgumentError"])
      expect(task(flaky.perform_later(false)).wait(timeout: 120)).to eq("complete")
      expect(Array.new(4) { ran.pop }).to eq([1, 2, 3, "no"])
    end
  end

  it "is one task, whose steps tell its history, and that is found by its id" do
    flaky = job { |fatal| fatal ? raise(ArgumentError, "gone") : raise(IOError, "try #{executions}") }
    flaky.retry_on(IOError, wait: 0, attempts: 3) { nil }
    flaky.discard_on(ArgumentError)
    working do
      tried = flaky.perform_later(false)
      gone = flaky.perform_later(true)
      [tried, gone].each do |later|
        task(later).wait(timeout: 120)
        expect(described_class.tasks(later.job_id).map(&:id)).to eq([later.provider_job_id])
      end
      expect(task(tried).steps.first.errors.map { |error| error.values_at(:attempt, :class, :message) })
        .to eq([[1, "IOError", "try 1"], [2, "IOError", "try 2"]])
      expect(task(gone).steps.first.to_h).to include(state: "discarded", errors: [include(class: "ArgumentError", message: "gone")])
      expect(TaskerCore::DLQ.list(task: gone.provider_job_id)).to be_empty
    end
    expect(described_class.tasks(SecureRandom.uuid)).to be_empty
  end

  it "uses no attempt where it enqueues itself again without an error" do
    queue = ran
    again = job { queue.push(executions).size < 3 && retry_job(wait: 0.01) }
    working do
      later = again.perform_later
      expect(task(later).wait(timeout: 120)).to eq("complete")
      expect([Array.new(3) { ran.pop }, task(later).steps.first.errors, task(later).steps.first.attempt]).to eq([[1, 2, 3], [], 1])
    end
  end

  it "goes on in another task where its class changes the queue, and where it is enqueued again" do
    moved = job { |elsewhere| executions == 1 && retry_job(queue: elsewhere) }
    working do
      later = moved.perform_later("#{namespace}_elsewhere")
      expect(task(later).wait(timeout: 120)).to eq("complete")
      first, second = described_class.tasks(later.job_id)
      expect([first.results[:perform], second.to_h]).to match([{ goes_on_as: second.id }, include(namespace: "#{namespace}_elsewhere")])
    end
    twice = job { nil }.new
    2.times { twice.enqueue }
    expect(described_class.tasks(twice.job_id).map { |task| task.to_h[:key] }).to eq([twice.job_id, "#{twice.job_id}/2"])
  end

  it "becomes a dead letter, and is tried no more, when it raises what its class does not know" do
    queue = ran
    unknown = job do
      queue << executions
      raise KeyError, "what is that"
    end
    working do
      later = unknown.perform_later
      expect(task(later).wait(timeout: 120)).to eq("blocked")
      expect(task(later).steps.first.errors.map { |error| error[:class] }).to eq(["KeyError"])
      expect(ran.size).to eq(1)
    end
  end

  it "is created in the transaction that is open, and goes with it" do
    known = job { nil }
    connection = PG.connect(Database.url)
    TaskerCore.configuration.open_transaction = -> { connection if connection.transaction_status == PG::PQTRANS_INTRANS }
    known.perform_later
    later = nil
    connection.transaction do
      later = known.perform_later
      raise IOError
    end
  rescue IOError
    expect { task(later) }.to raise_error(TaskerCore::NotFound)
    expect(ActiveJob::Base.queue_adapter.enqueue_after_transaction_commit?).to be(false)
  ensure
    TaskerCore.configuration.open_transaction = nil
    connection&.close
  end

  it "is enqueued with others at once, each with its own time and priority" do
    one = job { nil }
    two = job { nil }
    jobs = [one.new, one.new, two.new]
    # Older ones have a number.
    jobs[0].scheduled_at = ActiveJob.version < Gem::Version.new("7.1") ? Time.now.to_f + 3600 : Time.now + 3600
    jobs[1].priority = 5
    expect(ActiveJob::Base.queue_adapter.enqueue_all(jobs)).to eq(3)
    expect(jobs.map { |job| task(job).to_h.values_at(:state, :priority) })
      .to eq([%w[waiting normal], %w[pending low], %w[pending normal]])
  end

  it "runs no job but the template's, in no queue but its own, and nothing that is no job" do
    queue = ran
    nice = job("Nice") { queue << "nice" }
    dangerous = job("Dangerous") { queue << "dangerous" }
    stub_const("NoJob", Class.new { define_singleton_method(:deserialize) { |*| queue << "no job" } })
    known = nice.perform_later
    TaskerCore.task(known.provider_job_id).cancel
    forged = { "Dangerous" => dangerous.new.serialize }
    forged.merge!(%w[NoJob Nobody].to_h { |name| [name, nice.new.serialize.merge("job_class" => name)] })
    forged["elsewhere"] = nice.new.serialize.merge("queue_name" => "elsewhere")
    working do
      tasks = forged.transform_values { |input| TaskerCore.enqueue("#{namespace}/nice", { job: input }) }
      tasks.each_value { |task| expect(task.wait(timeout: 120)).to eq("blocked") }
      expect(tasks.transform_values { |task| task.steps.first.errors.last[:message] }).to eq(
        "Dangerous" => "a task of nice cannot run Dangerous", "NoJob" => "a task of nice cannot run NoJob",
        "Nobody" => "a task of nice cannot run Nobody",
        "elsewhere" => "Nice of the queue elsewhere cannot run in #{namespace}"
      )
    end
    expect(ran).to be_empty
  end

  it "can ask whether its worker is stopping" do
    adapter = ActiveJob::Base.queue_adapter
    expect(adapter).not_to be_stopping
    working do |worker|
      expect(adapter).not_to be_stopping
      worker.stop
      TaskerCore::Worker.current = worker
      expect(adapter).to be_stopping
    ensure
      TaskerCore::Worker.current = nil
    end
  end
end
