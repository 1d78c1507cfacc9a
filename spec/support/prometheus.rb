# frozen_string_literal: true

require "json"
require "net/http"
require "socket"

# A real Prometheus that scrapes processes of an example.
class Prometheus
  # @param targets [Hash{String => String}] addresses by job
  def initialize(targets)
    @folder = Dir.mktmpdir
    jobs = targets.map { |job, address| "  - { job_name: #{job}, static_configs: [{ targets: [\"#{address}\"] }] }\n" }
    config = File.join(@folder, "prometheus.yml")
    File.write(config, "global: { scrape_interval: 1s }\nscrape_configs:\n#{jobs.join}")
    port = Addrinfo.tcp("127.0.0.1", 0).bind { |socket| socket.local_address.ip_port }
    @url = "http://127.0.0.1:#{port}/api/v1/query"
    @pid = Process.spawn("prometheus", "--config.file=#{config}", "--storage.tsdb.path=#{@folder}/data",
                         "--web.listen-address=127.0.0.1:#{port}", %i[out err] => File::NULL)
  end

  # @return [Array<Hash>] what an expression comes to: labels and value; raises where Prometheus cannot read it
  def query(expression)
    answer = JSON.parse(Net::HTTP.get(URI("#{@url}?#{URI.encode_www_form(query: expression)}")))
    raise "#{expression}: #{answer['error']}" unless answer["status"] == "success"

    answer["data"]["result"].map { |series| [series["metric"], series["value"].last.to_f] }
  end

  # Waits until an expression comes to that value.
  def await(expression, value, seconds: 30)
    found = nil
    Timeout.timeout(seconds) { sleep(0.2) until (found = values(expression)) == [value] }
  rescue Timeout::Error
    raise "#{expression} is #{found}, not #{value}"
  end

  def stop
    Process.kill("KILL", @pid)
    Process.wait(@pid)
    FileUtils.rm_rf(@folder)
  end

  private

  def values(expression)
    query(expression).map(&:last)
  rescue SystemCallError, JSON::ParserError
    nil # it is still starting
  end
end
