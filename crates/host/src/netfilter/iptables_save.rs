//! Parses the output of `iptables-save` into chains of rules.
//!
//! Only base chains that the kernel calls before IPVS are included. An unknown option becomes the rule's obstacle.
//! Source: iptables(8), iptables-extensions(8). A pure function.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use xvs_proto::mark::{Change, Expected, Test};
use xvs_proto::{Family, Prefix, Protocol};

use crate::netfilter::chain::{Action, Base, Criterion, Match, Rule, Table, pattern};
use crate::netfilter::hook::{Hook, chain_order};
use crate::netfilter::range;

/// A table of iptables, with its base chains that the kernel calls before IPVS.
pub struct Kind {
    /// The table's name.
    pub name: &'static str,
    entries: &'static [(&'static str, Hook, i64)],
}

/// The table of this kind in the output of a family's program; `None` if the output does not contain it.
pub fn read(text: &str, family: Family, kind: &Kind) -> Option<Table> {
    let table = kind.name;
    // For a table with rules from another program, iptables-nft prints this comment and an empty table.
    let other = format!("# Table `{table}'");
    if text.lines().any(|line| line.starts_with(&other) && line.contains("incompatible")) {
        return None;
    }
    let mut lines = text.lines().skip_while(|line| line.strip_prefix('*') != Some(table));
    lines.next()?;
    let program = if family == Family::V4 { "iptables" } else { "ip6tables" };
    let mut chains: BTreeMap<String, Vec<Rule>> = BTreeMap::new();
    let mut dropping = Vec::new();
    for line in lines.take_while(|line| *line != "COMMIT") {
        if let Some(declared) = line.strip_prefix(':') {
            let mut words = declared.split(' ');
            let chain = words.next().unwrap_or_default();
            chains.entry(chain.to_owned()).or_default();
            if words.next() == Some("DROP") {
                dropping.push(chain);
            }
            continue;
        }
        let words = words(line);
        // A line may begin with counters.
        let words = words.iter().map(String::as_str).skip_while(|word| word.starts_with('['));
        if let ["-A", chain, options @ ..] = words.collect::<Vec<_>>().as_slice() {
            let text = format!("{program} -t {table} {}", line.trim_start_matches(|c| c != '-'));
            chains.entry((*chain).to_owned()).or_default().push(rule(text, options));
        }
    }
    let bases = kind.entries.iter().map(|&(chain, hook, priority)| Base {
        text: format!("{program} -t {table} {chain}"),
        chain: chain.to_owned(),
        priority: chain_order(hook, priority),
        family: Some(family),
        registered: None,
        drops: dropping.contains(&chain),
        obstacle: None,
    });
    Some(Table { bases: bases.collect(), chains })
}

/// All tables in the output of a family's program.
pub fn read_all(text: &str, family: Family) -> Vec<Table> {
    TABLES.iter().filter_map(|kind| read(text, family, kind)).collect()
}

/// Splits a line into words, with the quoting rules of iptables-save.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quoted = false;
    let mut chars = line.chars();
    while let Some(char) = chars.next() {
        match char {
            '"' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            '\\' if quoted => word.get_or_insert_default().extend(chars.next()),
            ' ' if !quoted => words.extend(word.take()),
            _ => word.get_or_insert_default().push(char),
        }
    }
    words.extend(word);
    words
}

/// A rule that is being parsed.
struct RuleReader {
    criteria: Vec<Criterion>,
    action: Option<Action>,
    /// The target; the options after it belong to the target.
    target: Option<String>,
    change: Change,
    obstacle: Option<String>,
}

fn rule(text: String, options: &[&str]) -> Rule {
    let mut reader =
        RuleReader { criteria: Vec::new(), action: None, target: None, change: Change::NONE, obstacle: None };
    let mut options = options.iter().copied();
    let mut expected = Expected::Yes;
    while let Some(option) = options.next() {
        if option == "!" {
            expected = Expected::No;
            continue;
        }
        reader.option(option, &mut options, expected);
        expected = Expected::Yes;
    }
    let RuleReader { criteria, action, target, change, obstacle } = reader;
    let action = match target.as_deref() {
        Some("MARK") => Action::Set(change),
        _ => action.unwrap_or(Action::Nothing),
    };
    let obstacle = match action {
        Action::Drop => Some(DROPS.to_owned()),
        _ => obstacle,
    };
    Rule { text, criteria, action, obstacle }
}

impl RuleReader {
    fn option<'a>(
        &mut self,
        option: &str,
        rest: &mut (impl Iterator<Item = &'a str> + Clone),
        expected: Expected,
    ) {
        if self.target.is_some() {
            return self.target_option(option, rest);
        }
        let before = rest.clone();
        let value = rest.next().unwrap_or_default();
        let matches = match option {
            "-s" | "--source" => network(value).map(Test::Source),
            "-d" | "--destination" => network(value).map(Test::Dest),
            "-p" | "--protocol" => match value {
                "all" | "0" => return,
                _ => protocol(value).map(|protocol| Test::Protocol(vec![protocol])),
            },
            "-i" | "--in-interface" => {
                let matches = Match::Interface(vec![pattern(value)]);
                return self.criteria.push(Criterion { matches, expected });
            }
            "--dport" | "--dports" => ports(value).map(Test::DestPort),
            "--sport" | "--sports" => ports(value).map(Test::SourcePort),
            "--ports" => ports(value).map(Test::EitherPort),
            "--src-range" => addresses(value).map(Test::Source),
            "--dst-range" => addresses(value).map(Test::Dest),
            "--state" | "--ctstate" | "--dst-type" => {
                let obstacle = format!("xvs does not know {option} {value}");
                let names = value.split(',');
                let matches = match option {
                    "--dst-type" => Match::dest_type(names, obstacle.clone()),
                    _ => Some(Match::state(names, obstacle.clone())),
                };
                return match matches {
                    Some(matches) => self.criteria.push(Criterion { matches, expected }),
                    None => self.set_obstacle(obstacle),
                };
            }
            "--mark" => masked(value).map(|(value, mask)| Test::Mark { value, mask }),
            "-m" | "--match" if EXTENSIONS.contains(&value) => return,
            "-m" | "--match" => return self.set_obstacle(format!("xvs does not know the match {value}")),
            "--comment" => return,
            "-j" => return self.jump(value, Action::Call(value.to_owned())),
            "-g" => return self.jump(value, Action::Goto(value.to_owned())),
            _ => {
                // Whether it has a value is also unknown.
                *rest = before;
                return self.set_obstacle(format!("xvs does not know {option}"));
            }
        };
        match matches {
            Some(test) => self.criteria.push(Criterion { matches: Match::Packet(test), expected }),
            None => self.set_obstacle(format!("xvs does not know {option} {value}")),
        }
    }

    fn jump(&mut self, target: &str, otherwise: Action) {
        self.target = Some(target.to_owned());
        self.action = Some(match target {
            "ACCEPT" => Action::Accept,
            "RETURN" => Action::Return,
            "DROP" | "REJECT" => Action::Drop,
            // The target's options contain the change of the mark.
            "MARK" | "CONNMARK" => Action::Nothing,
            "TPROXY" | "HMARK" => {
                self.set_obstacle(format!("xvs does not know the mark that {target} sets"));
                Action::Unknown
            }
            // A chain; or a target that leaves the mark unchanged, for which there is no chain with this name.
            _ => otherwise,
        });
    }

    fn target_option<'a>(&mut self, option: &str, rest: &mut impl Iterator<Item = &'a str>) {
        match (self.target.as_deref(), option) {
            (Some("MARK"), "--set-xmark" | "--set-mark" | "--and-mark" | "--or-mark" | "--xor-mark") => {
                let value = rest.next().unwrap_or_default();
                match masked(value) {
                    Some((value, mask)) => {
                        self.change = match option {
                            "--set-xmark" => Change::set_xmark(value, mask),
                            "--set-mark" => Change::set_mark(value, mask),
                            "--and-mark" => Change::NONE.and(value),
                            "--or-mark" => Change::NONE.or(value),
                            _ => Change::NONE.xor(value),
                        };
                    }
                    None => self.set_obstacle(format!("xvs does not know {option} {value}")),
                }
            }
            (Some("CONNMARK"), "--restore-mark") => {
                self.action = Some(Action::Unknown);
                self.set_obstacle("xvs does not have the kernel's connection marks".to_owned());
            }
            // Other targets do not change the mark.
            _ => {}
        }
    }

    /// Sets the obstacle, unless there already is one.
    fn set_obstacle(&mut self, why: String) {
        self.obstacle.get_or_insert(why);
    }
}

fn network(text: &str) -> Option<Vec<Prefix>> {
    text.parse().ok().map(|network| vec![network])
}

/// Parses `FIRST-LAST`.
fn addresses(text: &str) -> Option<Vec<Prefix>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    range::prefixes(first.parse().ok()?, last.parse().ok()?)
}

fn protocol(text: &str) -> Option<Protocol> {
    crate::netfilter::hook::protocol(text).or_else(|| text.parse().ok().map(Protocol))
}

/// Parses `80,443,8000:8010`.
fn ports(text: &str) -> Option<Vec<RangeInclusive<u16>>> {
    text.split(',').map(port_range).collect()
}

fn port_range(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.split_once(':').unwrap_or((text, text));
    Some(first.parse().ok()?..=last.parse().ok()?)
}

/// Parses a mark with its mask, `0x1/0xff`.
fn masked(text: &str) -> Option<(u32, u32)> {
    match text.split_once('/') {
        Some((value, mask)) => number(value).zip(number(mask)),
        None => Some((number(text)?, u32::MAX)),
    }
}

fn number(text: &str) -> Option<u32> {
    match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

/// The known matches.
const EXTENSIONS: [&str; 10] =
    ["tcp", "udp", "sctp", "multiport", "mark", "iprange", "comment", "state", "conntrack", "addrtype"];

/// The obstacle of a rule that drops packets.
pub const DROPS: &str = "xvs receives packets before netfilter and does not drop those that the rule drops";

/// The table that is meant for marks.
pub const MANGLE: Kind =
    Kind { name: "mangle", entries: &[("PREROUTING", Hook::Prerouting, -150), ("INPUT", Hook::Input, -150)] };

/// All tables whose rules may set marks (priorities: `include/uapi/linux/netfilter_ipv4.h`, `enum
/// nf_ip_hook_priorities`).
pub const TABLES: [Kind; 5] = [
    Kind { name: "raw", entries: &[("PREROUTING", Hook::Prerouting, -300)] },
    MANGLE,
    Kind { name: "nat", entries: &[("PREROUTING", Hook::Prerouting, -100)] },
    Kind { name: "filter", entries: &[("INPUT", Hook::Input, 0)] },
    Kind { name: "security", entries: &[("INPUT", Hook::Input, 50)] },
];
