# frozen_string_literal: true

require_relative "shop"

# What all handlers of the example know.
class OrderStep < TaskerCore::StepHandler
  private

  def shop(step) = Shop.new(step.context[:shop])
  def number(step) = step.context[:number]
end

# Does the order make sense? One that does not will not do so on the next attempt either.
class ValidateOrder < OrderStep
  def call(step)
    total = step.context[:items].sum do |item|
      price = shop(step).price(item[:sku])
      raise TaskerCore::PermanentError, "unknown product #{item[:sku]}" unless price

      price * item[:units]
    end
    raise TaskerCore::PermanentError, "total is #{step.context[:total]}, the items cost #{total}" unless total == step.context[:total]

    { total: total }
  end
end

# Being out of stock is an answer, not an error.
class ReserveStock < OrderStep
  def call(step)
    { reserved: shop(step).reserve(number(step), step.context[:items]) }
  end
end

# Asks the order's payment gateway. It is simulated; its bad days are not rare.
class AuthorizePayment < OrderStep
  def call(step)
    gateway = step.context[:gateway]
    tries = shop(step).record_gateway_call(number(step), gateway)
    sleep(step.config[:round_trip])
    raise TaskerCore::RetryableError.new("#{gateway} does not answer", retry_after: 0.5) if gateway == "slowbank" && tries < 3

    { authorized: step.context[:card] != "declined", amount: step.results[:validate][:total] }
  end
end

# The branches meet: ship what is reserved and paid for, or put it back.
class ShipOrder < OrderStep
  def call(step)
    reason = if !step.results[:reserve][:reserved] then "out of stock"
             elsif !step.results[:authorize_payment][:authorized] then "card declined"
             end
    tracking = "TR-#{step.task_id[-12..].upcase}" unless reason
    shop(step).close(number(step), tracking: tracking, reason: reason)
    { shipped: reason.nil?, reason: reason, tracking: tracking }.compact
  end
end

# Tells the customer.
class NotifyCustomer < OrderStep
  def call(step)
    shipped = step.results[:ship]
    subject = shipped[:shipped] ? "Your order is on its way: #{shipped[:tracking]}" : "We could not accept your order: #{shipped[:reason]}"
    shop(step).email(number(step), step.context[:email], subject)
    { subject: subject }
  end
end
