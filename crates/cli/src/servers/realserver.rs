//! `xvs realserver`: prepares this machine as a real server, restores it, shows its state.

use std::io::Write;
use std::net::IpAddr;
use std::path::Path;

use clap::{Args, Subcommand};
use xvs_realserver::{Change, Method, Realserver};

use crate::output::exit::{DONE, Done, FAILED};
use crate::output::text::print_json;

/// The arguments of `xvs realserver`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Serve a virtual address: add it to lo, suppress ARP for it, decapsulate tunnels. An address that is up is
    /// changed in place
    Up {
        #[command(flatten)]
        which: Which,
        /// The UDP port of GUE tunnels [default: 6080]
        #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
        gue_port: Option<u16>,
    },
    /// Stop serving a virtual address and restore the settings from before `up`
    Down {
        #[command(flatten)]
        which: Which,
    },
    /// Show the virtual addresses that are up and their problems; exits with 1 if there are problems
    Status {
        /// Only this virtual address
        #[arg(long, value_name = "ADDRESS")]
        vip: Option<IpAddr>,
        /// Only virtual addresses with this forwarding method
        #[arg(long)]
        method: Option<Method>,
        /// Only virtual addresses on this interface
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
    /// The director's forwarding method [default: the method of the address if it is up, otherwise dr]
    #[arg(long)]
    method: Option<Method>,
    /// The interface that receives the director's packets [default: the interface of the address if it is up,
    /// otherwise of the default route]
    #[arg(long, value_name = "IFACE")]
    dev: Option<String>,
}

pub(crate) fn run(arguments: &Arguments, out: &mut dyn Write) -> Done {
    let records = Path::new(RECORDS);
    match &arguments.action {
        Action::Up { which: Which { vip, method, dev }, gue_port } => {
            let mut realserver = Realserver::open(records)?;
            let (method, change) = realserver.up(*vip, *method, dev.as_deref(), *gue_port)?;
            let change = match change {
                Change::New => String::new(),
                Change::Restored => " (already up; settings restored)".to_owned(),
                Change::Changed(differences) => format!(" (was up; changed: {})", differences.join(", ")),
            };
            writeln!(out, "{vip} is up, method {method}{change}")?;
            if let Some(mss) = realserver.tunnel_mss(*vip) {
                let next = format!("next: `advmss {mss}` on the routes to clients (`ip route change`)");
                writeln!(out, "{next}, so that their packets fit the tunnel")?;
            }
            Ok(DONE)
        }
        Action::Down { which: Which { vip, method, dev } } => {
            Realserver::open(records)?.down(*vip, *method, dev.as_deref())?;
            writeln!(out, "{vip} is down")?;
            Ok(DONE)
        }
        Action::Status { vip, method, dev, json } => {
            let mut found = Realserver::status(records, *vip)?;
            found.retain(|status| {
                method.is_none_or(|method| method == status.method)
                    && dev.as_ref().is_none_or(|dev| *dev == status.dev)
            });
            match json {
                true => print_json(&found, out)?,
                false => {
                    if found.is_empty() {
                        writeln!(out, "no virtual address is up by `xvs realserver up`")?;
                    }
                    found.iter().try_for_each(|status| write!(out, "{status}"))?;
                    if vip.is_none() && method.is_none() && dev.is_none() {
                        Realserver::foreign(records)?
                            .iter()
                            .try_for_each(|found| writeln!(out, "{found}"))?;
                    }
                }
            }
            let whole = found.iter().all(|status| status.problems.is_empty());
            Ok(if whole { DONE } else { FAILED })
        }
    }
}

/// The directory in which `xvs realserver up` records the settings that it changed. It is owned by root: `/run/xvs` may
/// belong to the user of xvsd.
pub(crate) const RECORDS: &str = "/run/xvs-realserver";
