//! The standalone orchestrator and its command line: hands the arguments to [`tasker::cli`].

fn main() {
    std::process::exit(tasker::cli::run(std::env::args_os()));
}
