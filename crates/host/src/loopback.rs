//! The setting `accept_local` of `lo`: the kernel then accepts packets from its own addresses there.
//!
//! The kernel refuses packets from its own addresses, except packets that it sent through `lo` and that still have
//! their route. A frame that xvsd returns through `lo` has no route. Only the machine itself sends through `lo`, so the
//! setting admits nothing else, and it stays on.

use std::{fs, io};

use rustix::fd::BorrowedFd;
use serde::{Deserialize, Serialize};
use xvs_helper::task::{Answer, Task};

/// Allows it.
#[derive(Debug, Serialize, Deserialize)]
pub struct AcceptOwnAddresses;

impl Task for AcceptOwnAddresses {
    const NAME: &'static str = "accept-own-addresses";
    type Done = ();

    /// Errors name the setting.
    fn carry_out(&self, _: &[BorrowedFd<'_>]) -> io::Result<Answer<()>> {
        if fs::read_to_string(ACCEPT_LOCAL).map_err(failed)?.trim() != "1" {
            fs::write(ACCEPT_LOCAL, "1").map_err(failed)?;
        }
        Ok(((), Vec::new()))
    }
}

fn failed(error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{ACCEPT_LOCAL}: {error}"))
}

const ACCEPT_LOCAL: &str = "/proc/sys/net/ipv4/conf/lo/accept_local";
