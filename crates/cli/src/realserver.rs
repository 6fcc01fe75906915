//! `xvs realserver`: prepare this machine as a real server, put it back, say how it stands.

use std::io::Write;
use std::net::IpAddr;
use std::path::Path;

use clap::{Args, Subcommand};
use xvs_realserver::{Change, Method, Realserver};

use crate::exit::{DONE, Done, FAILED};
use crate::text::print_json;

/// What follows `xvs realserver`.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Serve a virtual address: put it on lo, keep ARP quiet about it, take off the outer headers of tunnels
    Up {
        #[command(flatten)]
        which: Which,
        /// The UDP port of tunnels by GUE [default: 6080]
        #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
        gue_port: Option<u16>,
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
pub(super) fn run(arguments: &Arguments, out: &mut dyn Write) -> Done {
    let records = Path::new(RECORDS);
    match &arguments.action {
        Action::Up { which: Which { vip, method, dev }, gue_port } => {
            let method = method.unwrap_or(Method::Dr);
            let mut realserver = Realserver::open(records)?;
            let change = realserver.up(*vip, method, dev.as_deref(), *gue_port)?;
            let again = if change == Change::Restored { " (it was already)" } else { "" };
            writeln!(out, "{vip} is up, method {method}{again}")?;
            if let Some(mss) = realserver.tunnel_mss(*vip) {
                let next = format!("next: `advmss {mss}` on the routes to clients (`ip route change`)");
                writeln!(out, "{next}, so that what they send fits the tunnel")?;
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
                false if found.is_empty() => writeln!(out, "no virtual address is up")?,
                false => found.iter().try_for_each(|status| write!(out, "{status}"))?,
            }
            let whole = found.iter().all(|status| status.problems.is_empty());
            Ok(if whole { DONE } else { FAILED })
        }
    }
}

/// Where `realserver` keeps what it changed.
pub(crate) const RECORDS: &str = "/run/xvs";
