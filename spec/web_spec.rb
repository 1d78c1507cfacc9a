# frozen_string_literal: true

require "net/http"
require "spec_helper"
require_relative "support/dashboard"

RSpec.describe "the dashboard" do
  include_context "with a dashboard"

  it "shows a task move while one looks, without being loaded again" do
    working do
      task = enqueue
      browser.visit("/tasks/#{task.id}")
      browser.execute_script("window.seen = true")
      expect(browser).to have_css(".graph g", text: /check\s*in progress/i)
      expect(browser).to have_css(".why li", text: "charge: It waits for the step check")
      gate.push({ checked: true })
      expect(browser).to have_css(".facts dd", text: "complete").and have_no_css(".why")
      expect(browser.evaluate_script("window.seen")).to be(true)
      browser.find(".graph a", text: "charge").click
      expect(browser).to have_css("section.step", text: "charged")
    end
  end

  it "says why a step waits, and from which worker on" do
    server
    task = enqueue
    browser.visit("/tasks/#{task.id}")
    expect(browser).to have_css(".why li", text: "the namespace #{namespace} has no worker, and never had one")
  end

  it "finds tasks by what is asked for in the URL" do
    server
    tasks = Array.new(3) { |n| enqueue({}, key: "order-#{n}", tags: { customer: n.to_s }) }
    tasks.last.cancel
    browser.visit("/tasks")
    browser.fill_in("Namespace", with: namespace)
    browser.select("cancelled", from: "State")
    browser.click_button("Find")
    expect(browser).to have_css("tbody tr", count: 1, text: "order-2")
    browser.visit("/tasks?namespace=#{namespace}&tag=customer%3D1")
    expect(browser).to have_css("tbody tr", count: 1, text: "order-1")
    browser.click_link(href: /#{tasks[1].id}/)
    expect(browser).to have_css("h1", text: tasks[1].id)
  end

  it "replays the dead letters of an error together, and records who did it and why" do
    working do
      tasks = blocked(3)
      browser.visit("/")
      browser.click_link(text: /3 of #{order.template_name}/)
      expect(browser).to have_css("tbody th", text: "no <b>funds</b>")
      browser.find("summary", text: "Act on the chosen of these 3").click
      browser.fill_in("Why, for those who read the record", with: "the bank says so")
      browser.click_button("Replay")
      expect(browser).to have_css("[role=status]", text: "start over")
      expect(tasks.map { |task| task.wait(timeout: 120) }).to all(eq("blocked"))
      browser.visit("/audit?who=local")
      expect(browser).to have_css("tbody tr", text: /local web 127.0.0.1 dead_letters.replay the bank says so done/)
    end
  end

  it "does to all tasks of a search what was asked for and confirmed, in the background" do
    server
    tasks = Array.new(3) { enqueue }
    browser.visit("/tasks?namespace=#{namespace}")
    browser.click_link("Act on all of this search…")
    expect(browser).to have_css("h1", text: "Act on 3 tasks")
    browser.select("Cancel: they end as they are", from: "What")
    browser.fill_in("Why, for those who read the record", with: "ordered by a robot")
    browser.click_button("Do it to 3 tasks")
    expect(browser).to have_css("h1", text: "Bulk action").and have_css("#progress", text: "complete done to 3 of 3 tasks")
    expect(tasks.map(&:status)).to all(eq("cancelled"))
    browser.click_link("Bulk actions")
    expect(browser).to have_css("tbody tr", text: namespace)
  end

  it "mends one order: its input is edited, and it goes on" do
    working do
      task = blocked(1).first
      browser.visit("/tasks/#{task.id}")
      expect(browser).to have_css(".why li", text: "charge: It is dead after 1 of")
      browser.find("summary", text: "Replay").click
      browser.fill_in("Its input", with: '{ "card": "good" }')
      browser.click_button("Replay")
      expect(browser).to have_css("[role=status]", text: "Its dead steps start over")
      expect(browser).to have_css(".facts dd", text: "complete")
      expect([task.wait(timeout: 120), task.results[:charge]]).to eq(["complete", { charged: 1 }])
    end
  end

  it "says what is wrong with what somebody has written, and does nothing" do
    working do
      task = blocked(1).first
      browser.visit("/tasks/#{task.id}")
      browser.find("summary", text: "Replay").click
      browser.fill_in("Its input", with: "{ card: good }")
      browser.click_button("Replay")
      expect(browser).to have_css("[role=alert]", text: "input: this is no JSON")
      expect(task.status).to eq("blocked")
    end
  end

  it "asks for an approval by the form of its schema" do
    form = { type: "object", required: ["ok"], properties: { ok: { type: "boolean", title: "All right?" }, note: { type: "string" } } }
    approves = workflow { wait :approval, signal: "approved", form: form, assignees: ["ada"] }
    working do
      task = TaskerCore.enqueue(approves, {})
      sleep 0.01 until TaskerCore.waiting(namespace: namespace).any?
      browser.visit("/approvals?namespace=#{namespace}&assignee=ada")
      browser.click_link(href: %r{tasks/#{task.id}})
      browser.find(".graph a", text: "approval").click
      browser.click_link("Answer it")
      browser.select("yes", from: "All right?", exact: false)
      browser.fill_in("note", with: "</textarea><script>alert(1)</script>")
      browser.click_button("Answer")
      expect(browser).to have_css("[role=status]", text: "was sent")
      expect(task.wait(timeout: 120)).to eq("complete")
      expect(task.results[:approval]).to eq(ok: true, note: "</textarea><script>alert(1)</script>")
    end
  end

  it "shows hostile names and payloads as text" do
    server
    hostile = "<script>document.title='stolen'</script>\u202Eevil\u0007"
    task = enqueue({ note: hostile, long: "x" * 300_000 }, key: hostile, tags: { hostile: "\"><img src=x onerror=alert(1)>" })
    browser.visit("/tasks/#{task.id}")
    expect(browser).to have_css("code", text: "\\u{202e}evil\\u{7}").and have_css(".tag", text: "onerror")
    expect(browser).to have_css(".note", text: "more bytes")
    expect(browser.title).to start_with(order.template_name)
    expect(browser).to have_no_css("img")
    browser.visit("/tasks?namespace=%3Cscript%3Ealert(1)%3C/script%3E")
    expect(browser.find_field("Namespace").value).to eq("<script>alert(1)</script>")
  end

  it "reads without JavaScript" do
    working do
      gate.close
      task = enqueue
      task.wait(timeout: 120)
      plain = browse(address, driver: :without_scripts)
      plain.visit("/tasks?namespace=#{namespace}")
      plain.find("tbody th a").click
      plain.find(".graph a", text: "charge").click
      expect(plain).to have_css("section.step", text: "charged")
      plain.find("summary", text: "Fork").click
      plain.click_button("Fork")
      expect(plain).to have_css("[role=status]", text: "This is the fork").and have_css(".facts dt", text: "Fork of")
    end
  end

  it "lets a reader look and change nothing, and nobody in without a token that counts" do
    task = enqueue
    browser = browse(address_of(serve(TASKER__API__TRUST_LOOPBACK: "false")))
    browser.visit("/tasks/#{task.id}?step=check")
    browser.fill_in("Token", with: "tasker_#{'0' * 64}")
    browser.click_button("Sign in")
    expect(browser).to have_css("[role=alert]", text: "no token that counts")
    browser.fill_in("Token", with: token(:reader))
    browser.click_button("Sign in")
    expect(browser).to have_css("h1", text: task.id).and have_no_css(".actions")
    expect(browser).to have_css(".viewer", text: "reader-")
    status = await_script(browser, "fetch('#{task.id}/cancel', { method: 'POST' }).then(answer => arguments[0](answer.status))")
    expect(status).to eq(403)
    expect(task.status).not_to eq("cancelled")
    browser.click_button("Sign out")
    browser.visit("/tasks")
    expect(browser).to have_field("Token")
  end

  it "does nothing that a page of another site asks for" do
    task = enqueue
    form = { "content-type" => "application/x-www-form-urlencoded" }
    post = ->(from) { Net::HTTP.post(URI("#{address}/tasks/#{task.id}/cancel"), "why=", { **form, **from }).code }
    expect(post.call("sec-fetch-site" => "cross-site")).to eq("403")
    expect(post.call("origin" => "http://localhost:1")).to eq("403")
    signing_in = Net::HTTP.post(URI("#{address}/session"), "token=#{token(:reader)}", { **form, "sec-fetch-site" => "cross-site" })
    expect([signing_in.code, signing_in["set-cookie"]]).to eq(["403", nil])
    expect(task.status).not_to eq("cancelled")
    expect(post.call("sec-fetch-site" => "same-origin")).to eq("303")
    expect(task.status).to eq("cancelled")
  end

  it "shows the graph of a template, and how two of its versions differ" do
    server
    name = "#{namespace}/orders"
    versions = { "1" => %w[check charge], "2" => %w[check pack] }
    versions.each do |version, (first, second)|
      file = File.join(Dir.mktmpdir, "orders.yml")
      steps = "[{ name: #{first}, handler: H }, { name: #{second}, handler: H, depends_on: [#{first}] }]"
      File.write(file, "name: orders\nnamespace: #{namespace}\nversion: '#{version}'\nsteps: #{steps}\n")
      succeed(*Processes::TASKER, "template", "register", file)
    end
    browser.visit("/templates/#{name}")
    expect(browser).to have_css(".graph a", count: 2)
    browser.select("1", from: "Compared with")
    browser.click_button("Show")
    expect(browser).to have_css(".node.good", count: 1).and have_css(".node.bad", count: 1)
    expect(browser).to have_css("li", text: "added pack").and have_css("li", text: "removed charge")
  end

  # The pictures of the docs: PICTURES=docs/pictures rspec spec/web_spec.rb -e pictures
  it "has pictures that show what it is" do
    folder = ENV.fetch("PICTURES") { Dir.mktmpdir }
    steps = %w[Validate Reserve Pack Ship Mail].to_h { |name| [name, handler("Shop::#{name}") { |_step| { done: true } }] }
    charge = handler("Shop::Charge") do |step|
      raise TaskerCore::PermanentError, "the card was reported lost" if step.context[:card] == "lost"

      { charged: 42 }
    end
    form = { type: "object", required: ["ok"], properties: { ok: { type: "boolean" } } }
    shop = workflow do
      namespace "shop"
      template_name "order"
      step :validate, steps["Validate"]
      step :reserve, steps["Reserve"], after: :validate
      step :charge, charge, after: :validate
      each :pack, steps["Pack"], over: "$.input.lines", after: :reserve
      wait :approval, signal: "approved", after: :charge, if: "$.input.total > 1000", form: form, assignees: ["ada"]
      step :ship, steps["Ship"], after: %i[pack approval]
      step :mail, steps["Mail"], after: :ship
    end
    server
    worker = TaskerCore::Worker.new(namespaces: ["shop"], threads: 4).start
    order = lambda do |number, **more|
      TaskerCore.enqueue(shop, { total: 40, lines: [1, 2], **more }, key: "order-#{number}", tags: { customer: (number % 7).to_s })
    end
    tasks = Array.new(20) { |number| order.call(number) } + [order.call(20, card: "lost")]
    large = order.call(21, total: 5000, lines: (1..250).to_a)
    tasks.each { |task| task.wait(timeout: 120) }
    # What orchestrators write down when a minute is over.
    Database.query(<<~SQL)
      INSERT INTO tasker.minutes
      SELECT date_bin('1 minute', now(), 'epoch') - i * interval '1 minute', n.id, 900 + 400 * sin(i / 8.0) + i % 7 * 30, i * i % 11, 60 + i % 13
      FROM generate_series(1, 59) AS i, tasker.namespaces n WHERE n.name = 'shop' ON CONFLICT DO NOTHING
    SQL
    sleep 0.05 until large.to_h[:steps].to_h { |step| step.values_at(:name, :state) }.values_at("pack", "approval") == %w[complete waiting]
    pages = { "home" => "/", "tasks" => "/tasks?namespace=shop", "task" => "/tasks/#{large.id}",
              "dead-letters" => "/dead-letters?namespace=shop" }
    pages.to_a.product({ "wide" => [1280, 900], "narrow" => [420, 900] }.to_a).each do |(name, page), (width, size)|
      browser.current_window.resize_to(*size)
      browser.visit(page)
      expect(browser).to have_css("main h1")
      expect(browser).to have_css(".chart .bar", minimum: 150) if name == "home"
      browser.save_screenshot(File.join(File.expand_path(folder), "#{name}-#{width}.png"))
    end
  ensure
    worker&.stop(grace: 5)
  end

  it "has no barriers, in the dark and on a narrow screen neither" do
    working do
      task = blocked(1).first
      pages = %w[/ /tasks /approvals /schedules /queues /limits /workers /templates /configuration /audit /session /nowhere]
      pages += ["/tasks/#{task.id}?step=charge", "/dead-letters?namespace=#{namespace}", "/namespaces/#{namespace}"]
      { "light" => [1300, 1000], "dark" => [400, 900] }.each do |scheme, size|
        browser.current_window.resize_to(*size)
        browser.driver.browser.execute_cdp("Emulation.setEmulatedMedia", features: [{ name: "prefers-color-scheme", value: scheme }])
        pages.each do |page|
          browser.visit(page)
          expect([page, barriers(browser)]).to eq([page, []])
          wide = browser.evaluate_script("document.documentElement.scrollWidth - innerWidth")
          expect([page, wide]).to(satisfy { |_, pixels| pixels <= 0 })
        end
      end
    end
  end
end
