# frozen_string_literal: true

require "active_support"
require "active_support/core_ext/integer/time"
require "active_support/testing/time_helpers"
require "spec_helper"
require "tasker_core/testing"
%w[marketplace_order nightly_report onboarding].each { |name| require_relative "../examples/#{name}/workflow" }

# How an application would test these workflows; and that real workers run them.
RSpec.describe "examples" do
  include ActiveSupport::Testing::TimeHelpers

  after { travel_back }

  def in_memory(&test)
    TaskerCore::Testing.fake! do
      TaskerCore::Testing.clear
      test.call
    end
  end

  def worked(*namespaces)
    orchestrator = start_orchestrator
    worker = TaskerCore::Worker.new(namespaces: namespaces, threads: 4).start
    yield
  ensure
    worker&.stop(grace: 5)
    orchestrator&.signal("TERM")
  end

  describe "marketplace_order" do
    let(:id) { SecureRandom.hex(4) }
    let(:lines) { [{ sku: "mug", vendor: "potter", units: 2, price: 12 }, { sku: "lamp", vendor: "smith", units: 1, price: 78 }] }

    def order(**more) = TaskerCore.enqueue(Marketplace::Order, { order_id: id, lines: lines, country: "FR", **more })

    def reserved = Marketplace::RESERVED.keys.grep(/\A#{id}/)

    it "ships what is small without asking anybody" do
      in_memory do
        task = order
        TaskerCore::Testing.drain
        expect([task.status, task.results[:ship], reserved.size]).to eq(["complete", { parcels: 2 }, 2])
        expect(task.steps.find { |step| step.name == :approved }.to_h[:skipped_because]).to include("total > 1000")
      end
    end

    it "waits for a person's approval of what is large, and fails where nobody gives it" do
      in_memory do
        lines[1][:units] = 20
        task = order
        TaskerCore::Testing.drain
        expect(TaskerCore.waiting(assignee: "sales").map { |wait| wait.task.id }).to eq([task.id])
        expect { task.signal(:approved, { yes: true }) }.to raise_error(TaskerCore::InvalidInput, /"by" is a required property/)
        task.signal(:approved, { by: "ann" })
        TaskerCore::Testing.drain
        expect([task.status, Marketplace::CHARGED[id]]).to eq(["complete", 1584])

        late = TaskerCore.enqueue(Marketplace::Order, { order_id: "#{id}-2", lines: lines, country: "FR" })
        TaskerCore::Testing.drain
        travel_to(Time.now + (3 * 86_400) + 1)
        TaskerCore::Testing.drain
        expect(late.status).to eq("failed")
      end
    end

    it "takes everything back when it cannot be shipped, with real workers, too" do
      worked("marketplace") do
        task = order(country: "Atlantis")
        expect(task.wait(timeout: 60)).to eq("failed")
        expect([reserved, Marketplace::CHARGED[id]]).to eq([[], 0])
        expect(task.steps.map(&:name)).to include(:"charge.undo", :"reserve.undo")
      end
    end
  end

  it "nightly_report adds up a thousand pages, of which one is broken and tolerated" do
    worked("reports") do
      task = TaskerCore.enqueue(Nightly::Report, { day: "2026-03-01" })
      expect(task.wait(timeout: 120)).to eq("complete")
      expect(task.results[:write]).to eq(
        { day: "2026-03-01", pages: 1000, missing: [Nightly::BROKEN - 1], cents: ((1..1000).sum - Nightly::BROKEN) * 100 }
      )
      expect(TaskerCore::Schedules.list.map { |schedule| schedule[:template] }).to include("reports/nightly_report")
    end
  end

  describe "onboarding" do
    let(:user) { { user: SecureRandom.hex(4), email: "ann@example.org" } }

    before { Onboarding::MAILS.clear }

    def subjects = Onboarding::MAILS.map(&:last)

    def days(count)
      travel_to(Time.now + (count * 86_400) + 1)
      TaskerCore::Testing.drain
    end

    it "offers a plan after two weeks to who has said who they are" do
      in_memory do
        task, again = Array.new(2) { TaskerCore.enqueue(Onboarding::Journey, user) }
        expect([task.id, again.created?]).to eq([again.id, false])
        TaskerCore::Testing.drain
        expect([task.status, task.values, subjects]).to eq(["waiting", { stage: "welcomed" }, ["Welcome"]])
        TaskerCore.signal("account-#{user[:user]}", :profile, { company: "Acme" })
        TaskerCore::Testing.drain
        expect(task.values).to eq({ stage: "known" })
        days(7)
        expect([task.status, subjects]).to eq(["complete", ["Welcome", "A plan for Acme"]])
      end
    end

    it "reminds those who have not, and says goodbye" do
      in_memory do
        task = TaskerCore.enqueue(Onboarding::Journey, user)
        TaskerCore::Testing.drain
        days(7)
        expect([task.status, subjects]).to eq(["waiting", ["Welcome", "Tell us about you"]])
        days(7)
        days(1)
        expect([task.status, subjects.last, task.steps.last.state]).to eq(%w[complete Goodbye skipped])
      end
    end
  end
end
