//! The program `xvs`.

use std::process::ExitCode;

fn main() -> ExitCode {
    xvs_ctl::arguments::parsed().map_or_else(|code| code, xvs_cli::run)
}
