//! Access lists: their files, the ends of their entries, and what the data plane gets of them.
//!
//! A file is read when its list gets it, when xvsd starts and at each reload, here on the control thread: a million
//! networks take it about half a second. Everything is read before anything changes. Not here: the entries of commands
//! (`xvs_model::config::access_list`), the check of a packet (`xvs_dataplane::snapshot::lists`).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use xvs_dataplane::clock::Millis;
use xvs_dataplane::snapshot::lists::{List, Lists, Networks, Scope};
use xvs_model::config::access_list::{
    ListEntry, ListKey, ListKind, ListRow, ListSummary, Until, read_prefixes,
};
use xvs_model::config::command::{Command, CommandError};
use xvs_model::config::desired_state::State;
use xvs_model::report::event::Kind;
use xvs_model::report::setting::Source;
use xvs_proto::{Endpoint, Protocol, ftp};
use xvs_sched::ServiceKey;

use crate::control::Control;
use crate::control::datapath::Datapath;
use xvs_ipvsadm::command_line;

/// Files of lists by list.
pub(crate) type ListFiles = BTreeMap<ListKey, PathBuf>;

/// What lists have beside the desired state.
#[derive(Default)]
pub(super) struct ListSources {
    /// The files of xvs.toml.
    toml: ListFiles,
    /// The networks of files that were read.
    contents: BTreeMap<ListKey, Arc<Networks>>,
    /// What each list has dropped.
    dropped: BTreeMap<ListKey, Arc<AtomicU64>>,
    /// The first end of an entry, in seconds since 1970.
    next_end: Option<u64>,
    /// Whether the data plane has other lists.
    due: bool,
    /// Why the XDP program has no lists.
    fault: Option<String>,
}

/// The networks of files.
type Contents = Vec<(ListKey, Arc<Networks>)>;

impl ListSources {
    /// Notes a command that was carried out.
    pub(super) fn note(&mut self, command: &Command, state: &State) {
        self.due |= match command {
            Command::AddListed { .. }
            | Command::DeleteListed { .. }
            | Command::SetListFile { .. }
            | Command::UnsetListFile(_) => true,
            Command::AddService { key, .. } | Command::DeleteService(key) => {
                let is_wide = matches!(key, ServiceKey::Address { endpoint, .. } if [0, ftp::CONTROL_PORT].contains(&endpoint.port));
                is_wide || state.lists().iter().any(|(list, _)| list.service == Some(*key))
            }
            Command::Flush => true,
            _ => false,
        };
        if self.due {
            let ends = state.lists().iter().flat_map(|(_, list)| list.entries.values().flatten());
            self.next_end = ends.min().copied();
        }
    }

    /// Enters the networks of files.
    pub(super) fn enter(&mut self, contents: Contents) {
        self.due |= !contents.is_empty();
        self.contents.extend(contents);
    }

    /// The lists of these services, and the services that XDP programs steer by every port; `None`: there is no list.
    fn build(&mut self, state: &State) -> Option<(Lists, Vec<ServiceKey>)> {
        let (file, toml) = (|key: &ListKey| state.lists().get(key)?.file.clone(), &self.toml);
        self.contents.retain(|key, _| toml.contains_key(key) || file(key).is_some());
        let (mut all, mut services) = (Scope::default(), BTreeMap::new());
        let mut dropped = BTreeMap::new();
        let keys = state.lists().iter().map(|(key, _)| *key).chain(self.toml.keys().copied());
        for key in keys {
            let scope: &mut Scope = match key.service {
                None => &mut all,
                Some(service) if state.service(&service).is_none() => continue,
                Some(service) => services.entry(service).or_default(),
            };
            let entries = state.lists().get(&key).filter(|list| !list.entries.is_empty());
            let counter = self.dropped.get(&key).cloned().unwrap_or_default();
            dropped.insert(key, counter.clone());
            let list = List {
                parts: [
                    entries.map(|list| Arc::new(list.entries.keys().copied().collect())),
                    self.contents.get(&key).cloned(),
                ],
                dropped: counter,
            };
            match key.kind {
                ListKind::Deny => scope.deny = list,
                ListKind::Allow => scope.allow = list,
            }
        }
        self.dropped = dropped;
        let lists = Lists::new(all, services);
        lists.is_in_force().then(|| (lists, wide(state)))
    }
}

/// The services of every port whose packets belong to no other service. Data connections of FTP do.
fn wide(state: &State) -> Vec<ServiceKey> {
    let is_wide = |key: &ServiceKey| match *key {
        ServiceKey::Address { protocol, endpoint } if endpoint.port == 0 => {
            let control = ServiceKey::Address {
                protocol: Protocol::TCP,
                endpoint: Endpoint { port: ftp::CONTROL_PORT, ..endpoint },
            };
            protocol != Protocol::TCP || state.service(&control).is_none()
        }
        _ => false,
    };
    state.services().map(|(key, _)| *key).filter(is_wide).collect()
}

/// Reads the file of a list.
///
/// # Errors
/// The system's error, or the first fault with its line.
pub(crate) fn read_list(list: ListKey, path: &Path) -> Result<Networks, String> {
    let text = fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    // A comment may be in any encoding.
    let read = read_prefixes(&String::from_utf8_lossy(&text), list);
    let prefixes = read.map_err(|(line, why)| format!("{}: line {line}: {why}", path.display()))?;
    Ok(prefixes.into_iter().collect())
}

fn read_all<'a>(files: impl IntoIterator<Item = (ListKey, &'a Path)>) -> Result<Contents, CommandError> {
    let read = |(list, path)| Ok((list, Arc::new(read_list(list, path)?)));
    let failed = |why| CommandError::Failed { why: format!("xvs: {why}; nothing has changed") };
    files.into_iter().map(read).collect::<Result<_, String>>().map_err(failed)
}

impl<D: Datapath> Control<D> {
    /// Reads the files that commands give to lists.
    ///
    /// # Errors
    /// The first file with a fault.
    pub(super) fn read_list_files(&self, commands: &[Command]) -> Result<Contents, CommandError> {
        read_all(commands.iter().filter_map(|command| match command {
            Command::SetListFile { list, path } => Some((*list, path.as_path())),
            _ => None,
        }))
    }

    /// Replaces the files of xvs.toml, and reads all files of lists again. Returns a line for each.
    ///
    /// # Errors
    /// The first file with a fault; nothing has changed.
    pub(crate) fn set_list_files(&mut self, toml: ListFiles) -> Result<Vec<String>, CommandError> {
        let of_state =
            self.state.lists().iter().filter_map(|(key, list)| Some((*key, list.file.as_deref()?)));
        let of_toml = toml.iter().map(|(key, path)| (*key, path.as_path()));
        let contents = read_all(of_state.chain(of_toml))?;
        let lines =
            contents.iter().map(|(key, networks)| format!("{key}: read again, {} networks", networks.len()));
        let lines = lines.collect();
        self.lists.due |= toml != self.lists.toml;
        self.lists.toml = toml;
        self.lists.enter(contents);
        if self.lists.due {
            let published = self.publish();
            published.or_else(|error| error.refusal().map_or(Ok(()), |error| Err(error.clone())))?;
        }
        Ok(lines)
    }

    /// A command whose end of an entry is a time.
    pub(super) fn with_end(&self, command: &Command, now: Millis) -> Command {
        let mut command = command.clone();
        if let Command::AddListed { until: Some(until), .. } = &mut command
            && let Until::In(seconds) = *until
        {
            *until = Until::At(self.datapath.seconds_since_1970(now) + u64::from(seconds));
        }
        command
    }

    /// Enters the lists in the working snapshot and in the XDP program, if they have changed.
    pub(super) fn publish_lists(&mut self) {
        if !std::mem::take(&mut self.lists.due) {
            return;
        }
        let built = self.lists.build(&self.state).map(|(lists, wide)| (Arc::new(lists), wide));
        self.publication.snapshot.lists = built.as_ref().map(|(lists, _)| lists.clone());
        self.lists.fault = self
            .datapath
            .set_lists(built)
            .err()
            .map(|error| format!("{error}; workers drop what access lists refuse, which costs more"));
    }

    /// Why the XDP program has no lists.
    pub(super) fn list_fault(&self) -> Option<String> {
        self.lists.fault.clone()
    }

    /// Deletes the entries whose end has come. Returns when that is due next.
    pub(super) fn expire_listed(&mut self, now: Millis) -> Option<Millis> {
        self.datapath.count_list_drops();
        let seconds = self.datapath.seconds_since_1970(now);
        if self.lists.next_end.is_some_and(|end| end <= seconds) {
            for (list, prefix) in self.state.lists().ended(seconds) {
                let command = Command::DeleteListed { list, prefix };
                // It was found there.
                let _ = self.change(&command, now);
                self.note([&command], Source::Default);
                let line = format!("its time is over: {}", command_line(&command));
                self.events.record(Kind::Change, self.epoch(), line);
            }
            let _ = self.publish();
        }
        self.lists.next_end.map(|end| now + std::time::Duration::from_secs(end.saturating_sub(seconds)))
    }

    /// The lists of a kind, as `xvs deny list` shows them.
    pub(super) fn list_rows(&mut self, kind: ListKind, now: Millis) -> Vec<ListRow> {
        self.datapath.count_list_drops();
        let seconds = self.datapath.seconds_since_1970(now);
        let of_toml = self.lists.toml.keys().copied();
        let mut keys: Vec<_> = self.state.lists().iter().map(|(key, _)| *key).chain(of_toml).collect();
        keys.sort_unstable();
        keys.dedup();
        let row = |key: ListKey| {
            let list = self.state.lists().get(&key).cloned().unwrap_or_default();
            let of_file = self.lists.contents.get(&key).map_or(0, |networks| networks.len());
            let entry = |(network, until): (&_, &Option<u64>)| ListEntry {
                network: *network,
                until: *until,
                seconds_left: until.map(|until| until.saturating_sub(seconds)),
            };
            let dropped = self.lists.dropped.get(&key).map_or(0, |dropped| dropped.load(Ordering::Relaxed));
            ListRow {
                summary: ListSummary { list: key, networks: (list.entries.len() + of_file) as u64, dropped },
                file: list.file.clone().or_else(|| self.lists.toml.get(&key).cloned()),
                entries: list.entries.iter().map(entry).collect(),
            }
        };
        keys.into_iter().filter(|key| key.kind == kind).map(row).collect()
    }
}
