//! The data plane's number of an interface.

/// One of the director's interfaces, by its position in the links of the snapshot and of the port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LinkId(pub u16);
