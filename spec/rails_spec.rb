# frozen_string_literal: true

require "spec_helper"

RSpec.describe "a Rails application" do
  # The smallest one that has a database, autoloaded handlers, and workflows in Ruby and YAML.
  def application
    Dir.mktmpdir.tap do |root|
      write(root, "config/environment.rb", <<~RUBY)
        require "rails"
        require "active_record/railtie"
        require "active_job/railtie"
        require "tasker_core"

        class Shop < Rails::Application
          config.root = #{root.inspect}
          config.load_defaults 6.1
          config.eager_load = false
          config.logger = Logger.new($stderr)
          config.active_job.queue_adapter = :tasker_core
        end
        Rails.application.initialize!
      RUBY
      write(root, "config/database.yml", "development:\n  adapter: postgresql\n  pool: 2\n  url: <%= ENV['DATABASE_URL'] %>\n")
      write(root, "app/handlers/count_rows.rb", <<~RUBY)
        class CountRows < TaskerCore::StepHandler
          def call(_step) = ActiveRecord::Base.connection.select_value("SELECT count(*) FROM generate_series(1, 3)")
        end
      RUBY
      write(root, "app/handlers/move_money.rb", <<~RUBY)
        class MoveMoney < TaskerCore::StepHandler
          def call(step)
            ActiveRecord::Base.connection.execute("UPDATE #{namespace}_accounts SET cents = cents + 100")
            raise "after the writing" if step.attempt < 3
          end
        end
      RUBY
      write(root, "app/workflows/money_flow.rb", <<~RUBY)
        class MoneyFlow < TaskerCore::Workflow
          namespace #{namespace.inspect}
          step :move, MoveMoney, transactional: true, retry: { max_attempts: 3, base: 0.01 }
        end
      RUBY
      write(root, "app/workflows/ruby_flow.rb", <<~RUBY)
        class RubyFlow < TaskerCore::Workflow
          namespace #{namespace.inspect}
          step :count, CountRows
        end
      RUBY
      write(root, "app/jobs/deposit_job.rb", <<~RUBY)
        class DepositJob < ActiveJob::Base
          queue_as #{namespace.inspect}
          def perform(cents) = ActiveRecord::Base.connection.execute("UPDATE #{namespace}_accounts SET cents = cents + \#{cents}")
        end
      RUBY
      write(root, "config/tasker/yaml_flow.yml", <<~YAML)
        name: yaml_flow
        namespace: #{namespace}
        steps:
          - { name: count, handler: CountRows }
      YAML
    end
  end

  def write(root, file, content)
    path = File.join(root, file)
    FileUtils.mkdir_p(File.dirname(path))
    File.write(path, content)
  end

  it "is loaded by its worker, which hands connections back to the pool after every step" do
    start_orchestrator
    Dir.chdir(application) do
      start("worker", "--namespace", namespace, "--threads", "6", RAILS_ENV: "development").wait_for(/worker started/)
    end
    tasks = %w[ruby_flow yaml_flow].flat_map { |name| TaskerCore.enqueue_all("#{namespace}/#{name}", [{}] * 20) }
    expect(tasks.map { |task| task.wait(timeout: 120) }.uniq).to eq(["complete"])
    expect(tasks.map { |task| task.results[:count] }.uniq).to eq([3])
  end

  it "moves money in a transactional step exactly once, however often it is tried" do
    Database.query("CREATE TABLE #{namespace}_accounts AS SELECT 0 AS cents")
    start_orchestrator
    Dir.chdir(application) { start("worker", "--namespace", namespace).wait_for(/worker started/) }
    task = TaskerCore.enqueue("#{namespace}/money_flow")
    expect(task.wait(timeout: 120)).to eq("complete")
    expect(task.steps.first.attempt).to eq(3)
    expect(Database.query("SELECT cents FROM #{namespace}_accounts")).to eq([{ "cents" => "100" }])
  end

  it "has its jobs run by its worker, those that were enqueued in a transaction if that committed" do
    Database.query("CREATE TABLE #{namespace}_accounts AS SELECT 0 AS cents")
    root = application
    output, code = run(RbConfig.ruby, "-I", File.join(Processes::ROOT, "lib"), "-r./config/environment", "-e", <<~RUBY, folder: root)
      ids = [DepositJob.perform_later(1).provider_job_id]
      ActiveRecord::Base.transaction { ids << DepositJob.perform_later(10).provider_job_id }
      ActiveRecord::Base.transaction do
        DepositJob.perform_later(100)
        raise ActiveRecord::Rollback
      end
      puts ids
    RUBY
    expect(code).to eq(0), output
    start_orchestrator
    Dir.chdir(root) { start("worker", "--namespace", namespace).wait_for(/worker started/) }
    expect(output.lines(chomp: true).last(2).map { |id| TaskerCore.task(id).wait(timeout: 120) }).to eq(%w[complete complete])
    expect(Database.query("SELECT cents FROM #{namespace}_accounts")).to eq([{ "cents" => "11" }])
  end

  it "creates tasks inside ActiveRecord's transaction" do
    root = application
    output, code = run(RbConfig.ruby, "-I", File.join(Processes::ROOT, "lib"), "-r./config/environment", "-e", <<~RUBY, folder: root)
      ids = []
      ActiveRecord::Base.transaction do
        ids << TaskerCore.enqueue(RubyFlow, { n: 1 }, key: "k").id
        raise ActiveRecord::Rollback
      end
      ActiveRecord::Base.transaction do
        ids << TaskerCore.enqueue(RubyFlow, { n: 2 }, key: "k", priority: :high).id
        begin
          TaskerCore.enqueue(RubyFlow, {}, priority: :huge)
        rescue TaskerCore::InvalidInput
          ids << "refused, and the transaction goes on"
        end
      end
      ids << TaskerCore.enqueue(RubyFlow, { n: 3 }, key: "k").id
      puts ids
    RUBY
    expect(code).to eq(0), output
    rolled_back, committed, refused, known = output.lines(chomp: true).last(4)
    expect { TaskerCore.task(rolled_back) }.to raise_error(TaskerCore::NotFound)
    expect(TaskerCore.task(committed).to_h).to include(input: { n: 2 }, priority: "high")
    expect([refused, known]).to eq(["refused, and the transaction goes on", committed])
  end
end
