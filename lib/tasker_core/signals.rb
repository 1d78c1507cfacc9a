# frozen_string_literal: true

require "time"

module TaskerCore
  # A step that waits for a signal: its +task+ and the +step+'s name; the +signal+'s name, and by which +key+ it may be sent beside the
  # task; +since+ when it waits, by when an answer is wanted (+due_at+) and until when it waits (+times_out_at+); who is to send it
  # (+assignees+), and what they are asked for, as a JSON Schema (+form+); and its task's +workflow+ and +namespace+.
  Wait = Struct.new(:task, :step, :signal, :key, :since, :due_at, :times_out_at, :assignees, :form, :workflow, :namespace,
                    keyword_init: true) do
    # Sends its task what it waits for.
    # @param payload [Object, nil] what JSON can hold
    # @param id [String, nil] see {TaskerCore.signal}
    # @return [Symbol] see {TaskerCore.signal}
    # @raise (see TaskerCore.signal)
    def answer(payload = nil, id: nil) = task.signal(signal, payload, id: id)

    # @api private
    def self.read(wait, task)
      times = wait.slice(:since, :due_at, :times_out_at).transform_values { |time| time && Time.iso8601(time) }
      new(**wait.slice(:signal, :key, :assignees, :form, :namespace), **times, task: task, step: wait[:step].to_sym,
                                                                               workflow: wait[:template])
    end
  end

  # @api private
  module Signals
    # How long one is kept whose sender does not say, in seconds.
    KEEP = 7 * 86_400

    UUID = /\A\h{8}(-\h{4}){3}-\h{12}\z/
    private_constant :UUID

    # @param addressee [Task, String] a task, its id, or a key
    # @param by [Symbol, nil] :task or :key, where an id could be either
    # @return [Hash{Symbol => String}] task or key
    # @raise [InvalidInput]
    def self.addressee(addressee, by)
      raise InvalidInput, "by is #{by.inspect}: expected :task or :key" unless [nil, :task, :key].include?(by)
      return { task: addressee.id } if addressee.is_a?(Task)

      by ||= addressee.to_s.match?(UUID) ? :task : :key
      { by => addressee.to_s }
    end
  end
end
