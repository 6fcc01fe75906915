//! Look-ups for a burst in steps, so that the memory for the next step is fetched at the same time: finding the
//! candidate by its tag, then comparing it with the packet.
//!
//! A packet without a candidate, or whose candidate is another connection, needs [`TableWorker::find`]. Until this
//! worker inserts a connection, these steps find the same connection as that look-up, or none.

use xvs_proto::Family;
use xvs_proto::plain::{LinkAddresses, Plain};

use super::buckets::{Candidate, Claim};
use super::connection::Connection;
use super::direction::Direction;
use super::handle::TableWorker;
use super::id::ConnId;
use super::life::Life;
use crate::shm::prefetch;

impl TableWorker {
    /// The connection that a look-up by this hash most likely finds; its entry is prefetched. The bucket should be in
    /// the cache already. [`Candidate::Elsewhere`]: the alternative bucket is prefetched.
    #[inline(always)]
    pub(crate) fn candidate(&self, hash: u64) -> Candidate<ConnId> {
        self.fetched(self.handle.table.buckets.candidate(hash))
    }

    /// Like [`Self::candidate`], in the alternative bucket.
    #[inline]
    pub(crate) fn second_candidate(&self, hash: u64) -> Candidate<ConnId> {
        self.fetched(self.handle.table.buckets.second_candidate(hash))
    }

    #[inline(always)]
    fn fetched(&self, found: Candidate<Claim>) -> Candidate<ConnId> {
        match found {
            Candidate::Found(Claim { index, wide }) => {
                self.prefetch_entry(index, wide);
                Candidate::Found(ConnId(index))
            }
            Candidate::Elsewhere => Candidate::Elsewhere,
            Candidate::Unsure => Candidate::Unsure,
        }
    }

    #[inline(always)]
    pub(super) fn prefetch_entry(&self, index: u32, wide: bool) {
        let record = self.handle.table.slab.record(index);
        prefetch(record.entry);
        if wide {
            prefetch(record.extension);
        }
    }
}

impl Connection<'_> {
    /// The direction of a plain packet of this connection. `None` if only a look-up can decide whether it belongs to
    /// the connection.
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

    /// Whether client and destination belong to different families, so that packets are translated between them.
    #[inline]
    pub(crate) fn is_translated(&self) -> bool {
        self.record.is_translated()
    }

    /// Phase, state and deadline at one moment.
    #[inline]
    pub(crate) fn life(&self) -> Life {
        self.record.entry.life()
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use crate::conn::{Inserted, NewConnection, Table, TableConfig};
    use crate::shm::Memory;
    use std::net::Ipv4Addr;
    use xvs_proto::{Endpoint, FlowKey, HashSecret, Protocol};

    const SECRET: HashSecret =
        HashSecret([0x9e37_79b9_7f4a_7c15, 0xd1b5_4a32_d192_ed03, 0x2545_f491_4f6c_dd1d]);

    /// UDP from a client to one of four virtual endpoints, with NAT to one server.
    fn connection(number: u16) -> NewConnection {
        NewConnection {
            protocol: Protocol::UDP,
            client: Endpoint::new(Ipv4Addr::new(192, 0, 2, 1), number / 4),
            virtual_endpoint: Endpoint::new(Ipv4Addr::new(198, 51, 100, (number % 4) as u8), 80),
            dest: Endpoint::new(Ipv4Addr::new(10, 0, 0, 1), 80),
            ..NewConnection::example()
        }
    }

    fn plain(flow: &FlowKey) -> Plain {
        let word = |end: Endpoint| match end.addr {
            std::net::IpAddr::V4(addr) => u64::from(u32::from(addr)) << 32 | u64::from(end.port) << 16,
            std::net::IpAddr::V6(_) => unreachable!("IPv4 alone"),
        };
        let protocol = flow.protocol.0;
        Plain { source: word(flow.source), dest: word(flow.dest), protocol, ..Plain::default() }
    }

    #[test]
    fn a_matching_candidate_is_what_a_look_up_finds_also_among_shadowed_keys_and_full_buckets() {
        let config = TableConfig { capacity: 4096, workers: 1, memory: Memory::OnDemand };
        let table = Table::keyed(config, SECRET).unwrap();
        let mut worker = table.handle(0).unwrap();
        let mut all: Vec<_> = (0..4000).map(connection).collect();
        // Keys that are equal fill two buckets early.
        all.retain(|new| matches!(worker.insert(new), Inserted::New(_)));
        let (mut first, mut second) = (0, 0);
        for new in &all {
            let request = new.request_flow();
            let reply = FlowKey { source: new.dest, dest: new.client, ..request };
            for flow in [request, reply] {
                let hash = worker.hash(&flow);
                let candidate = match worker.candidate(hash) {
                    Candidate::Elsewhere => {
                        second += 1;
                        worker.second_candidate(hash)
                    }
                    found => {
                        first += 1;
                        found
                    }
                };
                let Candidate::Found(id) = candidate else { continue };
                if let Some(direction) = worker.connection(id).direction_of(&plain(&flow), &[]) {
                    assert_eq!(worker.find(&flow, hash), Some((id, direction)), "{flow:?}");
                }
            }
        }
        assert!(first > 5000 && second > 100, "both buckets are used: {first}, {second}");
    }
}
