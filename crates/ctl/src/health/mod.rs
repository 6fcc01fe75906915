//! Health: whether real servers answer, and what follows from it for the services of a keepalived.conf.
//!
//! Each check asks again and again, on a runtime of its own, so that no probe delays a command. What its answers mean for
//! it is counted by itself; what that means for a virtual server is worked out in one place, and what the table should
//! then hold goes to the control thread as a whole. Not here: what a file says (`keepalived/`), and what becomes of
//! packets.

#[allow(dead_code, reason = "for who asks in turn")]
mod command;
pub mod course;
#[allow(dead_code, reason = "as above")]
mod file;
pub mod pool;
pub mod report;
#[allow(dead_code, reason = "as above")]
mod script;

mod dns;
mod icmp;
mod smtp;
mod socket;
mod tcp;
mod udp;

/// What came of asking once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It is well. What it adds to the server's weight, which is not 0 only for scripts and files that say so.
    Well(i64),
    /// It is not, in words: what was seen and what was wanted.
    Unwell(String),
    /// It could not be asked, for a reason that lies here and says nothing of the server, in words.
    Unasked(String),
}
