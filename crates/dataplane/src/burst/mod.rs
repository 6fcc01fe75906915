//! The stages of every packet: what it is, its connection and that one's state, where it goes.

pub mod classify;
pub mod dispatch;
pub mod flows;
mod state;
pub mod transmit;
