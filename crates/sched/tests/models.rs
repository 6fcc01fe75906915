//! Every scheduler compared with its plain model, over random histories of connections, closings, changes of weights,
//! additions, removals and time.

mod plain;

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::Ordering;

use plain::{Dest, Event, Model, Name, Packet, model};
use proptest::prelude::*;
use xvs_proto::Endpoint;
use xvs_sched::scheduler::{self, Change, Flags, Setup, Tuning};
use xvs_sched::{Candidates, Destination, Load, Request, Scheduler, State, Weight};

/// One step of a history. Indices are taken modulo the number of items.
#[derive(Debug, Clone)]
enum Step {
    Connect {
        source: u32,
        port: u16,
        dest: IpAddr,
        random: u64,
    },
    /// A connection changes between active and inactive.
    Turn(usize),
    Close(usize),
    Weigh(usize, u32),
    Add(Name, u32),
    Remove(usize),
    Overload(usize),
    Wait(u64),
}

fn weight() -> impl Strategy<Value = u32> {
    prop_oneof![3 => 0..=6u32, 1 => Just(0), 1 => (1..=5u32).prop_map(|n| n * 12), 1 => 0..=1000u32]
}

fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        4 => (0..2u32).prop_map(|n| Ipv4Addr::from(0xc633_6400 + n).into()),
        1 => any::<u128>().prop_map(|n| Ipv6Addr::from(n).into()),
        1 => (0..3u128).prop_map(|n| Ipv6Addr::from(n << 96 | 1).into()),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let at = 0..1000usize;
    prop_oneof![
        12 => (any::<u32>(), any::<u16>(), address(), any::<u64>())
            .prop_map(|(source, port, dest, random)| Step::Connect { source, port, dest, random }),
        3 => at.clone().prop_map(Step::Turn),
        3 => at.clone().prop_map(Step::Close),
        2 => (at.clone(), weight()).prop_map(|(at, weight)| Step::Weigh(at, weight)),
        2 => (1..=8u8, weight()).prop_map(|(name, weight)| Step::Add(name, weight)),
        1 => at.clone().prop_map(Step::Remove),
        1 => at.prop_map(Step::Overload),
        2 => (0..90_000u64).prop_map(Step::Wait),
    ]
}

struct View<'a>(&'a [Dest]);

impl Candidates for View<'_> {
    fn len(&self) -> usize {
        self.0.len()
    }
    fn weight(&self, position: usize) -> Weight {
        Weight(self.0[position].weight)
    }
    fn load(&self, position: usize) -> Load {
        let Dest { active, inactive, .. } = self.0[position];
        Load { active: active.try_into().expect("few"), inactive: inactive.try_into().expect("few") }
    }
    fn overloaded(&self, position: usize) -> bool {
        self.0[position].overloaded
    }
}

/// A service with its scheduler and its model.
struct World {
    name: &'static str,
    flags: Flags,
    tuning: Tuning,
    scheduler: Box<dyn Scheduler>,
    state: State,
    model: Box<dyn Model>,
    list: Vec<Dest>,
    connections: Vec<(Name, bool)>,
    now_millis: u64,
}

const EXPIRATION_SECONDS: u32 = 60;

impl World {
    fn new(name: &'static str, flags: u8) -> Self {
        let tuning = Tuning::default();
        tuning.lblcr_expiration_seconds.store(EXPIRATION_SECONDS, Ordering::Relaxed);
        let setup = Setup { tuning: tuning.clone(), flags: Flags(flags), ..Setup::default() };
        Self {
            name,
            flags: Flags(flags),
            scheduler: scheduler::build(name, &setup).expect("a scheduler of this name"),
            tuning,
            state: State::default(),
            model: model(name, flags, EXPIRATION_SECONDS.into()),
            list: Vec::new(),
            connections: Vec::new(),
            now_millis: 0,
        }
    }

    fn changed(&mut self, change: Change, event: Event) {
        let destinations: Vec<_> = self
            .list
            .iter()
            .map(|dest| Destination {
                endpoint: Endpoint::new([10, 0, 0, dest.name], 80),
                weight: Weight(dest.weight),
                last_weight: Weight(dest.last_weight),
            })
            .collect();
        let setup = Setup {
            destinations: &destinations,
            family: None,
            flags: self.flags,
            memory: self.scheduler.memory().cloned(),
            tuning: self.tuning.clone(),
        };
        self.scheduler = scheduler::build(self.name, &setup).expect("a scheduler of this name");
        let mut weights = self.list.iter().map(|dest| Weight(dest.weight));
        self.state = scheduler::carry(self.name, self.state, change, &mut weights);
        self.model.event(&self.list, event);
    }

    fn count(&mut self) {
        let mut loads: HashMap<Name, (i128, i128)> = HashMap::new();
        for (name, active) in &self.connections {
            let load = loads.entry(*name).or_default();
            if *active { load.0 += 1 } else { load.1 += 1 }
        }
        for dest in &mut self.list {
            (dest.active, dest.inactive) = loads.get(&dest.name).copied().unwrap_or_default();
        }
    }

    /// The choice of the scheduler and that of the model.
    fn connect(&mut self, source: u32, port: u16, dest: IpAddr, random: u64) -> [Option<Name>; 2] {
        let request = Request {
            source: Endpoint::new(Ipv4Addr::from(source), port),
            dest: Endpoint::new(dest, 80),
            now_millis: self.now_millis,
            random,
        };
        let view = View(&self.list);
        let looked = [0; 2].map(|_| self.scheduler.pick(self.state, &request, &view));
        let choice = self.scheduler.choose(self.state, &request, &view);
        assert_eq!(looked, [choice; 2], "looking changes nothing and says what will be chosen");
        self.state = choice.state;
        let packet = Packet { source, port, dest, now_millis: self.now_millis, random };
        let expected = self.model.pick(&self.list, &packet);
        let chosen = choice.position.map(|position| self.list[position].name);
        self.connections.extend(chosen.map(|name| (name, !random.is_multiple_of(3))));
        [chosen, expected]
    }

    fn play(&mut self, step: &Step) -> Result<(), TestCaseError> {
        let within = |at: usize, len: usize| at.checked_rem(len);
        match *step {
            Step::Connect { source, port, dest, random } => {
                let [chosen, expected] = self.connect(source, port, dest, random);
                prop_assert_eq!(chosen, expected, "{} {:?}", self.name, &self.list);
            }
            Step::Turn(at) => {
                if let Some(at) = within(at, self.connections.len()) {
                    self.connections[at].1 ^= true;
                }
            }
            Step::Close(at) => {
                if let Some(at) = within(at, self.connections.len()) {
                    self.connections.swap_remove(at);
                }
            }
            Step::Weigh(at, weight) => {
                if let Some(at) = within(at, self.list.len()) {
                    self.list[at].weight = weight;
                    if weight > 0 {
                        self.list[at].last_weight = weight;
                    }
                    self.changed(Change::Edited, Event::Edited);
                }
            }
            Step::Add(name, weight) => {
                if self.list.iter().all(|dest| dest.name != name) {
                    let (active, inactive, overloaded) = (0, 0, false);
                    let added = Dest { name, weight, last_weight: weight, active, inactive, overloaded };
                    self.list.insert(0, added);
                    self.changed(Change::Added, Event::Added);
                }
            }
            Step::Remove(at) => {
                if let Some(at) = within(at, self.list.len()) {
                    let before = at.checked_sub(1).map(|before| self.list[before].name);
                    let name = self.list.remove(at).name;
                    self.changed(Change::Removed(at), Event::Removed(name, before));
                }
            }
            Step::Overload(at) => {
                if let Some(at) = within(at, self.list.len()) {
                    self.list[at].overloaded ^= true;
                }
            }
            Step::Wait(millis) => self.now_millis += millis,
        }
        self.count();
        Ok(())
    }
}

/// Runs this number of random histories, each with every one of these schedulers and flags.
fn compare(schedulers: &[(&'static str, u8)], histories: u32) {
    let config = ProptestConfig { cases: histories, failure_persistence: None, ..ProptestConfig::default() };
    let steps = prop::collection::vec(step(), 0..120);
    proptest!(config, |(steps in steps)| {
        for (name, flags) in schedulers {
            let mut world = World::new(name, *flags);
            steps.iter().try_for_each(|step| world.play(step))?;
        }
    });
}

#[test]
fn every_scheduler_has_a_model() {
    scheduler::names().for_each(|name| drop(model(name, 0, 0)));
}

#[test]
fn schedulers_by_turns_loads_and_buckets_choose_as_their_models_do() {
    let plain =
        ["rr", "wrr", "lc", "wlc", "sed", "nq", "fo", "ovf", "twos", "dh", "none"].map(|name| (name, 0));
    let source_hashing = [0, 1, 2, 3].map(|flags| ("sh", flags));
    compare(&[&plain[..], &source_hashing].concat(), 1000);
}

#[test]
fn maglev_hashing_chooses_as_its_model_does() {
    compare(&[0, 1, 2, 3].map(|flags| ("mh", flags)), 24);
}

#[test]
fn schedulers_with_a_memory_choose_as_their_models_do() {
    compare(&[("lblc", 0), ("lblcr", 0)], 200);
}

/// The share of choices that each destination gets, for random packets and unchanged loads.
fn shares(name: &'static str, weights: &[u32], choices: u32) -> Vec<f64> {
    let mut world = World::new(name, 0);
    for (name, weight) in (1..).zip(weights.iter().rev()) {
        world.play(&Step::Add(name, *weight)).expect("nothing is chosen");
    }
    let mut taken = vec![0u32; weights.len()];
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    for _ in 0..choices {
        let (source, random) = (runner.rng().next_u32(), runner.rng().next_u64());
        let [chosen, _] = world.connect(source, 1024, Ipv4Addr::LOCALHOST.into(), random);
        taken[weights.len() - usize::from(chosen.expect("all are usable"))] += 1;
    }
    taken.iter().map(|count| f64::from(*count) / f64::from(choices)).collect()
}

#[test]
fn draws_of_twos_follow_the_weights_and_favour_the_first_by_the_one_number_more() {
    // All loads are equal, so the first draw stands. Of eleven numbers, 0 and 1 draw the first destination.
    for (share, expected) in shares("twos", &[1, 2, 3, 4], 50_000).into_iter().zip([2.0, 2.0, 3.0, 4.0]) {
        assert!((share - expected / 11.0).abs() < 0.01, "{share} instead of {expected}/11");
    }
}

#[test]
fn clients_are_shared_by_weight_under_maglev_hashing() {
    for (share, expected) in shares("mh", &[1, 2, 3, 4], 50_000).into_iter().zip([1.0, 2.0, 3.0, 4.0]) {
        assert!((share - expected / 10.0).abs() < 0.01, "{share} instead of {expected}/10");
    }
}
