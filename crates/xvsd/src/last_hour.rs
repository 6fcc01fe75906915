//! Counts over the last hour, by steps of time: the lines on the status page.
//!
//! The control thread, which wakes ten times a second anyway, adds the counts of each step that is over; workers are
//! not involved. Steps divide the machine's uptime, so those of two processes fit together. A step in which xvsd did
//! not run is a gap, not zero. Memory: four 32-bit numbers for each of [`TOTALS`]' steps, and one for each of
//! [`SERVICES`]' steps of a service: with its key at most some 500 bytes for each service. `restart/kept_hour.rs`
//! stores the counts for a successor.

use std::collections::HashMap;
use std::hash::Hash;
use std::mem;
use std::sync::Mutex;

use serde::{Deserialize, Serialize};
use xvs_dataplane::clock::Millis;
use xvs_model::report::history::{self, Counts, ServiceCounts, TotalCounts};
use xvs_sched::ServiceKey;

use crate::lock::lock;

/// The steps of the totals: one each 10 seconds.
pub(crate) const TOTALS: Steps = Steps { millis: 10_000, kept: 360 };
/// The steps of each service: one each minute, so that thousands of services need little memory.
pub(crate) const SERVICES: Steps = Steps { millis: 60_000, kept: 60 };

/// How an hour is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Steps {
    millis: u64,
    /// The number of steps that are kept.
    kept: usize,
}

impl Steps {
    /// The step that runs at this time, counted from the machine's start.
    fn at(self, time: Millis) -> u64 {
        time.0 / self.millis
    }
}

/// The quantities that are counted for all services together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Total {
    /// New connections.
    Connections,
    /// Packets towards real servers.
    InPackets,
    /// Packets towards clients.
    OutPackets,
    /// Packets dropped for any reason, since the process began.
    DroppedPackets,
}

/// The counts. The control thread writes, any thread may read.
#[derive(Debug, Default)]
pub(crate) struct LastHour(Mutex<Option<Hour>>);

/// The totals and the services.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Hour {
    totals: Lines<Total>,
    services: Lines<ServiceKey>,
}

impl LastHour {
    /// Begins with the counts that an earlier process has recorded, if there are any and they are from this start of
    /// the machine.
    pub(crate) fn begin(
        &self,
        now: Millis,
        kept: Option<Hour>,
        totals: impl FnOnce() -> Vec<(Total, u64)>,
        services: impl FnOnce() -> Vec<(ServiceKey, u64)>,
    ) {
        let mut hour = kept
            .filter(|kept| kept.totals.at() <= now && kept.services.at() <= now)
            .unwrap_or_else(|| Hour { totals: Lines::begun(now), services: Lines::begun(now) });
        // The workers of this process count drops from zero.
        hour.totals.counted_anew(Total::DroppedPackets);
        hour.totals.resume(TOTALS, now, totals);
        hour.services.resume(SERVICES, now, services);
        *lock(&self.0) = Some(hour);
    }

    /// Adds the steps that are over. Returns whether one of the services is.
    pub(crate) fn record(
        &self,
        now: Millis,
        totals: impl FnOnce() -> Vec<(Total, u64)>,
        services: impl FnOnce() -> Vec<(ServiceKey, u64)>,
    ) -> bool {
        let mut hour = lock(&self.0);
        let Some(hour) = &mut *hour else { return false };
        hour.totals.record(TOTALS, now, totals);
        hour.services.record(SERVICES, now, services)
    }

    /// Whether it has begun.
    pub(crate) fn has_begun(&self) -> bool {
        lock(&self.0).is_some()
    }

    /// Reads everything, if it has begun; reports wait in the meantime.
    pub(crate) fn read(&self, read: impl FnOnce(&Hour)) {
        if let Some(hour) = &*lock(&self.0) {
            read(hour);
        }
    }

    /// The totals, and the services of these keys, by their names.
    pub(crate) fn report<'a>(
        &self,
        services: impl Iterator<Item = (&'a ServiceKey, &'a str)>,
    ) -> history::LastHour {
        let hour = lock(&self.0);
        let total = |total| hour.as_ref().map(|hour| hour.totals.counts(&total)).unwrap_or_default();
        let service = |key| hour.as_ref().map(|hour| hour.services.counts(key)).unwrap_or_default();
        history::LastHour {
            totals: TotalCounts {
                step_seconds: TOTALS.millis / 1000,
                connections: total(Total::Connections),
                in_packets: total(Total::InPackets),
                out_packets: total(Total::OutPackets),
                dropped_packets: total(Total::DroppedPackets),
            },
            services: ServiceCounts {
                step_seconds: SERVICES.millis / 1000,
                connections: services.map(|(key, name)| (name.to_owned(), service(key))).collect(),
            },
        }
    }
}

/// Lines of counts that all end at the same step.
#[derive(Debug, Serialize, Deserialize)]
#[serde(bound(serialize = "K: Serialize", deserialize = "K: Deserialize<'de> + Eq + Hash"))]
struct Lines<K> {
    /// When the counters were last read. The steps before that time are over.
    at_millis: u64,
    #[serde(with = "pairs")]
    lines: HashMap<K, Line>,
}

/// A line of counts.
#[derive(Debug, Serialize, Deserialize)]
struct Line {
    /// The counter's value when it was last read.
    seen: u64,
    /// The counts, the oldest first. `u32::MAX` is a gap: an `Option` would take twice the memory.
    counts: Vec<u32>,
}

/// A step that was not counted.
const GAP: u32 = u32::MAX;

/// Whether xvsd ran since the counters were last read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Since {
    Ran,
    Absent,
}

impl<K: Eq + Hash> Lines<K> {
    fn begun(at: Millis) -> Self {
        Self { at_millis: at.0, lines: HashMap::new() }
    }

    fn at(&self) -> Millis {
        Millis(self.at_millis)
    }

    /// Adds the steps that are over since the last call; returns whether there are any.
    fn record(&mut self, steps: Steps, now: Millis, counters: impl FnOnce() -> Vec<(K, u64)>) -> bool {
        let is_due = steps.at(now) > steps.at(self.at());
        if is_due {
            self.advance(steps, now, counters(), Since::Ran);
        }
        is_due
    }

    /// Continues the lines of an earlier process. A step that it has begun, or the next one, is completed by this
    /// process; in longer pauses nothing has counted.
    fn resume(&mut self, steps: Steps, now: Millis, counters: impl FnOnce() -> Vec<(K, u64)>) {
        if self.lines.is_empty() || steps.at(now) > steps.at(self.at()) + 1 {
            self.advance(steps, now, counters(), Since::Absent);
        }
    }

    /// Adds the steps between the last time and now: to each as many as its share of the time. A line that has no
    /// counter any more ends; a new one begins.
    fn advance(&mut self, steps: Steps, now: Millis, counters: Vec<(K, u64)>, since: Since) {
        let over = steps.at(now).saturating_sub(steps.at(self.at())).min(steps.kept as u64) as usize;
        let millis = self.at().until(now).as_millis() as u64;
        // For a shorter part of a step a rate would be a guess: one connection in a tenth of a second.
        let is_counted = since == Since::Ran && millis >= steps.millis / 2;
        let mut before = mem::take(&mut self.lines);
        self.lines.reserve(counters.len());
        for (key, value) in counters {
            let line = match before.remove(&key) {
                Some(mut line) => {
                    let counted = value.saturating_sub(line.seen);
                    let share = (counted as f64 * steps.millis as f64 / millis.max(1) as f64).round();
                    let count = if is_counted { share.min(f64::from(GAP - 1)) as u32 } else { GAP };
                    line.add(count, over, steps.kept);
                    Line { seen: value, ..line }
                }
                None => Line { seen: value, counts: Vec::new() },
            };
            self.lines.insert(key, line);
        }
        self.at_millis = now.0;
    }

    /// The next value of this counter counts from zero.
    fn counted_anew(&mut self, key: K) {
        if let Some(line) = self.lines.get_mut(&key) {
            line.seen = 0;
        }
    }

    fn counts(&self, key: &K) -> Counts {
        self.lines
            .get(key)
            .map_or(&[][..], |line| &line.counts)
            .iter()
            .map(|count| (*count != GAP).then_some(*count))
            .collect()
    }
}

impl Line {
    /// Adds a count for each of this number of steps; the oldest ones beyond `kept` go. A line begins with a count.
    fn add(&mut self, count: u32, over: usize, kept: usize) {
        if count == GAP && self.counts.is_empty() {
            return;
        }
        let keep = kept - over;
        let surplus = self.counts.len().saturating_sub(keep);
        self.counts.drain(..surplus);
        self.counts.reserve_exact(kept.saturating_sub(self.counts.len()));
        self.counts.resize(self.counts.len() + over, count);
    }
}

/// Lines as an array of pairs: the keys of an object of JSON are texts.
mod pairs {
    use std::collections::HashMap;
    use std::hash::Hash;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::Line;

    pub(super) fn serialize<K: Serialize, S: Serializer>(
        lines: &HashMap<K, Line>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(lines)
    }

    pub(super) fn deserialize<'de, K: Deserialize<'de> + Eq + Hash, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<HashMap<K, Line>, D::Error> {
        Ok(Vec::deserialize(deserializer)?.into_iter().collect())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "for tests only")]
mod tests {
    use crate::last_hour::*;

    const WEB: &str = "TCP 198.51.100.1:80";
    const DNS: &str = "UDP 198.51.100.1:53";

    /// The counters of a process.
    #[derive(Default)]
    struct Process {
        hour: LastHour,
        connections: u64,
        drops: u64,
        services: Vec<(&'static str, u64)>,
    }

    impl Process {
        fn totals(&self) -> Vec<(Total, u64)> {
            vec![(Total::Connections, self.connections), (Total::DroppedPackets, self.drops)]
        }

        fn services(&self) -> Vec<(ServiceKey, u64)> {
            self.services.iter().map(|(name, count)| (name.parse().unwrap(), *count)).collect()
        }

        fn begin(&self, millis: u64, kept: Option<Hour>) {
            self.hour.begin(Millis(millis), kept, || self.totals(), || self.services());
        }

        fn tick(&self, millis: u64) -> bool {
            self.hour.record(Millis(millis), || self.totals(), || self.services())
        }

        fn report(&self) -> history::LastHour {
            let keys = [WEB, DNS].map(|name| (name.parse().unwrap(), name));
            self.hour.report(keys.iter().map(|(key, name)| (key, *name)))
        }

        fn connections(&self) -> Counts {
            self.report().totals.connections
        }

        fn kept(&self) -> Option<Hour> {
            let mut text = Vec::new();
            self.hour.read(|hour| text = serde_json::to_vec(hour).unwrap());
            serde_json::from_slice(&text).unwrap()
        }
    }

    #[test]
    fn each_step_that_is_over_has_its_count_and_the_oldest_go_after_an_hour() {
        let mut process = Process { services: vec![(WEB, 0)], ..Process::default() };
        process.begin(600_000, None);
        for tick in 1..=36_000 {
            process.connections += 1;
            process.services[0].1 += 1;
            let now = 600_000 + tick * 100;
            assert_eq!(process.tick(now), now % 60_000 == 0);
        }
        let report = process.report();
        assert_eq!(report.totals.connections, vec![Some(100); 360]);
        assert_eq!(report.totals.in_packets, []);
        assert_eq!(report.services.connections[WEB], vec![Some(600); 60]);
        assert_eq!(report.services.connections[DNS], []);
        process.connections += 7;
        process.tick(4_210_000);
        let connections = process.connections();
        assert_eq!((connections.len(), connections[358], connections[359]), (360, Some(100), Some(7)));
        assert_eq!(
            process.hour.0.lock().unwrap().as_ref().unwrap().totals.lines[&Total::Connections]
                .counts
                .capacity(),
            360
        );
    }

    #[test]
    fn a_late_tick_shares_its_count_among_the_steps_and_a_short_part_of_one_is_not_counted() {
        let mut process = Process::default();
        process.begin(5_001, None);
        process.connections = 50;
        process.tick(10_040);
        assert_eq!(process.connections(), [Some(99)], "50 in 5.039 s are 99 in 10 s");
        process.connections += 60;
        process.tick(40_040);
        assert_eq!(process.connections()[1..], [Some(20); 3]);
        let late = Process { connections: 3, ..Process::default() };
        late.begin(9_900, None);
        assert!(late.connections().is_empty());
        late.tick(10_000);
        late.tick(20_000);
        assert_eq!(late.connections(), [Some(0)]);
    }

    #[test]
    fn a_successor_continues_the_step_of_its_predecessor() {
        let mut former =
            Process { connections: 1000, drops: 500, services: vec![(WEB, 40)], ..Process::default() };
        former.begin(600_000, None);
        former.connections = 1100;
        former.tick(610_000);
        // The totals continue; its drops restart from zero.
        let mut process =
            Process { connections: 1130, drops: 2, services: vec![(WEB, 70)], ..Process::default() };
        process.begin(616_000, former.kept());
        process.connections = 1150;
        process.drops = 4;
        process.tick(620_000);
        process.services = vec![(WEB, 100), (DNS, 9)];
        process.tick(660_000);
        let report = process.report();
        assert_eq!(report.totals.connections[..2], [Some(100), Some(50)]);
        assert_eq!(report.totals.dropped_packets[..2], [Some(0), Some(4)]);
        assert_eq!(report.services.connections[WEB], [Some(60)]);
        assert_eq!(report.services.connections[DNS], [], "it begins");
    }

    #[test]
    fn the_time_in_which_no_xvsd_ran_is_a_gap_and_what_was_counted_before_is_not_counted_again() {
        let mut former = Process { services: vec![(WEB, 0), (DNS, 0)], ..Process::default() };
        former.begin(600_000, None);
        former.connections = 10;
        former.services = vec![(WEB, 10), (DNS, 10)];
        former.tick(660_000);
        let mut process = Process { connections: 30, services: vec![(WEB, 30)], ..Process::default() };
        process.begin(845_000, former.kept());
        process.connections = 34;
        process.services = vec![(WEB, 34)];
        process.tick(850_000);
        process.tick(900_000);
        let report = process.report();
        let connections = &report.totals.connections;
        assert_eq!(connections[..6], [Some(2); 6], "10 in 60 s");
        assert_eq!(connections[6..24], [None; 18], "from 660 s to 840 s");
        assert_eq!(connections[24..26], [Some(8), Some(0)]);
        assert_eq!(report.services.connections[WEB], [Some(10), None, None, None, Some(4)]);
        assert_eq!(report.services.connections[DNS], [], "it was deleted");
    }

    #[test]
    fn counts_of_another_start_of_the_machine_or_of_longer_ago_than_an_hour_are_not_shown() {
        let mut former = Process::default();
        former.begin(600_000, None);
        former.connections = 10;
        former.tick(610_000);
        let process = Process::default();
        process.begin(400_000, former.kept());
        process.tick(410_000);
        assert_eq!(process.connections(), [Some(0)]);
        let process = Process::default();
        process.begin(4_210_000, former.kept());
        process.tick(4_220_000);
        let connections = process.connections();
        assert_eq!((connections.len(), connections[359]), (360, Some(0)));
        assert_eq!(connections[..359], [None; 359]);
    }

    #[test]
    fn a_service_costs_less_than_half_a_kilobyte() {
        let mut process = Process::default();
        process.begin(0, None);
        process.services = vec![(WEB, 0)];
        for minute in 1..100 {
            assert!(process.tick(minute * 60_000));
        }
        let hour = process.hour.0.lock().unwrap();
        let lines = &hour.as_ref().unwrap().services.lines;
        let counts = lines.values().next().unwrap().counts.capacity() * size_of::<u32>();
        // A std map has at most 16 slots for 7 entries, and a byte for each slot.
        let place = (size_of::<(ServiceKey, Line)>() + 1) * 16 / 7;
        assert!(counts + place < 500, "{counts} + {place}");
    }
}
