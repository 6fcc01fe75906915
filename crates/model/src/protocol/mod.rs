//! The protocol of the control socket.

pub mod client;
pub mod framing;
pub mod late_reply;
pub mod question;
pub mod request;
