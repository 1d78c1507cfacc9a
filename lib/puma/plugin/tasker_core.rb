# frozen_string_literal: true

# For small deployments: +plugin :tasker_core+ in config/puma.rb runs an orchestrator, and a worker with the settings of
# TaskerCore.configuration.worker (in Rails those of config/tasker.yml), inside Puma: in cluster mode inside each of its workers. They stop
# when Puma stops or restarts; what their handlers do not finish within the worker's grace goes on elsewhere, or in the next process.
Puma::Plugin.create do
  def config(puma)
    # These hooks are for cluster mode, and Puma would tell so in single mode, where #start does it.
    puma.silence_fork_callback_warning if puma.respond_to?(:silence_fork_callback_warning)
    puma.public_send(seven? ? :before_worker_boot : :on_worker_boot) { run }
    puma.public_send(seven? ? :before_worker_shutdown : :on_worker_shutdown) { finish }
  end

  def start(launcher)
    if launcher.options[:workers].to_i.positive?
      # Before the shutdown hook, too: a worker of Puma 6 on Ruby 3.3 sometimes hangs as it closes its server, and never gets to that hook.
      launcher.events.register(:state) { |state| finishing if state == :stop }
      return
    end

    booted, restart, stopped = seven? ? %i[after_booted before_restart after_stopped] : %i[on_booted on_restart on_stopped]
    launcher.events.public_send(booted) { run }
    [restart, stopped].each { |event| launcher.events.public_send(event) { finish } }
  end

  private

  # From this version on, hooks have other names.
  def seven? = Gem::Version.new(Puma::Const::VERSION) >= Gem::Version.new("7")

  def run
    @finishing = nil
    load_application
    require "tasker_core"
    @orchestrator = TaskerCore::Orchestrator.new.start
    @worker = TaskerCore::Worker.new.start
  rescue StandardError => e
    # Puma would go on without them.
    abort "tasker_core: #{e.message} (#{e.class})"
  end

  # Puma does it after this hook, unless it preloads. Before it the gem would not know that it is in Rails.
  def load_application
    environment = File.expand_path("config/environment.rb")
    return unless File.exist?(environment)

    require environment
    Rails.application.eager_load!
  end

  def finish = finishing.join

  def finishing
    @finishing ||= Thread.new do
      @worker&.stop
      @orchestrator&.stop
    end
  end
end
