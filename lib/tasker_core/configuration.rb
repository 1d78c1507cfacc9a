# frozen_string_literal: true

require "logger"

module TaskerCore
  # The settings of this process. Each has a default that works.
  class Configuration
    # @return [String, nil] postgres://user:password@host:port/database. Default: DATABASE_URL, else the private PostgreSQL that
    #   +tasker dev+ runs in this folder.
    attr_accessor :database_url

    # @return [Integer] how many database connections this process makes at most. Default 5: a worker uses up to four (leasing, two
    #   commits, heartbeats) and one to LISTEN, however many threads it has.
    attr_accessor :connections

    # @return [Array<String>] globs of template files that workers register when they start. Default workflows/*.yml, and in Rails
    #   config/tasker/*.yml.
    attr_accessor :templates

    # @return [Logger] where workers and {Step#logger} write. Default: standard error; in Rails its logger.
    attr_accessor :logger

    # @return [Proc, nil] called around every step with a block; Rails' reloader in Rails, so that code reloads in development and
    #   connections go back to their pool.
    attr_accessor :around_step

    def initialize
      @database_url = nil
      @connections = 5
      @templates = ["workflows/*.yml"]
      @logger = Logger.new($stderr, progname: "tasker", level: ENV.fetch("TASKER_LOG", "").include?("debug") ? :debug : :info)
      @around_step = nil
    end
  end
end
