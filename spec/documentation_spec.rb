# frozen_string_literal: true

require "minitest"
require "active_support"
require "active_support/core_ext/integer/time"
require "active_support/notifications"
require "active_support/testing/time_helpers"
require "spec_helper"
require "tasker_core/testing/minitest"
require "tasker_core/testing/rspec"
require "yard"

# Every @example runs, in an application where what it names exists; what stands behind "# =>" is compared.
RSpec.describe "documentation" do
  include ActiveSupport::Testing::TimeHelpers
  include Minitest::Assertions
  include TaskerCore::Testing::Assertions

  root = Processes::ROOT

  YARD::Registry.clear
  YARD::Logger.instance.level = YARD::Logger::ERROR
  YARD.parse(Dir[File.join(root, "lib/tasker_core{,/**/*}.rb")])
  examples = YARD::Registry.all.flat_map { |object| object.tags(:example).map { |tag| [object.path, tag] } }

  attr_writer :assertions

  def assertions = @assertions ||= 0

  let(:config) { TaskerCore::Configuration.new }
  let(:env) { { "HTTP_TRACEPARENT" => "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01" } }
  let(:connection) { PG.connect(Database.url) }
  let(:pages) { 3 }
  let(:imported) { [] }
  let(:step) do
    Struct.new(:reached) { def checkpoint(value = nil) = value ? self.reached = value : reached }.new
  end

  def import(page) = imported << page

  # What the application's form does.
  def post(_path, params:) = TaskerCore.enqueue("fulfillment/order_fulfillment", params, priority: :high)

  before do
    { ValidateOrder: { units: 2, warehouse: "north" }, ReserveInventory: { reserved: 2 }, ChargeCard: { charge: 1 },
      ShipOrder: { tracking: "TR-42" } }.each { |name, result| handler(name.to_s) { |_step| result } }
    stub_const("SendReminder", Class.new(TaskerCore::Workflow) do
      namespace "mail"
      step :send, "ValidateOrder"
    end)
    stub_const("OrderFulfillment", Class.new(TaskerCore::Workflow) do
      namespace "fulfillment"
      step :validate, "ValidateOrder"
      step :ship, "ShipOrder", after: :validate
    end)
    stub_const("Marketplace", Class.new(TaskerCore::Workflow) do
      namespace "orders"
      each :reserve, "ReserveInventory", over: "$.input.lines"
    end)
    stub_const("StatsD", double(timing: nil))
    stub_const("Shop", double(connection: connection))
    stub_const("ENV", ENV.to_h.merge("DATABASE_URL" => Database.url))
    TaskerCore::Testing.clear
  end

  after do
    TaskerCore::Orchestrator.current&.stop
    TaskerCore::Testing.disable!
    ActiveSupport::Notifications.unsubscribe("step.tasker_core")
    connection.close
  end

  # As its reader would check it.
  def checked(code) = code.gsub(/^( *)(\S.*?) +# => (.+)$/, '\1expect(\2).to eq(\3)')

  # What config/routes.rb has; rails_app_spec.rb has an application's.
  def mount(apps) = expect(apps.keys).to all(respond_to(:call))

  def try(code)
    return instance_eval(code) unless code.match?(/DLQ|Worker|Orchestrator/)

    TaskerCore::Testing.disable! { instance_eval(code) }
  end

  it "has examples" do
    expect(examples.size).to be > 10
  end

  examples.each do |path, tag|
    it "of #{path} has an example that works#{": #{tag.name}" unless tag.name.empty?}" do
      # A worker runs until it is told to end.
      allow_any_instance_of(TaskerCore::Worker).to receive(:run).and_return(0)
      code = checked(tag.text)
      TaskerCore::Testing.inline! { try(code) }
      expect(imported).to eq([0, 1, 2, 3]) if code.include?("import(page)")
    end
  end

  Dir[File.join(root, "{README.md,docs/*.md}")].each do |file|
    it "has no Ruby in #{File.basename(file)} that Ruby cannot read" do
      blocks = File.read(file, encoding: "UTF-8").scan(/^```ruby\n(.*?)^```/m).flatten
      expect(blocks.map { |block| RubyVM::InstructionSequence.compile(block) }.size).to eq(blocks.size)
    end
  end

  quotes = Dir[File.join(root, "docs/*.md")].flat_map do |file|
    File.read(file, encoding: "UTF-8").scan(%r{^```ruby\n# (examples/\S+)\n(.*?)^```}m).map { |example, quote| [file, example, quote] }
  end

  quotes.each do |file, example, quote|
    it "quotes #{example} in #{File.basename(file)} as it is: #{quote.lines.first.strip}" do
      unindented = File.read(File.join(root, example)).gsub(/^ +/, "")
      expect(unindented).to include(quote.gsub(/^ +/, ""))
    end
  end
end
