//! `xvs realserver`: prepare this machine as a real server, put it back, say how it stands.

use std::error::Error;
use std::net::IpAddr;
use std::path::Path;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use crate::realserver::{Change, Method, Realserver};

/// What follows `xvs realserver`.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Serve a virtual address: put it on lo (tunnel: on tunl0 where that exists), keep ARP quiet about it, decapsulate
    Up {
        #[command(flatten)]
        which: Which,
    },
    /// Stop serving a virtual address and put back what `up` found
    Down {
        #[command(flatten)]
        which: Which,
    },
    /// Show what is up and whether it is as it has to be; exits with 1 if not
    Status {
        /// Only this virtual address
        #[arg(long, value_name = "ADDRESS")]
        vip: Option<IpAddr>,
        /// Only what is up by this method
        #[arg(long)]
        method: Option<Method>,
        /// Only what is up by this interface
        #[arg(long, value_name = "IFACE")]
        dev: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
struct Which {
    /// The virtual address
    #[arg(long, value_name = "ADDRESS")]
    vip: IpAddr,
    /// How the director forwards [default: dr]
    #[arg(long)]
    method: Option<Method>,
    /// The interface that the director's packets come in by [default: that of the default route]
    #[arg(long, value_name = "IFACE")]
    dev: Option<String>,
}

/// Does it.
pub(super) fn run(arguments: &Arguments) -> Result<ExitCode, Box<dyn Error>> {
    let mut machine = Realserver::open(Path::new(RECORDS))?;
    match &arguments.action {
        Action::Up { which: Which { vip, method, dev } } => {
            let method = method.unwrap_or(Method::Dr);
            let change = machine.up(*vip, method, dev.as_deref())?;
            let again = if change == Change::Again { " (it was already)" } else { "" };
            println!("{vip} is up, method {method}{again}");
            Ok(ExitCode::SUCCESS)
        }
        Action::Down { which: Which { vip, method, dev } } => {
            machine.down(*vip, *method, dev.as_deref())?;
            println!("{vip} is down");
            Ok(ExitCode::SUCCESS)
        }
        Action::Status { vip, method, dev, json } => {
            let mut found = machine.status(*vip)?;
            found.retain(|status| {
                method.is_none_or(|method| method == status.method)
                    && dev.as_ref().is_none_or(|dev| *dev == status.dev)
            });
            match json {
                true => println!("{}", serde_json::to_string_pretty(&found)?),
                false if found.is_empty() => println!("no virtual address is up"),
                false => found.iter().for_each(|status| print!("{status}")),
            }
            let whole = found.iter().all(|status| status.problems.is_empty());
            Ok(if whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
    }
}

const RECORDS: &str = "/run/xvs";
