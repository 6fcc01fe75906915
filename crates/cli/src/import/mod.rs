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

use crate::output::exit::{DONE, Done, FAILED, MISUSED, complaint};

/// The arguments of `xvs import`.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    source: Source,
}

#[derive(Debug, Subcommand)]
enum Source {
    /// Print the keepalived.conf that does the same as an ldirectord.cf; exits with 0 if every line is
    /// expressed, 1 if lines are left out, 2 if the file cannot be read
    Ldirectord {
        /// The ldirectord.cf
        file: PathBuf,
    },
}

pub(super) fn run(arguments: &Arguments, out: &mut dyn Write) -> Done {
    let Source::Ldirectord { file } = &arguments.source;
    import(file, &SystemResolver::default(), out, &mut io::stderr())
}

fn import(file: &Path, names: &dyn Resolver, out: &mut dyn Write, errors: &mut dyn Write) -> Done {
    let text = match fs::read(file) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => {
            let next = "name an ldirectord.cf that you can read";
            let _ = write!(errors, "{}", complaint(&format!("{}: {error}; {next}", file.display())));
            return Ok(MISUSED);
        }
    };
    let name = file.file_name().unwrap_or(file.as_os_str()).to_string_lossy();
    let imported = ldirectord::import(&text, &name, names);
    out.write_all(imported.text.as_bytes())?;
    for left_out in &imported.left_out {
        // If the message cannot be written, the comments in the output and the exit code remain.
        let _ = writeln!(errors, "{}:{}: {}", file.display(), left_out.line, escape_control(&left_out.why));
    }
    Ok(if imported.left_out.is_empty() { DONE } else { FAILED })
}

#[cfg(test)]
mod tests;
