//! What became of the connections of the load, by what has arrived at the real servers. Not here: `load.rs`.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use xvs::Cluster;
use xvs::cluster::REAL_SERVERS;
use xvs_xdp::bpf::{Direction, ObjectFile, Rows, Words, attach_tc, prepare_tc};
use xvs_xdp::device::Device;

use crate::load::{Half, Kind, Schedule, Sent};

/// The programs of the real servers.
pub(crate) struct Fates(Vec<Sink>);

struct Sink {
    seen: Rows<1>,
    last: Words<1>,
}

/// Connections of about one age when the first director failed.
#[derive(Default)]
pub(crate) struct OfAge {
    pub(crate) alive: u64,
    /// Those of which no packet arrived afterwards.
    pub(crate) lost: u64,
}

/// What became of all connections that were alive when the first director failed.
#[derive(Default)]
pub(crate) struct Outcome {
    /// By the least age of their group, in milliseconds: the time since the packet that announced them.
    pub(crate) ages: BTreeMap<u64, OfAge>,
    /// Those that were not announced yet.
    pub(crate) younger: OfAge,
    /// Those of which packets arrived at two real servers.
    pub(crate) moved: u64,
    /// The lost ones of at least the age [`OLD`].
    pub(crate) old_and_lost: Vec<u64>,
    /// Those that are not judged: one of the packets before the announcement did not arrive.
    pub(crate) incomplete: u64,
}

/// The least ages of groups, in milliseconds.
pub(crate) const AGES: [u64; 9] = [0, 10, 20, 30, 50, 100, 300, 1000, OLD];
/// A message about a connection leaves within three seconds.
pub(crate) const OLD: u64 = 3000;

impl Outcome {
    /// Those that were alive and announced.
    pub(crate) fn announced(&self) -> u64 {
        self.ages.values().map(|group| group.alive).sum()
    }
}

impl Fates {
    /// Attaches the program to the real servers, for at most this number of connections.
    pub(crate) fn watch(cluster: &Cluster, program: &[u8], connections: u64) -> Self {
        let sinks = REAL_SERVERS.map(|host| {
            cluster.run(host, || {
                let mut file = ObjectFile::open(program).expect("a compiled sink.bpf.c");
                file.set_entries(c"seen", connections as u32).expect("it has the map");
                let object = file.load().expect("the kernel takes the program");
                let interface = Device::look("lan").expect("the interface is there").ifindex;
                let program = object.program(c"sink").expect("it has the program");
                // It stays until the cluster is removed.
                prepare_tc(interface).expect("the interface takes a qdisc");
                attach_tc(program, interface, Direction::Ingress).expect("the qdisc takes a program");
                Sink {
                    seen: object.rows(c"seen").expect("it has the map"),
                    last: object.words(c"last").expect("it has the map"),
                }
            })
        });
        Self(sinks.into())
    }

    /// The number of the last packet that has arrived.
    pub(crate) fn last(&self) -> u64 {
        // Relaxed: one word; and so below.
        self.0.iter().map(|sink| sink.last[0].load(Ordering::Relaxed)).max().unwrap_or(0)
    }

    /// What became of the connections that were alive at packet `cut`, which was the last one before the failover.
    pub(crate) fn outcome(&self, schedule: Schedule, sent: &Sent, cut: u64) -> Outcome {
        let mut outcome = Outcome::default();
        let failed = sent.time(cut);
        for connection in 0..self.0[0].seen.len() {
            let rows = self.0.iter().map(|sink| sink.seen[connection][0].load(Ordering::Relaxed));
            let rows: Vec<u64> = rows.collect();
            let Some(row) = rows.iter().find(|row| *row & FIRST != 0) else { continue };
            let has = |kind: Kind| row & kind.bit(Half::First) != 0;
            if has(Kind::Fin) {
                continue;
            }
            if rows.iter().filter(|row| **row != 0).count() > 1 {
                outcome.moved += 1;
            }
            let announcing = schedule.announcing(connection as u64);
            let is_lost = row & SECOND == 0;
            let group = match announcing <= cut {
                true if [Kind::Syn, Kind::Ack, Kind::Data].into_iter().all(has) => {
                    let age = least(failed.saturating_duration_since(sent.time(announcing)));
                    if is_lost && age == OLD {
                        outcome.old_and_lost.push(connection as u64);
                    }
                    outcome.ages.entry(age).or_default()
                }
                true => {
                    outcome.incomplete += 1;
                    continue;
                }
                false => &mut outcome.younger,
            };
            group.alive += 1;
            group.lost += u64::from(is_lost);
        }
        outcome
    }
}

/// The least age of its group.
fn least(age: Duration) -> u64 {
    AGES.into_iter().rfind(|least| *least <= age.as_millis() as u64).unwrap_or(0)
}

/// The bits of packets before and after the failover.
const FIRST: u64 = 0xff;
const SECOND: u64 = 0xff00;
