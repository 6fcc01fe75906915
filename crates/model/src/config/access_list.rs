//! Access lists: networks whose packets services do not get (deny), or the only networks whose packets they get
//! (allow).
//!
//! A list concerns all services or one. Its entries come from commands, which may give them an end, and from one file,
//! which is replaced as a whole. A list outlives its service, as a disabled real server does. Pure: the control plane
//! reads the files and the clock. Not here: matching packets (`xvs_dataplane::snapshot::lists`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use xvs_proto::{Family, Prefix};

use crate::config::list_key::{ListKey, ListKind};
use crate::config::refusal::CommandError;

/// The end of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Until {
    /// This many seconds after the command. The control plane makes it [`Self::At`] before anything keeps it.
    In(u32),
    /// At this time, in seconds since 1970.
    At(u64),
}

/// Why two words name no end.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum UntilError {
    /// Behind `until`.
    #[error("until {0}: a number of seconds since 1970 follows, as `date +%s` prints it")]
    At(String),
    /// Behind `for`.
    #[error("for {0}: a time follows, from 1s to 100years, such as 10m or 1h30m")]
    In(String),
}

impl Until {
    /// The end that two words of a command line name: `for 10m`, or `until SECONDS`, since 1970.
    ///
    /// # Errors
    /// The time cannot be read, or is shorter than a second.
    pub fn read(word: &str, time: &str) -> Result<Self, UntilError> {
        if word == "until" {
            return time.parse().map(Self::At).map_err(|_| UntilError::At(time.to_owned()));
        }
        let seconds =
            humantime::parse_duration(time).ok().and_then(|time| u32::try_from(time.as_secs()).ok());
        seconds.filter(|seconds| *seconds > 0).map(Self::In).ok_or_else(|| UntilError::In(time.to_owned()))
    }
}

/// A list without the content of its file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AccessList {
    /// The entries of commands, each with its end in seconds since 1970; `None`: it has no end.
    pub entries: BTreeMap<Prefix, Option<u64>>,
    /// The file of further entries.
    pub file: Option<PathBuf>,
}

/// All lists. None is empty.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AccessLists(Arc<BTreeMap<ListKey, Arc<AccessList>>>);

impl AccessLists {
    /// The most entries of commands, in all lists.
    pub const ENTRIES_MAX: usize = 10_000;
    /// The most networks of a file.
    pub const FILE_MAX: usize = 1 << 20;
    /// The most services with lists of their own.
    pub const SERVICES_MAX: usize = 255;

    /// The lists in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&ListKey, &Arc<AccessList>)> {
        self.0.iter()
    }

    /// The list of this name; `None`: it is empty.
    pub fn get(&self, key: &ListKey) -> Option<&Arc<AccessList>> {
        self.0.get(key)
    }

    /// Checks an entry that is to be added.
    ///
    /// # Errors
    /// No client has such an address, the lists are full, or its end is relative.
    pub(crate) fn check_add(
        &self,
        list: ListKey,
        prefix: Prefix,
        until: Option<Until>,
    ) -> Result<(), CommandError> {
        if let Some(why) = fault_of(prefix) {
            return Err(CommandError::invalid(why));
        }
        if let Some(service) = list.service
            && service.family() != Family::of(prefix.addr())
        {
            let why = format!("{prefix} is of another family than {service}, which has no such clients");
            return Err(CommandError::invalid(why));
        }
        if matches!(until, Some(Until::In(_))) {
            let why = "a rule has no moment to count from; give its end as `until SECONDS`";
            return Err(CommandError::invalid(why));
        }
        let total: usize = self.0.values().map(|list| list.entries.len()).sum();
        let is_new = self.get(&list).is_none_or(|list| !list.entries.contains_key(&prefix));
        if is_new && total >= Self::ENTRIES_MAX {
            let most = Self::ENTRIES_MAX;
            let why = format!(
                "the lists have {most} entries of commands, the largest number; delete one, or use a file"
            );
            return Err(CommandError::invalid(why));
        }
        self.check_services(list)
    }

    /// Checks a file that is to be set.
    ///
    /// # Errors
    /// The list concerns all services, or the lists are full.
    pub(crate) fn check_file(&self, list: ListKey, path: &Path) -> Result<(), CommandError> {
        if list.service.is_none() {
            let key = list.kind.name();
            let why = format!("the file of the {list} is the key `{key}_file` of xvs.toml");
            return Err(CommandError::invalid(why));
        }
        if !path.is_absolute() || path.to_str().is_none_or(|path| path.contains(char::is_whitespace)) {
            let why = format!("{path:?}: xvsd reads it, so name the file by a path from / without blanks");
            return Err(CommandError::invalid(why));
        }
        self.check_services(list)
    }

    fn check_services(&self, list: ListKey) -> Result<(), CommandError> {
        let mut services: Vec<_> = self.0.keys().filter_map(|key| key.service).chain(list.service).collect();
        services.sort_unstable();
        services.dedup();
        if services.len() <= Self::SERVICES_MAX {
            return Ok(());
        }
        let most = Self::SERVICES_MAX;
        let why = format!("{most} services have lists of their own, the largest number; delete those of one");
        Err(CommandError::invalid(why))
    }

    /// Checks an entry that is to be deleted.
    ///
    /// # Errors
    /// The list has no such entry.
    pub(crate) fn check_delete(&self, list: ListKey, prefix: Prefix) -> Result<(), CommandError> {
        let is_there = self.get(&list).is_some_and(|known| known.entries.contains_key(&prefix));
        if is_there { Ok(()) } else { Err(CommandError::NotListed { list, prefix }) }
    }

    /// Checks whether a list has a file to take away.
    ///
    /// # Errors
    /// It has none.
    pub(crate) fn check_delete_file(&self, list: ListKey) -> Result<(), CommandError> {
        let has_file = self.get(&list).is_some_and(|known| known.file.is_some());
        if has_file { Ok(()) } else { Err(CommandError::NoListFile(list)) }
    }

    /// Adds an entry, or changes its end.
    pub(crate) fn add(&mut self, list: ListKey, prefix: Prefix, until: Option<Until>) {
        let end = until.map(|until| match until {
            Until::At(seconds) => seconds,
            Until::In(seconds) => seconds.into(),
        });
        self.edit(list, |list| _ = list.entries.insert(prefix, end));
    }

    /// Changes a list, which is removed if it is empty then.
    pub(crate) fn edit(&mut self, key: ListKey, change: impl FnOnce(&mut AccessList)) {
        let lists = Arc::make_mut(&mut self.0);
        let list = lists.entry(key).or_default();
        change(Arc::make_mut(list));
        if list.entries.is_empty() && list.file.is_none() {
            lists.remove(&key);
        }
    }

    /// The entries whose end has come.
    pub fn ended(&self, now_seconds: u64) -> Vec<(ListKey, Prefix)> {
        let entries = self.iter().flat_map(|(key, list)| list.entries.iter().map(move |entry| (*key, entry)));
        let ended = entries.filter(|(_, (_, until))| until.is_some_and(|until| until <= now_seconds));
        ended.map(|(key, (prefix, _))| (key, *prefix)).collect()
    }
}

/// Why no client's address is in this network.
fn fault_of(prefix: Prefix) -> Option<String> {
    let mapped = match prefix.addr() {
        std::net::IpAddr::V6(addr) => addr.to_ipv4_mapped().filter(|_| prefix.len() >= 96),
        std::net::IpAddr::V4(_) => None,
    }?;
    Some(format!(
        "{prefix} is IPv4-mapped, and no packet has such an address; write {mapped}/{}",
        prefix.len() - 96
    ))
}

/// The network of this text.
///
/// # Errors
/// It is none, bits behind its length are set, or no client's address is in it.
pub fn read_prefix(text: &str) -> Result<Prefix, String> {
    let prefix: Prefix = text.parse().map_err(|error| format!("{text:?}: {error}"))?;
    if let Some((addr, _)) = text.split_once('/')
        && addr.parse() != Ok(prefix.addr())
    {
        return Err(format!(
            "{text}: bits behind the prefix length are set; write {prefix}, or another length"
        ));
    }
    match fault_of(prefix) {
        Some(why) => Err(why),
        None => Ok(prefix),
    }
}

/// The networks of a file: one a line; empty lines are skipped, and so is what follows `#` or `;`. Networks may overlap
/// and repeat.
///
/// # Errors
/// The number of the first line with a fault, from 1, and the fault without the line's text: who names a file need not
/// be able to read it. An allow list without networks would keep
/// everybody out.
pub fn read_prefixes(text: &str, list: ListKey) -> Result<Vec<Prefix>, (usize, String)> {
    let mut prefixes = Vec::new();
    for (line, text) in (1..).zip(text.lines()) {
        let text = text.split(['#', ';']).next().unwrap_or_default().trim();
        if text.is_empty() {
            continue;
        }
        let prefix = read_prefix(text).map_err(|_| (line, NO_NETWORK.to_owned()))?;
        if let Some(service) = list.service
            && service.family() != Family::of(prefix.addr())
        {
            return Err((line, format!("a network of another family than {service}")));
        }
        if prefixes.len() == AccessLists::FILE_MAX {
            return Err((line, format!("a file has at most {} networks", AccessLists::FILE_MAX)));
        }
        prefixes.push(prefix);
    }
    if prefixes.is_empty() && list.kind == ListKind::Allow {
        return Err((1, "there is no network in it, so that no client could connect".to_owned()));
    }
    Ok(prefixes)
}

/// What is wrong with a line of a file.
const NO_NETWORK: &str = "no network such as 192.0.2.0/24 or 2001:db8::/32, without bits behind its length, not \
                          IPv4-mapped; the line is not shown, because not everybody may read the file";

/// The size and the effect of a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ListSummary {
    /// Its name.
    #[serde(flatten)]
    pub list: ListKey,
    /// The number of its networks, those of its file included.
    pub networks: u64,
    /// Packets that it has dropped since it exists, or since xvsd started.
    pub dropped: u64,
}

/// A list as `xvs deny list` and `xvs allow list` show it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ListRow {
    /// Its name, size and effect.
    #[serde(flatten)]
    pub summary: ListSummary,
    /// The path of its file; `None`: it has none.
    pub file: Option<PathBuf>,
    /// The entries that commands have added, without those of the file.
    pub entries: Vec<ListEntry>,
}

/// An entry of a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ListEntry {
    /// The network of the entry.
    pub network: Prefix,
    /// When the entry ends, in seconds since 1970; `None`: it has no end.
    pub until: Option<u64>,
    /// Seconds until it ends; `None`: it has no end.
    pub seconds_left: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const DENY: ListKey = ListKey { kind: ListKind::Deny, service: None };

    #[test]
    fn networks_of_a_file_are_read_line_by_line_and_may_overlap() {
        let text = "# office\n192.0.2.0/24\n\n192.0.2.7 ; one of them\r\n2001:db8::/32\n192.0.2.0/24\n";
        let read = read_prefixes(text, DENY).unwrap();
        let shown: Vec<_> = read.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["192.0.2.0/24", "192.0.2.7/32", "2001:db8::/32", "192.0.2.0/24"]);
    }

    #[test]
    fn a_fault_of_a_file_names_its_line_and_shows_nothing_of_it() {
        for (bad, what) in [
            ("203.0.113.300", "203.0.113.300"),
            ("203.0.113.0/33", "203.0.113.0/33"),
            ("203.0.113.1/24", "write 203.0.113.0/24"),
            ("2001:db8:7::1/48", "write 2001:db8:7::/48"),
            ("::ffff:203.0.113.0/120", "write 203.0.113.0/24"),
            ("::ffff:203.0.113.7", "write 203.0.113.7/32"),
            ("203.0.113.0 203.0.113.1", "203.0.113.0 203.0.113.1"),
            ("root:secret", "root:secret"),
        ] {
            let (line, why) =
                read_prefixes(&format!("192.0.2.0/24\n\n{bad}\n192.0.2.9\n"), DENY).unwrap_err();
            assert_eq!(line, 3, "{bad}");
            assert!(["203.0.113", "db8:7", "secret"].iter().all(|text| !why.contains(text)), "{why}");
            assert!(read_prefix(bad).unwrap_err().contains(what), "what a command has, it may be shown");
        }
    }

    #[test]
    fn an_allow_list_of_no_network_and_a_network_of_another_family_are_refused() {
        let service = "TCP 198.51.100.1:80".parse().unwrap();
        let allow = ListKey { kind: ListKind::Allow, service: Some(service) };
        assert!(read_prefixes("# none\n", allow).unwrap_err().1.contains("no client"));
        let family = "a network of another family than TCP 198.51.100.1:80".to_owned();
        assert_eq!(read_prefixes("192.0.2.0/24\n2001:db8::/32\n", allow), Err((2, family)));
        assert_eq!(read_prefixes("", DENY), Ok(Vec::new()));
    }
}
