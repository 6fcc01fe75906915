//! How a connection is named while it is in the table.

/// A connection's place in the table. It names the same connection until the holder's next quiescent point; later
/// only together with the generation ([`TableWorker::recall`](crate::conn::handle::TableWorker::recall)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId(pub(crate) u32);

impl ConnId {
    /// The number by which walks count: below [`Table::extent`](crate::conn::table::Table::extent).
    pub fn index(self) -> u32 {
        self.0
    }
}
