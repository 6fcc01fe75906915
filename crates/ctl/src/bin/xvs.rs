//! `xvs`: what ipvsadm has no words for.

use std::process::ExitCode;

use xvs_ctl::cli;

fn main() -> ExitCode {
    cli::parsed().map_or_else(|code| code, cli::run)
}
