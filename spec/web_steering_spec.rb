# frozen_string_literal: true

require "spec_helper"
require_relative "support/dashboard"

RSpec.describe "the dashboard, for those who change how things run" do
  include_context "with a dashboard"

  def opening(action) = browser.find("summary", text: action, exact_text: false).click

  it "pauses a namespace and lets it go on" do
    working do
      gate.close
      enqueue.wait(timeout: 120)
      browser.visit("/queues")
      browser.fill_in("Namespace", with: namespace)
      browser.click_button("Open")
      opening("Pause…")
      browser.fill_in("Why, for those who read the record", with: "the bank is away")
      browser.click_button("Pause")
      expect(browser).to have_css("[role=status]", text: "It is paused").and have_css("main p", text: "the bank is away")
      task = enqueue
      browser.visit("/tasks/#{task.id}")
      expect(browser).to have_css(".why li", text: "the bank is away")
      browser.visit("/namespaces/#{namespace}")
      opening("Resume…")
      browser.click_button("Resume")
      expect(browser).to have_css("[role=status]", text: "It goes on")
      expect(task.wait(timeout: 120)).to eq("complete")
    end
  end

  it "begins a task of a schedule by hand, pauses the schedule and deletes it" do
    server
    enqueue
    name = "nightly: of #{namespace}/é".delete(":")
    TaskerCore::Schedules.create(name, order, cron: "0 3 * * *")
    browser.visit("/schedules")
    browser.click_link(name)
    opening("Trigger…")
    browser.click_button("Trigger")
    expect(browser).to have_css("[role=status]", text: "begun by hand").and have_css("h1", text: order.template_name)
    browser.visit("/schedules")
    browser.click_link(name)
    opening("Pause…")
    browser.click_button("Pause")
    expect(browser).to have_css(".facts dt", text: "Paused")
    opening("Delete…")
    browser.click_button("Delete")
    expect(browser).to have_css("h1", text: "Schedules").and have_no_link(name)
  end

  it "changes a setting, says what each version changed, and rolls it back" do
    server
    browser.visit("/configuration")
    browser.fill_in("Setting", with: "orchestrator.batch")
    browser.fill_in("Value, as tasker.yml would have it; empty: take it back", with: "many")
    browser.click_button("Set")
    expect(browser).to have_css("[role=alert]", text: "orchestrator.batch")
    { "150" => "more at once", "160" => "still more" }.each do |value, why|
      browser.visit("/configuration?namespace=")
      browser.fill_in("Setting", with: "orchestrator.batch")
      browser.fill_in("Value, as tasker.yml would have it; empty: take it back", with: value)
      browser.fill_in("Why, for those who read the record", with: why)
      browser.click_button("Set")
      expect(browser).to have_css("[role=status]", text: "taken over at once")
    end
    expect(browser).to have_css("tr", text: /still more\s+all: orchestrator.batch 150 → 160/)
    browser.find("tr", text: "more at once").click_button("Roll back to it")
    expect(browser).to have_css("tr", text: /all\s+orchestrator.batch\s+150\s+Take back/)
    browser.find("button[aria-label='Take back orchestrator.batch']").click
    expect(browser).to have_no_css("button[aria-label='Take back orchestrator.batch']")
    browser.visit("/audit")
    expect(browser).to have_css("tbody tr", text: "configuration.rollback")
  end

  it "says what an input is to be, and whether a replay could be done, without doing it" do
    schema = { type: "object", properties: { card: { type: "string", description: "of a bank" } } }
    charge = charges
    picky = workflow do
      input_schema schema
      step :charge, charge
    end
    working do
      task = TaskerCore.enqueue(picky, { card: "bad" })
      expect(task.wait(timeout: 120)).to eq("blocked")
      browser.visit("/dead-letters?namespace=#{namespace}")
      browser.find("tbody th a", text: %r{\A#{namespace}/\d+\z}).click
      opening("Replay…")
      opening("What is expected there")
      expect(browser).to have_css("td", text: "of a bank")
      browser.fill_in("The task's input", with: '{ "card": 7 }')
      browser.click_button("Check, without doing it")
      expect(browser).to have_css("[role=alert]", text: "/card")
      browser.go_back
      opening("Replay…") unless browser.has_field?("The task's input", wait: 0)
      browser.fill_in("The task's input", with: '{ "card": "good" }')
      browser.click_button("Check, without doing it")
      expect(browser).to have_css("[role=status]", text: "nothing was done")
      expect(task.status).to eq("blocked")
    end
  end

  it "begins a new task by hand, and shows the family of one that has tasks of its own" do
    pack = handler { |_step| { packed: true } }
    parcels = workflow do
      input_schema type: "object", required: ["lines"], properties: { lines: { type: "array", description: "what is to be packed" } }
      each :pack, pack, over: "$.input.lines"
    end
    working do
      TaskerCore.enqueue(parcels, { lines: [] }).wait(timeout: 120)
      browser.visit("/templates/#{namespace}/#{parcels.template_name}")
      opening("New task…")
      browser.fill_in("Its input", with: "{}")
      browser.click_button("New task")
      expect(browser).to have_css("[role=alert]", text: "lines")
      browser.visit("/templates/#{namespace}/#{parcels.template_name}")
      opening("New task…")
      opening("What is expected there")
      expect(browser).to have_css("td", text: "what is to be packed")
      browser.fill_in("Its input", with: '{ "lines": [1, 2, 3] }')
      browser.click_button("New task")
      expect(browser).to have_css("[role=status]", text: "This is the new task")
      expect(browser).to have_css(".facts dd", text: "complete")
      browser.click_link("Above and below it")
      expect(browser).to have_css(".tree ul li", count: 3, text: "complete")
      browser.find(".tree ul li:last-child a").click
      browser.click_link("Above and below it")
      expect(browser).to have_css(".above li", count: 1, text: parcels.template_name)
    end
  end

  it "shows nobody who only reads a form, and takes none from them" do
    browser = browse(address_of(serve(TASKER__API__TRUST_LOOPBACK: "false")))
    browser.visit("/configuration")
    browser.fill_in("Token", with: token(:operator))
    browser.click_button("Sign in")
    expect(browser).to have_css("h1", text: "Configuration").and have_no_field("Setting")
    setting = "{ method: 'POST', body: new URLSearchParams({ setting: 'log.level' }) }"
    status = await_script(browser, "fetch('configuration/set', #{setting}).then(answer => arguments[0](answer.status))")
    expect(status).to eq(403)
  end
end
