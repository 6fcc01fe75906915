//! The stages of every packet: classification, look-up, state, forwarding, dispatch.

pub(crate) mod context;
pub(crate) mod deferred;
mod fast_path;
mod record;

pub mod classify;
pub(crate) mod handshake;
pub(crate) mod lookup;
pub(crate) mod state;

pub(crate) mod dispatch;
pub mod transmit;

mod expiry;
pub mod flows;
mod replaced;

pub use self::context::Context;
pub(crate) use self::context::FramedPacket;
pub(crate) use self::record::Forwarding;
pub use self::record::{Burst, Step};
