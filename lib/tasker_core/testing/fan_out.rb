# frozen_string_literal: true

module TaskerCore
  module Testing
    # Of the engine: steps whose work is other tasks.
    # @api private
    module FanOut
      private

      # Has other tasks do it.
      def fan_out(task, step, impatient)
        create = ->(input, item) { create_child(task, step, input, item) }
        step.spawn(task.input, &create) unless step.children || step.pages
        read_pages(task, step, impatient, create) if step.pages
        step.children&.each { |child| run(child, impatient: impatient) if child.due? }
        step.settle
      rescue NotFound, InvalidInput => e
        step.fail({ class: "TaskerError", message: e.message, permanent: true })
      end

      # One page after the other, as far as they end.
      def read_pages(task, step, impatient, create)
        loop do
          given = step.page || step.next_page(task.input) or break
          step.page ||= add(task, step, part(task, step.definition, "pages", step.pages), given, -((step.children&.size || 0) + 1))
          run(step.page, impatient: impatient) if step.page.due?
          break unless step.page.ended?

          step.spawn(task.input, step.read_page, &create)
          break if step.dead?
        end
      end

      def create_child(task, step, input, item)
        workflow = step.definition[:workflow] || step.definition.dig(:each, :workflow)
        template = workflow && accepting(template(workflow), input)
        add(task, step, template || part(task, step.definition, nil, step.definition.dig(:each, :handler)), input, item)
      rescue InvalidInput => e
        raise InvalidInput, "task #{item}: #{e.message}"
      end

      def add(task, step, template, input, item)
        child = TaskRun.new(template, input, @signals, @pauses, priority: task.priority, tags: task.tags, above: task,
                                                                parent: { task: task.id, step: step.name, item: item })
        @tasks[child.id] = child
      end

      # The template of the tasks that do the work of a step that names a handler for them.
      def part(task, step, kind, handler)
        only = step.except(:each, :if, :delay, *(:undo if kind)).merge(handler: handler, parents: [])
        name = [task.template[:definition][:name], step[:name], kind].compact.join(".")
        { definition: { name: name, namespace: step[:namespace], steps: [only], on_failure: "block" }, version: task.template[:version] }
      end
    end
  end
end
