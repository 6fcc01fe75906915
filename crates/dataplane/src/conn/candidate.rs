//! Look-ups of a burst in steps, so that the memory for the next step is fetched meanwhile: the candidate by its tag,
//! then its comparison with the packet.
//!
//! A packet whose candidate is another connection, or that has none, needs [`TableWorker::find`]: the steps here find
//! a connection or nothing, never a wrong one.

use xvs_proto::Family;
use xvs_proto::plain::{LinkAddresses, Plain};

use super::connection::Connection;
use super::direction::Direction;
use super::entry::Life;
use super::handle::TableWorker;
use super::id::ConnId;
use crate::shm::prefetch;

impl TableWorker {
    /// The connection that a look-up by this hash most likely finds; its entry is prefetched. The bucket should be in
    /// the cache already. `None`: it may be in the alternative bucket, which is prefetched.
    #[inline(always)]
    pub(crate) fn candidate(&self, hash: u64) -> Option<ConnId> {
        let claim = self.handle.table.buckets.candidate(hash)?;
        self.prefetch_entry(claim.index, claim.wide);
        Some(ConnId(claim.index))
    }

    /// As [`Self::candidate`], in the alternative bucket.
    #[inline]
    pub(crate) fn second_candidate(&self, hash: u64) -> Option<ConnId> {
        let claim = self.handle.table.buckets.second_candidate(hash)?;
        self.prefetch_entry(claim.index, claim.wide);
        Some(ConnId(claim.index))
    }

    #[inline(always)]
    fn prefetch_entry(&self, index: u32, wide: bool) {
        let record = self.handle.table.slab.record(index);
        prefetch(record.entry);
        if wide {
            prefetch(record.extension);
        }
    }
}

impl Connection<'_> {
    /// The direction of a plain packet of this connection. `None`: it is not found to belong to it.
    #[inline]
    pub(crate) fn direction_of(&self, plain: &Plain, frame: &[u8]) -> Option<Direction> {
        match plain.family {
            Family::V4 => self.record.direction_v4(plain.source, plain.dest, plain.protocol),
            Family::V6 => self.record.direction_v6(plain, Plain::addresses_v6(frame)),
        }
    }

    /// Rewrites a plain packet of this masqueraded connection to or from its destination, for these link addresses.
    /// Returns `false`, and changes nothing, if an address is of another family or a datagram has no checksum.
    #[inline]
    pub(crate) fn masquerade(
        &self,
        plain: &Plain,
        frame: &mut [u8],
        direction: Direction,
        link: &LinkAddresses,
    ) -> bool {
        match (plain.family, direction) {
            (Family::V4, Direction::Inbound) => {
                let Some((source, dest)) = self.record.towards_dest_v4() else { return false };
                plain.masquerade(frame, source, dest, link)
            }
            (Family::V4, Direction::Outbound) => {
                let (source, dest) = self.record.towards_client_v4();
                plain.masquerade(frame, source, dest, link)
            }
            (Family::V6, Direction::Inbound) => {
                let Some((source, dest)) = self.record.towards_dest_v6() else { return false };
                plain.masquerade_v6(frame, source, dest, link)
            }
            (Family::V6, Direction::Outbound) => {
                let (client, service) = self.record.towards_client_v6();
                plain.masquerade_v6(frame, service, client, link)
            }
        }
    }

    /// Phase, state and deadline at one moment.
    #[inline]
    pub(crate) fn life(&self) -> Life {
        self.record.entry.life()
    }
}
