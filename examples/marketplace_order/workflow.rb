# frozen_string_literal: true

require "tasker_core"

# A marketplace: each line of an order goes to the vendor that sells it, a large order wants a person's approval, and when it cannot be
# shipped all that was done is taken back.
module Marketplace
  # What the other systems know: what vendors have reserved, by line, and what was charged, by order. The real ones have APIs, and take a
  # second call with the same id for the first.
  RESERVED = {} # rubocop:disable Style/MutableConstant
  CHARGED = {} # rubocop:disable Style/MutableConstant

  # Adds up an order.
  class PriceOrder < TaskerCore::StepHandler
    def call(step)
      lines = step.context[:lines].each_with_index.map { |line, number| line.merge(id: "#{step.context[:order_id]}/#{number}") }
      { total: lines.sum { |line| line[:units] * line[:price] }, lines: lines }
    end
  end

  # Asks the vendor of one line; the line is the input of a task of its own.
  class ReserveLine < TaskerCore::StepHandler
    def call(step)
      line = step.context
      raise TaskerCore::PermanentError, "#{line[:vendor]} does not sell #{line[:sku]}" if line[:sku].start_with?("unknown")

      RESERVED[line[:id]] = line[:units]
      line.slice(:id, :vendor, :units)
    end
  end

  # Takes that back.
  class ReleaseLine < TaskerCore::StepHandler
    def call(step) = RESERVED.delete(step.context[:id])
  end

  # Charges what the order is worth.
  class ChargeCustomer < TaskerCore::StepHandler
    def call(step)
      CHARGED[step.context[:order_id]] = step.results[:price][:total]
      { charged: step.results[:price][:total] }
    end
  end

  # Gives it back: an undo has the results of the steps before, and its own step's.
  class RefundCustomer < TaskerCore::StepHandler
    def call(step)
      CHARGED[step.context[:order_id]] -= step.results[:charge][:charged]
    end
  end

  # Hands the order to the carrier.
  class ShipOrder < TaskerCore::StepHandler
    def call(step)
      raise TaskerCore::PermanentError, "nobody delivers to #{step.context[:country]}" if step.context[:country] == "Atlantis"

      { parcels: step.results[:reserve].map { |line| line[:vendor] }.uniq.size }
    end
  end

  # From a basket to its parcels.
  class Order < TaskerCore::Workflow
    namespace "marketplace"
    template_name "marketplace_order"
    input_schema type: "object", required: %w[order_id lines country]
    tags order: "$.input.order_id"
    on_failure :undo
    unique by: :order_id, on_conflict: :return

    step :price, PriceOrder
    wait :approved, after: :price, if: "$.results.price.total > 1000", assignees: ["sales"], timeout: "3d", on_timeout: :fail,
                    form: { type: "object", required: ["by"], properties: { by: { type: "string" } } }
    each :reserve, ReserveLine, over: "$.results.price.lines", after: %i[price approved], limit: 20, undo: ReleaseLine
    step :charge, ChargeCustomer, after: %i[price reserve], undo: RefundCustomer
    step :ship, ShipOrder, after: %i[reserve charge], retry: { max_attempts: 2, base: "1s" }
  end
end
