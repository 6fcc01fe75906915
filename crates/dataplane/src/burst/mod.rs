//! The stages of every packet: what it is, its connection and that one's state, where it goes.

pub(crate) mod context;
mod record;

pub mod classify;
pub(crate) mod forward;
pub(crate) mod lookup;
pub(crate) mod state;

pub(crate) mod dispatch;
pub mod transmit;

mod expiry;
pub mod flows;
pub(crate) mod framed_packet;
mod replaced;

pub use self::context::Context;
pub(crate) use self::framed_packet::FramedPacket;
pub use self::record::{Burst, Step};
