//! The faults of the suite `fleet`: a seed and a time give the same list of steps each time.
//!
//! A step has one fault, or one of the network, etcd or the clock together with one of a process. After a fault there
//! is a pause of seconds, and after each sixth step a calm, in which all directors are to serve the same rules. Pure.
//! Not here: how a fault is made (`faults.rs`).

use std::fmt;
use std::time::Duration;

use fastrand::Rng;

/// After so many steps there is a calm.
pub(crate) const STEPS: usize = 6;
/// The time in which directors come to the same rules, and that in which they are then looked at.
const CALM: Duration = Duration::from_secs(30 + 10);
const DIRECTORS: u8 = 5;
/// Real servers; the first three have a member of etcd each.
const SERVERS: u8 = 4;
pub(crate) const MEMBERS: u8 = 3;

/// A host with a cable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Director(u8),
    Server(u8),
    Router,
}

/// A fault, which begins and ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// No frame from the first host reaches the second one.
    OneWay(Place, Place),
    /// Nor in the other direction.
    Partition(Place, Place),
    /// One frame in ten is lost, in both directions.
    Lossy(Place),
    /// The cable of a director is pulled and connected again each second.
    Flap(u8),
    /// So many members of etcd are killed, from this one on.
    EtcdKilled(u8, u8),
    /// All members of etcd stop and continue, twice a second.
    EtcdSlow,
    /// The disk of so many members of etcd is full, from this one on.
    EtcdFull(u8, u8),
    /// The file system of a director's state is full.
    StateFull(u8),
    /// The date of a director jumps by so many hours, and back.
    Clock(u8, i8),
    /// `kill -9` of xvsd, and a start.
    Kill(u8),
    /// SIGSTOP and SIGCONT of xvsd.
    Stop(u8),
    /// A successor of the same binary, as in an upgrade.
    TakeOver(u8),
    /// The director leaves in order, and comes back.
    Leave(u8),
    /// Two operators apply different rules at once, on these directors.
    Operators(u8, u8),
}

/// Faults that begin together and end together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) faults: Vec<Fault>,
    pub(crate) lasts: Duration,
    /// From their end to the next step.
    pub(crate) pause: Duration,
}

/// The steps of a run; a calm is the last one's pause.
pub(crate) fn schedule(seed: u64, time: Duration) -> Vec<Step> {
    let mut rng = Rng::with_seed(seed);
    let mut steps = Vec::new();
    let mut total = Duration::ZERO;
    while total < time {
        for number in 1..=STEPS {
            let step = step(&mut rng, number == STEPS);
            total += step.lasts + step.pause;
            steps.push(step);
        }
    }
    steps
}

fn step(rng: &mut Rng, is_last: bool) -> Step {
    let director = rng.u8(1..=DIRECTORS);
    let around = around(rng);
    let process = match rng.u8(..6) {
        0 => Fault::Kill(director),
        1 => Fault::Stop(director),
        2 => Fault::TakeOver(director),
        3 => Fault::Leave(director),
        _ => Fault::Operators(director, director % DIRECTORS + 1),
    };
    let faults = match rng.u8(..6) {
        0 => vec![Fault::StateFull(director), Fault::Operators(director % DIRECTORS + 1, director)],
        1 | 2 => vec![around],
        3 | 4 => vec![process],
        // A start without the cable would say only that the cable is out.
        _ if matches!(around, Fault::Flap(_)) => vec![around],
        _ => vec![around, process],
    };
    let pause = if is_last { CALM } else { Duration::from_millis(rng.u64(2000..6000)) };
    Step { faults, lasts: Duration::from_millis(rng.u64(1000..8000)), pause }
}

/// A fault around the directors.
fn around(rng: &mut Rng) -> Fault {
    let member = rng.u8(1..=MEMBERS);
    match rng.u8(..10) {
        0 | 1 => Fault::OneWay(place(rng), place(rng)).between_two(rng),
        2 | 3 => Fault::Partition(place(rng), place(rng)).between_two(rng),
        4 => Fault::Lossy(place(rng)),
        5 => Fault::Flap(rng.u8(1..=DIRECTORS)),
        6 => Fault::EtcdKilled(member, rng.u8(1..=MEMBERS)),
        7 => Fault::EtcdSlow,
        8 => Fault::EtcdFull(member, rng.u8(1..=MEMBERS)),
        _ => Fault::Clock(rng.u8(1..=DIRECTORS), if rng.bool() { 1 } else { -1 }),
    }
}

fn place(rng: &mut Rng) -> Place {
    match rng.u8(..=DIRECTORS + SERVERS) {
        0 => Place::Router,
        number if number <= DIRECTORS => Place::Director(number),
        number => Place::Server(number - DIRECTORS),
    }
}

impl Fault {
    /// The same between two different hosts.
    fn between_two(self, rng: &mut Rng) -> Self {
        match self {
            Self::OneWay(one, other) if one == other => Self::OneWay(one, place(rng)).between_two(rng),
            Self::Partition(one, other) if one == other => Self::Partition(one, place(rng)).between_two(rng),
            fault => fault,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Director(number) => write!(f, "director-{number}"),
            Self::Server(number) => write!(f, "server-{number}"),
            Self::Router => f.write_str("router"),
        }
    }
}

/// The name of a fault in a history.
impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OneWay(from, to) => write!(f, "no-frame-from-{from}-to-{to}"),
            Self::Partition(one, other) => write!(f, "partition-of-{one}-and-{other}"),
            Self::Lossy(place) => write!(f, "loss-of-{place}"),
            Self::Flap(director) => write!(f, "flaps-of-director-{director}"),
            Self::EtcdKilled(first, count) => write!(f, "kill-of-{count}-etcd-from-{first}"),
            Self::EtcdSlow => f.write_str("slow-etcd"),
            Self::EtcdFull(first, count) => write!(f, "full-disk-of-{count}-etcd-from-{first}"),
            Self::StateFull(director) => write!(f, "full-state-of-director-{director}"),
            Self::Clock(director, hours) => write!(f, "clock-of-director-{director}-by-{hours}-h"),
            Self::Kill(director) => write!(f, "kill-of-director-{director}"),
            Self::Stop(director) => write!(f, "stop-of-director-{director}"),
            Self::TakeOver(director) => write!(f, "take-over-of-director-{director}"),
            Self::Leave(director) => write!(f, "leave-of-director-{director}"),
            Self::Operators(one, other) => write!(f, "operators-on-director-{one}-and-{other}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const HOURS: Duration = Duration::from_secs(7200);

    #[test]
    fn a_seed_gives_the_same_steps_again_and_another_seed_others() {
        assert_eq!(schedule(7, HOURS), schedule(7, HOURS));
        assert_ne!(schedule(7, HOURS), schedule(8, HOURS));
        assert!(schedule(7, HOURS).starts_with(&schedule(7, HOURS / 24)), "a shorter run is the begin of it");
    }

    #[test]
    fn two_hours_have_every_kind_of_fault_no_host_is_parted_from_itself_and_each_sixth_pause_is_a_calm() {
        let steps = schedule(1, HOURS);
        let mut kinds = BTreeSet::new();
        for fault in steps.iter().flat_map(|step| &step.faults) {
            kinds.insert(format!("{fault:?}").split('(').next().expect("a name").to_owned());
            if let Fault::OneWay(one, other) | Fault::Partition(one, other) = fault {
                assert_ne!(one, other);
            }
        }
        assert_eq!(kinds.len(), 14, "{kinds:?}");
        let total: Duration = steps.iter().map(|step| step.lasts + step.pause).sum();
        assert!(total >= HOURS && total < HOURS + Duration::from_secs(300), "{total:?}");
        for (at, step) in steps.iter().enumerate() {
            assert_eq!(step.pause >= CALM, (at + 1) % STEPS == 0);
        }
    }
}
