# frozen_string_literal: true

require "json"
require "time"

module TaskerCore
  # The connection to one database. {TaskerCore.client} is this process's; others can be made for other databases. Thread-safe.
  class Client
    # @param configuration [Configuration]
    # @raise [ConfigurationError, DatabaseError]
    def initialize(configuration = TaskerCore.configuration)
      @pid = Process.pid
      @native = configuration.server ? Server.new(configuration.server, configuration.token) : connect(configuration)
      @registered = {}
    end

    # @return [Native::Client]
    # @api private
    attr_reader :native

    # @return [Boolean] false in a child that was forked from the process that made this client
    def usable? = @pid == Process.pid

    # Creates or brings up to date the schema; safe from many processes at once, and again.
    # @return [void]
    def migrate = @native.migrate

    # @return [Hash{Symbol => Object}] see {TaskerCore.health}
    def health = JSON.parse(@native.health, symbolize_names: true)

    # Registers a workflow, or the template in a YAML or JSON file, and makes it the current version: that of tasks which are enqueued by
    # its name. Workers, and who enqueues by the class, register what is new by themselves; what was there before stays where it is.
    # @param workflow [Class<Workflow>, String, Pathname] a class, or the path of a file
    # @return [Array(String, String)] "namespace/name" and the version
    # @raise [TemplateError] when it is not valid, or its version is registered with other content
    def register(workflow) = @native.register(*(workflow.is_a?(Class) ? workflow.source : Workflow.read(workflow)), true)

    # @api private
    def register_source(source, origin) = @native.register(source, origin, false)

    # @api private
    # @return [String] namespace/name
    def template_of(workflow) = registered(workflow).first

    # @return [Array<Task>]
    # @see TaskerCore.enqueue_all
    def enqueue_all(workflow, inputs, priority: nil, key: nil, run_at: nil, version: nil, tags: nil, unique: nil)
      inputs = inputs.to_a
      raise InvalidInput, "#{workflow.inspect} #{NO_WORKFLOW}" unless workflow.is_a?(Class) || workflow.to_s.match?(/\w/)

      name, = registered(workflow) if workflow.is_a?(Class)
      unique = unique_of(unique) unless unique.respond_to?(:call)
      tasks = inputs.map do |input|
        rule = unique.respond_to?(:call) ? unique_of(unique.call(input)) : unique
        [input, key&.call(input)&.to_s, of(priority, input)&.to_s, rfc3339(of(run_at, input)), tags_of(of(tags, input)), rule]
      end
      name ||= workflow.to_s
      Instrumentation.instrument("enqueue", { workflow: name, count: inputs.size }) do |payload|
        submitted = workflow.is_a?(Class) ? submit_registered(workflow, tasks) : submit(name, version&.to_s, tasks)
        payload[:tasks] = submitted.map { |id, created| Task.new(self, id, created: created) }
      end
    end

    # @return [Array<Task>]
    # @see TaskerCore.tasks
    def tasks(workflow = nil, limit: 100, **filter)
      check_limit(limit)
      found = @native.list_tasks(filter(workflow: workflow, **filter).to_json, limit)
      JSON.parse(found).map { |task| Task.new(self, task.fetch("id")) }
    end

    # Which tasks, as the core has it.
    # @api private
    def filter(workflow: nil, key: nil, state: nil, error: nil, since: nil, before: nil, tags: nil)
      name = workflow.is_a?(Class) ? registered(workflow).first : workflow
      template, namespace = name.to_s.split("/").reverse
      since = Time.now - Span.seconds(since, "since") unless since.nil? || (since.respond_to?(:to_time) && !since.is_a?(String))
      { namespace: namespace, template: template, key: key&.to_s, state: state&.to_s, error: error&.to_s, since: rfc3339(since, "since"),
        before: before.respond_to?(:id) ? before.id : before, tags: tags_of(tags) }.compact
    end

    # @param tasks [Enumerable<Task, String>] tasks or their ids
    # @return [Hash{String => String}] their statuses by id, in one query; ids that do not exist are left out
    def statuses(tasks) = @native.task_states(tasks.map { |task| task.respond_to?(:id) ? task.id : task.to_s }).to_h

    # @return [Symbol]
    # @see TaskerCore.signal
    def signal(addressee, name, payload = nil, id: nil, by: nil, keep: nil)
      signal = Signals.addressee(addressee, by).merge(name: name.to_s, payload: Native.to_json(payload), id: id&.to_s,
                                                      keep: Span.seconds(keep, "keep"))
      connection = own_transaction(nil, signal[:task])
      sent = connection ? signal_within(connection, signal) : ask_signals(verb: "send", signal: signal)
      TaskerCore.configuration.logger.warn(sent[:note]) if sent[:note]
      sent[:outcome].to_sym
    end

    # @return [Array<Wait>]
    # @see TaskerCore.waiting
    def waiting(signal: nil, assignee: nil, namespace: nil, after: nil, limit: 100)
      check_limit(limit)
      filter = { signal: signal&.to_s, assignee: assignee&.to_s, namespace: namespace&.to_s,
                 after: after.respond_to?(:id) ? after.id : after }
      ask_signals(verb: "waiting", filter: filter.compact, limit: limit).map { |wait| Wait.read(wait, Task.new(self, wait[:task])) }
    end

    # @return [void]
    def close = @native.close

    private

    def connect(configuration)
      url = configuration.database_url
      url = url.call if url.respond_to?(:call)
      Native::Client.connect(Native.database_url(url || ENV.fetch("DATABASE_URL", nil)), configuration.connections)
    end

    def submit(*arguments)
      transaction = own_transaction(arguments.first)
      arguments << Tracing.current
      transaction ? submit_within(transaction, *arguments) : @native.submit(*arguments)
    end

    # The connection on which the caller has a transaction open, in the database that has this template, or this task.
    def own_transaction(template, task = nil)
      return if @native.is_a?(Server)

      open = Array(TaskerCore.configuration.open_transaction&.call).select { |connection| installation_of(connection) }
      ours = @native.installation(template, task) unless open.empty?
      open.find { |connection| installation_of(connection) == ours }
    end

    def check_limit(limit)
      raise InvalidInput, "limit is #{limit.inspect}: expected 1 to 10,000" unless limit.is_a?(Integer) && limit.between?(1, 10_000)
    end

    # How many bytes of inputs one statement has at most, unless one input alone has more.
    STATEMENT_BYTES = 8 << 20
    private_constant :STATEMENT_BYTES

    # Inside the caller's own transaction: the tasks exist if, and only if, it commits.
    def submit_within(connection, name, version, tasks, trace)
      accepted, texts = @native.check(name, version, tasks, trace)
      created = Array.new(tasks.size)
      statements(tasks, texts).each do |places|
        lists = [texts.values_at(*places), *(1..3).map { |column| places.map { |place| tasks[place][column] } }]
        rules = places.map { |place| tasks[place][5] || "null" }
        arguments = [name, accepted.version, *lists.map { |list| JSON.generate(list) }, accepted.trace,
                     JSON.generate(places.map { |place| tasks[place][4] }), "[#{rules.join(',')}]"]
        rows = translating { connection.exec_params(Native::Client::CREATE_WITHIN, arguments) }
        places.zip(rows.to_a) { |place, row| created[place] = [row["id"], row["created"] == "true"] }
      end
      created.tap { @native.created(accepted, created) }
    end

    # Inside the caller's own transaction: it is sent if, and only if, that commits.
    def signal_within(connection, signal)
      ask_signals(verb: "check", signal: signal)
      arguments = { keep: Signals::KEEP }.merge(signal.compact).values_at(:name, :task, :key, :payload, :id, :keep)
      translating { connection.exec_params(Native::Client::SEND_WITHIN, arguments).first }.transform_keys(&:to_sym)
    end

    def ask_signals(**request) = JSON.parse(@native.signals(request), symbolize_names: true)

    REFUSALS = { "TK002" => NotFound, "TK011" => DatabaseError }.freeze
    private_constant :REFUSALS

    def translating
      yield
    rescue StandardError => e
      # An error of the pg gem, which we do not depend on. "C" is PG_DIAG_SQLSTATE, "D" PG_DIAG_MESSAGE_DETAIL.
      state = e.result&.error_field("C".ord) if e.respond_to?(:result)
      raise e unless state&.start_with?("TK")
      raise Backpressure.new(e.message, retry_after: e.result.error_field("D".ord).to_i) if state == "TK007"

      raise NotUnique.new(e.message, task_id: e.result.error_field("D".ord)) if state == "TK010"

      raise REFUSALS.fetch(state, InvalidInput), e.message
    end

    # Which tasks each statement creates: as many as its bytes allow, by their keys, as the engine orders them, so that two cannot deadlock.
    def statements(tasks, texts)
      bytes = 0
      order = (0...tasks.size).sort_by { |place| [tasks[place][1].to_s.b, place] }
      order.slice_before do |place|
        full = bytes.positive? && bytes + texts[place].bytesize > STATEMENT_BYTES
        bytes = (full ? 0 : bytes) + texts[place].bytesize
        full
      end
    end

    # What is meant for this input: a value for all, or a proc.
    def of(setting, input) = setting.respond_to?(:call) ? setting.call(input) : setting

    # As text, by which they are looked for.
    def tags_of(tags)
      return if tags.nil?
      raise InvalidInput, "tags is #{tags.inspect}: expected a Hash such as { customer: 42 }" unless tags.respond_to?(:to_hash)

      tags.to_hash.to_h { |name, value| [name.to_s, value.to_s] }
    end

    # As the core has it, in JSON.
    def unique_of(rule)
      return if rule.nil?
      raise InvalidInput, "unique is #{rule.inspect}: expected a Hash such as { by: :customer_id }" unless rule.respond_to?(:to_hash)

      Native.check_unique(rule.to_hash.transform_values { |value| value.respond_to?(:in_seconds) ? value.to_f : value }.to_json)
    end

    # The last year that has four digits.
    LAST_YEAR = 9999
    private_constant :LAST_YEAR

    def rfc3339(time, name = "run_at")
      utc = time&.to_time&.getutc or return
      return utc.iso8601(6) if utc.year.between?(1, LAST_YEAR)

      raise InvalidInput, "#{name} is #{time.inspect}: expected a time before the year #{LAST_YEAR + 1}"
    rescue NoMethodError
      raise InvalidInput, "#{name} is #{time.inspect}: expected a Time"
    end

    # Asked once for each connection; nil: none is there.
    def installation_of(connection)
      @installations ||= ObjectSpace::WeakMap.new
      found = @installations[connection] ||= begin
        answer = ->(sql) { connection.exec_params(sql, []).getvalue(0, 0) }
        answer.call(Native::Client::IS_INSTALLED) == "true" ? answer.call(Native::Client::INSTALLATION) : :none
      end
      found unless found == :none
    end

    NO_WORKFLOW = "is not a workflow: expected a subclass of TaskerCore::Workflow, or the name of a registered one"
    private_constant :NO_WORKFLOW

    # Where a failover or a restore has lost what was registered, it is registered again.
    def submit_registered(workflow, tasks)
      submit(*registered(workflow), tasks)
    rescue NotFound
      name, = @registered.delete(workflow.source)
      raise if own_transaction(name)

      submit(*registered(workflow), tasks)
    end

    # Registered once per content: the tasks of a class run the version that this process has loaded.
    def registered(workflow)
      raise InvalidInput, "#{workflow} #{NO_WORKFLOW}" unless workflow < Workflow

      source = workflow.source
      @registered[source] ||= register_source(*source)
    end
  end
end
