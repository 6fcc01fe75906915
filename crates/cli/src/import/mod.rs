//! `xvs import`: converts another load balancer's configuration to keepalived.conf.
//!
//! Reads a file, prints the text for keepalived.conf on standard output, and names each line that it cannot express on
//! standard error. Needs no daemon and changes nothing; host names and service names are looked up on this machine.
//!
//! The file is read by `lines.rs`, interpreted by `ldirectord.rs`, `real_server.rs` and `checks.rs`, and printed by
//! `printer.rs`.

mod checks;
mod ldirectord;
mod lines;
mod printer;
mod real_server;
mod values;
mod virtual_server;

use std::fs;
use std::io;
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use xvs_ipvsadm::{Resolver, SystemResolver};
use xvs_model::foreign_text::escape_control;

use crate::import::ldirectord::Imported;
use crate::import::printer::LeftOut;
use crate::output::exit::{DONE, Done, FAILED, MISUSED, complaint};

/// The arguments of `xvs import`.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    source: Source,
}

#[derive(Debug, Subcommand)]
enum Source {
    /// Convert ldirectord.cf to keepalived.conf; exits with 0 if every line is converted, 1 if lines are left out, 2
    /// if the file cannot be read
    Ldirectord {
        /// The path of ldirectord.cf
        file: PathBuf,
    },
}

pub(super) fn run(arguments: &Arguments, out: &mut dyn Write) -> Done {
    let Source::Ldirectord { file } = &arguments.source;
    import(file, &SystemResolver::default(), out, &mut io::stderr())
}

fn import(file: &Path, names: &dyn Resolver, out: &mut dyn Write, errors: &mut dyn Write) -> Done {
    let bytes = match fs::read(file) {
        Ok(bytes) => bytes,
        Err(error) => {
            let file = file.display();
            let fault = format!("{file}: {error}; name an ldirectord.cf that you can read");
            let _ = write!(errors, "{}", complaint(&fault));
            return Ok(MISUSED);
        }
    };
    let name = file.file_name().unwrap_or(file.as_os_str()).to_string_lossy();
    let Imported { text, left_out } = ldirectord::import(&String::from_utf8_lossy(&bytes), &name, names);
    out.write_all(text.as_bytes())?;
    for LeftOut { line, why } in &left_out {
        // If the message cannot be written, the comments in the output and the exit code remain.
        let _ = writeln!(errors, "{}:{line}: {}", file.display(), escape_control(why));
    }
    Ok(if left_out.is_empty() { DONE } else { FAILED })
}

#[cfg(test)]
mod tests;
