# frozen_string_literal: true

# Runs the example: an orchestrator, a worker process for each team, and 200 orders. `bin/demo` does the set-up and calls this.

require "csv"
require "tasker_core"
require_relative "processes"
require_relative "workflow"

# What the shop has on its shelves when it opens: units and price in cents.
STOCK = {
  "MUG-01" => [200, 1200], "TEE-07" => [200, 2500], "CAP-03" => [200, 1800], "PEN-11" => [200, 350], "BAG-05" => [200, 4200],
  "BOOK-02" => [200, 3100], "SOCK-09" => [200, 900], "LAMP-04" => [5, 7800]
}.freeze

# A line of the export as a task's input; what a line lacks, the input_schema will miss.
def order(line, shop)
  items = line["items"].to_s.split.map { |item| item.split(":").then { |sku, units| { sku: sku, units: units.to_i } } }
  total = (line["total"].to_r * 100).to_i if line["total"]
  line.to_h.slice("number", "email", "card", "gateway").compact.merge(shop: shop, items: items, total: total).compact
end

# Submits every line; returns the tasks, and why the others are no orders.
def submit(file, shop)
  tasks = {}
  refused = {}
  CSV.foreach(file, headers: true).with_index(2) do |line, number|
    tasks[line["number"]] = TaskerCore.enqueue(OrderFulfillment, order(line, shop), key: "#{shop}/#{line['number']}")
  rescue TaskerCore::InvalidInput => e
    refused[number] = e.message
  end
  [tasks, refused]
end

def bar(done, total)
  return puts("#{done} of #{total} orders") unless $stdout.tty?

  width = 40 * done / total
  print "\r  [#{'=' * width}#{' ' * (40 - width)}] #{done}/#{total} orders"
  puts if done == total
end

# Waits until every task has ended or is blocked; returns the states by id.
def watch(tasks, processes)
  every, drawn = $stdout.tty? ? [1, -1] : [25, 0]
  loop do
    processes.restart_dead
    states = TaskerCore.statuses(tasks)
    ended = states.values.count { |state| TaskerCore::Task::ENDED.include?(state) || state == "blocked" }
    if ended - drawn >= every || ended == tasks.size
      bar(ended, tasks.size)
      drawn = ended
    end
    return states if ended == tasks.size

    sleep(0.1)
  end
end

def summarize(shop, tasks, refused, states)
  blocked = tasks.values.select { |task| states[task.id] == "blocked" }.map(&:to_h)
  reasons = blocked.map { |task| task[:steps].find { |step| step[:state] == "dead" }[:errors].last[:message].lines.first.chomp }
  retried = tasks.values.flat_map { |task| task.to_h[:steps] }.select { |step| step[:state] == "complete" && step[:attempt] > 1 }
  outcomes = shop.outcomes

  puts "\nOrders"
  lines = outcomes.map { |(status, reason), count| [[status, reason].compact.join(": "), count] }
  lines += reasons.tally.map { |reason, count| ["dead-lettered: #{reason}", count] }
  lines << ["not an order (refused at the door)", refused.size]
  lines.each { |text, count| puts format("  %-40<text>s %4<count>d", text: text, count: count) }
  total = lines.sum(&:last)
  puts format("  %-40<text>s %4<count>d of %<all>d", text: "together", count: total, all: tasks.size + refused.size)
  puts "  #{retried.size} steps needed more than one attempt; #{shop.emails} customers were told"
  refused.each { |line, why| puts "  line #{line}: #{why}" }
  total == tasks.size + refused.size && shop.emails == outcomes.values.sum
end

def balance(shop)
  puts "\nStock       delivered  shipped  on hand"
  shop.inventory.map do |row|
    adds_up = row["delivered"] == row["shipped"] + row["on_hand"]
    row = row.transform_keys(&:to_sym).merge(mark: adds_up ? "adds up" : "WRONG")
    puts format("  %-9<sku>s %9<delivered>d %8<shipped>d %8<on_hand>d  %<mark>s", **row)
    adds_up
  end.all?
end

$stdout.sync = true
at_exit { system(ENV.fetch("TASKER"), "dev", "stop-database") } if ENV["STOP_DATABASE"]
name = "shop-#{Time.now.utc.strftime('%Y%m%d-%H%M%S')}-#{Process.pid}"
Processes.run do |processes|
  TaskerCore.client.migrate
  Shop.new(name).open(STOCK)
  processes.start("orchestrator", "serve", "--listen", "127.0.0.1:0")
  %w[fulfillment inventory notifications].each do |namespace|
    processes.start("#{namespace} worker", "worker", "-r", File.join(__dir__, "workflow.rb"), "--namespace", namespace, "--lease", "5")
  end
  puts "The orchestrator and a worker for each team: pids #{processes.pids.join(', ')}; their logs: #{processes.folder}"

  tasks, refused = submit(File.join(__dir__, "orders.csv"), name)
  states = watch(tasks.values, processes)
  # The database may have been restarted meanwhile.
  shop = Shop.new(name, Shop.connect)
  right = [summarize(shop, tasks, refused, states), balance(shop)].all?
  abort "\nThis does not add up." unless right

  puts "\nAll of it adds up. Try next:", *[
    ["dev", "in another terminal: this database, and an orchestrator"],
    ["task list --state blocked", "the orders that people must look at"],
    ["task show #{tasks.values.first.id}", "one order, step by step"],
    ["template show order_fulfillment", "the workflow"]
  ].map { |command, what| format("  #{ENV.fetch('TASKER', 'tasker')} %-55<command>s # %<what>s", command: command, what: what) }
end
