//! `xvs lab`: the lab over standard input and output, a line each.

mod protocol;

pub use protocol::Lab;

use std::io;
use std::io::{BufRead, Write};
use std::path::PathBuf;

use clap::Args;
use xvs_ctl::config::Config;

use crate::output::exit::{DONE, Done};

/// The arguments of `xvs lab`.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Use the settings under ipvs and feedback of this xvs.toml [default: those of the kernel's IPVS]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

pub(super) fn run(arguments: &Arguments, out: &mut dyn Write) -> Done {
    let config = arguments.config.as_deref().map(Config::read).transpose()?;
    let mut lab = config.map_or_else(Lab::new, |config| Lab::with(config.ipvs, config.feedback));
    let mut stdin = io::stdin().lock();
    let mut bytes = Vec::new();
    while stdin.read_until(b'\n', &mut bytes)? > 0 {
        let line = String::from_utf8_lossy(&std::mem::take(&mut bytes)).into_owned();
        if !line.trim().is_empty() {
            writeln!(out, "{}", lab.answer(&line))?;
            // The program that drives the lab waits for the answer before it sends the next line.
            out.flush()?;
        }
    }
    Ok(DONE)
}
