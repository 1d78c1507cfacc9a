# frozen_string_literal: true

require "spec_helper"
require "tasker_core/testing"

RSpec.describe "forks" do
  let(:ran) { Queue.new }
  let(:order) do
    log = ran
    failures = [1]
    works = handler do |step|
      log << step.name
      raise TaskerCore::PermanentError, "no" if step.name == :charge && step.context[:fails] && failures.pop

      step.name == :charge ? step.results[:lines].to_a.size : step.context
    end
    workflow do
      input_schema required: ["lines"]
      step :check, works
      each :lines, works, over: "$.input.lines", after: :check
      step :charge, works, after: :lines, retry: { max_attempts: 1 }
      step :note, works, after: :check
      step :ship, works, after: %i[charge note]
    end
  end

  def names = Array.new(ran.size) { ran.pop }

  # @yieldparam task [TaskerCore::Task] that is to run
  def expect_forks
    task = TaskerCore.enqueue(order, { lines: [1, 2], fails: true })
    yield task
    expect([task.status, names.sort]).to eq(["blocked", %i[charge check lines lines note]])
    fork = task.fork(from: :charge)
    yield fork
    expect([fork.status, names]).to eq(["complete", %i[charge ship]])
    expect(fork.results[:charge]).to eq(2)
    expect([fork.to_h[:forked_from], fork.results[:check][:lines]]).to eq([task.id, [1, 2]])
    again = fork.fork(input: { lines: [] })
    yield again
    expect([again.status, names.sort]).to eq(["complete", %i[charge check note ship]])
  end

  it "run a task again from a step on, with what was done before and beside it" do
    working { expect_forks { |task| task.wait(timeout: 120) } }
  end

  it "are the same in memory" do
    TaskerCore::Testing.fake! { expect_forks { TaskerCore::Testing.drain } }
  end

  it "are of tasks that have ended, from a step that they have" do
    check = lambda do
      waits = TaskerCore.enqueue(order, { lines: [] }, wait: "1h")
      expect { waits.fork }.to raise_error(TaskerCore::InvalidInput, /is waiting.*cancel it first/m)
      waits.cancel
      expect { waits.fork(from: :chek) }.to raise_error(TaskerCore::NotFound, /has no step chek/)
      expect { waits.fork(input: {}) }.to raise_error(TaskerCore::InvalidInput, /input_schema .*"lines" is a required/)
    end
    check.call
    TaskerCore::Testing.fake!(&check)
  end
end
