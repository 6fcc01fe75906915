//! Publishes access lists to the data plane, and deletes expired entries.
//!
//! Files are read on the control thread, before anything changes: a million networks take about a second. Not here: the
//! entries of commands (`xvs_model::objects::listed`), the files (`list_sources.rs`), the check of packets
//! (`xvs_dataplane::snapshot::lists`).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use xvs_dataplane::clock::Millis;
use xvs_ipvsadm::command_line;
use xvs_model::config::command::Command;
use xvs_model::config::refusal::CommandError;
use xvs_model::objects::list_file::ListFile;
use xvs_model::objects::list_key::{ListKey, ListKind};
use xvs_model::objects::listed::{ListEntry, ListRow, ListSummary, Listed, ListedKey, Until};
use xvs_model::objects::{Object, Rule};
use xvs_model::report::event::Kind;
use xvs_model::report::setting::Source;

use crate::control::Control;
use crate::control::datapath::Datapath;
use crate::control::list_sources::{Contents, ListFiles, read_all, read_list};

impl<D: Datapath> Control<D> {
    /// Begins a start, during which lists with faulty files are accepted. The start ends with the journal.
    pub fn keep_lists_without_files(&mut self) {
        self.lists.starting = true;
    }

    /// Reads the file that a command gives to a list. During a start, faults of the file are no error.
    ///
    /// # Errors
    /// The file's fault.
    pub(super) fn read_list_file(&mut self, command: &Command) -> Result<Contents, CommandError> {
        match command {
            Command::Add(Rule::ListFile(ListFile { list, path })) if self.lists.starting => {
                let read = read_list(*list, path).map(Arc::new);
                Ok(vec![(*list, read.unwrap_or_else(|fault| self.lists.without_file(*list, fault)))])
            }
            Command::Add(Rule::ListFile(ListFile { list, path })) => read_all([(*list, path.as_path())]),
            _ => Ok(Vec::new()),
        }
    }

    /// Replaces the files of xvs.toml, and reads all files of lists and keys again. Returns a line for each.
    ///
    /// # Errors
    /// The first file with a fault; nothing has changed.
    pub fn set_list_files(&mut self, toml: ListFiles) -> Result<Vec<String>, CommandError> {
        let contents = read_all(
            self.state
                .lists()
                .iter()
                .filter_map(|(key, list)| Some((*key, list.file.as_deref()?)))
                .chain(toml.iter().map(|(key, path)| (*key, path.as_path()))),
        )?;
        let keys = self.read_quic_keys()?;
        let lines = contents
            .iter()
            .map(|(key, networks)| match networks.len() {
                1 => format!("{key}: read again, 1 network"),
                many => format!("{key}: read again, {many} networks"),
            })
            .chain(keys.keys().map(|path| format!("QUIC key {}: read again", path.display())))
            .collect();
        let has_new_keys = keys != self.registry.quic_keys;
        self.registry.set_quic_keys(keys, &self.state);
        self.lists.due |= toml != self.lists.toml;
        self.lists.toml = toml;
        self.lists.enter(contents);
        if self.lists.due || has_new_keys {
            // A late worker becomes a warning.
            let _ = self.publish();
        }
        Ok(lines)
    }

    /// Refuses files of lists and QUIC keys that had a fault at the start.
    ///
    /// # Errors
    /// The first fault.
    pub fn require_list_files(&self) -> Result<(), CommandError> {
        self.lists
            .faulty
            .first_key_value()
            .map(|(list, fault)| format!("{list}: {fault}"))
            .or_else(|| {
                self.registry.quic_keys.values().find_map(|key| Some(key.as_ref().err()?.to_string()))
            })
            .map_or(Ok(()), |why| Err(CommandError::Failed { why }))
    }

    /// The command, with an entry's end as a point in time.
    pub(super) fn with_end(&self, command: &Command, now: Millis) -> Command {
        let mut command = command.clone();
        if let Command::Add(Rule::Listed(Listed { until: Some(until), .. })) = &mut command
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

    /// Deletes expired entries. Returns when the next entry expires.
    pub(super) fn expire_listed(&mut self, now: Millis) -> Option<Millis> {
        self.datapath.count_drops();
        let seconds = self.datapath.seconds_since_1970(now);
        if self.lists.next_end.is_some_and(|end| end <= seconds) {
            for (list, prefix) in self.state.lists().ended(seconds) {
                let command = Command::Delete(Object::Listed(ListedKey { list, prefix }));
                // The entry exists, because it was found in the list.
                let Ok(accepted) = self.state.check(&command) else { continue };
                let _ = self.enter(accepted, now);
                self.note([&command], Source::Default);
                let line = format!("its time is over: {}", command_line(&command));
                self.events.record(Kind::Change, self.epoch(), line);
            }
            let _ = self.publish();
        }
        self.lists.next_end.map(|end| now + Duration::from_secs(end.saturating_sub(seconds)))
    }

    /// The lists of a kind, as `xvs deny list` shows them.
    pub(super) fn list_rows(&mut self, kind: ListKind, now: Millis) -> Vec<ListRow> {
        self.datapath.count_drops();
        let seconds = self.datapath.seconds_since_1970(now);
        let keys: BTreeSet<_> = self
            .state
            .lists()
            .iter()
            .map(|(key, _)| *key)
            .chain(self.lists.toml.keys().copied())
            .filter(|key| key.kind == kind)
            .collect();
        keys.into_iter().map(|key| self.list_row(key, seconds)).collect()
    }

    fn list_row(&self, key: ListKey, seconds: u64) -> ListRow {
        let Self { state, lists, .. } = self;
        let list = state.lists().get(&key).cloned().unwrap_or_default();
        let networks = list.entries.len() + lists.contents.get(&key).map_or(0, |networks| networks.len());
        ListRow {
            summary: ListSummary {
                list: key,
                networks: networks as u64,
                dropped: lists.dropped.get(&key).map_or(0, |dropped| dropped.load(Ordering::Relaxed)),
            },
            file: list.file.clone().or_else(|| lists.toml.get(&key).cloned()),
            entries: list
                .entries
                .iter()
                .map(|(network, until)| ListEntry {
                    network: *network,
                    until: *until,
                    seconds_left: until.map(|until| until.saturating_sub(seconds)),
                })
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::control::tests::control;

    #[test]
    fn lists_that_the_xdp_program_has_no_room_for_are_those_of_workers_with_a_warning_until_it_has() {
        let mut control = control();
        let list = ListKey { service: None, kind: ListKind::Deny };
        let mut deny = |network: &str, no_lists| {
            control.datapath().no_lists = no_lists;
            let command =
                Command::Add(Rule::Listed(Listed { list, prefix: network.parse().unwrap(), until: None }));
            control.run(command).unwrap();
            let of_workers = control.published().load().lists.as_ref().map(|lists| lists.all.deny.size());
            let warns = control.warnings().iter().any(|warning| warning.text.contains("workers drop what"));
            (of_workers, warns)
        };
        assert_eq!(deny("203.0.113.0/25", false), (Some(1), false));
        assert_eq!(deny("203.0.113.128/25", true), (Some(2), true));
        assert_eq!(deny("192.0.2.0/24", false), (Some(3), false));
    }
}
