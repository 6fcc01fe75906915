//! Access lists: the files, and the lists for the data plane.
//!
//! A file is read when a list gets it, when xvsd starts and at each reload. Not here: the publication (`lists.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use thiserror::Error;
use xvs_dataplane::snapshot::lists::{List, Lists, Networks, Scope};
use xvs_model::config::command::Command;
use xvs_model::config::desired_state::State;
use xvs_model::config::refusal::CommandError;
use xvs_model::objects::Object;
use xvs_model::objects::list_file::read_prefixes;
use xvs_model::objects::list_key::{ListKey, ListKind};
use xvs_model::objects::listed::AccessLists;
use xvs_model::report::warning::{Warning, WarningKind};
use xvs_proto::{Endpoint, Prefix, Protocol, ftp};
use xvs_sched::ServiceKey;

use super::follow::{Change, Follow};
use crate::secret_file::read_bytes;

/// Files of lists by list.
pub type ListFiles = BTreeMap<ListKey, PathBuf>;

/// The data of access lists beside the desired state.
#[derive(Default)]
pub(super) struct ListSources {
    /// The files of xvs.toml.
    pub(super) toml: ListFiles,
    /// The networks of files that were read.
    pub(super) contents: BTreeMap<ListKey, Arc<Networks>>,
    /// The number of packets that each list has dropped.
    pub(super) dropped: BTreeMap<ListKey, Arc<AtomicU64>>,
    /// The time at which the next entry expires, in seconds since 1970.
    pub(super) next_end: Option<u64>,
    /// Whether the data plane's lists are out of date.
    pub(super) due: bool,
    /// The reason why the XDP program has no lists.
    pub(super) fault: Option<String>,
    /// Whether xvsd starts: then a list with a faulty file is accepted.
    pub(super) starting: bool,
    /// The faults of such files.
    pub(super) faulty: BTreeMap<ListKey, ListFileError>,
}

/// The networks of files.
pub(super) type Contents = Vec<(ListKey, Arc<Networks>)>;

impl Follow for ListSources {
    fn follow(&mut self, change: &mut Change<'_>) {
        let Change { command, state, .. } = change;
        self.due |= match command.object() {
            None => **command == Command::Flush,
            Some(Object::Listed(_) | Object::ListFile(_)) => true,
            // Edited options concern no list.
            Some(Object::Service(_)) if matches!(command, Command::EditService { .. }) => false,
            Some(Object::Service(key)) => {
                let is_wide = matches!(key, ServiceKey::Address { endpoint, .. } if [0, ftp::CONTROL_PORT].contains(&endpoint.port));
                is_wide || state.lists().iter().any(|(list, _)| list.service == Some(key))
            }
            Some(_) => false,
        };
    }
}

impl ListSources {
    /// Enters the networks of files.
    pub(super) fn enter(&mut self, contents: Contents) {
        self.due |= !contents.is_empty();
        if !self.starting {
            contents.iter().for_each(|(key, _)| _ = self.faulty.remove(key));
        }
        self.contents.extend(contents);
    }

    /// The networks of a list whose file has a fault while xvsd starts. A deny list is empty; an allow list has a
    /// network without clients: an empty allow list would admit all clients.
    pub(super) fn without_file(&mut self, key: ListKey, fault: ListFileError) -> Arc<Networks> {
        tracing::error!("{key}: {fault}");
        self.faulty.insert(key, fault);
        let nobody = Prefix::host(Ipv4Addr::UNSPECIFIED.into());
        Arc::new((key.kind == ListKind::Allow).then_some(nobody).into_iter().collect())
    }

    /// The warnings that the XDP program has no lists, and about lists whose file had a fault at the start.
    pub(super) fn warnings(&self) -> impl Iterator<Item = Warning> {
        self.fault.iter().map(|fault| Warning::new(WarningKind::ListsInWorkers, "", fault)).chain(
            self.faulty.iter().map(|(key, fault)| {
                let effect = match key.kind {
                    ListKind::Deny => "it drops nothing",
                    ListKind::Allow => "it lets nobody in",
                };
                let text = format!("{key}: {fault}; {effect} until `xvs reload` finds the file correct");
                Warning::new(WarningKind::ListFile, key, text)
            }),
        )
    }

    /// All lists, and the services that XDP programs steer by every port; `None`: there is no list.
    pub(super) fn build(&mut self, state: &State) -> Option<(Lists, Vec<ServiceKey>)> {
        self.next_end =
            state.lists().iter().flat_map(|(_, list)| list.entries.values().flatten()).min().copied();
        let with_file: BTreeSet<_> = state
            .lists()
            .iter()
            .filter(|(_, list)| list.file.is_some())
            .map(|(key, _)| key)
            .chain(self.toml.keys())
            .collect();
        self.contents.retain(|key, _| with_file.contains(key));
        self.faulty.retain(|key, _| with_file.contains(key));
        let mut all = Scope::default();
        let mut services = BTreeMap::new();
        let mut dropped = BTreeMap::new();
        for key in state.lists().iter().map(|(key, _)| *key).chain(self.toml.keys().copied()) {
            let scope: &mut Scope = match key.service {
                None => &mut all,
                Some(service) if state.service(&service).is_none() => continue,
                Some(service) => services.entry(service).or_default(),
            };
            let counter = self.dropped.get(&key).cloned().unwrap_or_default();
            dropped.insert(key, counter.clone());
            let list = List {
                parts: [
                    state
                        .lists()
                        .get(&key)
                        .filter(|list| !list.entries.is_empty())
                        .map(|list| Arc::new(list.entries.keys().copied().collect())),
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

/// The services of every port whose packets belong to no other service. Data connections belong to the FTP service.
fn wide(state: &State) -> Vec<ServiceKey> {
    state
        .services()
        .map(|(key, _)| *key)
        .filter(|key| match *key {
            ServiceKey::Address { protocol, endpoint } if endpoint.port == 0 => {
                let control = ServiceKey::Address {
                    protocol: Protocol::TCP,
                    endpoint: Endpoint { port: ftp::CONTROL_PORT, ..endpoint },
                };
                protocol != Protocol::TCP || state.service(&control).is_none()
            }
            _ => false,
        })
        .collect()
}

/// The reason why the file of a list is not used. Contains no text from the file.
#[derive(Debug, Error)]
pub enum ListFileError {
    /// The file cannot be read.
    #[error("{path}: {1}", path = .0.display())]
    Unreadable(PathBuf, io::Error),
    /// The number of the first line with a fault, and the fault.
    #[error("{path}: line {1}: {2}", path = .0.display())]
    Line(PathBuf, usize, String),
}

/// Reads the file of a list.
///
/// # Errors
/// The file cannot be read, or has a fault: the error names the first faulty line.
pub fn read_list(list: ListKey, path: &Path) -> Result<Networks, ListFileError> {
    let (_, text) =
        read_bytes(path, BYTES_MAX).map_err(|error| ListFileError::Unreadable(path.to_owned(), error))?;
    // A comment may be in any encoding.
    let prefixes = read_prefixes(&String::from_utf8_lossy(&text), list)
        .map_err(|(line, why)| ListFileError::Line(path.to_owned(), line, why))?;
    Ok(prefixes.into_iter().collect())
}

/// The largest file: 64 bytes for each network, which leaves room for a comment.
const BYTES_MAX: u64 = 64 * AccessLists::FILE_MAX as u64;

pub(super) fn read_all<'a>(
    files: impl IntoIterator<Item = (ListKey, &'a Path)>,
) -> Result<Contents, CommandError> {
    files
        .into_iter()
        .map(|(list, path)| Ok((list, Arc::new(read_list(list, path)?))))
        .collect::<Result<_, ListFileError>>()
        .map_err(|error| CommandError::failed(format_args!("{error}; nothing has changed")))
}
