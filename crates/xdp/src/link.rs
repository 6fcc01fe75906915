//! How the data plane names an interface.

/// One of the director's interfaces, by its place in the snapshot's and the port's list of links.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LinkId(pub u16);
