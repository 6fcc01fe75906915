//! What happens to a packet, now.
//!
//! The way of a packet, as modules in its order: the XDP program ([`steering`]) steers it to a socket; a [`worker`] takes a
//! burst of frames from its [`port`] through the [`pipeline`], where each is parsed, classified against the
//! [`snapshot`], looked up among the connections ([`flow`], [`conn`]), scheduled if it begins one (by its client's template:
//! [`persistence`]; in a full table in another's place: [`pressure`]), rewritten or
//! encapsulated ([`forward`]), and sent or dropped ([`outcome`]).

pub mod steering;

pub mod shm;

pub mod port;

pub mod worker;

pub mod pipeline;

pub mod classify;
pub mod conn;
pub mod flow;
pub mod local;
pub mod marks;
pub mod persistence;
pub mod pressure;
pub mod schedule;

pub mod egress;
pub mod forward;
pub mod mss;
pub mod path_mtu;
mod tell;

pub mod datagram;
pub mod ending;
pub mod exchange;
pub mod fragments;
pub mod pieces;

pub mod capture;

pub mod answer;
pub mod outcome;
pub mod verdict;

mod occupancy;
pub mod snapshot;

pub mod explain;

pub mod clock;
pub mod counters;
pub mod decap;
pub mod dice;
