# frozen_string_literal: true

require "tasker_core"

# A report over all of yesterday's pages of another system's API: nobody knows how many there are until the last one is read, and one
# that is broken does not hold up the others.
module Nightly
  PAGES = 1_000
  BROKEN = 417

  # Lists what there is to do, a hundred at a time: each call goes on where the one before ended.
  class ListPages < TaskerCore::StepHandler
    def call(step)
      first = step.context[:cursor] || 1
      pages = (first...(first + 100)).map { |page| { page: page } }
      { items: pages, next: (first + 100 if first + 100 <= PAGES) }
    end
  end

  # Reads one page, as a task of its own.
  class SumPage < TaskerCore::StepHandler
    def call(step)
      page = step.context[:page]
      raise TaskerCore::PermanentError, "page #{page} is no JSON" if page == BROKEN

      { cents: page * 100 }
    end
  end

  # Writes what the pages come to, reading their results a few at a time.
  class WriteReport < TaskerCore::StepHandler
    def call(step)
      pages = step.results[:pages]
      { day: step.context[:day], pages: pages.size, missing: pages.errors.map(&:item), cents: pages.sum { |page| page ? page[:cents] : 0 } }
    end
  end

  # Runs each night; while one is at it, the next is left out.
  class Report < TaskerCore::Workflow
    namespace "reports"
    template_name "nightly_report"
    schedule cron: "0 2 * * *", time_zone: "Europe/Berlin", overlap: :skip, input: { day: "$time" }

    each :pages, SumPage, pages: ListPages, limit: 50, tolerate: "1%", retry: { max_attempts: 3, base: "1s" }
    step :write, WriteReport, after: :pages
  end
end
