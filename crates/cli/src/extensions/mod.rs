//! What services have and ipvsadm has no options for: each subcommand changes it, or lists it.

pub(crate) mod feedback;
pub(crate) mod laddr;
pub(crate) mod limit;
pub(crate) mod lists;
pub(crate) mod mark;
pub(crate) mod quic;
