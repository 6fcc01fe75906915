//! Parses the output of `nft -j list ruleset` into chains of rules.
//!
//! A rule of nftables is a sequence of statements. Each verdict and each change of the mark becomes a [`Rule`] whose
//! criteria are all matches before it. A map becomes one [`Rule`] for each element. An unknown statement becomes the
//! rule's obstacle. Source: libnftables-json(5). A pure function. Not here: running the program.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use serde_json::{Value, json};
use xvs_proto::mark::{Change, Expected, Test};
use xvs_proto::{Family, Prefix, Protocol};

use crate::netfilter::chain::{
    Action, Base, Criterion, ENTRIES_MAX, Match, Rule, Table, no_room_for_entries,
};
use crate::netfilter::hook::{Hook, chain_order, protocol};
use crate::netfilter::iptables_save::DROPS;
use crate::netfilter::range;

/// A parsed ruleset.
pub struct Ruleset {
    objects: Vec<Value>,
    /// The text of each rule, by its table and handle.
    texts: BTreeMap<(TableName, u64), String>,
    /// Tables with the flag `dormant`, which the kernel does not evaluate.
    dormant: BTreeSet<TableName>,
}

/// Family and name of a table, in nft's notation.
type TableName = (String, String);

impl Ruleset {
    /// Parses the output of `nft -j list ruleset`. `listing` is that of `nft -a list ruleset`: it has the texts of
    /// rules, and the flag `dormant`, which the JSON of nft 1.0.6 lacks.
    pub fn parse(text: &str, listing: &str) -> Option<Self> {
        let mut document: Value = serde_json::from_str(text).ok()?;
        let Value::Array(objects) = document["nftables"].take() else { return None };
        let mut texts = BTreeMap::new();
        let mut dormant = BTreeSet::new();
        let mut table = TableName::default();
        for line in listing.lines() {
            let (content, handle) = line.rsplit_once(" # handle ").unwrap_or((line, ""));
            let words: Vec<_> = content.split_whitespace().collect();
            match words.as_slice() {
                ["table", family, name, "{"] => table = ((*family).to_owned(), (*name).to_owned()),
                // Only tables have this flag; sets have lines of other flags.
                ["flags", flags] if flags.split(',').any(|flag| flag == "dormant") => {
                    dormant.insert(table.clone());
                }
                _ => {
                    if let Ok(handle) = handle.parse() {
                        texts.insert((table.clone(), handle), without_counts(content.trim()));
                    }
                }
            }
        }
        Some(Self { objects, texts, dormant })
    }

    /// Whether there is a table of this family and name, and it is not dormant.
    pub fn has_table(&self, family: Family, named: &str) -> bool {
        self.of("table").any(|table| {
            let name = (text(&table["family"]).to_owned(), text(&table["name"]).to_owned());
            is_table(&table["family"], &table["name"], (family, named)) && !self.dormant.contains(&name)
        })
    }

    fn of(&self, kind: &str) -> impl Iterator<Item = &Value> {
        self.objects.iter().filter_map(move |object| object.get(kind))
    }

    /// The tables that may mark packets, except those of these families and names, which iptables-nft has.
    pub fn tables(&self, by_iptables: &[(Family, &str)]) -> Vec<Table> {
        let marking = self.marking();
        self.tables_among(by_iptables, |table| marking.contains(table))
    }

    /// All tables, except those of these families and names, which iptables-nft has.
    pub fn all_tables(&self, by_iptables: &[(Family, &str)]) -> Vec<Table> {
        self.tables_among(by_iptables, |_| true)
    }

    fn tables_among(
        &self,
        by_iptables: &[(Family, &str)],
        is_wanted: impl Fn(&TableName) -> bool,
    ) -> Vec<Table> {
        let mut tables: BTreeMap<TableName, Table> = BTreeMap::new();
        let room = Cell::new(ENTRIES_MAX);
        for chain in self.of("chain").filter(|chain| self.is_read(chain, by_iptables, &is_wanted)) {
            let name = text(&chain["name"]);
            let table = tables.entry(table_name(chain)).or_default();
            table.chains.entry(name.to_owned()).or_default();
            let priority = chain["prio"].as_i64().unwrap_or(0);
            let family = match chain["family"].as_str() {
                Some("ip") => Some(Family::V4),
                Some("ip6") => Some(Family::V6),
                Some("inet" | "netdev") => None,
                _ => continue,
            };
            let (hook, obstacle) = match chain["hook"].as_str() {
                Some("prerouting") => (Hook::Prerouting, None),
                Some("input") if priority < IPVS => (Hook::Input, None),
                Some("ingress") => (Hook::Prerouting, Some("it is at the ingress hook".to_owned())),
                _ => continue,
            };
            table.bases.push(Base {
                text: format!("nft {} {} {name}", text(&chain["family"]), text(&chain["table"])),
                chain: name.to_owned(),
                priority: chain_order(hook, priority),
                family,
                registered: self.registered(chain),
                drops: chain["policy"] == "drop",
                obstacle,
            });
        }
        for rule in self.of("rule").filter(|rule| self.is_read(rule, by_iptables, &is_wanted)) {
            let name = table_name(rule);
            let handle = rule["handle"].as_u64().unwrap_or(0);
            let printed = self.texts.get(&(name.clone(), handle)).cloned();
            let printed = shortened(&printed.unwrap_or_else(|| rule["expr"].to_string()));
            let rule_text = format!("nft {} {} {}: {printed}", name.0, name.1, text(&rule["chain"]));
            let reader = RuleReader {
                sets: &|set| self.elements(&name, set),
                room: &room,
                has_no_room: Cell::new(false),
                criteria: Vec::new(),
                rules: Vec::new(),
                obstacle: None,
                text: rule_text,
            };
            let rules = reader.read(list(&rule["expr"]));
            let Some(table) = tables.get_mut(&name) else { continue };
            table.chains.entry(text(&rule["chain"]).to_owned()).or_default().extend(rules);
        }
        tables.into_values().filter(|table| !table.bases.is_empty()).collect()
    }

    /// Whether the table of a chain or rule is read: it is wanted, not dormant, and not of iptables.
    fn is_read(
        &self,
        object: &Value,
        by_iptables: &[(Family, &str)],
        is_wanted: impl Fn(&TableName) -> bool,
    ) -> bool {
        let of_iptables =
            by_iptables.iter().any(|&table| is_table(&object["family"], &object["table"], table));
        !of_iptables && !self.dormant.contains(&table_name(object)) && is_wanted(&table_name(object))
    }

    /// The tables that may mark packets.
    fn marking(&self) -> BTreeSet<TableName> {
        let rules = self.of("rule").filter(|rule| {
            list(&rule["expr"]).iter().any(|one| is_mark(&one["mangle"]["key"]) || one.get("xt").is_some())
        });
        rules.map(table_name).collect()
    }

    /// Whether marks depend on a set whose elements change without an announcement: by expiry, or by packets.
    pub fn changes_silently(&self) -> bool {
        let marking = self.marking();
        let mut filled = BTreeSet::new();
        let mut looked_up = BTreeSet::new();
        for rule in self.of("rule") {
            let table = table_name(rule);
            for statement in list(&rule["expr"]) {
                // nft 1.0.6 does not print the flag of a set that rules fill.
                match filled_by(statement) {
                    Some(set) => _ = filled.insert((table.clone(), set.to_owned())),
                    None => {
                        names(statement, &mut |set| _ = looked_up.insert((table.clone(), set.to_owned())))
                    }
                }
            }
        }
        self.of("set").chain(self.of("map")).any(|set| {
            let flags = &set["flags"];
            let name = (table_name(set), format!("@{}", text(&set["name"])));
            marking.contains(&name.0)
                && looked_up.contains(&name)
                && (has_flag(flags, "timeout") || has_flag(flags, "dynamic") || filled.contains(&name))
        })
    }

    /// The order in which a chain was registered, as the handles of its table and of the chain: both grow with time.
    fn registered(&self, chain: &Value) -> Option<(u64, u64)> {
        let table = self
            .of("table")
            .find(|table| table["family"] == chain["family"] && table["name"] == chain["table"])?;
        table["handle"].as_u64().zip(chain["handle"].as_u64())
    }

    /// The order of registration of a chain of a table of iptables; see [`Base::registered`].
    pub fn registered_in(&self, table: (Family, &str), name: &str) -> Option<(u64, u64)> {
        let chain = self
            .of("chain")
            .find(|chain| is_table(&chain["family"], &chain["table"], table) && chain["name"] == name);
        self.registered(chain?)
    }

    /// The elements of a named set or map.
    fn elements(&self, table: &TableName, name: &str) -> Option<&[Value]> {
        let mut all = self.of("set").chain(self.of("map"));
        let found = all.find(|object| table_name(object) == *table && object["name"] == name)?;
        Some(list(&found["elem"]))
    }
}

fn has_flag(flags: &Value, flag: &str) -> bool {
    flags == flag || list(flags).iter().any(|one| one == flag)
}

fn is_table(of: &Value, name: &Value, (family, named): (Family, &str)) -> bool {
    *of == if family == Family::V4 { "ip" } else { "ip6" } && *name == named
}

/// The set or map that a statement adds an element to or removes one from.
fn filled_by(statement: &Value) -> Option<&str> {
    statement["set"]["set"].as_str().or_else(|| statement["map"]["map"].as_str())
}

/// Calls `found` for each set that a statement names.
fn names(value: &Value, found: &mut dyn FnMut(&str)) {
    match value {
        Value::String(name) if name.starts_with('@') => found(name),
        Value::Array(values) => values.iter().for_each(|value| names(value, found)),
        Value::Object(values) => values.values().for_each(|value| names(value, found)),
        _ => {}
    }
}

fn table_name(object: &Value) -> TableName {
    (text(&object["family"]).to_owned(), text(&object["table"]).to_owned())
}

/// The beginning of a rule's text, for messages.
fn shortened(text: &str) -> String {
    match text.char_indices().nth(TEXT_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// A rule that is being parsed.
struct RuleReader<'a> {
    sets: &'a dyn Fn(&str) -> Option<&'a [Value]>,
    /// The number of elements of sets and maps that the remaining rules may have.
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

    /// Sets an obstacle if the criteria so far, or `more`, test the mark and the rule has changed it: the criteria were
    /// met by the earlier mark.
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

    /// A match or target of iptables, of which nft prints the name only.
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
    /// rule at the map. So the statements after the map apply to the keys of the other elements.
    fn elements(&mut self, map: &Value, action: impl Fn(&Value) -> Option<Action>) {
        let pairs = self.items(&map["data"]).unwrap_or_default();
        let elements: Option<Vec<_>> = pairs.iter().map(|pair| self.element(map, pair, &action)).collect();
        let Some(elements) = elements.filter(|elements| !elements.is_empty()) else {
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
        let passing = elements.iter().filter(|one| matches!(one.action, Action::Set(_) | Action::Nothing));
        let passing = passing.map(|element| element.key.clone()).collect();
        elements.into_iter().for_each(|element| self.push(element.action, &element.criteria));
        match self.criteria_of(&key_among(map, passing)) {
            Some(more) => self.criteria.extend(more),
            None => self.set_obstacle("xvs does not know the keys with which packets pass its map"),
        }
    }

    /// An element of a map; `None`: its key or value is unknown.
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
            "iifname" | "iif" => {
                let names = items.iter().map(|name| name.as_str().map(str::to_owned));
                Match::Interface(names.collect::<Option<_>>()?)
            }
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
    /// The criteria of its key.
    criteria: Vec<Criterion>,
}

/// The comparison that is true for these keys of a map.
fn key_among(map: &Value, keys: Vec<Value>) -> Value {
    json!({ "op": "==", "left": map["key"], "right": { "set": keys } })
}

fn packet(test: Test, expected: Expected) -> Criterion {
    Criterion { matches: Match::Packet(test), expected }
}

/// The match of states of a connection, or of types of a destination.
fn of_new(left: &Value, items: &[Value]) -> Option<Match> {
    // Several states are a list, and those of a set are elements.
    let names =
        items.iter().flat_map(|item| item.as_array().map_or(std::slice::from_ref(item), Vec::as_slice));
    let names = names.map(Value::as_str).collect::<Option<Vec<_>>>()?;
    let names = names.into_iter();
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

fn is_mark(key: &Value) -> bool {
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
    let protocols = items.iter().map(|item| match item.as_str() {
        Some(name) => protocol(name),
        None => u8::try_from(item.as_u64()?).ok().map(Protocol),
    });
    protocols.collect()
}

/// The ports that a comparison accepts; for `!=`, those that it refuses.
fn ports(items: &[Value], op: &str) -> Option<Vec<RangeInclusive<u16>>> {
    let ranges = items.iter().map(|item| match list(&item["range"]) {
        [first, last] => Some(port(first)?..=port(last)?),
        _ => port(item).map(|port| port..=port),
    });
    let ranges: Vec<_> = ranges.collect::<Option<_>>()?;
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

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

const UNKNOWN_MATCH: &str = "xvs does not know one of its matches";

/// How xvs can follow a rule that iptables has added to a table other than `mangle`, or on a machine without
/// iptables-nft-save.
const INSTEAD: &str =
    "add it to the table mangle (`iptables -t mangle`), with iptables-nft-save installed, or by nft";

/// The text of a rule without what differs at each reading: the values of counters, `used 5 mbytes` of a quota, `used
/// 3s` of `last`.
fn without_counts(rule: &str) -> String {
    let mut words = rule.split(' ').peekable();
    let mut kept = Vec::new();
    while let Some(word) = words.next() {
        let before_number = words.peek().is_some_and(|next| next.bytes().all(|byte| byte.is_ascii_digit()));
        let values = match word {
            "packets" | "bytes" if before_number && kept.contains(&"counter") => 1,
            "used" if before_number && kept.contains(&"quota") => 2,
            "used" if kept.last() == Some(&"last") => 1,
            _ => {
                kept.push(word);
                continue;
            }
        };
        words.by_ref().take(values).for_each(drop);
    }
    kept.join(" ")
}

/// The longest text of a rule in messages, in characters; a rule with a set may be much longer.
const TEXT_MAX: usize = 200;

/// The priority of IPVS at the input hook, 2 before source NAT's (`net/netfilter/ipvs/ip_vs_core.c`); chains behind it
/// do not matter.
const IPVS: i64 = 98;

#[cfg(test)]
mod tests {
    use crate::netfilter::nft::*;

    #[test]
    fn what_differs_at_each_reading_of_a_rule_is_left_out_of_its_text() {
        for (rule, kept) in [
            (
                "tcp dport 80 counter packets 7 bytes 420 meta mark set 1",
                "tcp dport 80 counter meta mark set 1",
            ),
            ("quota over 25 mbytes used 3 kbytes drop", "quota over 25 mbytes drop"),
            ("last used 1m3s meta mark set 1", "last meta mark set 1"),
            ("last used never meta mark set 1", "last meta mark set 1"),
            ("meta mark set 1 comment \"used 3 bytes\"", "meta mark set 1 comment \"used 3 bytes\""),
        ] {
            assert_eq!(without_counts(rule), kept);
        }
    }
}
