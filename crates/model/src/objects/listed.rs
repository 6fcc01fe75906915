//! Access lists: networks whose packets services do not get (deny), or the only networks whose packets they get
//! (allow).
//!
//! A list concerns all services or one. Its entries come from commands, which may let them expire, and from one file,
//! which is replaced as a whole. A list outlives its service, as a disabled real server does. Pure: the control plane
//! reads the files and the clock. Packets are matched in `xvs_dataplane::snapshot::lists`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use xvs_proto::{Family, Prefix};

use crate::config::refusal::CommandError;
use crate::config::service_option::named;
use crate::objects::list_key::ListKey;
use crate::objects::noun::{Noun, Services};

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

/// Why two arguments are not an end.
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
    /// The end given by two arguments: `for 10m`, or `until SECONDS`, since 1970.
    ///
    /// # Errors
    ///
    /// The time cannot be read, or is shorter than a second.
    pub fn read(word: &str, time: &str) -> Result<Self, UntilError> {
        if word == "until" {
            return time.parse().map(Self::At).map_err(|_| UntilError::At(time.to_owned()));
        }
        humantime::parse_duration(time)
            .ok()
            .and_then(|time| u32::try_from(time.as_secs()).ok())
            .filter(|seconds| *seconds > 0)
            .map(Self::In)
            .ok_or_else(|| UntilError::In(time.to_owned()))
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
    /// Maximum number of entries from commands, in all lists.
    pub const ENTRIES_MAX: usize = 10_000;
    /// Maximum number of networks in a file.
    pub const FILE_MAX: usize = 1 << 20;
    /// Maximum number of services with lists.
    pub const SERVICES_MAX: usize = 255;

    /// The lists in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&ListKey, &Arc<AccessList>)> {
        self.0.iter()
    }

    /// The list of this name; `None`: it is empty.
    pub fn get(&self, key: &ListKey) -> Option<&Arc<AccessList>> {
        self.0.get(key)
    }

    /// Checks whether a list of this name has room among the others.
    ///
    /// # Errors
    /// Too many services have lists of their own.
    pub(super) fn check_room(&self, list: ListKey) -> Result<(), CommandError> {
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

    /// Changes a list, which is removed if it is empty then.
    pub(super) fn edit(&mut self, key: ListKey, change: impl FnOnce(&mut AccessList)) {
        let lists = Arc::make_mut(&mut self.0);
        let list = Arc::make_mut(lists.entry(key).or_default());
        change(list);
        if list.entries.is_empty() && list.file.is_none() {
            lists.remove(&key);
        }
    }

    /// The entries whose end has come.
    pub fn ended(&self, now_seconds: u64) -> Vec<(ListKey, Prefix)> {
        let mut ended = Vec::new();
        for (key, list) in self.iter() {
            for (prefix, until) in &list.entries {
                if until.is_some_and(|until| until <= now_seconds) {
                    ended.push((*key, *prefix));
                }
            }
        }
        ended
    }
}

/// An entry of an access list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// The list.
    pub list: ListKey,
    /// The network.
    pub prefix: Prefix,
    /// The end; `None`: it has none.
    pub until: Option<Until>,
}

/// Which entry of an access list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ListedKey {
    /// The list.
    pub list: ListKey,
    /// The network.
    pub prefix: Prefix,
}

impl Noun for Listed {
    type Key = ListedKey;
    type All = AccessLists;
    const IS_REPLACED: bool = false;

    fn key(&self) -> ListedKey {
        ListedKey { list: self.list, prefix: self.prefix }
    }

    fn check_add(&self, all: &AccessLists, _: &dyn Services) -> Result<(), CommandError> {
        let Self { list, prefix, until } = self;
        if let Some(why) = fault_of(*prefix) {
            return Err(CommandError::invalid(why));
        }
        if let Some(service) = list.service
            && service.family() != Family::of(prefix.addr())
        {
            return Err(CommandError::invalid(format!(
                "{prefix} is of another family than {service}, which has no such clients"
            )));
        }
        if matches!(until, Some(Until::In(_))) {
            return Err(CommandError::invalid(
                "a rule has no moment to count from; give its end as `until SECONDS`",
            ));
        }
        let total: usize = all.0.values().map(|list| list.entries.len()).sum();
        let is_new = all.get(list).is_none_or(|list| !list.entries.contains_key(prefix));
        if is_new && total >= AccessLists::ENTRIES_MAX {
            let most = AccessLists::ENTRIES_MAX;
            let why = format!(
                "the lists have {most} entries of commands, the largest number; delete one, or use a file"
            );
            return Err(CommandError::invalid(why));
        }
        all.check_room(*list)
    }

    fn check_delete(ListedKey { list, prefix }: &ListedKey, all: &AccessLists) -> Result<(), CommandError> {
        let is_there = all.get(list).is_some_and(|known| known.entries.contains_key(prefix));
        if is_there { Ok(()) } else { Err(CommandError::NotListed { list: *list, prefix: *prefix }) }
    }

    /// Or changes its end.
    fn add(&self, all: &mut AccessLists) {
        let end = self.until.map(|until| match until {
            Until::At(seconds) => seconds,
            Until::In(seconds) => seconds.into(),
        });
        all.edit(self.list, |list| _ = list.entries.insert(self.prefix, end));
    }

    fn delete(ListedKey { list, prefix }: &ListedKey, all: &mut AccessLists) {
        all.edit(*list, |list| _ = list.entries.remove(prefix));
    }

    fn each(all: &AccessLists) -> impl Iterator<Item = Self> {
        all.iter().flat_map(|(&list, content)| {
            content.entries.iter().map(move |(&prefix, until)| Self {
                list,
                prefix,
                until: until.map(Until::At),
            })
        })
    }

    fn added(&self) -> String {
        let end = match self.until {
            None => String::new(),
            Some(Until::In(seconds)) => format!(" for {seconds}s"),
            Some(Until::At(seconds)) => format!(" until {seconds}"),
        };
        format!("{}{} {}{end}", self.list.kind.name(), named(self.list.service), self.prefix)
    }

    fn deleted(ListedKey { list, prefix }: &ListedKey) -> String {
        format!("{} delete{} {prefix}", list.kind.name(), named(list.service))
    }

    fn ends(&self) -> bool {
        self.until.is_some()
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

/// The size and the effect of a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ListSummary {
    /// The name.
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
    /// The name, size and effect.
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
