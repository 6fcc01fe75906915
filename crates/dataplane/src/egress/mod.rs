//! Where a packet leaves: routes, next hops and their link addresses, read-only.

pub mod model;
