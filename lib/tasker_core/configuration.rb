# frozen_string_literal: true

module TaskerCore
  # The settings of this process. Each has a default that works.
  class Configuration
    # @return [String, Proc, nil] postgres://user:password@host:port/database, or what returns it. Default: in Rails that of database.yml;
    #   elsewhere DATABASE_URL, else the private PostgreSQL that +tasker dev+ runs in this folder.
    attr_accessor :database_url

    # @return [Integer] how many database connections this process makes at most, at least 4, to each shard that it works
    #   with. Default 6: three to work, however many queues and threads a worker has, one for heartbeats, one for probes and one to LISTEN;
    #   with fewer, work waits.
    attr_accessor :connections

    # @return [String, nil] http:// or https:// and the address of a server's REST API (docs/api.md), for a process that cannot reach the
    #   database: it enqueues, signals, waits, cancels, forks and shows through that. It joins no transaction, and registers no workflow.
    attr_accessor :server

    # @return [String, nil] the token for that server
    attr_accessor :token

    # @return [Array<String>] globs of template files that workers register when they start. Default workflows/*.yml, and in Rails
    #   config/tasker/*.yml.
    attr_accessor :templates

    # @return [Logger] where workers and {Step#logger} write, and where the core's own lines go while a worker runs. Default: standard error
    #   ({NativeLogger}); in Rails its logger.
    attr_accessor :logger

    # @return [Proc, nil] called around every step with a block; Rails' reloader in Rails, so that code reloads in development and
    #   connections go back to their pool.
    attr_accessor :around_step

    # @return [Proc, nil] opens a transaction on the connection that handlers use, calls the block with its PG::Connection, and commits.
    #   ActiveRecord's in Rails. Steps with +transactional: true+ need it, and {TaskerCore.enqueue} joins it when it is open.
    # @example
    #   config.transaction = ->(&work) { Shop.connection.then { |connection| connection.transaction { work.call(connection) } } }
    attr_accessor :transaction

    # @return [Proc, nil] returns the PG::Connection of the transaction that is open on this thread, or nil; where there are several
    #   databases, an array of them. ActiveRecord's in Rails.
    attr_accessor :open_transaction

    # @return [Boolean] whether a result that JSON cannot hold (a record, an IO) makes its step fail for good. Default false: it is stored
    #   as null, and the log names the step and what it was, once.
    attr_accessor :strict_results

    # @return [Array(String, Hash), nil] the name of a file of settings that was read already, and its section of this environment: in Rails
    #   config/tasker.yml, where ERB may be. Elsewhere the core reads tasker.yml itself.
    # @api private
    attr_accessor :file

    def initialize
      @database_url = nil
      @connections = 6
      @server = nil
      @token = nil
      @templates = ["workflows/*.yml"]
      @logger = NativeLogger.new
      @around_step = nil
      @transaction = nil
      @open_transaction = nil
      @strict_results = false
      @file = nil
    end

    # Without the URL and the file's settings, where secrets are.
    # @return [String]
    def inspect
      told = (instance_variables - %i[@database_url @token @file]).map { |name| "#{name}=#{instance_variable_get(name).inspect}" }
      "#<#{self.class} #{told.join(', ')}>"
    end
  end
end
