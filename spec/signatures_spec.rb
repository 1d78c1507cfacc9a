# frozen_string_literal: true

require "spec_helper"
require "rbs"
require "yard"

RSpec.describe "sig/" do
  root = Processes::ROOT

  def environment(root)
    loader = RBS::EnvironmentLoader.new
    %w[logger monitor pathname].each { |library| loader.add(library: library, version: nil) }
    loader.add(path: Pathname(root).join("sig"))
    RBS::Environment.from_loader(loader).resolve_type_names
  end

  # Name and whether it is of the class itself.
  def declared(environment)
    environment.class_decls.values.flat_map(&:decls).map(&:decl).select { |decl| decl.name.to_s.start_with?("::TaskerCore") }
               .flat_map do |decl|
      decl.members.grep(RBS::AST::Members::Base).reject { |member| member.is_a?(RBS::AST::Members::Mixin) }.flat_map do |member|
        of_class = member.respond_to?(:kind) && member.kind == :singleton
        names = member.is_a?(RBS::AST::Members::Alias) ? [member.new_name] : [member.name]
        names << :"#{member.name}=" if member.is_a?(RBS::AST::Members::AttrAccessor)
        names.map { |name| "#{decl.name.to_s.delete_prefix('::')}#{of_class ? '.' : '#'}#{name}" }
      end
    end
  end

  # What YARD documents and calls public.
  def documented(root)
    YARD::Registry.clear
    YARD::Logger.instance.level = YARD::Logger::ERROR
    YARD.parse(Dir[File.join(root, "lib/tasker_core{,/**/*}.rb")])
    methods = YARD::Registry.all(:method).select do |method|
      method.visibility == :public && ([method] + parents(method)).none? { |object| object.tag(:api)&.text == "private" }
    end
    methods.map(&:path)
  end

  def parents(object) = object.parent ? [object.parent, *parents(object.parent)] : []

  it "declares what is public, and nothing else" do
    public_methods = documented(root)
    overrides = %w[TaskerCore::NativeLogger#add TaskerCore::NativeLogger#log]
    adapter = public_methods.grep(/\AActiveJob::/)
    constructors = ->(name) { name.end_with?("#initialize") }
    expect(declared(environment(root)).reject(&constructors)).to match_array((public_methods - overrides - adapter).reject(&constructors))
  end

  # Not of the methods that take a hash last, which rbs 2 takes for keywords, nor of Workflow, whose methods look at who calls them.
  it "is valid, and what the code does when its specs run" do
    targets = %w[Configuration DLQ Orchestrator Step Task Task::StepState Tracing Worker].map { |name| "TaskerCore::#{name}" }
    checking = { "RBS_TEST_TARGET" => targets.join(","), "RBS_TEST_OPT" => "-I sig -r monitor -r logger -r pathname",
                 "RBS_TEST_LOGLEVEL" => "error" }
    output, code = run(RbConfig.ruby, "-rrbs/test/setup", "-S", "rspec", "spec/testing_spec.rb", "spec/dlq_spec.rb",
                       folder: root, environment: checking)
    expect(code).to eq(0), output
  end
end
