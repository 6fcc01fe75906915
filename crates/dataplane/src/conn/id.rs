//! The id of a connection in the table.

/// The index of a connection's entry. It identifies the same connection until the handle's next quiescent point, and
/// afterwards only together with the generation ([`TableWorker::recall`](crate::conn::handle::TableWorker::recall)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId(pub(crate) u32);

impl ConnId {
    /// The index in walks: below [`Table::extent`](crate::conn::table::Table::extent).
    pub fn index(self) -> u32 {
        self.0
    }
}
