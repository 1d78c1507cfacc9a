# frozen_string_literal: true

require_relative "browser"

# `tasker serve` of the test's database, a browser, and work of two steps, of which the first ends when the test says so.
RSpec.shared_context "with a dashboard" do
  include Browser

  let(:server) { serve }
  let(:address) { address_of(server) }
  let(:browser) { browse(address) }
  let(:gate) { Queue.new }
  let(:checks) do
    gate = self.gate
    handler { |_step| gate.pop }
  end
  let(:charges) { handler { |step| step.context[:card] == "bad" ? raise(TaskerCore::PermanentError, "no <b>funds</b>") : { charged: 1 } } }
  let(:order) do
    check = checks
    charge = charges
    workflow do
      step :check, check
      step :charge, charge, after: :check
    end
  end

  # What was to be seen where an example fails, and what the server had said by then.
  after do |example|
    warn([example.full_description, *browsers.map(&:text), server.output_so_far].join("\n")) if example.exception
    expect(end_browsers).to eq([])
  end

  def serve(**settings)
    serving = start("serve", "--listen", "127.0.0.1:0", TASKER__API__LISTEN: "127.0.0.1:0", **settings)
    serving.wait_for(%r{answering pages and /api/v1 address=\S+})
  end

  def address_of(server) = "http://#{server.output_so_far[%r{answering pages and /api/v1 address=(\S+)}, 1]}"

  def working
    server
    worker = TaskerCore::Worker.new(namespaces: [namespace], threads: 2).start
    yield
  ensure
    worker&.stop(grace: 5)
  end

  def enqueue(input = {}, **options) = TaskerCore.enqueue(order, input, **options)

  def blocked(count)
    gate.close
    tasks = Array.new(count) { enqueue({ card: "bad" }) }
    expect(tasks.map { |task| task.wait(timeout: 120) }).to all(eq("blocked"))
    tasks
  end

  def token(role) = succeed(*Processes::TASKER, "token", "create", "#{role}-#{SecureRandom.hex(4)}", "--role", role.to_s).strip
end
