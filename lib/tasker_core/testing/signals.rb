# frozen_string_literal: true

module TaskerCore
  module Testing
    # The signals of tasks in memory.
    # @api private
    class Signals
      # +received+: the ids of the tasks that have had it.
      Sent = Struct.new(:name, :task, :key, :id, :payload, :sent_at, :received, keyword_init: true)

      def initialize
        @sent = []
      end

      # Whether its id was known before.
      def known?(signal) = @sent.any? { |sent| signal[:id] && %i[name task key id].all? { |field| sent[field] == signal[field] } }

      def keep(signal) = @sent << Sent.new(**signal.slice(:name, :task, :key, :id, :payload), sent_at: Time.now, received: [])

      # The oldest that this wait may have.
      # @param wait [WaitRun]
      # @return [Sent, nil]
      def for(wait)
        task = wait.task
        @sent.find do |signal|
          next unless signal.name == wait.name
          next signal.received.empty? if signal.task == task.id

          signal.key && signal.key == wait.key && !signal.received.include?(task.id) &&
            (signal.received.empty? || signal.sent_at >= task.created_at)
        end
      end
    end
  end
end
