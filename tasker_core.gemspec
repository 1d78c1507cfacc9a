# frozen_string_literal: true

Gem::Specification.new do |spec|
  spec.name = "tasker_core"
  # The only place where the version is written.
  spec.version = File.read(File.join(__dir__, "Cargo.toml"), encoding: "UTF-8")[/^version = "(.+)"/, 1]
  spec.authors = ["The tasker-core authors"]
  spec.summary = "Workflows for Ruby and Rails on nothing but PostgreSQL"
  spec.description = "Durable workflows of steps in Ruby, orchestrated by a Rust core over pgmq queues in your own PostgreSQL. " \
                     "Nothing is lost, nothing counts twice, and there is no other server to run."
  spec.license = "MIT"
  spec.required_ruby_version = ">= 3.1"

  # The whole crate, because the extension is built from it; bench/*.rs because Cargo.toml names it.
  spec.files = Dir["lib/**/*.{rb,rake,tt}", "sig/*.rbs", "exe/*", "ext/**/*.{rb,rs,toml}", "src/**/*.{rs,css,js,svg}", "migrations/*.sql",
                   "bench/*.rs", "Cargo.{toml,lock}", "docs/*.md", "README.md", "CHANGELOG.md", "LICENSE"]
  spec.bindir = "exe"
  spec.executables = ["tasker"]
  spec.extensions = ["ext/tasker_core/extconf.rb"]
  spec.metadata["rubygems_mfa_required"] = "true"
end
