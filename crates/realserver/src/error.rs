//! Errors of preparing a real server and of undoing it.

use std::io;
use std::net::IpAddr;

use thiserror::Error;

use crate::decapsulation::DecapError;
use crate::foreign::Foreign;
use crate::method::Method;

/// An error of preparing a real server or of undoing it.
#[derive(Debug, Error)]
pub enum RealserverError {
    /// The record or a table of the kernel could not be read or written.
    #[error("{what}: {error}{}", hint(error))]
    Io {
        /// The failed operation.
        what: String,
        /// The system's error.
        error: io::Error,
    },
    /// No such interface.
    #[error("no interface {dev}; this machine has {present}")]
    NoInterface {
        /// The requested name.
        dev: String,
        /// The names of the existing interfaces, separated by commas.
        present: String,
    },
    /// No interface was given, and there is no default route.
    #[error("no default route, so the interface of packets to {0} is unknown; name it with --dev")]
    NoDefaultRoute(IpAddr),
    /// Another interface has the address and would send ARP replies for it.
    #[error(
        "{vip} is an address of {dev}, where it would answer ARP; remove it there (`ip address del`) first"
    )]
    AnswersArp {
        /// The virtual address.
        vip: IpAddr,
        /// The interface that has it.
        dev: String,
    },
    /// The address does not belong to a single host, such as a multicast address.
    #[error("{0} is no unicast address; name the service's virtual address")]
    NotUnicast(IpAddr),
    /// The address is up with another method or interface than `down` names.
    #[error(
        "{vip} is up with --method {method} --dev {dev}; `xvs realserver down --vip {vip}` takes it down so"
    )]
    UpDifferently {
        /// The virtual address.
        vip: IpAddr,
        /// The method that it is up with.
        method: Method,
        /// The interface that it is up with.
        dev: String,
    },
    /// It is not up.
    #[error("{0} is not up; `xvs realserver status` lists what is")]
    NotUp(IpAddr),
    /// This machine has it, by another program.
    #[error("{0}")]
    Foreign(Foreign),
    /// A port for GUE without a tunnel.
    #[error("--gue-port is the UDP port of a tunnel; it goes with --method tunnel")]
    GueWithoutTunnel,
    /// The XDP program could not be installed, removed or read.
    #[error("decapsulation for {vip}: {error}")]
    Decap {
        /// The virtual address.
        vip: IpAddr,
        /// The error.
        error: DecapError,
    },
}

fn hint(error: &io::Error) -> &'static str {
    if error.kind() == io::ErrorKind::PermissionDenied { "; this needs root" } else { "" }
}

/// Creates an error from a system call's error; for `map_err`.
pub(crate) fn failed(what: impl FnOnce() -> String) -> impl FnOnce(io::Error) -> RealserverError {
    move |error| RealserverError::Io { what: what(), error }
}
