//! Firewall marks, which assign packets to services without an address.
//!
//! XDP runs before netfilter, so the data plane itself evaluates the rules that mark packets, once for each packet
//! without a connection. [`Marks`] is a list of steps that only lead forward, so its evaluation ends. It costs at most
//! one evaluation of each step, with binary searches in its lists: O(rules · log entries). Built by the control thread,
//! which flattens the chains of rules before, and immutable afterwards.

use std::net::IpAddr;

use xvs_proto::mark::{Change, Condition, Test};

use xvs_proto::{LinkId, Packet};

/// The mark rules from all sources, in the order of their application.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Marks {
    steps: Box<[Step]>,
}

/// A rule: its conditions and its action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The conditions, all of which must hold.
    pub conditions: Vec<Condition>,
    /// The action if they hold.
    pub action: Action,
}

/// The action of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Changes the packet's mark.
    Set(Change),
    /// Continues at a later step; the number of all steps ends the evaluation.
    SkipTo(usize),
}

impl Marks {
    /// Rules with these steps.
    ///
    /// # Panics
    ///
    /// If a step leads backward or beyond the end: the evaluation would not end.
    pub fn new(mut steps: Vec<Step>) -> Self {
        let end = steps.len();
        let lead_forward = steps.iter().enumerate().all(|(at, step)| match step.action {
            Action::SkipTo(to) => at < to && to <= end,
            Action::Set(_) => true,
        });
        assert!(lead_forward, "steps lead forward");
        for condition in steps.iter_mut().flat_map(|step| &mut step.conditions) {
            let test = std::mem::replace(&mut condition.test, Test::Link(Vec::new()));
            condition.test = test.sorted();
        }
        Self { steps: steps.into() }
    }

    /// Whether a packet to this address may be marked, whatever its other fields.
    pub fn may_mark(&self, dest: IpAddr) -> bool {
        self.steps.iter().any(|step| {
            matches!(step.action, Action::Set(_))
                && step.conditions.iter().all(|condition| condition.may_hold_to(dest))
        })
    }

    /// Whether a rule may give a packet this mark.
    pub fn may_give(&self, mark: u32) -> bool {
        self.steps.iter().any(|step| matches!(step.action, Action::Set(change) if change.may_give(mark)))
    }

    /// The mark of a packet that was received on a link; 0 if there is none.
    pub fn of(&self, link: LinkId, packet: &Packet) -> u32 {
        self.walk(link, packet, |_| {})
    }

    /// The last rule that set the mark of a packet.
    pub fn last_of(&self, link: LinkId, packet: &Packet) -> Option<&Step> {
        let mut last = None;
        self.walk(link, packet, |at| last = Some(at));
        self.steps.get(last?)
    }

    /// The mark of a packet. Calls `set` with the index of each step that sets it.
    fn walk(&self, link: LinkId, packet: &Packet, mut set: impl FnMut(usize)) -> u32 {
        let mut mark = 0;
        let mut at = 0;
        while let Some(step) = self.steps.get(at) {
            at += 1;
            if step.conditions.iter().all(|condition| condition.holds(link, packet, mark)) {
                match step.action {
                    Action::Set(change) => {
                        mark = change.apply(mark);
                        set(at - 1);
                    }
                    Action::SkipTo(to) => at = to,
                }
            }
        }
        mark
    }
}

#[cfg(test)]
mod tests {
    use xvs_proto::mark::Expected;
    use xvs_proto::{Family, Parsed, Prefix, Protocol, parse};

    use super::*;

    const WAN: LinkId = LinkId(0);
    const LAN: LinkId = LinkId(1);

    /// TCP from 203.0.113.7:40000 to 198.51.100.100:80.
    fn packet() -> Packet {
        let hex = "0200000000010200000000fe080045000028000140004006d42fcb007107c63364649c400050\
            00000001000000005002faf0b1c00000";
        let digits: Vec<_> = hex.chars().map(|digit| digit.to_digit(16).unwrap() as u8).collect();
        let frame: Vec<_> = digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect();
        let Ok(Parsed::Ip(packet)) = parse(&frame) else { panic!("a packet") };
        packet
    }

    fn is(test: Test) -> Condition {
        Condition { test, expected: Expected::Yes }
    }

    fn net(text: &str) -> Vec<Prefix> {
        vec![text.parse().unwrap()]
    }

    fn set(conditions: Vec<Condition>, mark: u32) -> Step {
        Step { conditions, action: Action::Set(Change::set_mark(mark, u32::MAX)) }
    }

    #[test]
    fn each_test_accepts_what_matches_the_packet_and_negation_inverts_it() {
        for (test, answer) in [
            (Test::Family(Family::V4), true),
            (Test::Family(Family::V6), false),
            (Test::Source(net("203.0.113.0/24")), true),
            (Test::Source(net("198.51.100.0/24")), false),
            (Test::Dest(net("198.51.100.100")), true),
            (Test::Dest(net("203.0.113.7")), false),
            (Test::Dest(net("::/0")), false),
            (Test::Dest(Vec::new()), false),
            (Test::Protocol(vec![Protocol::UDP, Protocol::TCP]), true),
            (Test::Protocol(vec![Protocol::UDP]), false),
            (Test::DestPort(vec![1..=79, 80..=80]), true),
            (Test::DestPort(vec![81..=65535, 0..=79]), false),
            (Test::SourcePort(vec![40000..=40000]), true),
            (Test::SourcePort(vec![80..=80]), false),
            (Test::EitherPort(vec![80..=80]), true),
            (Test::EitherPort(vec![40000..=40001]), true),
            (Test::EitherPort(vec![81..=39999]), false),
            (Test::Link(vec![LAN, WAN]), true),
            (Test::Link(vec![LAN]), false),
            (Test::Mark { value: 0, mask: u32::MAX }, true),
            (Test::Mark { value: 1, mask: 1 }, false),
        ] {
            for expected in [Expected::Yes, Expected::No] {
                let step = set(vec![Condition { test: test.clone(), expected }], 7);
                let wanted = if answer == (expected == Expected::Yes) { 7 } else { 0 };
                assert_eq!(Marks::new(vec![step]).of(WAN, &packet()), wanted, "{test:?} {expected:?}");
            }
        }
    }

    #[test]
    fn all_conditions_of_a_step_must_hold_and_the_last_matching_step_sets_the_mark() {
        let tcp = || is(Test::Protocol(vec![Protocol::TCP]));
        let web = || is(Test::DestPort(vec![80..=80]));
        let other = || is(Test::DestPort(vec![443..=443]));
        let of = |steps| Marks::new(steps).of(WAN, &packet());
        assert_eq!(of(vec![set(vec![tcp(), web()], 1), set(vec![tcp(), other()], 2)]), 1);
        assert_eq!(of(vec![set(vec![tcp()], 1), set(vec![web()], 2)]), 2);
        assert_eq!(of(Vec::new()), 0);
    }

    #[test]
    fn a_step_may_test_the_mark_of_earlier_steps_and_skip_later_ones() {
        let marked = |value| is(Test::Mark { value, mask: 0xff });
        let to_the_end = Step { conditions: vec![marked(1)], action: Action::SkipTo(3) };
        let steps = vec![set(Vec::new(), 0x101), to_the_end, set(Vec::new(), 9)];
        assert_eq!(Marks::new(steps.clone()).of(WAN, &packet()), 0x101);
        assert_eq!(
            Marks::new(steps[1..].iter().cloned().chain([set(Vec::new(), 3)]).collect()).of(WAN, &packet()),
            3
        );
    }

    #[test]
    fn packets_to_addresses_that_no_setting_step_names_are_not_marked() {
        let (inside, outside) = ("198.51.100.7".parse().unwrap(), "203.0.113.7".parse().unwrap());
        let to = |expected| Condition { test: Test::Dest(net("198.51.100.0/24")), expected };
        let of = |conditions| {
            let marks = Marks::new(vec![set(conditions, 1)]);
            (marks.may_mark(inside), marks.may_mark(outside))
        };
        assert_eq!(of(vec![to(Expected::Yes), is(Test::Protocol(vec![Protocol::TCP]))]), (true, false));
        assert_eq!(of(vec![to(Expected::No)]), (true, true), "what a negation excludes is not examined");
        assert_eq!(of(vec![is(Test::Family(Family::V6))]), (false, false));
        assert_eq!(of(Vec::new()), (true, true));
        let skip = Step { conditions: Vec::new(), action: Action::SkipTo(1) };
        assert!(!Marks::new(vec![skip]).may_mark(inside) && !Marks::default().may_mark(inside));
    }

    #[test]
    #[should_panic(expected = "steps lead forward")]
    fn a_step_that_leads_backward_is_refused() {
        Marks::new(vec![set(Vec::new(), 1), Step { conditions: Vec::new(), action: Action::SkipTo(1) }]);
    }
}
