//! Parses one rule in the output of `nft -j list ruleset`.
//!
//! A rule of nftables is a sequence of statements. Each verdict and each change of the mark becomes a [`Rule`] whose
//! criteria are all matches before it. A map becomes one [`Rule`] for each element. An unknown statement becomes the
//! rule's obstacle. Source: libnftables-json(5). Pure.

use std::cell::Cell;
use std::ops::RangeInclusive;

use serde_json::{Value, json};
use xvs_proto::mark::{Change, Expected, Test};
use xvs_proto::{Family, Prefix, Protocol};

use crate::netfilter::chain::{Action, Criterion, Match, Rule, no_room_for_entries};
use crate::netfilter::hook::protocol;
use crate::netfilter::iptables_save::DROPS;
use crate::netfilter::range;

/// The rules for these statements. `sets` returns the elements of a set, `room` is the number of elements in sets and
/// maps that this and the remaining rules may have, `text` is for messages.
pub(super) fn read<'a>(
    statements: &[Value],
    sets: &'a dyn Fn(&str) -> Option<&'a [Value]>,
    room: &'a Cell<usize>,
    text: String,
) -> Vec<Rule> {
    RuleReader {
        sets,
        room,
        has_no_room: Cell::new(false),
        criteria: Vec::new(),
        rules: Vec::new(),
        obstacle: None,
        text,
    }
    .read(statements)
}

/// A rule that is being parsed.
struct RuleReader<'a> {
    sets: &'a dyn Fn(&str) -> Option<&'a [Value]>,
    /// The number of elements in sets and maps that the remaining rules may have.
    room: &'a Cell<usize>,
    /// Whether this rule exceeds it.
    has_no_room: Cell<bool>,
    /// The matches so far.
    criteria: Vec<Criterion>,
    rules: Vec<Rule>,
    obstacle: Option<String>,
    text: String,
}

impl RuleReader<'_> {
    fn read(mut self, statements: &[Value]) -> Vec<Rule> {
        for statement in statements {
            let Some((kind, content)) = statement.as_object().and_then(|object| object.iter().next()) else {
                continue;
            };
            match kind.as_str() {
                "match" => match self.criteria_of(content) {
                    Some(more) => self.criteria.extend(more),
                    None => self.set_obstacle(UNKNOWN_MATCH),
                },
                "mangle" if is_mark(&content["key"]) => self.mangle(&content["value"]),
                "vmap" => self.elements(content, verdict),
                "counter" | "log" | "mangle" | "notrack" | "set" | "tproxy" => {}
                "xt" => self.extension(text(&content["type"]), text(&content["name"])),
                _ => match verdict(statement) {
                    Some(action) => self.decide(action),
                    None => self.set_obstacle(&format!("xvs does not know the statement {kind}")),
                },
            }
        }
        self.rules
    }

    fn set_obstacle(&mut self, why: &str) {
        let has_no_room = self.has_no_room.get();
        self.obstacle.get_or_insert_with(|| if has_no_room { no_room_for_entries() } else { why.to_owned() });
    }

    /// Adds a rule with the criteria so far.
    fn decide(&mut self, action: Action) {
        self.check_mark_order(&[]);
        self.push(action, &[]);
    }

    /// Sets an obstacle if the criteria so far, or `more`, test the mark and the rule has changed it: the criteria
    /// applied to the earlier mark.
    fn check_mark_order(&mut self, more: &[Criterion]) {
        let changed = self.rules.iter().any(|rule| matches!(rule.action, Action::Set(_)));
        if changed && self.criteria.iter().chain(more).any(tests_mark) {
            self.set_obstacle("it matches a mark and then changes the mark");
        }
    }

    /// Adds a rule with the criteria so far and `more`.
    fn push(&mut self, action: Action, more: &[Criterion]) {
        let obstacle = match action {
            Action::Drop => Some(DROPS.to_owned()),
            _ => self.obstacle.clone(),
        };
        let criteria = self.criteria.iter().chain(more).cloned().collect();
        self.rules.push(Rule { text: self.text.clone(), criteria, action, obstacle });
    }

    /// Processes a match or target of iptables, of which nft prints only the name.
    fn extension(&mut self, kind: &str, name: &str) {
        match (kind, name) {
            ("match", "comment") => {}
            ("match", _) => self.set_obstacle(&format!(
                "nft does not print the criteria of iptables' match {name}; {INSTEAD}"
            )),
            ("target", "MARK" | "CONNMARK") | ("", _) => {
                self.set_obstacle(&format!("nft does not print the mark that iptables sets; {INSTEAD}"));
                self.decide(Action::Unknown);
            }
            _ => {}
        }
    }

    fn mangle(&mut self, value: &Value) {
        if let Some(change) = change(value) {
            self.decide(Action::Set(change));
        } else if value.get("map").is_some() {
            self.elements(&value["map"], |value| change(value).map(Action::Set));
        } else {
            self.set_obstacle("xvs does not know the mark that it sets");
            self.decide(Action::Unknown);
        }
    }

    /// Adds a rule for each element of a map. A packet without an element, or whose element is a verdict, leaves the
    /// rule at the map. The statements after the map therefore apply to the keys of the other elements.
    fn elements(&mut self, map: &Value, action: impl Fn(&Value) -> Option<Action>) {
        let pairs = self.items(&map["data"]).unwrap_or_default();
        let Some(elements) = pairs
            .iter()
            .map(|pair| self.element(map, pair, &action))
            .collect::<Option<Vec<_>>>()
            .filter(|elements| !elements.is_empty())
        else {
            self.set_obstacle("xvs does not know the keys or values of its map");
            return self.decide(Action::Unknown);
        };
        let tests = elements.iter().any(|element| element.criteria.iter().any(tests_mark));
        let changes =
            elements.iter().any(|element| matches!(element.action, Action::Set(_) | Action::Call(_)));
        if tests && elements.len() > 1 && changes {
            self.set_obstacle("its map has marks as keys and changes the mark");
        }
        elements.iter().for_each(|element| self.check_mark_order(&element.criteria));
        let passing = elements
            .iter()
            .filter(|one| matches!(one.action, Action::Set(_) | Action::Nothing))
            .map(|element| element.key.clone())
            .collect();
        elements.into_iter().for_each(|element| self.push(element.action, &element.criteria));
        match self.criteria_of(&key_among(map, passing)) {
            Some(more) => self.criteria.extend(more),
            None => self.set_obstacle("xvs does not know the keys with which packets pass its map"),
        }
    }

    /// Parses an element of a map; `None` if its key or value is unknown.
    fn element<'v>(
        &self,
        map: &Value,
        pair: &'v Value,
        action: impl Fn(&Value) -> Option<Action>,
    ) -> Option<Element<'v>> {
        let key = plain(pair.get(0)?);
        let action = action(pair.get(1)?)?;
        // The wildcard element has no keys of its own.
        if key == "*" {
            return None;
        }
        Some(Element { key, action, criteria: self.criteria_of(&key_among(map, vec![key.clone()]))? })
    }

    /// The criteria of a match; `None` if it is unknown.
    fn criteria_of(&self, comparison: &Value) -> Option<Vec<Criterion>> {
        let op = text(&comparison["op"]);
        let left = &comparison["left"];
        let items = self.items(&comparison["right"])?;
        let expected = if op == "!=" { Expected::No } else { Expected::Yes };
        let equal = matches!(op, "==" | "!=") || op == "in" && comparison["right"].get("set").is_some();
        if let Some([key, mask]) = left["&"].as_array().map(Vec::as_slice) {
            let mask = number(mask)?;
            let value = number(items.first()?)?;
            let known = equal && items.len() == 1 && is_mark(key);
            return known.then(|| vec![packet(Test::Mark { value, mask }, expected)]);
        }
        if let Some(payload) = left.get("payload") {
            let of = text(&payload["protocol"]);
            let field = text(&payload["field"]);
            if matches!(field, "sport" | "dport") {
                let ranges = ports(&items, op)?;
                let test = if field == "dport" { Test::DestPort } else { Test::SourcePort };
                let of = match of {
                    "th" => None,
                    _ => Some(packet(Test::Protocol(vec![protocol(of)?]), Expected::Yes)),
                };
                return Some(of.into_iter().chain([packet(test(ranges), expected)]).collect());
            }
            let family = match of {
                "ip" => Family::V4,
                "ip6" => Family::V6,
                _ => return None,
            };
            let test = match field {
                "saddr" => Test::Source(networks(&items)?),
                "daddr" => Test::Dest(networks(&items)?),
                "protocol" | "nexthdr" => Test::Protocol(protocols(&items)?),
                _ => return None,
            };
            let family = packet(Test::Family(family), Expected::Yes);
            return equal.then(|| vec![family, packet(test, expected)]);
        }
        if let Some(matches) = of_new(left, &items) {
            return matches!(op, "==" | "!=" | "in").then(|| vec![Criterion { matches, expected }]);
        }
        let matches = match text(&left["meta"]["key"]) {
            "iifname" | "iif" => Match::Interface(
                items.iter().map(|name| name.as_str().map(str::to_owned)).collect::<Option<_>>()?,
            ),
            "l4proto" => Match::Packet(Test::Protocol(protocols(&items)?)),
            "nfproto" | "protocol" => Match::Packet(Test::Family(family(&items)?)),
            "mark" if items.len() == 1 => {
                Match::Packet(Test::Mark { value: number(items.first()?)?, mask: u32::MAX })
            }
            _ => return None,
        };
        equal.then(|| vec![Criterion { matches, expected }])
    }

    /// The values on the right of a comparison: one value, or the elements of an anonymous or named set.
    fn items(&self, right: &Value) -> Option<Vec<Value>> {
        let items = match (right.get("set"), right.as_str().and_then(|name| name.strip_prefix('@'))) {
            (Some(set), _) => list(set),
            (None, Some(name)) => (self.sets)(name)?,
            (None, None) => return Some(vec![right.clone()]),
        };
        match self.room.get().checked_sub(items.len()) {
            Some(left) => self.room.set(left),
            None => {
                self.has_no_room.set(true);
                return None;
            }
        }
        Some(items.iter().map(plain).cloned().collect())
    }
}

/// An element of a map.
struct Element<'v> {
    key: &'v Value,
    action: Action,
    /// The criteria for the element's key.
    criteria: Vec<Criterion>,
}

/// The comparison that is true for these keys of a map.
fn key_among(map: &Value, keys: Vec<Value>) -> Value {
    json!({ "op": "==", "left": map["key"], "right": { "set": keys } })
}

fn packet(test: Test, expected: Expected) -> Criterion {
    Criterion { matches: Match::Packet(test), expected }
}

/// The match on connection states, or on destination types.
fn of_new(left: &Value, items: &[Value]) -> Option<Match> {
    // Several states are a list; those of a set are elements.
    let names = items
        .iter()
        .flat_map(|item| item.as_array().map_or(std::slice::from_ref(item), Vec::as_slice))
        .map(Value::as_str)
        .collect::<Option<Vec<_>>>()?
        .into_iter();
    let fib = &left["fib"];
    if left["ct"] == json!({ "key": "state" }) {
        Some(Match::state(names, UNKNOWN_MATCH.to_owned()))
    } else if fib["result"] == "type" && (fib["flags"] == "daddr" || fib["flags"] == json!(["daddr"])) {
        Match::dest_type(names, UNKNOWN_MATCH.to_owned())
    } else {
        None
    }
}

fn tests_mark(one: &Criterion) -> bool {
    matches!(one.matches, Match::Packet(Test::Mark { .. }))
}

/// The value of an element, without attributes such as a timeout.
fn plain(element: &Value) -> &Value {
    element.get("elem").map_or(element, |element| &element["val"])
}

fn verdict(statement: &Value) -> Option<Action> {
    let (kind, content) = statement.as_object()?.iter().next()?;
    match kind.as_str() {
        "accept" => Some(Action::Accept),
        "return" => Some(Action::Return),
        "continue" => Some(Action::Nothing),
        "drop" | "reject" => Some(Action::Drop),
        "jump" => Some(Action::Call(text(&content["target"]).to_owned())),
        "goto" => Some(Action::Goto(text(&content["target"]).to_owned())),
        _ => None,
    }
}

pub(super) fn is_mark(key: &Value) -> bool {
    key["meta"]["key"] == "mark"
}

/// The change of the mark by an expression.
fn change(value: &Value) -> Option<Change> {
    if is_mark(value) {
        return Some(Change::NONE);
    }
    if let Some(value) = number(value) {
        return Some(Change::set_mark(value, u32::MAX));
    }
    let (op, operands) = value.as_object()?.iter().next()?;
    let (first, rest) = list(operands).split_first()?;
    rest.iter().try_fold(change(first)?, |change, operand| {
        let bits = number(operand)?;
        match op.as_str() {
            "&" => Some(change.and(bits)),
            "|" => Some(change.or(bits)),
            "^" => Some(change.xor(bits)),
            _ => None,
        }
    })
}

fn number(value: &Value) -> Option<u32> {
    u32::try_from(value.as_u64()?).ok()
}

fn family(items: &[Value]) -> Option<Family> {
    match items {
        [one] if matches!(one.as_str(), Some("ipv4" | "ip")) => Some(Family::V4),
        [one] if matches!(one.as_str(), Some("ipv6" | "ip6")) => Some(Family::V6),
        _ => None,
    }
}

fn protocols(items: &[Value]) -> Option<Vec<Protocol>> {
    items
        .iter()
        .map(|item| match item.as_str() {
            Some(name) => protocol(name),
            None => u8::try_from(item.as_u64()?).ok().map(Protocol),
        })
        .collect()
}

/// The ports that a comparison accepts; for `!=`, those that it refuses.
fn ports(items: &[Value], op: &str) -> Option<Vec<RangeInclusive<u16>>> {
    let ranges: Vec<_> = items
        .iter()
        .map(|item| match list(&item["range"]) {
            [first, last] => Some(port(first)?..=port(last)?),
            _ => port(item).map(|port| port..=port),
        })
        .collect::<Option<_>>()?;
    let bound = ranges.first().filter(|_| ranges.len() == 1).map(|range| *range.start());
    match op {
        "==" | "!=" | "in" => Some(ranges),
        "<" => Some(vec![0..=bound?.checked_sub(1)?]),
        "<=" => Some(vec![0..=bound?]),
        ">" => Some(vec![bound?.checked_add(1)?..=u16::MAX]),
        ">=" => Some(vec![bound?..=u16::MAX]),
        _ => None,
    }
}

fn port(value: &Value) -> Option<u16> {
    u16::try_from(value.as_u64()?).ok()
}

fn networks(items: &[Value]) -> Option<Vec<Prefix>> {
    let mut networks = Vec::new();
    for item in items {
        let prefix = &item["prefix"];
        if let [first, last] = list(&item["range"]) {
            networks.extend(range::prefixes(text(first).parse().ok()?, text(last).parse().ok()?)?);
        } else if let Some(addr) = prefix["addr"].as_str() {
            let len = u8::try_from(prefix["len"].as_u64()?).ok()?;
            networks.push(Prefix::new(addr.parse().ok()?, len)?);
        } else {
            networks.push(Prefix::host(text(item).parse().ok()?));
        }
    }
    Some(networks)
}

pub(super) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

pub(super) fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

const UNKNOWN_MATCH: &str = "xvs does not know one of its matches";

/// The alternative for a rule that iptables has added to a table other than `mangle`, or on a machine without
/// iptables-nft-save.
const INSTEAD: &str =
    "add it to the table mangle (`iptables -t mangle`), with iptables-nft-save installed, or by nft";
