//! `xvs check`: every fault of a rules file, without a daemon.
//!
//! The lines are applied in order to an empty state. Conditions of the machine, such as whether it has an address, are
//! checked by `xvs apply`, which changes nothing if one fails. With `--keepalived` the file is read as keepalived.conf
//! (`keepalived.rs`).

pub(crate) mod keepalived;

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use xvs_ipvsadm::{SystemResolver, read_wanted};

use crate::check::keepalived::Form;
use crate::output::exit::{DONE, Done, FAILED};
use crate::output::text::{counted, print_json};
use crate::rules::{listed, text};

/// The arguments of `xvs check`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Rules as `xvsadm -Sn` prints them; - is standard input
    #[arg(required_unless_present = "keepalived")]
    file: Option<PathBuf>,
    #[command(flatten)]
    keepalived: keepalived::Options,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments, out: &mut dyn Write) -> Done {
    if let Some(file) = &arguments.keepalived.keepalived {
        let form = if arguments.json { Form::Json } else { Form::Text };
        return keepalived::run(file, &arguments.keepalived, form, out);
    }
    let file = arguments.file.as_deref().unwrap_or(Path::new("-"));
    let content = text(file)?;
    if content.lines().any(|line| line.split_whitespace().next().is_some_and(is_of_keepalived)) {
        let path = file.display();
        return Err(format!("{path} is a keepalived.conf; run `xvs check --keepalived {path}`").into());
    }
    let read = read_wanted(&content, &SystemResolver::default());
    let faults = read.as_ref().err().map(Vec::as_slice).unwrap_or_default();
    match &read {
        _ if arguments.json => print_json(&faults, out)?,
        Ok((commands, _)) => {
            let lines = counted(commands.len() as u64, "line", "lines");
            writeln!(out, "{}: {lines}, no fault", file.display())?;
        }
        Err(faults) => writeln!(out, "{}", listed(file, faults))?,
    }
    Ok(if faults.is_empty() { DONE } else { FAILED })
}

/// Whether this word begins a line of keepalived.conf but no line of a rules file.
fn is_of_keepalived(word: &str) -> bool {
    matches!(
        word,
        "global_defs" | "virtual_server" | "virtual_server_group" | "vrrp_instance" | "vrrp_script"
    )
}

#[cfg(test)]
mod tests {
    use std::fs;

    use crate::check::*;

    #[test]
    fn a_keepalived_conf_is_recognized_and_the_error_names_its_option() {
        let path = std::env::temp_dir().join(format!("xvs-check-rules-{}", std::process::id()));
        let keepalived = keepalived::Options { keepalived: None, config_id: None, strict: false };
        let arguments = Arguments { file: Some(path.clone()), keepalived, json: false };
        let check = |text: &str| {
            fs::write(&path, text).unwrap();
            run(&arguments, &mut Vec::new())
        };
        assert_eq!(check("-A -t 192.0.2.1:80 -s rr\n").unwrap(), DONE);
        for first in ["global_defs {", "  virtual_server 192.0.2.1 80 {", "vrrp_script xvs {"] {
            let error = check(&format!("! a comment\n{first}\n}}\n")).unwrap_err().to_string();
            let path = path.display();
            assert_eq!(error, format!("{path} is a keepalived.conf; run `xvs check --keepalived {path}`"));
        }
        fs::remove_file(path).unwrap();
    }
}
