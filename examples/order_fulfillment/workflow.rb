# frozen_string_literal: true

require_relative "handlers"

# From an order to a parcel, through the queues of three teams.
class OrderFulfillment < TaskerCore::Workflow
  namespace "fulfillment"
  description "Validates an order, reserves stock while the payment is authorized, ships, and tells the customer"
  input_schema(
    type: "object",
    required: %w[shop number email items total card gateway],
    properties: {
      shop: { type: "string" },
      number: { type: "string", pattern: "^[A-Z]+-[0-9]+$" },
      email: { type: "string", pattern: "@" },
      items: {
        type: "array", minItems: 1,
        items: { type: "object", required: %w[sku units], properties: { sku: { type: "string" }, units: { type: "integer", minimum: 1 } } }
      },
      total: { type: "integer", minimum: 1 },
      card: { type: "string" },
      gateway: { type: "string" }
    }
  )

  step :validate, ValidateOrder
  step :reserve, ReserveStock, after: :validate, namespace: "inventory"
  step :authorize_payment, AuthorizePayment, after: :validate, timeout: 10, retry: { max_attempts: 6, base: 0.5 },
                                             config: { round_trip: 0.1 }
  step :ship, ShipOrder, after: %i[reserve authorize_payment]
  step :notify, NotifyCustomer, after: :ship, namespace: "notifications"
end
