# frozen_string_literal: true

require "optparse"
require "tasker_core"
require_relative "rails_database"

module TaskerCore
  # The gem's command: +tasker worker+ in Ruby; everything else is the same command line as the standalone binary's.
  # @api private
  class CLI
    # What loads a Rails application.
    RAILS = "config/environment.rb"
    # Its settings of ours.
    FILE = "config/tasker.yml"
    # Wrong usage, as the native command line exits.
    USAGE = 2
    # The database or the configuration is not as it must be.
    CONFIGURATION = 3

    # @param arguments [Array<String>]
    # @param application [String, nil] a Rails application's config/application.rb: loaded where its code is wanted, or its files do not
    #   say enough
    # @return [Integer] the exit code
    def self.run(arguments, application = nil)
      if arguments.first == "worker"
        load_rails(application) if application
        return new.worker(arguments.drop(1))
      end

      url, settings = of_rails(application)
      # Where database.yml says nothing else, Rails itself takes DATABASE_URL.
      ENV["DATABASE_URL"] = url if url
      # The native command line has handlers of its own; Ruby's would turn the signal into an exception once it returns.
      %w[HUP INT TERM].each { |signal| trap(signal, "SYSTEM_DEFAULT") }
      Native.run_command(["tasker", *arguments], settings)
    rescue ConfigurationError, URI::Error => e
      new.complain(e)
    end

    # @return [Array(String, Array)] the database's URL, and config/tasker.yml, which may have ERB
    def self.of_rails(application)
      if application && (files = files(application))
        return [files.database_url, [FILE, files.settings]]
      end

      load_rails(application) if application
      return unless defined?(Rails.application) && Rails.application

      [Railtie.database_url(Rails.application), [FILE, Railtie.settings(Rails.application)]]
    end

    # Our railtie must be known before the application initializes.
    def self.load_rails(application)
      require "rails"
      require "tasker_core/railtie"
      require application
    end

    def self.files(application)
      require "tasker_core/rails_files"
      RailsFiles.read(File.dirname(application, 2))
    rescue LoadError
      nil
    end
    private_class_method :of_rails, :files, :load_rails

    # @return [Integer] the exit code
    def worker(arguments)
      $stdout.sync = $stderr.sync = true
      options = parse(arguments)
      Native.init_logging
      load_application(options.delete(:require))
      options[:namespaces] ||= named_by_environment
      Worker.new(**options.compact).run
    rescue OptionParser::ParseError => e
      complain("#{e.message}\n\n#{parser({})}", USAGE)
    rescue LoadError, Error, URI::Error => e
      complain(e)
    end

    # @param error [Exception, String]
    # @return [Integer] the exit code
    def complain(error, code = CONFIGURATION)
      # What cannot be read may be a secret.
      message = error.is_a?(URI::Error) ? RailsDatabase::NO_URL : error
      warn "tasker: #{message.respond_to?(:message) ? message.message : message}"
      code
    end

    private

    def parse(arguments)
      options = {}
      rest = parser(options).parse(arguments)
      raise OptionParser::InvalidArgument, rest.join(" ") unless rest.empty?
      raise OptionParser::InvalidArgument, "--threads must be at least 1" if options.fetch(:threads, 1) < 1

      options
    end

    def parser(options)
      OptionParser.new do |opts|
        opts.banner = "Usage: tasker worker [options]"
        opts.on("-r", "--require FILE", "Ruby code to load; default: config/environment.rb, if there is one") { |v| options[:require] = v }
        opts.on("-n", "--namespace NAMES", Array,
                "Whose steps to run, comma-separated; default: NAMESPACE, or QUEUE_NAME without _queue, or config/tasker.yml") do |v|
          options[:namespaces] = v
        end
        opts.on("-t", "--threads COUNT", Integer, "How many handlers run at once; default: tasker.yml, or 8") { |v| options[:threads] = v }
        opts.on("--grace SECONDS", Float, "How long running handlers get at shutdown; default: 25") { |v| options[:grace] = v }
        opts.on("--lease SECONDS", Float, "When the steps of a killed worker run elsewhere; default: 30") { |v| options[:lease] = v }
        opts.on("--listen ADDRESS", "Where to answer GET /health, /ready and /health/detailed; default: TASKER_LISTEN, else nowhere") do |v|
          options[:listen] = v
        end
        opts.on("--orchestrate", "Be an orchestrator, too, so that no other process is needed") { options[:orchestrate] = true }
        opts.on("--database-url URL", "Default: DATABASE_URL, else the database of `tasker dev` in this folder") do |v|
          TaskerCore.configure { |config| config.database_url = v }
        end
        opts.on("-h", "--help", "Print this") do
          puts opts
          exit
        end
      end
    end

    def load_application(file)
      file ||= RAILS if File.exist?(RAILS)
      raise ConfigurationError, "no code to run: give -r FILE, or start it in the folder of a Rails application" unless file

      in_rails = file.end_with?(RAILS)
      if in_rails
        # Our railtie must be known before the application initializes.
        require "rails"
        require "tasker_core/railtie"
      end
      require File.expand_path(file)
      return unless in_rails

      Rails.application.eager_load!
      log_to_terminal if Rails.env.development?
    end

    # As +rails server+ does it.
    def log_to_terminal
      logger = Rails.logger
      return if ActiveSupport::Logger.logger_outputs_to?(logger, $stdout, $stderr)

      terminal = ActiveSupport::Logger.new($stdout, level: logger.level, formatter: logger.formatter)
      logger.respond_to?(:broadcast_to) ? logger.broadcast_to(terminal) : logger.extend(ActiveSupport::Logger.broadcast(terminal))
    end

    # Containers are told by NAMESPACE, or by the name of their queue.
    def named_by_environment
      by_name = ENV.fetch("NAMESPACE", "").split(",").map(&:strip)
      by_queue = ENV.fetch("QUEUE_NAME", "").split(",").map { |queue| queue.strip.delete_suffix("_queue") }
      found = [by_name, by_queue].reject(&:empty?).uniq
      raise ConfigurationError, "NAMESPACE (#{by_name.join(',')}) and QUEUE_NAME (#{by_queue.join(',')}_queue) disagree" if found.size > 1

      found.first
    end
  end
end
