//! The compiler of mark rules: from rules and chains with names to steps for the data plane.
//!
//! There are two sources: [`MarkRule`]s of `xvs mark`, and the kernel's chains, which [`xvs_host::netfilter`] reads as
//! [`Table`]s. [`compile`] writes them one after the other as steps that skip forward only. A called chain is written
//! out at each call, so the evaluation of a packet needs no stack and always ends. Runs on the control thread whenever
//! rules or links change. Cost: proportional to the output, at most [`STEPS_MAX`] steps, and to a bounded number of
//! visited rules and of entries in their lists. A rule that cannot be followed is reported, never approximated.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use xvs_dataplane::snapshot::marks::{self, Marks, Step};
use xvs_host::netfilter::chain::{
    Action, Base, Criterion, ENTRIES_MAX, Match, Rule, Table, no_room_for_entries, pattern,
};
use xvs_model::objects::mark::MarkRule;
use xvs_model::report::warning::{Warning, WarningKind};
use xvs_proto::mark::{Change, Condition, Expected, Test, merged};
use xvs_proto::network::Link;
use xvs_proto::{Family, Prefix};

/// Compiled mark rules.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CompiledMarks {
    /// The steps for the data plane.
    pub marks: Marks,
    /// The warnings about rules that are not followed, and about chains whose order is unknown.
    pub unfollowed: Vec<Warning>,
    mark_scopes: Vec<MarkScope>,
}

/// A change of the mark, with the packets to which it can apply.
#[derive(Debug, Clone, PartialEq, Eq)]
struct MarkScope {
    change: Change,
    scope: Scope,
}

/// The packets that can reach a rule, as far as steering can distinguish them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Scope {
    family: Option<Family>,
    /// Networks of the destination address; `None` means any. One list is shared by all rules to which it applies.
    dest: Option<Arc<[Prefix]>>,
}

impl Scope {
    /// This scope, narrowed by the criteria of a rule.
    fn within(&self, criteria: &[Criterion]) -> Self {
        let mut scope = self.clone();
        for criterion in criteria.iter().filter(|criterion| criterion.expected == Expected::Yes) {
            match &criterion.matches {
                Match::Packet(Test::Dest(networks)) => scope.dest = Some(merged(networks.clone()).into()),
                Match::Packet(Test::Family(family)) => scope.family = Some(*family),
                _ => {}
            }
        }
        scope
    }
}

impl CompiledMarks {
    /// The destination networks whose packets can get this mark. They must be steered for its service.
    pub fn networks_of(&self, mark: u32, family: Family) -> BTreeSet<Prefix> {
        let everything = match family {
            Family::V4 => Prefix::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0),
            Family::V6 => Prefix::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0),
        };
        let mut networks = BTreeSet::new();
        let mut seen = BTreeSet::new();
        for MarkScope { change, scope } in &self.mark_scopes {
            if !change.may_give(mark) || scope.family.is_some_and(|only| only != family) {
                continue;
            }
            match &scope.dest {
                Some(dest) if !seen.insert(dest.as_ptr()) => {}
                Some(dest) => networks.extend(dest.iter().filter(|to| Family::of(to.addr()) == family)),
                None => networks.extend(everything),
            }
        }
        networks
    }
}

/// Compiles all rules: those in the kernel's tables by priority, then those of `xvs mark`, which therefore take
/// precedence. `links` are the attached interfaces, the only ones on which packets arrive.
pub fn compile(tables: &[Table], own: &[MarkRule], links: &[Link]) -> CompiledMarks {
    let mut compiler = Compiler { links, ..Compiler::default() };
    let tables: Vec<_> = tables.iter().map(|table| (table, ChainRoles::of(table))).collect();
    let mut bases = Vec::new();
    for (table, roles) in &tables {
        bases.extend(table.bases.iter().map(|base| (*table, roles, base)));
    }
    bases.retain(|(_, roles, base)| roles.marking.contains(base.chain.as_str()));
    compiler.unfollowed.extend(bases.iter().filter_map(|(.., base)| {
        let why = base.obstacle.as_ref()?;
        let text = format!("chain «{}» marks packets and is not followed: {why}", base.text);
        Some(Warning::new(WarningKind::MarkChainNotFollowed, &base.text, text))
    }));
    bases.retain(|(.., base)| base.obstacle.is_none());
    bases.sort_by_key(|(.., base)| (base.priority, Reverse(base.registered)));
    for pair in bases.windows(2) {
        compiler.unfollowed.extend(ambiguous_order(pair[0].2, pair[1].2));
    }
    for (table, roles, base) in bases {
        compiler.base((table, roles), base);
    }
    let end = compiler.label();
    let none = Table::default();
    compiler.rules(
        (&none, &ChainRoles::of(&none)),
        &own.iter().map(own_rule).collect::<Vec<_>>(),
        &Scope::default(),
        Exits { on_return: end, on_accept: end, depth: 0 },
    );
    compiler.place(end);
    compiler.finish()
}

/// The warning about two chains that mark, if it is unknown whether the kernel evaluates them in this order.
fn ambiguous_order(first: &Base, second: &Base) -> Option<Warning> {
    let meet = first.family.is_none() || second.family.is_none() || first.family == second.family;
    let known = first.priority != second.priority || first.registered.and(second.registered).is_some();
    (meet && !known).then(|| {
        let text = format!(
            "chains «{}» and «{}» mark packets at the same priority; xvs evaluates them in this order and does not know the \
             kernel's: give one of them another priority",
            first.text, second.text
        );
        Warning::new(WarningKind::MarkChainOrder, format_args!("{}, {}", first.text, second.text), text)
    })
}

/// The chains of a table by their effects, computed once for the table.
struct ChainRoles<'t> {
    /// Chains that change marks, or call such chains. Other base chains are ignored.
    marking: BTreeSet<&'t str>,
    /// Chains that can affect a packet's mark, also by accepting or dropping the packet.
    relevant: BTreeSet<&'t str>,
}

impl<'t> ChainRoles<'t> {
    fn of(table: &'t Table) -> Self {
        Self {
            marking: chains_with(table, |action| matches!(action, Action::Set(_) | Action::Unknown)),
            relevant: chains_with(table, |action| {
                matches!(action, Action::Set(_) | Action::Unknown | Action::Accept | Action::Drop)
            }),
        }
    }
}

/// The chains that contain a rule with such an action, and those that call one of them. Cost: one visit of each rule.
fn chains_with(table: &Table, is_wanted: impl Fn(&Action) -> bool) -> BTreeSet<&str> {
    let (mut callers, mut to_do): (BTreeMap<&str, Vec<&str>>, Vec<&str>) = Default::default();
    for (name, rules) in &table.chains {
        for rule in rules {
            match &rule.action {
                Action::Call(to) | Action::Goto(to) => callers.entry(to).or_default().push(name),
                action if is_wanted(action) => to_do.push(name),
                _ => {}
            }
        }
    }
    let mut found = BTreeSet::new();
    while let Some(chain) = to_do.pop() {
        if found.insert(chain) {
            to_do.extend(callers.get(chain).into_iter().flatten());
        }
    }
    found
}

/// A position among the steps that is not known yet.
#[derive(Debug, Clone, Copy)]
struct Label(usize);

/// The targets of the exits of a chain.
#[derive(Debug, Clone, Copy)]
struct Exits {
    /// The target of its end and of every return.
    on_return: Label,
    /// The target of every accept.
    on_accept: Label,
    /// The number of nested calls.
    depth: usize,
}

#[derive(Default)]
struct Compiler<'a> {
    links: &'a [Link],
    /// The steps; the targets of skips are labels until [`Self::finish`].
    steps: Vec<Step>,
    places: Vec<usize>,
    mark_scopes: Vec<MarkScope>,
    unfollowed: Vec<Warning>,
    /// The rules that have a warning: a rule that is reached twice has one.
    reported: BTreeSet<String>,
    /// The number of visited rules.
    rules_visited: usize,
    /// The number of entries (networks, ports and the like) in the lists of the rules.
    entries: usize,
    is_cut_off: bool,
}

/// A table, with its chains by their effects.
type TableContext<'a> = (&'a Table, &'a ChainRoles<'a>);

impl Compiler<'_> {
    fn base(&mut self, table: TableContext<'_>, base: &Base) {
        let end = self.label();
        if let Some(family) = base.family {
            self.skip(vec![Condition { test: Test::Family(family), expected: Expected::No }], end);
        }
        let scope = Scope { family: base.family, dest: None };
        self.chain(table, &base.chain, &scope, Exits { on_return: end, on_accept: end, depth: 0 });
        self.place(end);
    }

    fn chain(&mut self, table: TableContext<'_>, chain: &str, scope: &Scope, exits: Exits) {
        if let Some(rules) = table.0.chains.get(chain) {
            self.rules(table, rules, scope, exits);
        }
    }

    fn rules(&mut self, table: TableContext<'_>, rules: &[Rule], scope: &Scope, exits: Exits) {
        for rule in rules {
            self.rules_visited += 1;
            let is_idle = match &rule.action {
                Action::Nothing => true,
                Action::Call(to) => !table.1.relevant.contains(to.as_str()),
                _ => false,
            };
            if is_idle && self.rules_visited <= VISITS_MAX {
                continue;
            }
            if self.is_full(rule) {
                return;
            }
            if let Some(why) = self.obstacle(rule, exits) {
                self.report(rule, &why);
                continue;
            }
            let conditions = self.conditions(&rule.criteria);
            match &rule.action {
                Action::Set(change) => {
                    self.mark_scopes.push(MarkScope { change: *change, scope: scope.within(&rule.criteria) });
                    self.steps.push(Step { conditions, action: marks::Action::Set(*change) });
                }
                Action::Accept => self.skip(conditions, exits.on_accept),
                Action::Return => self.skip(conditions, exits.on_return),
                Action::Call(to) | Action::Goto(to) => {
                    let into = self.label();
                    let next = self.label();
                    self.skip(conditions, into);
                    self.skip(Vec::new(), next);
                    self.place(into);
                    let returns = matches!(rule.action, Action::Call(_));
                    let after = if returns { next } else { exits.on_return };
                    self.chain(
                        table,
                        to,
                        &scope.within(&rule.criteria),
                        Exits { on_return: after, depth: exits.depth + 1, ..exits },
                    );
                    if !returns {
                        self.skip(Vec::new(), after);
                    }
                    self.place(next);
                }
                Action::Unknown | Action::Drop | Action::Nothing => {}
            }
        }
    }

    /// Whether a limit of steps or visited rules is reached; this rule and all later ones are not followed then.
    fn is_full(&mut self, rule: &Rule) -> bool {
        let why = match () {
            () if self.is_cut_off => return true,
            () if self.steps.len() >= STEPS_MAX => {
                format!("the rules before it fill all {STEPS_MAX} steps")
            }
            () if self.rules_visited > VISITS_MAX => {
                format!("with each chain written out where it is called, {VISITS_MAX} rules are before it")
            }
            () => return false,
        };
        self.is_cut_off = true;
        let rest = format!("mark rule «{}» and all after it are not followed: {why}", rule.text);
        self.unfollowed.insert(0, Warning::new(WarningKind::MarkRulesCutOff, &rule.text, rest));
        true
    }

    fn obstacle(&mut self, rule: &Rule, exits: Exits) -> Option<String> {
        if exits.depth >= DEPTH_MAX {
            return Some(format!("it is nested in {DEPTH_MAX} jumps"));
        }
        if rule.obstacle.is_some() {
            return rule.obstacle.clone();
        }
        let mut entries = self.entries;
        for criterion in &rule.criteria {
            match &criterion.matches {
                Match::Packet(test) => entries += test.entries(),
                Match::Interface(names) => entries += names.len(),
                Match::OfNew { obstacle, .. } => return Some(obstacle.clone()),
            }
        }
        if entries > ENTRIES_MAX {
            return Some(no_room_for_entries());
        }
        self.entries = entries;
        None
    }

    fn report(&mut self, rule: &Rule, why: &str) {
        if self.reported.insert(rule.text.clone()) {
            let text = format!("mark rule «{}» is not followed: {why}", rule.text);
            self.unfollowed.push(Warning::new(WarningKind::MarkRuleNotFollowed, &rule.text, text));
        }
    }

    fn conditions(&self, criteria: &[Criterion]) -> Vec<Condition> {
        let mut conditions = Vec::new();
        for Criterion { matches, expected } in criteria {
            let test = match matches {
                Match::Packet(test) => test.clone(),
                Match::Interface(names) => Test::Link(
                    self.links
                        .iter()
                        .filter(|link| names.iter().any(|name| is_named(&link.name, name)))
                        .map(|link| link.id)
                        .collect(),
                ),
                // The rule has an obstacle, and is not followed.
                Match::OfNew { .. } => continue,
            };
            conditions.push(Condition { test, expected: *expected });
        }
        conditions
    }

    fn label(&mut self) -> Label {
        self.places.push(0);
        Label(self.places.len() - 1)
    }

    fn place(&mut self, label: Label) {
        self.places[label.0] = self.steps.len();
    }

    fn skip(&mut self, conditions: Vec<Condition>, to: Label) {
        self.steps.push(Step { conditions, action: marks::Action::SkipTo(to.0) });
    }

    fn finish(mut self) -> CompiledMarks {
        for step in &mut self.steps {
            if let marks::Action::SkipTo(to) = &mut step.action {
                *to = self.places[*to];
            }
        }
        let more = self.unfollowed.len().saturating_sub(SENTENCES_MAX);
        if more > 0 {
            self.unfollowed.truncate(SENTENCES_MAX);
            let text = format!("{more} more mark rules are not followed");
            self.unfollowed.push(Warning::new(WarningKind::MarkRuleNotFollowed, "", text));
        }
        CompiledMarks {
            marks: Marks::new(self.steps),
            unfollowed: self.unfollowed,
            mark_scopes: self.mark_scopes,
        }
    }
}

/// Whether an interface has this name or, if it ends in `*`, this prefix.
fn is_named(interface: &str, name: &str) -> bool {
    match name.strip_suffix('*') {
        Some(beginning) => interface.starts_with(beginning),
        None => interface == name,
    }
}

/// Maximum number of steps; each may be evaluated once for each new connection.
pub const STEPS_MAX: usize = 4096;
/// Maximum number of visited rules, counted again for each call of their chain.
const VISITS_MAX: usize = 1 << 18;
/// Maximum number of rules that are not followed and have a separate message.
const SENTENCES_MAX: usize = 100;
/// Maximum depth of nested calls; nftables allows 16.
const DEPTH_MAX: usize = 64;

#[cfg(test)]
pub(crate) mod testing {
    use xvs_proto::{FlowKey, Fragment, Packet, tcp};

    /// A packet of a flow; a SYN with TCP.
    pub(crate) fn packet(flow: FlowKey) -> Packet {
        Packet {
            network: 14,
            transport: 34,
            end: 54,
            flow,
            fragment: Fragment::Whole,
            fragment_header: None,
            longest_fragment: None,
            tcp_flags: tcp::Flags::SYN,
            sctp_event: None,
            icmp_type: None,
            ttl: 64,
            tos: 0,
            dont_fragment: false,
        }
    }
}

/// A rule of `xvs mark` as a rule of a chain.
fn own_rule(own: &MarkRule) -> Rule {
    let tests = [
        own.dest.map(|dest| Test::Dest(vec![dest])),
        own.source.map(|source| Test::Source(vec![source])),
        own.protocol.map(|protocol| Test::Protocol(vec![protocol])),
        (!own.dest_ports.is_empty()).then(|| Test::DestPort(own.dest_ports.clone())),
    ];
    Rule {
        text: own.to_string(),
        criteria: tests
            .into_iter()
            .flatten()
            .map(Match::Packet)
            .chain(own.interface.iter().map(|name| Match::Interface(vec![pattern(name)])))
            .map(|matches| Criterion { matches, expected: Expected::Yes })
            .collect(),
        action: Action::Set(Change::set_mark(own.mark, own.mask)),
        obstacle: None,
    }
}

#[cfg(test)]
mod tests {
    mod kernel_rules;

    use std::net::Ipv4Addr;
    use xvs_proto::Protocol;

    use proptest::prelude::*;
    use xvs_model::report::warning::texts;
    use xvs_proto::LinkId;
    use xvs_proto::network::Network;
    use xvs_proto::{Endpoint, FlowKey, Packet};

    use crate::firewall_marks::*;

    const VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 100);

    fn links() -> Vec<Link> {
        let mut network = Network::default();
        for name in ["eth0", "eth1", "lan"] {
            network.add_link(name, "02:00:00:00:00:01".parse().unwrap(), &[], 1500).unwrap();
        }
        network.links
    }

    fn packet(port: u16) -> Packet {
        let (source, dest) = (Endpoint::new([203, 0, 113, 7], 4000), Endpoint::new(VIP, port));
        testing::packet(FlowKey { protocol: Protocol::TCP, source, dest })
    }

    fn to_port(port: u16) -> Vec<Criterion> {
        let matches = Match::Packet(Test::DestPort(vec![port..=port]));
        vec![Criterion { matches, expected: Expected::Yes }]
    }

    fn rule(criteria: Vec<Criterion>, action: Action) -> Rule {
        Rule { text: "a rule".to_owned(), criteria, action, obstacle: None }
    }

    fn set(mark: u32) -> Action {
        Action::Set(Change::set_mark(mark, u32::MAX))
    }

    fn base(chain: &str, priority: i64, family: Option<Family>) -> Base {
        let (text, chain) = (format!("a table {chain}"), chain.to_owned());
        Base { text, chain, priority, family, registered: None, drops: false, obstacle: None }
    }

    fn table(priority: i64, chains: &[(&str, &[Rule])]) -> Table {
        let base = base("pre", priority, Some(Family::V4));
        let chains = chains.iter().map(|(name, rules)| ((*name).to_owned(), rules.to_vec())).collect();
        Table { bases: vec![base], chains }
    }

    fn mark(tables: &[Table], port: u16) -> u32 {
        compile(tables, &[], &links()).marks.of(LinkId(0), &packet(port))
    }

    #[test]
    fn a_called_chain_returns_behind_the_call_and_a_goto_behind_the_call_before_it() {
        let or = |bits| Action::Set(Change::NONE.or(bits));
        for (to_sub, marked) in
            [(Action::Call("sub".to_owned()), 0x102), (Action::Goto("sub".to_owned()), 0x002)]
        {
            let outer = [rule(to_port(80), to_sub), rule(vec![], or(0x100))];
            let sub = [rule(vec![], or(2)), rule(vec![], Action::Return), rule(vec![], set(9))];
            let pre = [rule(vec![], Action::Call("outer".to_owned())), rule(to_port(99), set(7))];
            let tables = [table(0, &[("pre", &pre), ("outer", &outer), ("sub", &sub)])];
            assert_eq!([80, 81, 99].map(|port| mark(&tables, port)), [marked, 0x100, 7]);
        }
    }

    #[test]
    fn accept_ends_its_table_and_the_next_table_by_priority_is_evaluated() {
        let first = table(
            -150,
            &[
                ("pre", &[rule(vec![], Action::Call("sub".to_owned())), rule(vec![], set(1))]),
                ("sub", &[rule(vec![], set(2)), rule(to_port(80), Action::Accept)]),
            ],
        );
        let second = table(-100, &[("pre", &[rule(to_port(443), set(3))])]);
        let tables = [second, first];
        assert_eq!([80, 81, 443].map(|port| mark(&tables, port)), [2, 1, 3]);
    }

    #[test]
    fn long_lists_are_searched_steered_once_and_limited_in_total() {
        let every_second = |n: u32| Prefix::host(Ipv4Addr::from(0x0a00_0000 + 2 * n).into());
        let dest =
            |networks| Criterion { matches: Match::Packet(Test::Dest(networks)), expected: Expected::Yes };
        let long = vec![dest((0..60_000).map(every_second).collect())];
        let vip = vec![dest(vec![Prefix::host(VIP.into())])];
        let called = [rule(vec![], set(1)), rule(to_port(81), set(1))];
        let pre = [
            rule(long.clone(), Action::Call("sub".to_owned())),
            rule(long.clone(), set(2)),
            rule(long.clone(), set(2)),
            rule(long.clone(), set(2)),
            Rule { text: "one too many".to_owned(), ..rule(long, set(3)) },
            rule(vip, set(4)),
        ];
        let compiled = compile(&[table(0, &[("pre", &pre), ("sub", &called)])], &[], &[]);
        assert_eq!(compiled.unfollowed.len(), 1);
        assert!(
            compiled.unfollowed[0].text.contains("one too many")
                && compiled.unfollowed[0].text.contains("262144")
        );
        assert_eq!(compiled.networks_of(1, Family::V4).len(), 60_000);
        assert_eq!(compiled.marks.of(LinkId(0), &packet(80)), 4, "a rule without a list is still followed");
    }

    #[test]
    fn of_chains_of_one_priority_the_last_registered_is_evaluated_first() {
        let registered = |at, sets| {
            let mut table = table(-150, &[("pre", &[rule(vec![], set(sets))])]);
            table.bases[0].registered = at;
            table
        };
        let (older, newer) = (registered(Some((3, 9)), 1), registered(Some((4, 1)), 2));
        for tables in [[older.clone(), newer.clone()], [newer, older.clone()]] {
            let compiled = compile(&tables, &[], &links());
            assert_eq!(compiled.marks.of(LinkId(0), &packet(80)), 1);
            assert_eq!(texts(&compiled.unfollowed), [""; 0]);
        }
        let unknown = [older.clone(), registered(None, 2)];
        assert_eq!(compile(&unknown, &[], &links()).unfollowed.len(), 1);
        let mut six = registered(None, 2);
        six.bases[0].family = Some(Family::V6);
        assert_eq!(texts(&compile(&[older, six], &[], &links()).unfollowed), [""; 0]);
    }

    #[test]
    fn a_table_of_one_family_marks_no_packet_of_the_other() {
        let mut six = table(0, &[("pre", &[rule(vec![], set(1))])]);
        six.bases[0].family = Some(Family::V6);
        assert_eq!(mark(&[six.clone()], 80), 0);
        let compiled = compile(&[six], &[], &[]);
        assert!(compiled.networks_of(1, Family::V4).is_empty());
        assert_eq!(compiled.networks_of(1, Family::V6), ["::/0".parse().unwrap()].into());
    }

    #[test]
    fn a_rule_that_cannot_be_followed_is_skipped_and_reported_if_it_concerns_marks() {
        let blocked = |action| Rule { obstacle: Some("because".to_owned()), ..rule(vec![], action) };
        let harmless = blocked(Action::Call("logging".to_owned()));
        let tables = [
            table(
                0,
                &[
                    ("pre", &[harmless, blocked(Action::Unknown), rule(vec![], set(1))]),
                    ("logging", &[rule(vec![], Action::Nothing)]),
                ],
            ),
            table(1, &[("pre", &[blocked(Action::Drop)])]),
        ];
        let compiled = compile(&tables, &[], &links());
        assert_eq!(texts(&compiled.unfollowed), ["mark rule «a rule» is not followed: because"]);
        assert_eq!(mark(&tables, 80), 1);
    }

    #[test]
    fn chains_that_exceed_the_limit_of_steps_are_reported_and_not_written_out_further() {
        let call = |to: usize| rule(vec![], Action::Call(to.to_string()));
        let doubling: Vec<_> = (0..40).map(|n| (n.to_string(), vec![call(n + 1), call(n + 1)])).collect();
        let mut table = table(0, &[("pre", &[call(0)])]);
        table.chains.extend(doubling);
        table.chains.insert("40".to_owned(), vec![rule(vec![], set(1))]);
        let compiled = compile(&[table], &[], &links());
        assert_eq!(compiled.marks.of(LinkId(0), &packet(80)), 1);
        assert!(compiled.unfollowed[0].text.contains("4096"), "{:?}", compiled.unfollowed);
        assert_eq!(compiled.unfollowed.len(), 1);
    }

    #[test]
    fn rules_that_fill_the_limit_of_steps_are_all_followed_if_later_ones_do_nothing() {
        let mut rules = vec![rule(vec![], set(1)); STEPS_MAX - 1];
        // The first step is that of the table's family.
        rules.push(rule(vec![], Action::Nothing));
        assert_eq!(texts(&compile(&[table(0, &[("pre", &rules)])], &[], &[]).unfollowed), [""; 0]);
        rules.push(rule(vec![], set(2)));
        assert_eq!(compile(&[table(0, &[("pre", &rules)])], &[], &[]).unfollowed.len(), 1);
    }

    #[test]
    fn chains_with_more_nested_calls_than_can_be_written_out_are_visited_once_each() {
        let call = |to: usize| rule(vec![], Action::Call(to.to_string()));
        let harmless = |last: Rule| {
            let mut table = table(0, &[("pre", &[call(0), rule(to_port(80), set(1))])]);
            table.chains.extend((0..60).map(|n| (n.to_string(), vec![call(n + 1); 6])));
            table.chains.insert("60".to_owned(), vec![last]);
            table
        };
        let tables = [harmless(rule(vec![], Action::Nothing))];
        assert_eq!([mark(&tables, 80), mark(&tables, 81)], [1, 0]);
        let obstacle = Some("because".to_owned());
        let blocked = Rule { obstacle, ..rule(vec![], Action::Drop) };
        let compiled = compile(&[harmless(blocked)], &[], &links());
        assert!(compiled.unfollowed[0].text.contains("and all after it"), "{:?}", compiled.unfollowed);
        assert!(compiled.unfollowed[1].text.contains("because"), "{:?}", compiled.unfollowed);
    }

    #[test]
    fn rules_that_cannot_be_followed_are_visited_a_limited_number_of_times() {
        let call = rule(vec![], Action::Call("sub".to_owned()));
        let blocked = |n: i32| Rule {
            text: n.to_string(),
            obstacle: Some("because".to_owned()),
            ..rule(vec![], set(1))
        };
        let sub: Vec<_> = (0..10_000).map(blocked).collect();
        let compiled = compile(&[table(0, &[("pre", &vec![call; 1000]), ("sub", &sub)])], &[], &links());
        assert_eq!(compiled.unfollowed.len(), 101);
        assert!(compiled.unfollowed[0].text.contains("rules are before it"), "{}", compiled.unfollowed[0]);
        assert_eq!(compiled.unfollowed[100].text, "9901 more mark rules are not followed");
    }

    #[test]
    fn interfaces_match_by_name_or_prefix_and_one_that_is_not_attached_never_matches() {
        for (name, marked) in [("eth0", [5, 0, 0]), ("eth+", [5, 5, 0]), ("wan", [0, 0, 0])] {
            let rule = MarkRule {
                dest: None,
                source: None,
                protocol: None,
                dest_ports: Vec::new(),
                interface: Some(name.to_owned()),
                mark: 5,
                mask: u32::MAX,
            };
            let marks = compile(&[], &[rule], &links()).marks;
            assert_eq!([0, 1, 2].map(|link| marks.of(LinkId(link), &packet(80))), marked, "{name}");
        }
    }

    #[test]
    fn a_mark_has_the_networks_of_the_rules_that_can_set_it_and_all_networks_if_one_names_none() {
        let to = |network: &str| {
            let matches = Match::Packet(Test::Dest(vec![network.parse().unwrap()]));
            vec![Criterion { matches, expected: Expected::Yes }]
        };
        let tables = [table(
            0,
            &[
                (
                    "pre",
                    &[
                        rule(to("198.51.100.0/24"), Action::Call("sub".to_owned())),
                        rule(to("192.0.2.1"), set(2)),
                        rule(vec![], Action::Set(Change::set_mark(4, 0xf))),
                    ],
                ),
                ("sub", &[rule(to_port(80), set(1)), rule(to("198.51.100.7"), set(2))]),
            ],
        )];
        let compiled = compile(&tables, &[], &links());
        let networks = |mark| compiled.networks_of(mark, Family::V4);
        let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<BTreeSet<_>>();
        assert_eq!(networks(1), nets(&["198.51.100.0/24"]));
        assert_eq!(networks(2), nets(&["192.0.2.1/32", "198.51.100.7/32"]));
        assert_eq!(networks(0x14), nets(&["0.0.0.0/0"]));
        assert_eq!(networks(3), nets(&[]));
        assert_eq!(compiled.networks_of(1, Family::V6), nets(&[]));
    }

    /// A direct interpreter of chains as iptables(8) describes them, without compilation.
    struct Walk<'a> {
        table: &'a Table,
        port: u16,
        mark: u32,
    }

    impl Walk<'_> {
        /// Evaluates a chain; whether it ended the table.
        fn chain(&mut self, name: &str) -> bool {
            for rule in &self.table.chains[name] {
                let fits = rule.criteria.iter().all(|one| match &one.matches {
                    Match::Packet(Test::DestPort(ports)) => {
                        ports[0].contains(&self.port) == (one.expected == Expected::Yes)
                    }
                    Match::Packet(Test::Mark { value, mask }) => self.mark & mask == *value,
                    other => panic!("{other:?}"),
                });
                match &rule.action {
                    _ if !fits => {}
                    Action::Set(change) => self.mark = change.apply(self.mark),
                    Action::Accept => return true,
                    Action::Return => return false,
                    Action::Call(to) if self.chain(to) => return true,
                    Action::Goto(to) => return self.chain(to),
                    _ => {}
                }
            }
            false
        }
    }

    fn any_criteria() -> impl Strategy<Value = Vec<Criterion>> {
        let yes = |test| Criterion { matches: Match::Packet(test), expected: Expected::Yes };
        let port = (0..4u16, 0..2u16, any::<bool>()).prop_map(|(first, more, negated)| Criterion {
            matches: Match::Packet(Test::DestPort(vec![first..=first + more])),
            expected: if negated { Expected::No } else { Expected::Yes },
        });
        let mark =
            (0..4u32, 0..4u32).prop_map(move |(value, mask)| yes(Test::Mark { value: value & mask, mask }));
        prop::collection::vec(prop_oneof![port, mark], 0..3)
    }

    /// Rules of the chain with this number, which call only chains with higher numbers.
    fn any_rules(number: usize) -> impl Strategy<Value = Vec<Rule>> {
        let to = (number + 1..=number + 3).prop_map(|to| to.min(CHAINS).to_string());
        let action = prop_oneof![
            3 => (0..4u32, 0..4u32).prop_map(|(value, mask)| Action::Set(Change::set_xmark(value, mask))),
            1 => Just(Action::Accept),
            1 => Just(Action::Return),
            1 => Just(Action::Nothing),
            2 => to.clone().prop_map(Action::Call),
            1 => to.prop_map(Action::Goto),
        ];
        prop::collection::vec(
            (any_criteria(), action).prop_map(|(criteria, action)| rule(criteria, action)),
            0..5,
        )
    }

    /// The number of chains after the first.
    const CHAINS: usize = 4;

    proptest! {
        #[test]
        fn compiled_rules_mark_as_an_interpreter_of_the_chains_does(
            rules in (any_rules(0), any_rules(1), any_rules(2), any_rules(3)),
        ) {
            let rules = [rules.0, rules.1, rules.2, rules.3, vec![]];
            let chains = rules.into_iter().enumerate().map(|(number, rules)| (number.to_string(), rules)).collect();
            let base = base("0", 0, None);
            let table = Table { bases: vec![base], chains };
            let compiled = compile(std::slice::from_ref(&table), &[], &[]);
            for port in 0..6 {
                let mut walk = Walk { table: &table, port, mark: 0 };
                walk.chain("0");
                prop_assert_eq!(compiled.marks.of(LinkId(0), &packet(port)), walk.mark, "port {}", port);
                if walk.mark != 0 {
                    prop_assert!(!compiled.networks_of(walk.mark, Family::V4).is_empty(), "mark {} is steered", walk.mark);
                }
            }
        }
    }
}
