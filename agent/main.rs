//! The `hearken` command: arguments → configuration → engine → serve → drain.

use std::process::ExitCode;

use clap::Parser;
use hearken::cli::{Arguments, run};

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hearken: {error:#}");
            ExitCode::FAILURE
        }
    }
}
