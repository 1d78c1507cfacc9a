# frozen_string_literal: true

# Handlers and workflows that an example defines for itself.
module Workflows
  # A namespace that no other example uses.
  def namespace = @namespace ||= "n#{SecureRandom.hex(5)}"

  # A named handler class whose call is the block.
  def handler(name = "Handler#{SecureRandom.hex(4)}", &call)
    stub_const(name, Class.new(TaskerCore::StepHandler) { define_method(:call, &call) })
  end

  # A named workflow in the example's namespace.
  def workflow(name = "Workflow#{SecureRandom.hex(4)}", &definition)
    own = namespace
    stub_const(name, Class.new(TaskerCore::Workflow) { namespace own }).tap { |created| created.class_eval(&definition) }
  end

  # A worker in this process, and an orchestrator in another, for the time of the block.
  def working(threads: 4, **options)
    orchestrator = start_orchestrator
    worker = TaskerCore::Worker.new(namespaces: [namespace], threads: threads, **options).start
    yield worker
  ensure
    worker&.stop(grace: 5)
    orchestrator&.signal("TERM")
    orchestrator&.wait
  end
end
