//! `xvs`: what ipvsadm has no words for.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    xvs_ctl::cli::run(xvs_ctl::cli::Cli::parse())
}
