# frozen_string_literal: true

require "net/http"
require "spec_helper"
require_relative "support/browser"

# An application as `rails new` and our generators make it, on a database of its own.
RSpec.describe "a generated Rails application" do
  include Browser

  in_production = { "RAILS_ENV" => "production", "SECRET_KEY_BASE" => "x" * 30 }.freeze

  before(:context) do
    Database.create("_shop")
    @shop = File.join(Dir.mktmpdir, "shop")
    without = %w[bundle git listen javascript sprockets asset-pipeline].map { |part| "--skip-#{part}" }
    succeed("rails", "new", @shop, "--quiet", "--minimal", "--database=postgresql", *without, folder: Dir.tmpdir)
    write("Gemfile", <<~RUBY)
      %w[railties activerecord actionpack pg puma rspec spring sidekiq].each { |name| gem name }
      gem "tasker_core", path: #{Processes::ROOT.inspect}
    RUBY
    rails("generate", "tasker_core:install")
    rails("generate", "tasker_core:workflow", "order_fulfillment", "reserve", "ship", "--namespace", "shop")
    rails("generate", "migration", "create_orders", "cents:integer", "state", "task_id:uuid")
    edit("config/tasker.yml", "namespaces: [default]", "namespaces: [default, shop]")
    # Newer ones redirect to HTTPS.
    edit("config/environments/production.rb", /^  config.force_ssl = true/, "")
    write_shop
    rails("db:migrate")
  end

  after(:context) do
    FileUtils.rm_rf(File.dirname(@shop))
    Database.drop("_shop")
  end

  def environment_with(more) = super("DATABASE_URL" => Database.url("_shop"), **more)

  def query(sql, *values) = Database.query(sql, values, suffix: "_shop")

  def write(file, content)
    path = File.join(@shop, file)
    FileUtils.mkdir_p(File.dirname(path))
    File.write(path, content)
  end

  def edit(file, old, new)
    content = File.read(File.join(@shop, file))
    raise "#{file} has no #{old.inspect}" unless old.is_a?(Regexp) || content.include?(old)

    write(file, content.sub(old, new))
  end

  def rails(*arguments, **environment)
    succeed("bin/rails", *arguments, folder: @shop, environment: environment.transform_keys(&:to_s))
  end

  # A form; a controller that writes the order and enqueues its task in one transaction; a last step that says so in the order.
  def write_shop
    write("config/routes.rb", <<~RUBY)
      Rails.application.routes.draw do
        resources :orders, only: %i[new create show]
        mount TaskerCore::Web => "/ops/tasker"
      end
    RUBY
    # Whoever a cookie names is signed in: an application of its own has something better.
    write("config/initializers/tasker_web.rb", <<~RUBY)
      Rails.application.config.content_security_policy { |policy| policy.default_src :none }
      TaskerCore::Web.authorize do |request|
        name = request.cookies["user"]
        { name: name, role: name == "ada" ? :operator : :reader } if name
      end
    RUBY
    write("app/models/order.rb", "class Order < ApplicationRecord; end\n")
    write("app/controllers/orders_controller.rb", <<~RUBY)
      class OrdersController < ApplicationController
        def new = render(inline: '<%= form_with(model: Order.new) { |form| form.number_field(:cents) + form.submit } %>')

        def create
          order = Order.new(params.require(:order).permit(:cents))
          Order.transaction do
            order.save!
            order.update!(task_id: TaskerCore.enqueue(OrderFulfillment, { order_id: order.id }, key: "order \#{order.cents}").id)
            raise ActiveRecord::Rollback if order.cents.negative?
          end
          order.persisted? ? redirect_to(order) : head(:unprocessable_entity)
        end

        def show
          order = Order.find(params[:id])
          render json: { task: TaskerCore.task(order.task_id).wait(timeout: 120), state: order.reload.state }
        end
      end
    RUBY
    edit("app/workflows/order_fulfillment/ship.rb", "{ done: true }", <<~RUBY.strip)
      Order.find_by(id: step.context[:order_id])&.update!(state: "shipped")
          { done: true }
    RUBY
  end

  # @return [Array(Running, String)] with its URL, a Puma with these lines in its configuration
  define_method(:start_puma) do |*lines|
    write("config/puma.rb", ["threads 2, 2", 'bind "tcp://127.0.0.1:0"', *lines].join("\n"))
    puma = launch("bin/rails", "server", environment: in_production, folder: @shop)
    puma.wait_for(/Use Ctrl-C to stop/)
    puma.wait_for(/(Worker \d.*booted.*){2}/m) if lines.include?("workers 2")
    [puma, puma.output_so_far[%r{http://127.0.0.1:\d+}]]
  end

  def start_processes
    [%w[serve --listen 127.0.0.1:0], %w[worker --threads 2]].each do |arguments|
      launch("bin/tasker", *arguments, folder: @shop).wait_for(/(orchestrator|worker) started/)
    end
  end

  # Fills in the form as a browser would.
  def post_order(shop, cents)
    form = Net::HTTP.get_response(URI("#{shop}/orders/new"))
    token = form.body[/name="authenticity_token" value="([^"]+)"/, 1]
    Net::HTTP.post(URI("#{shop}/orders"), URI.encode_www_form("authenticity_token" => token, "order[cents]" => cents),
                   "Cookie" => form["Set-Cookie"][/[^;]+/])
  end

  def tasks(cents) = query("SELECT id FROM tasker.tasks WHERE key = $1", "order #{cents}")

  it "has an order of a form worked by a worker process, and of one whose request rolled back nothing" do
    puma, shop = start_puma("workers 2", "preload_app!")
    posted = Array.new(4) { |number| post_order(shop, 100 + number) }
    expect(posted.map(&:code)).to eq(%w[302] * 4)
    expect(post_order(shop, -7).code).to eq("422")
    expect([tasks(-7), query("SELECT 1 FROM orders WHERE cents = -7")]).to eq([[], []])

    start_processes
    expect(posted.map { |created| JSON.parse(Net::HTTP.get(URI(created["Location"]))) }.uniq)
      .to eq([{ "state" => "shipped", "task" => "complete" }])
    puma.signal("TERM")
    puma.wait
  end

  { "one process" => [], "a cluster that preloads" => ["workers 2", "preload_app!"], "a cluster" => ["workers 2"] }.each do |kind, lines|
    it "needs no other process with the plugin in Puma as #{kind}, and ends with it" do
      before = query("SELECT max(id) FROM tasker.members").dig(0, "max")
      puma, shop = start_puma(*lines, "plugin :tasker_core")
      created = post_order(shop, 200 + lines.size)
      expect(JSON.parse(Net::HTTP.get(URI(created["Location"])))).to eq("state" => "shipped", "task" => "complete")
      puma.signal("TERM")
      puma.wait
      stayed = query("SELECT name FROM tasker.members WHERE id > coalesce($1, 0) AND left_at IS NULL", before)
      expect(stayed).to eq([]), puma.rest
    end
  end

  # A browser in which somebody is signed in.
  def browse_as(user, shop)
    browse(shop).tap do |browser|
      browser.visit("/orders/new")
      browser.driver.browser.manage.add_cookie(name: "user", value: user)
    end
  end

  it "shows the dashboard in a cluster, under its own path and to whom it has signed in, who is the author of what they change" do
    _, shop = start_puma("workers 2", "preload_app!")
    posted = post_order(shop, 900)
    task = query("SELECT task_id FROM orders WHERE cents = 900").dig(0, "task_id")
    expect([posted.code, Net::HTTP.get_response(URI("#{shop}/ops/tasker/")).code]).to eq(%w[302 401])

    ada = browse_as("ada", shop)
    ada.visit("/ops/tasker")
    expect(ada).to have_css("h1", text: "What goes on").and have_css(".viewer", text: "ada").and have_no_button("Sign out")
    ada.click_link("Tasks")
    ada.click_link(href: /#{task}/)
    ada.find("summary", text: "Prioritize").click
    ada.select("urgent", from: "Priority")
    ada.click_button("Prioritize")
    expect(ada).to have_css("[role=status]", text: "another priority")
    changes = query("SELECT who, via, action, done FROM tasker.audit WHERE object = $1", task)
    expect(changes).to eq([{ "who" => "ada", "via" => "web", "action" => "task.prioritize", "done" => "t" }])

    start_processes
    expect(ada).to have_css(".facts dd", text: "complete"), "it moves while one looks"
    bob = browse_as("bob", shop)
    bob.visit("/ops/tasker/tasks/#{task}?step=ship")
    expect(bob).to have_css("section.step", text: "done").and have_no_css(".actions")
    asked = { "Cookie" => "user=ada", "Sec-Fetch-Site" => "cross-site" }
    expect(Net::HTTP.post(URI("#{shop}/ops/tasker/tasks/#{task}/undo"), "", asked).code).to eq("403")
    expect(Net::HTTP.get(URI("#{shop}/ops/tasker/api/v1/tasks/#{task}"), "Cookie" => "user=bob")).to include("order 900")
    expect(end_browsers).to eq([])
  end

  it "reads ERB in config/tasker.yml, also for what bin/tasker does" do
    before = File.read(File.join(@shop, "config/tasker.yml"))
    write("config/tasker.yml", "shared:\n  worker:\n    threads: <%= 3 + 4 %>\n")
    expect(succeed("bin/tasker", "config", "show", "--origin", folder: @shop)).to match(%r{^worker.threads +7 +config/tasker.yml})
  ensure
    write("config/tasker.yml", before)
  end

  it "loads the application only for what needs it" do
    before = File.read(File.join(@shop, "config/application.rb"))
    databases = File.read(File.join(@shop, "config/database.yml"))
    edit("config/application.rb", "require", "warn 'loaded'\nrequire")
    asked = -> { succeed("bin/tasker", "queue", "list", folder: @shop) }
    expect(asked.call).to match(/\ANAMESPACE/)
    # Where only it can say how the environment is.
    write(".env", "RAILS_MAX_THREADS=5\n")
    expect(asked.call).to include("NAMESPACE", "loaded")
    File.delete(File.join(@shop, ".env"))
    write("config/database.yml", "# <%= Rails.root %>\n#{databases}")
    expect(asked.call).to include("NAMESPACE", "loaded")
  ensure
    write("config/application.rb", before)
    write("config/database.yml", databases)
  end

  it "says in one line that a database is none of PostgreSQL's, or no URL" do
    { "mysql://localhost/shop" => /mysql/, "127.0.0.1:5432" => /is no URL|begins otherwise/ }.each do |url, said|
      [%w[task list], %w[worker]].each do |command|
        output, code = run("bin/tasker", *command, folder: @shop, environment: { "DATABASE_URL" => url })
        expect([code, output.lines.grep(/^tasker: /).size, output]).to match([3, 1, said]), output
      end
    end
  end

  it "passes the tests that were generated with its workflows, on a database that db:prepare made" do
    environment = { RAILS_ENV: "test", DATABASE_URL: Database.url("_test"), PARALLEL_WORKERS: "1" }
    rails("db:prepare", **environment)
    expect(rails("test", **environment)).to match(/6 runs, .* 0 failures, 0 errors/)
    expect(succeed("bin/tasker", "task", "list", folder: @shop, environment: environment.transform_keys(&:to_s))).not_to include("shop")
  ensure
    rails("db:drop", **environment, DISABLE_DATABASE_ENVIRONMENT_CHECK: "1")
  end

  it "has specs generated where it has specs" do
    write("spec/rails_helper.rb", 'require_relative "../config/environment"')
    rails("generate", "tasker_core:workflow", "billing/refund", "check", "pay_back")
    expect(File.read(File.join(@shop, "app/workflows/billing/refund/pay_back.rb"))).to include("class Billing::Refund::PayBack <")
    expect(succeed("rspec", "-I", "spec", "spec/workflows", folder: @shop)).to include("3 examples, 0 failures")
  ensure
    FileUtils.rm_rf(File.join(@shop, "spec"))
  end

  it "writes nothing for a workflow whose steps have no proper names" do
    output = rails("generate", "tasker_core:workflow", "broken", "Reserve", "ship")
    expect(output).to include("Reserve: a step's name is lower case letters, digits and underscores")
    expect(File.exist?(File.join(@shop, "app/workflows/broken.rb"))).to be(false)
  end

  it "does not boot in production while a workflow of its worker's wants a handler that does not exist" do
    write("config/tasker/gifts.yml", "name: gifts\nnamespace: shop\nsteps:\n  - { name: wrap, handler: WrapGift }\n")
    output, code = run("bin/rails", "runner", "0", folder: @shop, environment: in_production)
    expect(code).to eq(1)
    expect(output).to match(%r{config/tasker/gifts.yml:4: step wrap: this worker has no handler WrapGift})
  ensure
    FileUtils.rm_rf(File.join(@shop, "config/tasker"))
  end

  def state(key)
    id = query("SELECT id FROM tasker.tasks WHERE key = $1", key).dig(0, "id")
    succeed("bin/tasker", "task", "watch", id, folder: @shop)
    query("SELECT state FROM tasker.tasks WHERE id = $1", id).dig(0, "state")
  end

  # Debian 13 has a Spring that does not know its Rails.
  spring_knows_rails = Gem::Version.new(Gem::Specification.find_by_name("railties").version) < Gem::Version.new("7")
  it "enqueues from the processes that Spring forks, which end when they are told to", if: spring_knows_rails do
    own = { "SPRING_TMP_PATH" => Dir.mktmpdir }
    enqueue = ->(key) { "TaskerCore.enqueue(OrderFulfillment, {}, key: '#{key}')" }
    2.times { |n| succeed("spring", "rails", "runner", enqueue.call("spring #{n}"), folder: @shop, environment: own) }
    succeed("spring", "stop", folder: @shop, environment: own)
    start_processes
    expect([state("spring 0"), state("spring 1")]).to eq(%w[complete complete])
  end

  it "enqueues from Sidekiq's process beside it, which ends when it is told to" do
    redis = "unix://#{File.join(Dir.mktmpdir, 'redis')}"
    launch("redis-server", "--port", "0", "--unixsocket", redis.delete_prefix("unix://"), "--save", "").wait_for(/ready to accept/i)
    write("app/jobs/order_job.rb", <<~RUBY)
      class OrderJob
        include Sidekiq::Worker
        def perform(key) = TaskerCore.enqueue(OrderFulfillment, {}, key: key)
      end
    RUBY
    sidekiq = launch("sidekiq", folder: @shop, environment: { "REDIS_URL" => redis })
    start_processes
    succeed("bin/rails", "runner", "OrderJob.perform_async('sidekiq')", folder: @shop, environment: { "REDIS_URL" => redis })
    sidekiq.wait_for(/OrderJob.*done/)
    sidekiq.signal("TERM")
    expect(sidekiq.wait.exitstatus).to eq(0)
    expect(state("sidekiq")).to eq("complete")
  ensure
    FileUtils.rm_rf(File.join(@shop, "app/jobs/order_job.rb"))
  end

  it "keeps its tasks in a database of their own where config/tasker.yml names one, and joins that one's transactions" do
    own = Database.url("_tasks")
    files = %w[config/tasker.yml config/database.yml].to_h { |file| [file, File.read(File.join(@shop, file))] }
    edit("config/tasker.yml", "# database: tasker", "database: tasks")
    write("config/database.yml", <<~YAML)
      development:
        primary: { adapter: postgresql, url: <%= ENV["DATABASE_URL"] %> }
        tasks: { adapter: postgresql, url: #{own}, migrations_paths: db/tasks }
    YAML
    write("app/models/task_record.rb", <<~RUBY)
      class TaskRecord < ApplicationRecord
        self.abstract_class = true
        connects_to database: { writing: :tasks }
      end
    RUBY
    rails("db:create", "tasker_core:migrate")
    keys = rails("runner", <<~RUBY)
      enqueue = ->(key) { TaskerCore.enqueue(OrderFulfillment, {}, key: key) }
      TaskRecord.transaction { enqueue.call("rolled back"); raise ActiveRecord::Rollback }
      TaskRecord.transaction { enqueue.call("committed") }
      Order.transaction { enqueue.call("another database's"); raise ActiveRecord::Rollback }
      print TaskRecord.connection.select_values("SELECT key FROM tasker.tasks ORDER BY id").join(", ")
    RUBY
    expect(keys).to eq("committed, another database's")
    expect(succeed("bin/tasker", "task", "list", folder: @shop).scan("order_fulfillment").size).to eq(2)
  ensure
    files.each { |file, content| write(file, content) }
    FileUtils.rm_f(File.join(@shop, "app/models/task_record.rb"))
    Database.drop("_tasks")
  end
end
