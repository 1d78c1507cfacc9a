# frozen_string_literal: true

# Writes the Makefile that RubyGems runs. Cargo builds in a temporary folder (or CARGO_TARGET_DIR), because its hundreds of megabytes
# would stay in the gem's folder for good; only the library is installed.

require "rbconfig"
require "tmpdir"

root = File.expand_path("../..", __dir__)
wanted = File.read(File.join(root, "Cargo.toml"), encoding: "UTF-8")[/^rust-version = "(.+)"/, 1]
begin
  found = `cargo --version`[/\d+\.\d+(\.\d+)?/]
rescue Errno::ENOENT
  abort "tasker_core is built by cargo, which is not on the PATH: install Rust #{wanted} or newer (https://rustup.rs), and libclang"
end
if Gem::Version.new(found) < Gem::Version.new(wanted)
  abort "tasker_core is built with Rust #{wanted} or newer, and the cargo on the PATH is #{found}: see https://rustup.rs"
end

# Where clang-sys looks, roughly: what it finds elsewhere is told to it by LIBCLANG_PATH, and so is this.
darwin = RbConfig::CONFIG["host_os"].match?(/darwin/)
folders = ["/usr/lib*", "/usr/lib*/*-linux-*", "/usr/lib*/llvm*/lib*", "/usr/local/lib*", "/usr/local/llvm*/lib*", "/opt/llvm*/lib*"]
unless darwin || ENV.key?("LIBCLANG_PATH") || Dir.glob(folders.map { |folder| "#{folder}/libclang*.so*" }).any?
  abort "tasker_core is built with libclang, which was not found: install it (Debian, Ubuntu: libclang-dev; Fedora: clang-devel; " \
        "Alpine: clang-dev), or set LIBCLANG_PATH to the folder of libclang.so"
end

given = ENV.fetch("CARGO_TARGET_DIR", "")
target = given.empty? ? Dir.mktmpdir("tasker_core") : File.expand_path(given)
clean_up = given.empty? ? "rm -rf '#{target}'" : "true"
library = darwin ? "libtasker_core.dylib" : "libtasker_core.so"
profile = ENV.fetch("RB_SYS_CARGO_PROFILE", "release")
output = profile == "dev" ? "debug" : profile
# What is tested is built as everything is that is built already (see the Rakefile).
selection = ENV.key?("CARGO_FLAGS") ? "--workspace #{ENV.fetch('CARGO_FLAGS')}" : "--package tasker_core"
installed = "$(folder)/tasker_core.#{RbConfig::CONFIG['DLEXT']}"

File.write("Makefile", <<~MAKEFILE)
  sitearchdir = #{RbConfig::MAKEFILE_CONFIG['sitearchdir']}
  folder = $(DESTDIR)$(sitearchdir)/tasker_core

  all:
  \tcd '#{root}' && RUBY='#{RbConfig.ruby}' CARGO_TARGET_DIR='#{target}' cargo build --profile #{profile} --locked #{selection} || { #{clean_up}; false; }

  install: all
  \tmkdir -p "$(folder)"
  \tcp '#{target}/#{output}/#{library}' "#{installed}.new"
  \tmv -f "#{installed}.new" "#{installed}"
  \t#{clean_up}

  clean:
  \t@true
MAKEFILE
