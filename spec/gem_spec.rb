# frozen_string_literal: true

require "spec_helper"

RSpec.describe "the gem" do
  let(:home) { Dir.mktmpdir }
  let(:gems) do
    { "GEM_HOME" => File.join(home, "gems"), "GEM_PATH" => File.join(home, "gems"), "RUBYOPT" => nil, "RUBYLIB" => nil,
      "BUNDLE_GEMFILE" => nil }
  end

  after { FileUtils.rm_rf(home) }

  # Not optimized, and built with what is built already; bin/nightly builds the gem as it is released.
  def development? = ENV["RB_SYS_CARGO_PROFILE"] == "dev"

  # What follows runs with the installed gem, in a folder without the sources, and with no other gem.
  def install(file, **environment)
    succeed("gem", "install", "--local", "--no-document", file, environment: gems.merge(environment.transform_keys(&:to_s)), folder: home)
    size = Dir.glob(File.join(home, "gems/**/*")).sum { |path| File.file?(path) ? File.size(path) : 0 }
    expect(size).to be < (development? ? 250_000_000 : 40_000_000)
    expect(Dir.children(File.join(home, "gems/gems"))).to match([/\Atasker_core-#{TaskerCore::VERSION}/])
  end

  def expect_it_to_work
    File.write(File.join(home, "app.rb"), <<~RUBY)
      class Greet < TaskerCore::StepHandler
        def call(step) = "hello " + step.context[:name]
      end

      class Greeting < TaskerCore::Workflow
        namespace #{namespace.inspect}
        step :greet, Greet
      end
    RUBY
    tasker = File.join(home, "gems/bin/tasker")
    running = [["serve", "--listen", "127.0.0.1:0"], ["worker", "-r", "app.rb", "-n", namespace]].map do |arguments|
      launch(tasker, *arguments, environment: gems, folder: home)
    end
    output = succeed(RbConfig.ruby, "-rtasker_core", "-r./app.rb", "-e", <<~RUBY, environment: gems, folder: home)
      task = TaskerCore.enqueue(Greeting, { name: "gem" })
      print task.wait(timeout: 120), ": ", task.results[:greet], ", ", TaskerCore.healthy?
    RUBY
    expect(output).to eq("complete: hello gem, true")
    running.each { |process| process.signal("TERM") }
    expect(running.map { |process| [process.wait.exitstatus, process.rest] }).to match([[0, anything], [0, anything]])
  end

  it "installs from its sources, works on its own, and is small" do
    succeed("gem", "build", "--silent", "--output", File.join(home, "tasker_core.gem"), "tasker_core.gemspec", folder: Processes::ROOT)
    # With the bench's dependencies: their features are those that everything here is built with.
    install("tasker_core.gem", CARGO_FLAGS: ("--features etcd --lib --bench run" if development?))
    expect_it_to_work
  end

  it "installs precompiled, where there is no cargo" do
    platform = Gem::Platform.local.then { |local| "#{local.cpu}-#{local.os}" }
    succeed("rake", "--quiet", "native:compile", "native:gem[#{platform}]", folder: Processes::ROOT)
    FileUtils.mkdir(File.join(home, "bin"))
    File.write(File.join(home, "bin/cargo"), "#!/bin/sh\nexit 1\n", perm: 0o755)
    install(File.join(Processes::ROOT, "pkg/tasker_core-#{TaskerCore::VERSION}-#{platform}.gem"), PATH: "#{home}/bin:#{ENV.fetch('PATH')}")
    expect(Dir.glob(File.join(home, "gems/gems/*/{ext,src,Cargo.toml}"))).to eq([])
    expect_it_to_work
  end

  it "holds what is used or built on the user's machine, and nothing else" do
    files = Gem::Specification.load(File.join(Processes::ROOT, "tasker_core.gemspec")).files
    kinds = files.group_by { |file| file[%r{\A[^/]+}] }.transform_values { |found| found.map { |file| File.extname(file) }.uniq.sort }
    expect(kinds).to eq(
      "lib" => %w[.rake .rb .tt], "sig" => %w[.rbs], "exe" => [""], "ext" => %w[.rb .rs .toml], "src" => %w[.css .js .rs .svg],
      "migrations" => %w[.sql], "docs" => %w[.md], "bench" => %w[.rs], "Cargo.toml" => %w[.toml], "Cargo.lock" => %w[.lock],
      "README.md" => %w[.md], "CHANGELOG.md" => %w[.md], "LICENSE" => [""]
    )
    expect(files).to include("lib/tasker_core.rb", "lib/puma/plugin/tasker_core.rb", "exe/tasker", "sig/tasker_core.rbs",
                             "lib/generators/tasker_core/install/install_generator.rb",
                             "lib/generators/tasker_core/install/templates/tasker.tt")
  end

  describe "while it is installed" do
    def extconf(*options, **environment)
      run(RbConfig.ruby, *options, File.join(Processes::ROOT, "ext/tasker_core/extconf.rb"),
          environment: environment.transform_keys(&:to_s), folder: home)
    end

    it "says that cargo is missing" do
      expect(extconf(PATH: home)).to match([/cargo, which is not on the PATH: install Rust/, 1])
    end

    it "says that cargo is too old" do
      File.write(File.join(home, "cargo"), "#!/bin/sh\necho cargo 1.63.0\n", perm: 0o755)
      expect(extconf(PATH: home)).to match([/the cargo on the PATH is 1.63.0/, 1])
    end

    it "says that libclang is missing" do
      file = File.join(home, "without_libclang.rb")
      File.write(file, <<~RUBY)
        class << Dir
          alias all glob
          def glob(patterns, *more, **options) = patterns.to_s.include?("libclang") ? [] : all(patterns, *more, **options)
        end
      RUBY
      expect(extconf("-r#{file}", LIBCLANG_PATH: nil)).to match([/libclang, which was not found: install it/, 1])
    end
  end
end
