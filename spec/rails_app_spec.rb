# frozen_string_literal: true

require "net/http"
require "spec_helper"

# An application as `rails new` and our generators make it, on the suite's database.
RSpec.describe "a generated Rails application" do
  in_production = { "RAILS_ENV" => "production", "SECRET_KEY_BASE" => "x" * 30 }.freeze

  before(:context) do
    @shop = File.join(Dir.mktmpdir, "shop")
    options = %w[--minimal --skip-bundle --skip-git --skip-listen --skip-javascript --skip-sprockets --database=postgresql]
    succeed("rails", "new", @shop, "--quiet", *options, folder: Dir.tmpdir)
    write("Gemfile", <<~RUBY)
      %w[railties activerecord actionpack pg puma rspec].each { |name| gem name }
      gem "tasker_core", path: #{Processes::ROOT.inspect}
    RUBY
    rails("generate", "tasker_core:install")
    rails("generate", "tasker_core:workflow", "order_fulfillment", "reserve", "ship", "--namespace", "shop")
    rails("generate", "migration", "create_orders", "cents:integer", "state", "task_id:uuid")
    edit("config/tasker.yml", "namespaces: [default]", "namespaces: [default, shop]")
    write_shop
    rails("db:migrate")
  end

  after(:context) { FileUtils.rm_rf(File.dirname(@shop)) }

  def write(file, content)
    path = File.join(@shop, file)
    FileUtils.mkdir_p(File.dirname(path))
    File.write(path, content)
  end

  def edit(file, old, new)
    content = File.read(File.join(@shop, file))
    raise "#{file} has no #{old.inspect}" unless content.include?(old)

    write(file, content.sub(old, new))
  end

  def rails(*arguments, **environment)
    succeed("bin/rails", *arguments, folder: @shop, environment: environment.transform_keys(&:to_s))
  end

  # A form; a controller that writes the order and enqueues its task in one transaction; a last step that says so in the order.
  def write_shop
    write("config/routes.rb", <<~RUBY)
      Rails.application.routes.draw { resources :orders, only: %i[new create show] }
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
          render json: { task: TaskerCore.task(order.task_id).wait(timeout: 30), state: order.reload.state }
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

  def tasks(cents) = Database.query("SELECT id FROM tasker.tasks WHERE key = $1", ["order #{cents}"])

  it "has an order of a form worked by a worker process, and of one whose request rolled back nothing" do
    puma, shop = start_puma("workers 2", "preload_app!")
    posted = Array.new(4) { |number| post_order(shop, 100 + number) }
    expect(posted.map(&:code)).to eq(%w[302] * 4)
    expect(post_order(shop, -7).code).to eq("422")
    expect([tasks(-7), Database.query("SELECT 1 FROM orders WHERE cents = -7")]).to eq([[], []])

    start_processes
    expect(posted.map { |created| JSON.parse(Net::HTTP.get(URI(created["Location"]))) }.uniq)
      .to eq([{ "state" => "shipped", "task" => "complete" }])
    puma.signal("TERM")
    puma.wait
  end

  { "one process" => [], "a cluster that preloads" => ["workers 2", "preload_app!"], "a cluster" => ["workers 2"] }.each do |kind, lines|
    it "needs no other process with the plugin in Puma as #{kind}, and ends with it" do
      puma, shop = start_puma(*lines, "plugin :tasker_core")
      created = post_order(shop, 200 + lines.size)
      expect(JSON.parse(Net::HTTP.get(URI(created["Location"])))).to eq("state" => "shipped", "task" => "complete")
      puma.signal("TERM")
      puma.wait
      expect(Database.query("SELECT name FROM tasker.members WHERE left_at IS NULL")).to eq([])
    end
  end

  it "passes the tests that were generated with its workflows, on a database that db:prepare made" do
    own = URI(Database.url).tap { |url| url.path += "_test" }.to_s
    environment = { RAILS_ENV: "test", DATABASE_URL: own, PARALLEL_WORKERS: "1" }
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
end
