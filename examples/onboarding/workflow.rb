# frozen_string_literal: true

require "tasker_core"

# The first two weeks of a customer, in one handler: what it does once stands in blocks, and between them it sleeps, or waits to be told
# something, without a worker.
module Onboarding
  # What was sent, as [to, subject].
  MAILS = [] # rubocop:disable Style/MutableConstant

  # Welcomes an account, reminds it, and closes it where nobody has come.
  class Welcome < TaskerCore::StepHandler
    def call(step)
      mail = step.context[:email]
      account = step.once(:account) { { id: "account-#{step.context[:user]}" } }
      step.once(:welcome) { MAILS << [mail, "Welcome"] }
      step.publish(:stage, "welcomed")

      profile = step.wait_for(:profile, key: account[:id], timeout: "7d")
      step.once(:reminder) { MAILS << [mail, "Tell us about you"] } unless profile
      step.publish(:stage, profile ? "known" : "reminded")

      step.sleep("7d")
      profile ||= step.wait_for(:profile, key: account[:id], timeout: "1h")
      return account.merge(profile) if profile

      step.once(:goodbye) { MAILS << [mail, "Goodbye"] }
      step.finish!({ closed: true })
    end
  end

  # What only those get who stay.
  class OfferPlan < TaskerCore::StepHandler
    def call(step)
      MAILS << [step.context[:email], "A plan for #{step.results[:welcome][:company]}"]
      { offered: true }
    end
  end

  # A customer is welcomed once, however often the form is sent.
  class Journey < TaskerCore::Workflow
    namespace "growth"
    template_name "onboarding"
    unique by: :user

    step :welcome, Welcome
    step :offer, OfferPlan, after: :welcome
  end
end
