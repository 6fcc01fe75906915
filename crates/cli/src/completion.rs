//! `xvs completion`: shell completion scripts for `xvs`, `xvsd` and `xvsadm`.

use std::io::Write;

use clap::{Args, Command, CommandFactory, ValueEnum};
use clap_complete::{Shell, generate};
use xvs_ctl::arguments;

use crate::output::exit::{DONE, Done};

/// The arguments of `xvs completion`.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The shell
    shell: Shell,
    /// The program
    #[arg(long, default_value = "xvs")]
    program: Program,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Program {
    Xvs,
    Xvsd,
    Xvsadm,
    Ipvsadm,
}

/// `xvs` is the definition of its command line.
pub(super) fn run(arguments: &Arguments, xvs: Command, out: &mut dyn Write) -> Done {
    let (mut command, name) = match arguments.program {
        Program::Xvs => (xvs, "xvs"),
        Program::Xvsd => (arguments::Arguments::command(), "xvsd"),
        Program::Xvsadm => (xvs_ipvsadm::manual::command(), "xvsadm"),
        Program::Ipvsadm => (xvs_ipvsadm::manual::command(), "ipvsadm"),
    };
    // clap_complete panics at an output that fails, such as a pipe that was closed.
    let mut script = Vec::new();
    generate(arguments.shell, &mut command, name, &mut script);
    out.write_all(&script)?;
    Ok(DONE)
}
