# frozen_string_literal: true

require "spec_helper"

RSpec.describe "a Rails application" do
  # The smallest one that has a database, autoloaded handlers, and workflows in Ruby and YAML.
  def application
    Dir.mktmpdir.tap do |root|
      write(root, "config/environment.rb", <<~RUBY)
        require "rails"
        require "active_record/railtie"
        require "tasker_core"

        class Shop < Rails::Application
          config.root = #{root.inspect}
          config.load_defaults 6.1
          config.eager_load = false
          config.logger = Logger.new($stderr)
        end
        Rails.application.initialize!
      RUBY
      write(root, "config/database.yml", "development:\n  adapter: postgresql\n  pool: 2\n  url: <%= ENV['DATABASE_URL'] %>\n")
      write(root, "app/handlers/count_rows.rb", <<~RUBY)
        class CountRows < TaskerCore::StepHandler
          def call(_step) = ActiveRecord::Base.connection.select_value("SELECT count(*) FROM generate_series(1, 3)")
        end
      RUBY
      write(root, "app/workflows/ruby_flow.rb", <<~RUBY)
        class RubyFlow < TaskerCore::Workflow
          namespace #{namespace.inspect}
          step :count, CountRows
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
    expect(tasks.map { |task| task.wait(timeout: 30) }.uniq).to eq(["complete"])
    expect(tasks.map { |task| task.results[:count] }.uniq).to eq([3])
  end
end
