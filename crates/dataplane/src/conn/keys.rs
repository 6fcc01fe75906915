//! The keys of an entry. They enter the index when a worker inserts a connection, and when a table is repaired.

use xvs_proto::{FlowKey, HashSecret};

use super::buckets::{Buckets, Claim, Entered, Key, share_of};
use super::entry::{Packed, Record};
use super::insertion::Kind;
use super::slab::Slab;

/// The keys by which packets find an entry.
pub(super) struct Keys {
    request: FlowKey,
    kind: Kind,
    request_hash: u64,
    /// The flow of replies with its hash, if they have a separate key.
    reply: Option<(FlowKey, u64)>,
    /// Whether no other connection may have the same flow of replies, because they go to an endpoint of the director.
    alone: bool,
}

impl Keys {
    #[inline]
    pub(super) fn of(
        request: FlowKey,
        kind: Kind,
        reply: Option<FlowKey>,
        has_local: bool,
        secret: &HashSecret,
    ) -> Self {
        Self {
            request,
            kind,
            request_hash: request.hash(secret),
            reply: reply.map(|flow| (flow, flow.hash(secret))),
            alone: has_local,
        }
    }

    /// The keys of a filled entry.
    #[inline]
    pub(super) fn of_entry(slab: &Slab, secret: &HashSecret, index: u32) -> Self {
        let record = slab.record(index);
        let kind = if record.is_template() { Kind::Template } else { Kind::Connection };
        Self::of(record.request_flow(), kind, record.reply_flow(), record.local().is_some(), secret)
    }

    /// Whether a record has this identity.
    #[inline]
    pub(super) fn are_of(&self, record: Record<'_>) -> bool {
        record.is(&Packed::of(&self.request), self.kind)
    }

    /// Fetches the buckets of the reply key.
    #[inline]
    pub(super) fn prefetch_reply(&self, buckets: &Buckets) {
        self.reply.inspect(|(_, hash)| buckets.prefetch_both(*hash));
    }

    /// Fetches the buckets of all keys.
    pub(super) fn prefetch(&self, buckets: &Buckets) {
        buckets.prefetch_both(self.request_hash);
        self.prefetch_reply(buckets);
    }

    /// The keys' contribution to the sum over the buckets if they are in the index.
    pub(super) fn share(&self, index: u32) -> u64 {
        share_of(self.request_hash, index)
            .wrapping_add(self.reply.map_or(0, |(_, hash)| share_of(hash, index)))
    }

    /// Removes the keys of this entry from the index, if they are there.
    #[inline]
    pub(super) fn unlink(&self, buckets: &Buckets, index: u32) {
        buckets.unlink(self.request_hash, index);
        self.reply.inspect(|(_, hash)| buckets.unlink(*hash, index));
    }

    /// Enters the keys of a filled entry. The reply key comes first: another worker that finds the connection by the
    /// client's key may send a packet to the destination, and the reply must find the connection.
    ///
    /// # Errors
    ///
    /// The key that cannot be entered, and the reason; then no key is entered.
    #[inline]
    pub(super) fn enter(&self, buckets: &Buckets, slab: &Slab, claim: Claim) -> Result<(), (Key, Entered)> {
        if let Some((flow, hash)) = self.reply {
            let entered = if self.alone {
                buckets.enter_alone(hash, claim, Key::Reply, |other| {
                    slab.record(other).reply_flow() == Some(flow)
                })
            } else {
                let record = slab.record(claim.index);
                buckets.enter_beside(hash, claim, |other| slab.record(other).shares_reply_key(record))
            };
            if entered != Entered::Own {
                return Err((Key::Reply, entered));
            }
        }
        let request = Packed::of(&self.request);
        let entered = buckets.enter_alone(self.request_hash, claim, Key::Request, |other| {
            slab.record(other).is(&request, self.kind)
        });
        if entered == Entered::Own {
            return Ok(());
        }
        if let Some((_, hash)) = self.reply {
            buckets.unlink(hash, claim.index);
        }
        Err((Key::Request, entered))
    }
}
