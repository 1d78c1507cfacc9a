# frozen_string_literal: true

require "active_support"
require "active_support/core_ext/hash"
require "active_support/configuration_file"
require_relative "rails_database"

module TaskerCore
  # What the files of a Rails application say of its database and of our settings: enough for commands that run none of its code.
  # @api private
  class RailsFiles
    # What sets an application's environment once it is loaded: only the application itself can say what is in force then.
    ENVIRONMENTS = ["config/application.yml", ".env*"].freeze

    # @return [RailsFiles, nil] nil: the files want the application
    def self.read(root)
      new(root) if ENVIRONMENTS.all? { |pattern| Dir.glob(pattern, File::FNM_DOTMATCH, base: root).empty? }
    rescue ConfigurationError
      raise
    rescue StandardError, ScriptError
      nil
    end

    # @return [Hash{Symbol => Object}] what config/tasker.yml says
    attr_reader :settings

    # @return [String, nil] where the application's tasks are
    attr_reader :database_url

    def initialize(root)
      @root = root
      # As Rails does it; ActiveRecord looks there for what DATABASE_URL is about.
      @environment = ENV["RAILS_ENV"] = ENV["RAILS_ENV"].presence || ENV["RACK_ENV"].presence || "development"
      @settings = settings_in(parse("config/tasker.yml").deep_symbolize_keys)
      databases = parse("config/database.yml")
      @database_url = @settings[:database_url] || (RailsDatabase.new(databases, @settings[:database], @environment).url if databases.any?)
    end

    private

    def parse(file)
      path = File.join(@root, file)
      File.exist?(path) ? ActiveSupport::ConfigurationFile.parse(path) || {} : {}
    end

    # As Rails' config_for does it.
    def settings_in(file)
      own, shared = file.values_at(@environment.to_sym, :shared)
      own.is_a?(Hash) || shared.is_a?(Hash) ? (shared || {}).deep_merge(own || {}) : {}
    end
  end
end
