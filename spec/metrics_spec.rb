# frozen_string_literal: true

require "spec_helper"
require "timeout"
require_relative "support/prometheus"

RSpec.describe "Metrics" do
  let(:deploy) { File.join(Processes::ROOT, "deploy") }

  # Where a process says that it listens.
  def address(process) = process.wait_for(/answering GET.*address=(\S+)/).output_so_far[/answering GET.*address=(\S+)/, 1]

  it "are scraped from both kinds of process by a real Prometheus, which finds the right figures and reads the whole dashboard" do
    orchestrator = start_orchestrator
    worker = start_worker(<<~RUBY, "--namespace", namespace, "--threads", "3", "--listen", "127.0.0.1:0")
      class Count < TaskerCore::StepHandler
        def call(step) = step.context[:fail] ? raise(TaskerCore::PermanentError, "no") : 1
      end
      class Counting < TaskerCore::Workflow
        namespace #{namespace.inspect}
        step :one, Count
        step :two, Count, after: :one
      end
    RUBY
    prometheus = Prometheus.new("orchestrator" => address(orchestrator), "worker" => address(worker))
    name = "#{namespace}/counting"
    TaskerCore.enqueue_all(name, Array.new(20) { {} })
    TaskerCore.enqueue(name, { fail: true })

    of = %(namespace="#{namespace}")
    prometheus.await(%(tasker_task_duration_seconds_count{job="worker",#{of},template="counting"}), 20.0)
    prometheus.await(%(tasker_step_duration_seconds_count{job="worker",#{of},outcome="complete"}), 40.0)
    prometheus.await(%(tasker_step_duration_seconds_count{job="worker",#{of},outcome="failed"}), 1.0)
    prometheus.await(%(tasker_dead_letters_sent_total{job="worker",#{of}}), 1.0)
    prometheus.await(%(tasker_worker_slots{job="worker"}), 3.0)
    prometheus.await(%(max by (namespace) (tasker_dead_letters{job="orchestrator",#{of}})), 1.0)
    prometheus.await(%(tasker_workers{job="orchestrator",#{of}}), 1.0)
    prometheus.await(%(sum by (namespace) (tasker_backlog{job="orchestrator",#{of}})), 0.0)
    prometheus.await(%(count(up == 1)), 2.0)

    dashboard = File.read(File.join(deploy, "grafana/tasker.json"))
    panels = JSON.parse(dashboard)["panels"].flat_map { |panel| panel["targets"].map { |target| target["expr"] } }
    panels.each { |expression| prometheus.query(expression.gsub("$namespace", ".*").gsub(/\$__(rate_interval|range)/, "5m")) }
  ensure
    prometheus&.stop
  end

  it "have alerts that promtool accepts, and that fire when they should" do
    rules = File.join(deploy, "prometheus/tasker.rules.yml")
    expect(run("promtool", "check", "rules", rules)).to match([/SUCCESS: 17 rules found/, 0])
    expect(run("promtool", "test", "rules", rules.sub("rules", "test"))).to match([/SUCCESS/, 0])
  end

  it "are used by alerts and dashboard as they are listed" do
    listed = File.read(File.join(Processes::ROOT, "docs/metrics.md")).scan(/^\| `(\w+)`/).flatten
    used = %w[prometheus/tasker.rules.yml grafana/tasker.json].flat_map do |file|
      File.read(File.join(deploy, file)).scan(/\b(?:tasker|db_client|process)_\w+/)
    end
    expect(used.map { |name| name.sub(/_(bucket|sum|count)$/, "") }.uniq - listed - ["db_client_connection"]).to eq([])
  end
end
