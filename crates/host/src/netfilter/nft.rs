//! Parses the output of `nft -j list ruleset` into chains of rules.
//!
//! Source: libnftables-json(5). A pure function. `nft_rule.rs` parses one rule.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use xvs_proto::Family;

use crate::netfilter::chain::{Base, ENTRIES_MAX, Table};
use crate::netfilter::hook::{Hook, chain_order};
use crate::netfilter::nft_rule;
use crate::netfilter::nft_rule::{is_mark, list, text};

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
    /// Parses the output of `nft -j list ruleset`. `listing` is the output of `nft -a list ruleset`: it contains the
    /// texts of rules, and the flag `dormant`, which the JSON of nft 1.0.6 lacks.
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
                // Only tables have this flag; sets have lines with other flags.
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

    /// Whether there is a table with this family and name that is not dormant.
    pub fn has_table(&self, family: Family, named: &str) -> bool {
        self.of("table").any(|table| {
            let name = (text(&table["family"]).to_owned(), text(&table["name"]).to_owned());
            is_table(&table["family"], &table["name"], (family, named)) && !self.dormant.contains(&name)
        })
    }

    fn of(&self, kind: &str) -> impl Iterator<Item = &Value> {
        self.objects.iter().filter_map(move |object| object.get(kind))
    }

    /// The tables that may mark packets, except those with these families and names, which belong to iptables-nft.
    pub fn tables(&self, by_iptables: &[(Family, &str)]) -> Vec<Table> {
        let marking = self.marking();
        self.tables_among(by_iptables, |table| marking.contains(table))
    }

    /// All tables, except those with these families and names, which belong to iptables-nft.
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
            let printed = match self.texts.get(&(name.clone(), handle)) {
                Some(printed) => shortened(printed),
                None => shortened(&rule["expr"].to_string()),
            };
            let rule_text = format!("nft {} {} {}: {printed}", name.0, name.1, text(&rule["chain"]));
            let rules =
                nft_rule::read(list(&rule["expr"]), &|set| self.elements(&name, set), &room, rule_text);
            let Some(table) = tables.get_mut(&name) else { continue };
            table.chains.entry(text(&rule["chain"]).to_owned()).or_default().extend(rules);
        }
        tables.into_values().filter(|table| !table.bases.is_empty()).collect()
    }

    /// Whether the table of a chain or rule is included: it is wanted, not dormant, and does not belong to iptables.
    fn is_read(
        &self,
        object: &Value,
        by_iptables: &[(Family, &str)],
        is_wanted: impl Fn(&TableName) -> bool,
    ) -> bool {
        let name = table_name(object);
        !self.dormant.contains(&name)
            && is_wanted(&name)
            && !by_iptables.iter().any(|&table| is_table(&object["family"], &object["table"], table))
    }

    /// The tables that may mark packets.
    fn marking(&self) -> BTreeSet<TableName> {
        self.of("rule")
            .filter(|rule| {
                list(&rule["expr"])
                    .iter()
                    .any(|one| is_mark(&one["mangle"]["key"]) || one.get("xt").is_some())
            })
            .map(table_name)
            .collect()
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

    /// The order in which a chain was registered, as the handles of its table and of the chain: both increase over
    /// time.
    fn registered(&self, chain: &Value) -> Option<(u64, u64)> {
        let table = self
            .of("table")
            .find(|table| table["family"] == chain["family"] && table["name"] == chain["table"])?;
        table["handle"].as_u64().zip(chain["handle"].as_u64())
    }

    /// The registration order of a chain in an iptables table; see [`Base::registered`].
    pub fn registered_in(&self, table: (Family, &str), name: &str) -> Option<(u64, u64)> {
        let chain = self
            .of("chain")
            .find(|chain| is_table(&chain["family"], &chain["table"], table) && chain["name"] == name);
        self.registered(chain?)
    }

    /// The elements of a named set or map.
    fn elements(&self, table: &TableName, name: &str) -> Option<&[Value]> {
        self.of("set")
            .chain(self.of("map"))
            .find(|object| table_name(object) == *table && object["name"] == name)
            .map(|object| list(&object["elem"]))
    }
}

fn has_flag(flags: &Value, flag: &str) -> bool {
    flags == flag || list(flags).iter().any(|one| one == flag)
}

fn is_table(of: &Value, name: &Value, (family, named): (Family, &str)) -> bool {
    *of == if family == Family::V4 { "ip" } else { "ip6" } && *name == named
}

/// The set or map to which a statement adds an element or from which it removes one.
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

/// The text of a rule without values that differ at each reading: counters, `used 5 mbytes` of a quota, `used 3s` of
/// `last`.
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

/// The maximum length of a rule's text in messages, in characters; a rule with a set may be much longer.
const TEXT_MAX: usize = 200;

/// The priority of IPVS at the input hook, 2 before source NAT (`net/netfilter/ipvs/ip_vs_core.c`); later chains do not
/// matter.
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
