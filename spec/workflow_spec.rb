# frozen_string_literal: true

require "spec_helper"

RSpec.describe TaskerCore::Workflow do
  def definition_of(name) = JSON.parse(tasker("template", "show", name, "--json").first).except("registered_at")

  it "compiles to the same definition as YAML does, and so to the same version" do
    handler("ValidateOrder") { nil }
    handler("ReserveInventory") { nil }
    ruby = workflow("OrderFulfillment") do
      description "from cart to parcel"
      priority :high
      deadline 7200
      on_failure :fail
      retry_rules max_attempts: 9, multiplier: 3
      dead_letters retention_days: 30
      input_schema type: "object", required: ["id"]
      step :validate, ValidateOrder, transactional: true, dead_letters: { alert_threshold: 10 }
      step :reserve, ReserveInventory, after: :validate, namespace: "inventory", timeout: 30, config: { warehouse: "north" },
                                       retry: { max_attempts: 5, backoff: :linear, base: 2, max: "5m", jitter: 0.5 }
    end
    yaml = File.join(Dir.mktmpdir, "order_fulfillment.yml")
    File.write(yaml, <<~YAML)
      name: order_fulfillment
      namespace: #{namespace}
      description: from cart to parcel
      priority: high
      deadline: 2h
      on_failure: fail
      retry: { max_attempts: 9, multiplier: 3 }
      dead_letters: { retention_days: 30 }
      input_schema: { type: object, required: [id] }
      steps:
        - name: validate
          handler: ValidateOrder
          transactional: true
          dead_letters: { alert_threshold: 10 }
        - name: reserve
          handler: ReserveInventory
          namespace: inventory
          depends_on: [validate]
          timeout: 30s
          retry: { max_attempts: 5, backoff: linear, base: 2s, max: 5m, jitter: 0.5 }
          config: { warehouse: north }
    YAML
    expect(TaskerCore.client.register(ruby)).to eq(["#{namespace}/order_fulfillment", "1"])
    from_ruby = definition_of("#{namespace}/order_fulfillment")
    expect(TaskerCore.client.register(yaml)).to eq(["#{namespace}/order_fulfillment", "1"])
    expect(definition_of("#{namespace}/order_fulfillment")).to eq(from_ruby)
    expect(from_ruby["steps"][1]).to include("handler" => "ReserveInventory", "parents" => [0], "config" => { "warehouse" => "north" })
  end

  it "gets a new version when its content changes, and keeps a version that it names" do
    handler("Work") { nil }
    flow = workflow("Flow") { step :a, Work }
    expect(TaskerCore.client.register(flow).last).to eq("1")
    flow.step :b, "Work", after: :a
    expect(TaskerCore.client.register(flow).last).to eq("2")
    flow.version "2.1"
    expect(TaskerCore.client.register(flow).last).to eq("2.1")
    flow.step :c, "Work", after: :b
    expect { TaskerCore.client.register(flow) }.to raise_error(TaskerCore::TemplateError, /version 2.1 is registered with other content/)
  end

  describe "a mistake" do
    before { handler("Work") { nil } }

    # The problems of a workflow as [line after the definition's first, message].
    def problems(&definition)
      flow = workflow(&definition)
      flow.validate!
      raise "it is valid"
    rescue TaskerCore::TemplateError => e
      first = definition.source_location.last
      e.message.lines.map do |problem|
        line, text = problem.match(/\A#{Regexp.escape(__FILE__)}:(\d+): (.*)/).captures
        [line.to_i - first, text]
      end
    end

    it "is named with the line of its step" do
      expect(problems do
        step :a, "Work"
        step :b, "Work", after: :nothing
        step :c, "Work", timeout: "soon"
      end).to contain_exactly([2, 'step "b" depends on unknown step "nothing": expected one of a, b, c'],
                              [3, 'timeout is "soon": expected a duration such as 30, "30s" or "1h 30m", of at most a year'])
    end

    it "may be a cycle" do
      expect(problems do
        step :a, "Work", after: :b
        step :b, "Work", after: :a
      end).to eq([[1, "cycle: a → b → a: expected no step to depend on itself"]])
    end

    it "may be a duplicate name, or an unknown key" do
      expect(problems do
        step :a, "Work"
        step :a, "Work"
      end).to eq([[2, 'duplicate step "a": expected every step to have a name of its own']])
      expect(problems { step :a, "Work", retry: { attempts: 3 } }.first.last).to match(/unknown field.*attempts.*expected/)
    end

    it "is said in Ruby's words, with the line of what says it" do
      {
        'step :a, "Work", retry: 5' => ":3: Wrong: step :a: retry is 5: expected a Hash such as { max_attempts: 5, base: \"2s\" }",
        'step :a, "Work", after: String' => ":3: Wrong: step :a: after names String: expected the name of a step, such as :validate",
        "retry_rules 3" => ":3: Wrong: retry_rules is 3: expected a Hash such as { max_attempts: 5, base: \"2s\" }",
        'deadline "soon"; step :a, "Work"' => ":1: deadline is \"soon\": expected a duration",
        'namespace nil; step :a, "Work"' => ":1: Wrong names no namespace: add namespace \"billing\", or whose workers run it"
      }.each do |line, said|
        given = ("namespace 'x'; template_name 'wrong'" unless line.start_with?("namespace"))
        file = File.join(Dir.mktmpdir, "wrong.rb")
        File.write(file, "class Wrong < TaskerCore::Workflow\n#{given}\n#{line}\nend\nWrong.validate!\n")
        expect { load file, true }.to raise_error(TaskerCore::TemplateError, /\A#{Regexp.escape(file + said).sub('Wrong', '.*Wrong')}/)
      end
    end

    it "may be a handler that is none" do
      expect {
        workflow {
          step :a, String
        }
      }.to raise_error(TaskerCore::TemplateError, /String is no handler: expected a named class with call/)
    end
  end

  it "has conditions, which are checked with it, and say why a step was skipped" do
    handler("Check") { |step| { total: step.context[:total] } }
    flow = workflow do
      step :check, Check
      step :approve, Check, after: :check, if: "$.results.check.total > 1000"
      step :ship, Check, after: %i[check approve]
    end
    working do
      task = TaskerCore.enqueue(flow, { total: 1 })
      expect(task.wait(timeout: 120)).to eq("complete")
      expect(task.steps.map(&:state)).to eq(%w[complete skipped complete])
      expect(tasker("task", "show", task.id).first).to match(/approve +skipped .*\(\$\."results"\."check"\."total" > 1000\) is not true/)
      expect(task.results.keys).to eq(%i[check ship])
    end
    wrong = workflow { step :check, Check, if: "$.results.other > 1" }
    expect { wrong.validate! }.to raise_error(TaskerCore::TemplateError, /#{__FILE__}:#{__LINE__ - 1}: .* asks for the result of other/)
  end

  it "says what is wrong with a step whose work is other tasks, with its line" do
    handler("Check") { nil }
    {
      -> { each :a, Check, over: "$.results.gone" } => /over "\$\.results\.gone" asks for the result of gone, and the step depends on none/,
      -> { each :a, Check, over: "$.x", tolerate: "many" } => /tolerate is "many": expected a number such as 10, or a share such as "5%"/,
      -> { each :a, Check, over: "$.x", limit: 0 } => /limit is 0: expected 1 to 1000000/,
      -> { each :a, "other/flow", over: "$.x", timeout: 5 } => /is done by tasks of another workflow, and has timeout: nothing runs there/,
      -> { workflow :a, "other/flow", input: 5 } => /input is 5: expected a path such as \$\.input, or a path for each of its names/,
      -> { workflow :a, self } => /its tasks would contain tasks of the same template/
    }.each do |steps, problem|
      flow = workflow("Wrong") { instance_exec(&steps) }
      expect { flow.validate! }.to raise_error(TaskerCore::TemplateError, problem)
    end
    expect { workflow { workflow :a, Check } }.to raise_error(TaskerCore::TemplateError, /workflow :a names Check: expected a Workflow/)
  end

  it "brings its limits along, and says in Ruby's words what is wrong with one" do
    handler("ChargeCard") { nil }
    limited = workflow("Limited") do
      limit concurrency: 5, key: "customer.id"
      limit handler: ChargeCard, rate: 100, per_seconds: 60, breaker: { failure_rate: 0.5 }
      step :charge, ChargeCard
    end
    TaskerCore.enqueue(limited)
    listed = JSON.parse(tasker("limit", "list", "--json").first).select { |limit| limit["namespace"] == namespace }
    expect(listed.map { |limit| limit.values_at("name", "handler", "key", "concurrency", "rate") }).to eq(
      [["limited:charge_card", "ChargeCard", nil, nil, 100], ["limited:customer_id", nil, "customer.id", 5, nil]]
    )
    expect { workflow { 2.times { limit concurrency: 1 } } }.to raise_error(TaskerCore::TemplateError, /limit "all" is there twice/)
    nothing = workflow do
      limit :slow, handler: "Other", rate: 1
      step :charge, ChargeCard
    end
    expect { nothing.validate! }.to raise_error(TaskerCore::TemplateError, /limit "slow": handler is "Other": no step of the namespace/)
  end
end
