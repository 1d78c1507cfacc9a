# frozen_string_literal: true

require "json"
require "net/http"
require "uri"

module TaskerCore
  # Stands for the core where the database is out of reach: answers what Native::Client answers, by asking a server's REST API
  # ({Configuration#server}).
  # @api private
  class Server
    # How long one request waits for a task at most, in seconds.
    LONGEST_WAIT = 25

    # In which states {Task#wait} is over.
    OVER = [*Task::ENDED, "blocked"].freeze

    def initialize(url, token)
      @url = URI(url.to_s.delete_suffix("/"))
      raise URI::InvalidURIError unless @url.is_a?(URI::HTTP) && @url.host

      @token = token
    rescue URI::InvalidURIError
      raise ConfigurationError, "the server #{url.inspect} is no address: expected http:// or https:// and a host"
    end

    # Nothing is registered: those who run a workflow do that.
    # @return [Array(String, String)] namespace/name and the version
    def register(source, origin, _use = true) # rubocop:disable Style/OptionalBooleanParameter
      definition, version = Native.check_template(source, origin)
      [JSON.parse(definition).values_at("namespace", "name").join("/"), version]
    end

    # @return [Array(String, Boolean)] id and whether it is new, of each
    def submit(name, version, tasks, _trace = nil)
      tasks = tasks.map do |input, key, priority, run_at, tags, unique|
        { input: JSON.parse(Native.to_json(input), max_nesting: false), key: key, priority: priority, run_at: run_at, tags: tags || {},
          unique: unique && JSON.parse(unique) }
      end
      post("/tasks", template: name, version: version, tasks: tasks)["tasks"].map { |task| task.values_at("id", "created") }
    end

    def read_task(id) = get("/tasks/#{part(id)}").to_json

    def read_values(id) = get("/tasks/#{part(id)}/values").to_json

    # @return [Array(String, String)] the name and the JSON of each
    def read_results(id, names) = names.map { |name| [name, get("/tasks/#{part(id)}/steps/#{part(name)}/result").to_json] }

    def read_children(id, step, after, dead)
      get("/tasks/#{part(id)}/steps/#{part(step)}/children", cursor: after, dead: dead)["items"].to_json
    end

    # @param filter [String] JSON
    # @return [String] JSON: the newest first
    def list_tasks(filter, limit)
      filter = JSON.parse(filter)
      filter["tag"] = filter.delete("tags")&.map { |tag| tag.join("=") }&.join(",")
      query = filter.merge("cursor" => filter.delete("before"))
      found = []
      loop do
        page = get("/tasks", query.merge("limit" => [limit - found.size, 1000].min))
        found.concat(page["items"])
        query["cursor"] = page["next"]
        return found.to_json if page["next"].nil? || found.size >= limit
      end
    end

    # @return [Array(String, String)] id and state of each that exists
    def task_states(ids)
      ids.filter_map do |id|
        [id, wait(id, 0)]
      rescue NotFound
        nil
      end
    end

    # @return [String] the state
    def wait(id, seconds)
      over_at = seconds && (now + seconds)
      loop do
        left = over_at ? (over_at - now).clamp(0, LONGEST_WAIT) : LONGEST_WAIT
        state = get("/tasks/#{part(id)}/wait", timeout: left)["state"]
        return state if OVER.include?(state) || (over_at && now >= over_at)
      end
    end

    def cancel(id, undo) = post("/tasks/#{part(id)}/cancel", undo: undo)["done"]

    # @return [String] the id
    def fork(id, from, input) = post("/tasks/#{part(id)}/fork", from: from, input: input && JSON.parse(input, max_nesting: false))["id"]

    # @return [String] JSON
    def signals(request)
      return get("/waits", **request[:filter], limit: [request[:limit], 1000].min)["items"].to_json if request[:verb] == "waiting"

      signal = request[:signal]
      post("/signals", **signal.slice(:name, :task, :key, :id), payload: JSON.parse(signal[:payload], max_nesting: false),
                                                                keep: signal[:keep]&.ceil).to_json
    end

    def close = nil

    # What is the business of those who have the database.
    %i[migrate health bulk pauses schedules dead_letters].each do |name|
      define_method(name) do |*|
        raise ConfigurationError, "#{name} wants the database: this process has a server (config.server) in its place"
      end
    end

    private

    def now = Process.clock_gettime(Process::CLOCK_MONOTONIC)

    def part(text) = URI.encode_www_form_component(text.to_s).gsub("+", "%20")

    def get(path, query = nil, **more)
      query = { **(query || {}), **more }.compact
      ask(Net::HTTP::Get.new("#{@url.path}/api/v1#{path}#{"?#{URI.encode_www_form(query)}" unless query.empty?}"))
    end

    def post(path, **body)
      request = Net::HTTP::Post.new("#{@url.path}/api/v1#{path}", "content-type" => "application/json")
      request.body = JSON.generate(body.compact, max_nesting: false)
      ask(request)
    end

    def ask(request)
      request["authorization"] = "Bearer #{@token}" if @token
      response = Net::HTTP.start(@url.host, @url.port, use_ssl: @url.scheme == "https", open_timeout: 10, read_timeout: 60) do |http|
        http.request(request)
      end
      body = JSON.parse(response.body, max_nesting: false)
      response.is_a?(Net::HTTPSuccess) ? body : refused(response.code.to_i, body)
    rescue SystemCallError, SocketError, IOError, Timeout::Error, OpenSSL::SSL::SSLError, Net::ProtocolError => e
      raise DatabaseError, "the server #{@url} does not answer: #{e.message}"
    rescue JSON::ParserError
      raise DatabaseError, "the server #{@url} answers with something else than tasker's API"
    end

    def refused(status, problem)
      message = problem["detail"].to_s
      case status
      when 401, 403 then raise ConfigurationError, message
      when 404 then raise NotFound, message
      when 409 then raise NotUnique.new(message, task_id: problem["task"])
      when 413 then raise PayloadTooLarge, message
      when 429 then raise Backpressure.new(message, retry_after: problem["retry_after"] || 1)
      when 400..499 then raise InvalidInput, message
      else raise DatabaseError, message
      end
    end
  end
end
