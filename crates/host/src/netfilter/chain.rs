//! Netfilter's tables, chains and rules, as far as they affect the marks of packets.

use std::collections::BTreeMap;

use xvs_proto::Family;
use xvs_proto::mark::{Change, Expected, Test};

/// A table: chains that can call each other.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Table {
    /// The base chains.
    pub bases: Vec<Base>,
    /// All chains, with their rules in order.
    pub chains: BTreeMap<String, Vec<Rule>>,
}

/// A base chain: a hook calls it for each packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    /// The chain as its program prints it, for messages.
    pub text: String,
    /// The chain's name.
    pub chain: String,
    /// The priority among base chains; the lowest number comes first.
    pub priority: i64,
    /// The family of the packets; `None` means both families.
    pub family: Option<Family>,
    /// The order of registration, as handles of table and chain. Among chains with equal priority, the kernel calls the
    /// most recently registered first (`net/netfilter/core.c`, `nf_hook_entries_grow`). `None` if the order is unknown.
    pub registered: Option<(u64, u64)>,
    /// Whether the chain drops packets that no rule accepts (policy).
    pub drops: bool,
    /// Why xvs cannot evaluate the chain.
    pub obstacle: Option<String>,
}

/// A rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The rule as its program prints it, for messages.
    pub text: String,
    /// The rule is for packets that meet all of them.
    pub criteria: Vec<Criterion>,
    /// The action for matching packets.
    pub action: Action,
    /// The reason why xvs cannot evaluate the rule; the other fields may then be incomplete.
    pub obstacle: Option<String>,
}

/// A condition of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Criterion {
    /// The match.
    pub matches: Match,
    /// Whether packets have to match, or must not.
    pub expected: Expected,
}

/// A match of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Match {
    /// A test of the packet's headers or mark.
    Packet(Test),
    /// The packet was received on one of these interfaces; a name that ends in `*` is a prefix.
    Interface(Vec<String>),
    /// A match that either all packets of new connections to this machine's addresses meet, or none: the kernel's
    /// connection state, or the type of the destination.
    OfNew {
        /// Whether they match.
        matches: bool,
        /// Why xvs cannot evaluate it for marks.
        obstacle: String,
    },
}

impl Match {
    /// The match on one of these connection states.
    pub(super) fn state<'a>(mut states: impl Iterator<Item = &'a str>, obstacle: String) -> Self {
        Self::OfNew { matches: states.any(|state| state.eq_ignore_ascii_case("new")), obstacle }
    }

    /// The match on one of these destination types; `None` if it depends on the address.
    pub(super) fn dest_type<'a>(types: impl Iterator<Item = &'a str>, obstacle: String) -> Option<Self> {
        let types: Vec<_> = types.map(str::to_ascii_lowercase).collect();
        let matches = types.iter().any(|one| one == "local");
        let is_known =
            matches || types.iter().all(|one| matches!(one.as_str(), "broadcast" | "multicast" | "anycast"));
        is_known.then_some(Self::OfNew { matches, obstacle })
    }
}

/// The action of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Changes the mark; the next rule follows.
    Set(Change),
    /// Changes the mark in an unknown manner; such a rule has an obstacle.
    Unknown,
    /// Drops the packet; such a rule has an obstacle.
    Drop,
    /// Ends the table.
    Accept,
    /// Ends the chain.
    Return,
    /// Evaluates another chain, then the next rule.
    Call(String),
    /// Evaluates another chain instead of the rest of this one.
    Goto(String),
    /// Leaves the mark unchanged.
    Nothing,
}

/// The obstacle of a rule that exceeds [`ENTRIES_MAX`].
pub fn no_room_for_entries() -> String {
    format!(
        "it and the rules before it have lists of more than {ENTRIES_MAX} addresses, ports and other values"
    )
}

/// Converts an iptables interface name, in which a trailing `+` marks a prefix, for [`Match::Interface`].
pub fn pattern(name: &str) -> String {
    name.strip_suffix('+').map_or_else(|| name.to_owned(), |beginning| format!("{beginning}*"))
}

/// Maximum number of entries in the lists of all rules together; a list counts once for each rule that uses it.
pub const ENTRIES_MAX: usize = 1 << 18;
