# frozen_string_literal: true

module TaskerCore
  module Testing
    # A client whose database is the memory of this process.
    # @api private
    class Client < TaskerCore::Client
      # Its engine is not the one of a database.
      # rubocop:disable Lint/MissingSuper
      def initialize(engine)
        @native = engine
        @registered = {}
      end
      # rubocop:enable Lint/MissingSuper

      def usable? = true

      def signal(...) = super.tap { native.run_due(impatient: true) if Testing.mode == :inline }

      private

      def own_transaction(*) = nil

      def submit(name, _version, tasks) = native.submit(name, tasks, inline: Testing.mode == :inline)
    end
  end
end
