# frozen_string_literal: true

require "rbconfig"

# Real processes of the gem's command, ended with the example.
module Processes
  ROOT = File.expand_path("../..", __dir__)
  TASKER = [RbConfig.ruby, "-I", File.join(ROOT, "lib"), File.join(ROOT, "exe/tasker")].freeze

  # A process whose output can be waited for.
  class Running
    attr_reader :pid

    def initialize(command, environment, folder: Dir.pwd)
      @output = +""
      @reader, writer = IO.pipe
      @pid = Process.spawn(environment, *command, %i[out err] => writer, chdir: folder)
      writer.close
    end

    # Waits until the output has a match; fails when the process ends without one.
    def wait_for(pattern)
      @output << @reader.readpartial(65_536) until @output.match?(pattern)
      self
    rescue EOFError
      raise "the process ended without printing #{pattern.inspect}:\n#{@output}"
    end

    def signal(name) = Process.kill(name, @pid)

    # @return [Process::Status]
    def wait = @wait ||= Process.wait2(@pid).last

    # @return [String] what was read by wait_for until now
    def output_so_far = @output.dup

    # @return [String] all of its output, once it has ended
    def rest = @output + @reader.read

    def finish
      return if @wait

      signal("KILL")
      wait
    end
  end

  # Runs a program to its end.
  # @return [Array(String, Integer)] its output and exit code
  def run(*command, environment: {}, folder: Dir.pwd)
    output, status = Open3.capture2e(environment_with(environment), *command, chdir: folder, stdin_data: "")
    [output, status.exitstatus]
  end

  # Runs a program that must not fail.
  # @return [String] its output
  def succeed(*command, **options)
    output, code = run(*command, **options)
    raise "#{command.join(' ')} exited with #{code}:\n#{output}" unless code.zero?

    output
  end

  # Starts a program, which ends with the example.
  def launch(*command, environment: {}, folder: Dir.pwd)
    Running.new(command, environment_with(environment), folder: folder).tap { |process| running << process }
  end

  def tasker(*arguments, **options) = run(*TASKER, *arguments, **options)

  def start(*arguments, **environment) = launch(*TASKER, *arguments, environment: environment.transform_keys(&:to_s))

  def start_orchestrator = start("serve", "--listen", "127.0.0.1:0").wait_for(/orchestrator started/)

  # A worker process that runs `code`.
  def start_worker(code, *arguments, **environment)
    file = File.join(Dir.mktmpdir, "app.rb")
    File.write(file, code)
    start("worker", "-r", file, *arguments, **environment).wait_for(/worker started/)
  end

  def end_processes
    running.each(&:finish)
    running.clear
  end

  private

  def environment_with(more) = { "DATABASE_URL" => Database.url, "NAMESPACE" => nil, "QUEUE_NAME" => nil, **more }

  def running = @running ||= []
end
