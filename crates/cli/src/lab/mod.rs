//! `xvs lab`: the lab over standard input and output, line by line.
//!
//! A refused line is also named on standard error, with its number, and the exit code reports it.

mod protocol;

pub use protocol::Lab;

use std::io;
use std::io::{BufRead, Write};
use std::path::PathBuf;

use clap::Args;
use serde_json::Value;
use xvs_ctl::config::Config;

use crate::output::exit::{DONE, Done, FAILED, complaint};

/// The arguments of `xvs lab`.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Use the sections ipvs and feedback of this xvs.toml [default: the settings of the kernel's IPVS]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

pub(super) fn run(arguments: &Arguments, out: &mut dyn Write) -> Done {
    let config = arguments.config.as_deref().map(Config::read).transpose()?;
    let mut lab = config.map_or_else(Lab::new, |config| Lab::with(config.ipvs, config.feedback));
    let mut stdin = io::stdin().lock();
    let (mut bytes, mut number, mut code) = (Vec::new(), 0, DONE);
    while stdin.read_until(b'\n', &mut bytes)? > 0 {
        number += 1;
        let line = String::from_utf8_lossy(&std::mem::take(&mut bytes)).into_owned();
        if line.trim().is_empty() {
            continue;
        }
        let answer = lab.reply(&line);
        writeln!(out, "{answer}")?;
        // The program that drives the lab waits for the answer before it sends the next line.
        out.flush()?;
        if let Some(why) = refusal(&answer) {
            let _ = write!(io::stderr(), "{}", complaint(&format!("line {number} is refused: {why}")));
            code = FAILED;
        }
    }
    Ok(code)
}

/// Why a line was refused, by the lab or by the command in its `adm` or `xvs`; `None` if it was accepted.
fn refusal(answer: &Value) -> Option<&str> {
    let failed = answer["exit"].as_u64().is_some_and(|code| code != 0);
    let said = answer["stderr"].as_str().filter(|said| failed && !said.is_empty());
    let why = answer["error"].as_str().or(said)?.lines().next()?;
    Some(why.strip_prefix("xvs: ").unwrap_or(why))
}
