//! A destination's number of connections, and whether it is overloaded by the thresholds `-x` and `-y`.
//!
//! Changed when a connection begins, when it ends, and when it becomes active or inactive; read by schedulers. It
//! follows the rules of IPVS: a destination is overloaded from the connection that reaches the upper threshold until
//! the end of the one that brings it below the low mark, and a change of thresholds is applied at once. Cost: one
//! atomic addition for each change; one more atomic operation only when the overload flag changes.
//!
//! Both counts and the overload flag are in one word, so they are consistent with each other at every moment.

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
    /// The count for a connection of this protocol in this state.
    #[inline]
    pub fn of(protocol: Protocol, state: u8) -> Self {
        match protocol {
            Protocol::TCP if TcpState::of(state).is_active() => Self::Active,
            Protocol::SCTP if SctpState::of(state).is_active() => Self::Active,
            _ => Self::Inactive,
        }
    }
}

impl Activity {
    /// How a connection or template in this state is counted.
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

/// A destination's connections and thresholds.
///
/// Why the overload flag does not stay wrong: every change of counts or thresholds adds to the word and then checks the
/// limit. Of two concurrent changes, the later addition reads the earlier one (AcqRel), so its thread checks the limit
/// with the thresholds and counts of both. A thread may write a flag that is based on thresholds which have changed
/// meanwhile. It then checks again: it has written the flag after the addition of that change, so it reads the new
/// thresholds. `tests/loom_load.rs` models this.
#[derive(Debug, Default)]
pub(crate) struct LiveLoad {
    word: AtomicU64,
    /// The upper threshold and the low mark; see [`Bounds`].
    bounds: AtomicU64,
}

impl LiveLoad {
    /// A copy that counts independently.
    pub(crate) fn separate_copy(&self) -> Self {
        let [word, bounds] =
            [&self.word, &self.bounds].map(|word| AtomicU64::new(word.load(Ordering::Relaxed)));
        Self { word, bounds }
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

    /// Counts a connection. The limit is checked by [`Self::check_limit`] when its insertion has succeeded.
    pub(crate) fn increment(&self, activity: Activity) {
        self.word.fetch_add(CONNECTION.wrapping_add(active(activity)), Ordering::AcqRel);
    }

    /// Stops counting a connection.
    pub(crate) fn decrement(&self, activity: Activity) {
        self.word.fetch_sub(CONNECTION.wrapping_add(active(activity)), Ordering::AcqRel);
        self.check_limit();
    }

    /// Moves a counted connection to the active or inactive ones, to which it did not belong before.
    pub(crate) fn move_to(&self, to: Activity) {
        let by = match to {
            Activity::Active => 1,
            // Templates are counted elsewhere.
            Activity::Inactive | Activity::Template => u64::MAX,
        };
        // Relaxed: thresholds apply to the sum, which stays.
        self.word.fetch_add(by, Ordering::Relaxed);
    }

    /// Whether there is an upper threshold.
    pub(crate) fn is_bounded(&self) -> bool {
        self.bounds.load(Ordering::Relaxed) != NONE
    }

    /// Sets the thresholds. An upper one of 0 means none; a lower one of 0 means three quarters of the upper one.
    pub(crate) fn set_bounds(&self, upper: u32, lower: u32) {
        self.bounds.store(Bounds::of(upper, lower).pack(), Ordering::Relaxed);
        // Orders the store before all later additions to the word.
        self.word.fetch_add(0, Ordering::AcqRel);
        self.check_limit();
    }

    /// Whether it takes no new connections.
    pub(crate) fn is_overloaded(&self) -> bool {
        Count::unpack(self.word.load(Ordering::Relaxed)).overloaded
    }

    /// The numbers of active and of inactive connections.
    pub(crate) fn counts(&self) -> (u32, u32) {
        let Count { total, active, .. } = Count::unpack(self.word.load(Ordering::Relaxed));
        // If two workers move a connection in turn, the later move may be seen first. Then a count is negative for a
        // moment.
        let count = |count: i64| u32::try_from(count).unwrap_or(0);
        (count(active), count(total - active.max(0)))
    }

    /// Updates the overload flag by the counts and thresholds.
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

/// The upper threshold, and the low mark below which a destination takes connections again.
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

    /// Whether this number of connections is an overload; `None`: the flag stays as it is.
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

/// The parts of the word: bits 33 and up are the sum, bit 32 is the overload flag, and the lower bits are the active
/// connections, signed. Each part is added to without regard to the others, so a negative one borrows from those above
/// it.
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
/// The packed bounds of a destination without thresholds.
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

    /// The rules of IPVS, applied where IPVS applies them: when a connection begins, when it ends, when thresholds
    /// change.
    #[derive(Default)]
    struct Model {
        connections: Vec<Activity>,
        upper: u32,
        lower: u32,
        overloaded: bool,
    }

    impl Model {
        fn low(&self) -> u32 {
            if self.lower == 0 { self.upper - self.upper / 4 } else { self.lower }
        }

        fn total(&self) -> u32 {
            self.connections.len() as u32
        }

        fn bind(&mut self, activity: Activity) {
            self.connections.push(activity);
            self.overloaded |= self.upper != 0 && self.total() == self.upper;
        }

        fn end(&mut self) -> Option<Activity> {
            let ended = self.connections.pop();
            if ended.is_some() && self.total() + 1 == self.low() {
                self.overloaded = false;
            }
            ended
        }

        fn edit(&mut self, upper: u32, lower: u32) {
            if (upper, lower) == (self.upper, self.lower) {
                return;
            }
            (self.upper, self.lower) = (upper, lower);
            if upper == 0 || self.total() < self.low() {
                self.overloaded = false;
            } else if self.total() >= upper {
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
        Edit(u32, u32),
    }

    fn bounds() -> impl Strategy<Value = (u32, u32)> {
        (0_u32..9).prop_flat_map(|upper| (Just(upper), 0..=upper))
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => prop_oneof![Just(Activity::Active), Just(Activity::Inactive)].prop_map(Step::Bind),
            1 => Just(Step::Fail),
            3 => Just(Step::End),
            2 => Just(Step::Turn),
            1 => bounds().prop_map(|(upper, lower)| Step::Edit(upper, lower)),
        ];
        prop::collection::vec(step, 0..200)
    }

    fn other(activity: Activity) -> Activity {
        match activity {
            Activity::Active => Activity::Inactive,
            Activity::Inactive | Activity::Template => Activity::Active,
        }
    }

    proptest! {
        #[test]
        fn a_sequence_of_changes_gives_the_overload_flag_of_ipvs(steps in steps()) {
            let (load, mut model) = (LiveLoad::default(), Model::default());
            for step in steps {
                match step {
                    Step::Bind(activity) => {
                        load.increment(activity);
                        load.check_limit();
                        model.bind(activity);
                    }
                    Step::Fail => {
                        load.increment(Activity::Inactive);
                        load.decrement(Activity::Inactive);
                    }
                    Step::End => {
                        model.end().inspect(|activity| load.decrement(*activity));
                    }
                    Step::Turn => {
                        if let Some(last) = model.connections.last_mut() {
                            *last = other(*last);
                            load.move_to(*last);
                        }
                    }
                    Step::Edit(upper, lower) => {
                        load.set_bounds(upper, lower);
                        model.edit(upper, lower);
                    }
                }
                let active = model.connections.iter().filter(|one| **one == Activity::Active).count() as u32;
                prop_assert_eq!(load.counts(), (active, model.total() - active));
                prop_assert_eq!(load.is_overloaded(), model.overloaded, "after {:?}", step);
            }
        }

        #[test]
        fn concurrent_changes_of_two_workers_and_an_operator_leave_the_correct_flag(
            one in steps(),
            two in steps(),
            edits in prop::collection::vec(bounds(), 1..50),
        ) {
            let load = LiveLoad::default();
            let work = |steps: Vec<Step>| {
                let mut mine = Vec::new();
                for step in steps {
                    match step {
                        Step::Bind(activity) => {
                            load.increment(activity);
                            load.check_limit();
                            mine.push(activity);
                        }
                        Step::End => {
                            mine.pop().inspect(|activity| load.decrement(*activity));
                        }
                        Step::Turn => {
                            if let Some(last) = mine.last_mut() {
                                *last = other(*last);
                                load.move_to(*last);
                            }
                        }
                        Step::Fail | Step::Edit(..) => {}
                    }
                }
                mine
            };
            let left = thread::scope(|scope| {
                let workers = [one, two].map(|steps| scope.spawn(|| work(steps)));
                edits.iter().for_each(|(upper, lower)| load.set_bounds(*upper, *lower));
                workers.map(|worker| worker.join().unwrap()).concat()
            });
            let active = left.iter().filter(|one| **one == Activity::Active).count() as u32;
            prop_assert_eq!(load.counts(), (active, left.len() as u32 - active));
            let (upper, lower) = *edits.last().unwrap();
            if let Some(overloaded) = Bounds::of(upper, lower).verdict(left.len() as i64) {
                prop_assert_eq!(load.is_overloaded(), overloaded);
            }
        }
    }

    #[test]
    fn an_upper_threshold_of_100_overloads_until_74_connections_are_left() {
        let load = LiveLoad::default();
        load.set_bounds(100, 0);
        for _ in 0..100 {
            assert!(!load.is_overloaded());
            load.increment(Activity::Inactive);
            load.check_limit();
        }
        for _ in 74..100 {
            assert!(load.is_overloaded());
            load.decrement(Activity::Inactive);
        }
        assert!(!load.is_overloaded());
    }

    #[test]
    fn a_count_that_is_negative_for_a_moment_does_not_disturb_the_others() {
        let load = LiveLoad::default();
        load.set_bounds(1, 0);
        load.increment(Activity::Inactive);
        load.check_limit();
        load.move_to(Activity::Inactive);
        assert_eq!(load.counts(), (0, 1));
        assert!(load.is_overloaded());
        load.move_to(Activity::Active);
        load.decrement(Activity::Inactive);
        assert_eq!(load.counts(), (0, 0));
        assert!(!load.is_overloaded());
    }
}
