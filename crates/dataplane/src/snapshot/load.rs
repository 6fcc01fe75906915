//! A destination's number of connections, and whether it is overloaded according to the thresholds `-x` and `-y`.
//!
//! Changed when a connection begins, when it ends, and when it becomes active or inactive; read by schedulers. It
//! follows the rules of IPVS: a destination is overloaded from the connection that reaches the upper threshold until
//! the end of the connection that brings it below the low mark. A change of thresholds is applied at once. Cost: an
//! atomic addition, and one more atomic operation when the overload flag changes.
//!
//! Both counts and the overload flag are in one integer, so they are consistent with each other at every moment. All
//! workers share its cache line. Therefore a worker adds its changes to a destination without thresholds only when its
//! burst ends, all in one addition (`burst/deferred.rs`).

use xvs_proto::Protocol;
use xvs_sched::Load;

use crate::conn::sctp::SctpState;
use crate::conn::tcp::TcpState;
use crate::conn::{Connection, Flags};
use crate::shm::atomic::{AtomicU64, Ordering};

/// The count of a destination to which a connection belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activity {
    /// `ActiveConn`.
    Active,
    /// `InActConn`.
    Inactive,
    /// `PersistConn`: a template. Schedulers ignore these.
    Template,
}

impl Activity {
    /// The count for a connection with this protocol and state.
    #[inline]
    pub fn of(protocol: Protocol, state: u8) -> Self {
        match protocol {
            Protocol::TCP if TcpState::of(state).is_active() => Self::Active,
            Protocol::SCTP if SctpState::of(state).is_active() => Self::Active,
            _ => Self::Inactive,
        }
    }

    /// The count for a connection or template in this state.
    #[inline]
    pub fn counted(connection: &Connection<'_>, state: u8) -> Self {
        let flags = connection.flags();
        match (flags.contains(Flags::SYNC), flags.contains(Flags::INACTIVE)) {
            _ if flags.contains(Flags::TEMPLATE) => Self::Template,
            (false, _) => Self::of(connection.protocol(), state),
            (true, true) => Self::Inactive,
            (true, false) => Self::Active,
        }
    }
}

/// A change to a destination's numbers of connections and templates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// One begins.
    Begin(Activity),
    /// One ends.
    End(Activity),
    /// A connection moves to the active or inactive ones, to which it did not belong before.
    MoveTo(Activity),
}

impl Change {
    /// The addends for the integer in [`LiveLoad`] and for the number of templates.
    pub(crate) fn addends(self) -> (u64, u64) {
        match self {
            Self::Begin(Activity::Template) => (0, 1),
            Self::End(Activity::Template) => (0, u64::MAX),
            Self::Begin(activity) => (CONNECTION + active(activity), 0),
            Self::End(activity) => ((CONNECTION + active(activity)).wrapping_neg(), 0),
            Self::MoveTo(Activity::Active) => (1, 0),
            // Templates do not move.
            Self::MoveTo(Activity::Inactive | Activity::Template) => (u64::MAX, 0),
        }
    }
}

/// A destination's connections and thresholds.
///
/// Why the overload flag does not stay wrong: every change of the sum or of thresholds adds to the integer, and its
/// thread then checks the limit. Of two concurrent changes, the later addition reads the earlier one (AcqRel), so its
/// thread checks the limit with the thresholds and counts of both. A thread may write a flag that is based on
/// thresholds which have changed in the meantime. It then checks again: it has written the flag after the addition for
/// that change, so it reads the new thresholds. `tests/loom_load.rs` models this.
#[derive(Debug, Default)]
pub(crate) struct LiveLoad {
    word: AtomicU64,
    /// The upper threshold and the low mark; see [`Bounds`].
    bounds: AtomicU64,
}

impl LiveLoad {
    /// A copy that counts independently.
    pub(crate) fn separate_copy(&self) -> Self {
        Self {
            word: AtomicU64::new(self.word.load(Ordering::Relaxed)),
            bounds: AtomicU64::new(self.bounds.load(Ordering::Relaxed)),
        }
    }

    /// Sets the counts and the flag of a destination that no connection uses yet.
    pub(crate) fn resume(&self, load: Load, overloaded: bool) {
        let total = u64::from(load.active) + u64::from(load.inactive);
        let counts = CONNECTION.wrapping_mul(total).wrapping_add(u64::from(load.active));
        self.word.store(counts.wrapping_add(if overloaded { OVERLOADED } else { 0 }), Ordering::Relaxed);
        self.check_limit();
    }

    /// The upper threshold, 0: none; and the low mark.
    pub(crate) fn bounds(&self) -> (u32, u32) {
        let Bounds { upper, low } = Bounds::unpack(self.bounds.load(Ordering::Relaxed));
        (upper, low)
    }

    /// Adds the sum of changes to the counts. [`Self::check_limit`] is due; at the beginning of a connection, when its
    /// insertion has succeeded.
    pub(crate) fn add(&self, changes: u64) {
        self.word.fetch_add(changes, Ordering::AcqRel);
    }

    /// Whether there is an upper threshold.
    pub(crate) fn is_bounded(&self) -> bool {
        self.bounds.load(Ordering::Relaxed) != NONE
    }

    /// Sets the thresholds. An upper one of 0 means none; a lower one of 0 means three quarters of the upper one.
    pub(crate) fn set_bounds(&self, upper: u32, lower: u32) {
        self.bounds.store(Bounds::of(upper, lower).pack(), Ordering::Relaxed);
        // Orders the store before all later additions to the integer.
        self.word.fetch_add(0, Ordering::AcqRel);
        self.check_limit();
    }

    /// Whether the destination accepts no new connections.
    pub(crate) fn is_overloaded(&self) -> bool {
        Count::unpack(self.word.load(Ordering::Relaxed)).overloaded
    }

    /// The numbers of active and of inactive connections, with changes that are yet to be added.
    pub(crate) fn counts(&self, pending: u64) -> (u32, u32) {
        let Count { total, active, .. } =
            Count::unpack(self.word.load(Ordering::Relaxed).wrapping_add(pending));
        // If two workers count a connection one after the other, the later change may be seen first. Then a count is
        // negative for a moment.
        (u32::try_from(active).unwrap_or(0), u32::try_from(total - active.max(0)).unwrap_or(0))
    }

    /// Updates the overload flag according to the counts and thresholds.
    pub(crate) fn check_limit(&self) {
        loop {
            let bounds = self.bounds.load(Ordering::Relaxed);
            let word = self.word.load(Ordering::Relaxed);
            let before = Count::unpack(word);
            let answer = match Bounds::unpack(bounds).verdict(before.total) {
                Some(overloaded) if overloaded && !before.overloaded => word.wrapping_add(OVERLOADED),
                Some(overloaded) if !overloaded && before.overloaded => word.wrapping_sub(OVERLOADED),
                _ => word,
            };
            let written = answer == word
                || self.word.compare_exchange(word, answer, Ordering::AcqRel, Ordering::Relaxed).is_ok();
            if written && self.bounds.load(Ordering::Relaxed) == bounds {
                return;
            }
        }
    }
}

/// The upper threshold, and the low mark below which a destination accepts connections again.
#[derive(Clone, Copy)]
struct Bounds {
    upper: u32,
    low: u32,
}

impl Bounds {
    /// Source: ipvs-behaviour, section 7.
    fn of(upper: u32, lower: u32) -> Self {
        Self { upper, low: if lower == 0 { upper - upper / 4 } else { lower } }
    }

    /// Whether this number of connections is an overload; `None` if the flag does not change.
    fn verdict(self, total: i64) -> Option<bool> {
        match self {
            Self { upper: 0, .. } => Some(false),
            Self { upper, .. } if total >= upper.into() => Some(true),
            Self { low, .. } if total < low.into() => Some(false),
            _ => None,
        }
    }

    fn pack(self) -> u64 {
        u64::from(self.upper) << 32 | u64::from(self.low)
    }

    fn unpack(bounds: u64) -> Self {
        Self { upper: (bounds >> 32) as u32, low: bounds as u32 }
    }
}

/// The fields of the integer: bits 33 and up are the sum, bit 32 is the overload flag, and the lower bits are the
/// active connections, signed. Each field is added to without regard to the others, so a negative one borrows from
/// those above it.
struct Count {
    total: i64,
    overloaded: bool,
    active: i64,
}

impl Count {
    fn unpack(word: u64) -> Self {
        let active = i64::from(word as i32);
        let above = (word as i64).wrapping_sub(active) >> 32;
        Self { total: above >> 1, overloaded: above & 1 == 1, active }
    }
}

const OVERLOADED: u64 = 1 << 32;
const CONNECTION: u64 = 1 << 33;
/// The encoded bounds of a destination without thresholds.
const NONE: u64 = 0;

/// The addend of a connection for the count of active ones.
fn active(activity: Activity) -> u64 {
    u64::from(activity == Activity::Active)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use proptest::prelude::*;

    use super::*;
    use crate::snapshot::DestinationLive;

    /// The rules of IPVS, applied where IPVS applies them: when a connection begins, when it ends, when thresholds
    /// change; and when a worker adds its deferred changes.
    #[derive(Default)]
    struct Model {
        connections: Vec<Activity>,
        /// Their number without those that are deferred.
        seen: i64,
        upper: u32,
        lower: u32,
        overloaded: bool,
    }

    impl Model {
        fn low(&self) -> i64 {
            i64::from(if self.lower == 0 { self.upper - self.upper / 4 } else { self.lower })
        }

        fn bind(&mut self) {
            self.seen += 1;
            self.overloaded |= self.upper != 0 && self.seen == i64::from(self.upper);
        }

        fn end(&mut self) {
            self.seen -= 1;
            if self.seen + 1 == self.low() {
                self.overloaded = false;
            }
        }

        fn edit(&mut self, upper: u32, lower: u32) {
            if (upper, lower) != (self.upper, self.lower) {
                (self.upper, self.lower) = (upper, lower);
                self.judge();
            }
        }

        fn end_burst(&mut self) {
            self.seen = self.connections.len() as i64;
            self.judge();
        }

        fn judge(&mut self) {
            if self.upper == 0 || self.seen < self.low() {
                self.overloaded = false;
            } else if self.seen >= i64::from(self.upper) {
                self.overloaded = true;
            }
        }
    }

    #[derive(Debug, Clone, Copy)]
    enum Step {
        Bind(Activity),
        Fail,
        End,
        Turn,
        EndBurst,
        Edit(u32, u32),
    }

    /// Whether other threads see a change at once, if the destination has no thresholds.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Seen {
        AtOnce,
        AfterTheBurst,
    }

    fn bounds() -> impl Strategy<Value = (u32, u32)> {
        (0_u32..9).prop_flat_map(|upper| (Just(upper), 0..=upper))
    }

    fn steps() -> impl Strategy<Value = Vec<(Step, Seen)>> {
        let step = prop_oneof![
            4 => prop_oneof![Just(Activity::Active), Just(Activity::Inactive)].prop_map(Step::Bind),
            1 => Just(Step::Fail),
            3 => Just(Step::End),
            2 => Just(Step::Turn),
            1 => Just(Step::EndBurst),
            1 => bounds().prop_map(|(upper, lower)| Step::Edit(upper, lower)),
        ];
        let seen = prop_oneof![Just(Seen::AtOnce), Just(Seen::AfterTheBurst)];
        prop::collection::vec((step, seen), 0..200)
    }

    fn other(activity: Activity) -> Activity {
        match activity {
            Activity::Active => Activity::Inactive,
            Activity::Inactive | Activity::Template => Activity::Active,
        }
    }

    /// A worker with connections to one destination.
    struct Worker<'d> {
        number: usize,
        live: &'d DestinationLive,
        connections: Vec<Activity>,
    }

    impl<'d> Worker<'d> {
        fn new(number: usize, live: &'d DestinationLive) -> Self {
            Self { number, live, connections: Vec::new() }
        }

        fn change(&self, change: Change, seen: Seen) {
            match (seen, change) {
                (Seen::AfterTheBurst, _) => _ = self.live.defer(self.number, change),
                (Seen::AtOnce, Change::Begin(activity)) => self.live.increment(activity),
                (Seen::AtOnce, Change::End(activity)) => self.live.decrement(activity),
                (Seen::AtOnce, Change::MoveTo(activity)) => self.live.move_to(activity),
            }
        }

        fn take(&mut self, step: Step, seen: Seen) {
            match step {
                Step::Bind(activity) => {
                    self.change(Change::Begin(activity), seen);
                    self.live.check_limit();
                    self.connections.push(activity);
                }
                Step::Fail => {
                    self.change(Change::Begin(Activity::Inactive), seen);
                    self.change(Change::End(Activity::Inactive), seen);
                }
                Step::End => {
                    let ended = self.connections.pop();
                    ended.inspect(|activity| self.change(Change::End(*activity), seen));
                }
                Step::Turn => {
                    if let Some(last) = self.connections.last_mut() {
                        *last = other(*last);
                        let to = *last;
                        self.change(Change::MoveTo(to), seen);
                    }
                }
                Step::EndBurst => self.live.add_deferred(self.number),
                Step::Edit(upper, lower) => self.live.set_thresholds(upper, lower),
            }
        }
    }

    fn load(connections: &[Activity]) -> Load {
        let active = connections.iter().filter(|one| **one == Activity::Active).count() as u32;
        Load { active, inactive: connections.len() as u32 - active }
    }

    proptest! {
        #[test]
        fn a_sequence_of_changes_gives_the_overload_flag_of_ipvs(steps in steps()) {
            let (live, mut model) = (DestinationLive::new(1), Model::default());
            let mut worker = Worker::new(0, &live);
            for (step, seen) in steps {
                let (had, is_at_once) = (worker.connections.len(), seen == Seen::AtOnce || model.upper != 0);
                worker.take(step, seen);
                model.connections.clone_from(&worker.connections);
                match step {
                    Step::Bind(_) if is_at_once => model.bind(),
                    Step::End if is_at_once && had > 0 => model.end(),
                    Step::EndBurst => model.end_burst(),
                    Step::Edit(upper, lower) => model.edit(upper, lower),
                    _ => {}
                }
                prop_assert_eq!(live.load_for(0), load(&worker.connections));
                prop_assert_eq!(live.is_overloaded(), model.overloaded, "after {:?}", step);
                if let Step::EndBurst = step {
                    prop_assert_eq!(live.load(), load(&worker.connections));
                }
            }
        }

        #[test]
        fn concurrent_changes_of_two_workers_and_an_operator_leave_the_correct_flag(
            one in steps(),
            two in steps(),
            edits in prop::collection::vec(bounds(), 1..50),
        ) {
            let live = DestinationLive::new(2);
            let work = |(number, steps): (usize, Vec<(Step, Seen)>)| {
                let mut worker = Worker::new(number, &live);
                let of_worker = steps.into_iter().filter(|(step, _)| !matches!(step, Step::Edit(..)));
                of_worker.for_each(|(step, seen)| worker.take(step, seen));
                live.add_deferred(number);
                worker.connections
            };
            let left = thread::scope(|scope| {
                let workers = [(0, one), (1, two)].map(|of_worker| scope.spawn(|| work(of_worker)));
                edits.iter().for_each(|(upper, lower)| live.set_thresholds(*upper, *lower));
                workers.map(|worker| worker.join().unwrap()).concat()
            });
            prop_assert_eq!(live.load(), load(&left));
            let (upper, lower) = *edits.last().unwrap();
            if let Some(overloaded) = Bounds::of(upper, lower).verdict(left.len() as i64) {
                prop_assert_eq!(live.is_overloaded(), overloaded);
            }
        }
    }

    #[test]
    fn an_upper_threshold_of_100_overloads_until_74_connections_are_left() {
        let live = DestinationLive::new(1);
        live.set_thresholds(100, 0);
        for _ in 0..100 {
            assert!(!live.is_overloaded());
            live.increment(Activity::Inactive);
            live.check_limit();
        }
        for _ in 74..100 {
            assert!(live.is_overloaded());
            live.decrement(Activity::Inactive);
        }
        assert!(!live.is_overloaded());
    }

    #[test]
    fn a_count_that_is_negative_for_a_moment_does_not_disturb_the_others() {
        let live = DestinationLive::new(1);
        live.set_thresholds(1, 0);
        live.increment(Activity::Inactive);
        live.check_limit();
        live.move_to(Activity::Inactive);
        assert_eq!(live.load(), Load { active: 0, inactive: 1 });
        assert!(live.is_overloaded());
        live.move_to(Activity::Active);
        live.decrement(Activity::Inactive);
        assert_eq!(live.load(), Load { active: 0, inactive: 0 });
        assert!(!live.is_overloaded());
    }

    #[test]
    fn a_connection_that_another_worker_ends_before_the_burst_of_its_beginning_is_counted_out() {
        let live = DestinationLive::new(2);
        for activity in [Activity::Active, Activity::Template] {
            live.increment(activity);
        }
        for activity in [Activity::Active, Activity::Template] {
            live.defer(0, Change::Begin(activity));
            live.defer(1, Change::End(activity));
        }
        live.add_deferred(1);
        assert_eq!((live.load(), live.templates()), (Load { active: 0, inactive: 0 }, 0));
        live.add_deferred(0);
        assert_eq!((live.load(), live.templates()), (Load { active: 1, inactive: 0 }, 1));
    }
}
