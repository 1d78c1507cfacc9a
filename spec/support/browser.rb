# frozen_string_literal: true

require "capybara"
require "selenium-webdriver"

# Each browser has settings of its own.
Capybara.threadsafe = true

# A real Chromium. What it writes to its console as an error fails the example.
module Browser
  AXE = ENV.fetch("AXE") { abort "set AXE to a file of axe-core, or run bin/test" }

  # The rules of axe-core that make up WCAG 2.1 A and AA.
  RULES = "{ runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa'] }"

  ARGUMENTS = %w[--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --window-size=1300,1000].freeze

  # A node that went with its page while it was looked at is looked for again, as one is that is stale.
  class PatientDriver < Capybara::Selenium::Driver
    def invalid_element_errors = [*super, Selenium::WebDriver::Error::UnknownError]
  end

  def self.register(name, **settings)
    Capybara.register_driver(name) do |app|
      options = Selenium::WebDriver::Chrome::Options.new(
        binary: "/usr/bin/chromium", "goog:loggingPrefs": { browser: "ALL" }, args: ARGUMENTS, **settings
      )
      service = Selenium::WebDriver::Service.chrome(path: "/usr/bin/chromedriver")
      PatientDriver.new(app, browser: :chrome, options: options, service: service)
    end
  end

  register(:chromium)
  register(:without_scripts, prefs: { "profile.managed_default_content_settings.javascript" => 2 })

  # A browser of its own, which looks at pages of this address.
  def browse(address, driver: :chromium)
    browser = Capybara::Session.new(driver)
    browser.config.app_host = address
    browser.config.run_server = false
    browser.config.default_max_wait_time = 90
    browsers << browser
    browser
  end

  # @return [Object] what a script hands to its last argument
  def await_script(browser, script)
    driver = browser.driver.browser
    # Capybara's own would have two seconds.
    driver.manage.timeouts.script_timeout = 300
    driver.execute_async_script(script)
  end

  # @return [Array<String>] what axe-core finds on the page
  def barriers(browser)
    browser.execute_script(File.read(AXE))
    found = await_script(browser, <<~JAVASCRIPT)
      const done = arguments[0];
      axe.run(document, #{RULES}).then(found => done(found.violations), error => done([{ id: String(error), nodes: [] }]));
    JAVASCRIPT
    found.map { |rule| "#{rule['id']}: #{rule['nodes'].map { |node| node['html'] }.first(3)}" }
  end

  # Ends them; says what was wrong on their pages, but for what the server refused.
  def end_browsers
    said = browsers.flat_map { |browser| browser.driver.browser.logs.get(:browser) }
    browsers.each { |browser| browser.driver.quit }
    browsers.clear
    said.select { |line| line.level == "SEVERE" }.map(&:message).grep_v(/the server responded with a status of (401|403|404|422|503)/)
  end

  private

  def browsers = @browsers ||= []
end
