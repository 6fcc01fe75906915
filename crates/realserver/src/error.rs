//! Why a real server could not be prepared, or put back.

use std::io;
use std::net::IpAddr;

use thiserror::Error;

use crate::decapsulation::DecapError;
use crate::method::Method;

/// Why a real server could not be prepared, or put back.
#[derive(Debug, Error)]
pub enum RealserverError {
    /// The record or a table of the kernel could not be read or written.
    #[error("{what}: {error}{}", hint(error))]
    Io {
        /// What was tried.
        what: String,
        /// Why not.
        error: io::Error,
    },
    /// No such interface.
    #[error("there is no interface {dev}; there are {present}")]
    NoInterface {
        /// The name asked for.
        dev: String,
        /// The names of those that exist.
        present: String,
    },
    /// None was named and none suggests itself.
    #[error("no default route tells by which interface packets for {0} come in; name it with --dev")]
    NoDefaultRoute(IpAddr),
    /// The address is where ARP for it would be answered.
    #[error(
        "{vip} is an address of {dev}, where it would answer ARP; remove it there (`ip address del`) first"
    )]
    OnTheWire {
        /// The virtual address.
        vip: IpAddr,
        /// The interface that has it.
        dev: String,
    },
    /// No host can have it beside others.
    #[error("{0} is no address that clients can send to; name the service's virtual address")]
    NoHost(IpAddr),
    /// It is up in another way.
    #[error(
        "{vip} is up already with --method {method} --dev {dev}; `xvs realserver down --vip {vip}` first"
    )]
    UpOtherwise {
        /// The virtual address.
        vip: IpAddr,
        /// How it is up.
        method: Method,
        /// Where it is up.
        dev: String,
    },
    /// It is not up.
    #[error("{0} is not up; `xvs realserver status` lists what is")]
    NotUp(IpAddr),
    /// A port for GUE, and no tunnel.
    #[error("--gue-port says where a tunnel ends; it goes with --method tunnel")]
    GueWithoutTunnel,
    /// The XDP program's refusal.
    #[error("decapsulation for {vip}: {error}")]
    Decap {
        /// The virtual address.
        vip: IpAddr,
        /// Why not.
        error: DecapError,
    },
}

fn hint(error: &io::Error) -> &'static str {
    if error.kind() == io::ErrorKind::PermissionDenied { "; this needs root" } else { "" }
}

pub(crate) fn failed(what: impl FnOnce() -> String) -> impl FnOnce(io::Error) -> RealserverError {
    move |error| RealserverError::Io { what: what(), error }
}
