//! Chains of rules that mark packets, as tables of the kernel have them.

use std::collections::BTreeMap;

use xvs_proto::Family;
use xvs_proto::mark::{Change, Expected, Test};

/// Chains that may call each other, as one table of the kernel has them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Table {
    /// The chains that packets enter by.
    pub bases: Vec<Base>,
    /// All chains, with their rules in order.
    pub chains: BTreeMap<String, Vec<Rule>>,
}

/// Where packets enter a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    /// As the operator knows it.
    pub text: String,
    /// The chain.
    pub chain: String,
    /// The lower comes first.
    pub priority: i64,
    /// Of which packets; `None`: both families.
    pub family: Option<Family>,
    /// Grows from one chain to the next in the order in which the kernel was given them; of one priority it goes through
    /// the last one first (`net/netfilter/core.c`, `nf_hook_entries_grow`). `None` if that is not known.
    pub registered: Option<(u64, u64)>,
    /// Why nothing of it can be followed.
    pub obstacle: Option<String>,
}

/// A rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// As the operator knows it.
    pub text: String,
    /// What packets it is for; all have to fit.
    pub criteria: Vec<Criterion>,
    /// What it does to them.
    pub action: Action,
    /// Why it cannot be followed; then the rest may be incomplete.
    pub obstacle: Option<String>,
}

/// Something that a rule asks of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Criterion {
    /// What.
    pub matches: Match,
    /// Whether it shall be so.
    pub expected: Expected,
}

/// A test that needs no names, or one of interfaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Match {
    /// The data plane's own.
    Packet(Test),
    /// Came in by one of these; a name that ends in `*` is the beginning of one.
    Interface(Vec<String>),
}

/// What a rule does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Changes the mark; the next rule follows.
    Set(Change),
    /// Changes the mark to what cannot be told; such a rule has an obstacle.
    Unknown,
    /// Drops the packet; such a rule has an obstacle.
    Drop,
    /// Ends the table.
    Accept,
    /// Ends the chain.
    Return,
    /// Goes through another chain, and then on.
    Call(String),
    /// Goes through another chain instead of the rest of this one.
    Goto(String),
    /// Nothing that concerns marks.
    Nothing,
}

/// Why a rule with long lists is left out.
pub fn no_room_for_entries() -> String {
    format!("with the rules before it, it lists more than {ENTRIES_MAX} addresses, ports and the like")
}

/// iptables' way to name interfaces, in ours.
pub fn pattern(name: &str) -> String {
    name.strip_suffix('+').map_or_else(|| name.to_owned(), |beginning| format!("{beginning}*"))
}

/// How many entries the lists of all rules have together, each list counted wherever its rule is written.
pub const ENTRIES_MAX: usize = 1 << 18;
