# frozen_string_literal: true

module TaskerCore
  # The gem's version, and that of the core inside it.
  VERSION = "0.1.0"
end
