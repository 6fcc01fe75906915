//! The journal: the desired state in a file on tmpfs, from which the next xvsd begins.
//!
//! The control thread appends each accepted change with one `write` before the change is answered, so it outlives a
//! kill; on tmpfs no `fsync` is needed. When half of the lines are out of date, the whole state is written to a
//! temporary file, which replaces the journal. A failed write does not refuse the change: it becomes a warning, and the
//! next change rewrites the whole journal. Cost: the change as JSON. The journal contains no services from
//! keepalived.conf. `control/saving.rs` determines which changes are written, and `start.rs` the state with which xvsd
//! begins.

pub mod file;
pub mod format;
pub mod replay;
pub mod start;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use xvs_model::config::command::Command;
use xvs_model::objects::Rule;
use xvs_model::report::setting::Source;
use xvs_model::report::warning::{Warning, WarningKind};

use crate::journal::format::{Entry, Header, line_of};
use crate::journal::replay::TimeoutsBySource;

/// The journal's name in the state directory.
const NAME: &str = "journal";
/// The new name of an unusable journal.
const REFUSED: &str = "journal.refused";

/// A journal with fewer lines is not rewritten.
const FEW_LINES: usize = if cfg!(test) { 20 } else { 1000 };

/// The journal of a running daemon.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    /// The file to which changes are appended; `None` if the journal must be rewritten first.
    file: Option<File>,
    /// The first line.
    header: Header,
    /// The settings of `xvs set`, as they were typed.
    settings: BTreeMap<String, String>,
    /// The timeouts that were set, without those from keepalived.conf.
    timeouts: TimeoutsBySource,
    /// The lines that are not written yet.
    unwritten: Vec<u8>,
    lines: usize,
    /// From this number of lines on, the journal is compared with the state.
    lines_max: usize,
    /// Why the last write failed.
    failure: Option<io::Error>,
}

impl Journal {
    /// A journal in this directory, which the first [`Self::save`] writes as a whole.
    pub fn new(directory: &Path, header: &Header) -> Self {
        Self {
            path: directory.join(NAME),
            file: None,
            header: header.clone(),
            settings: BTreeMap::new(),
            timeouts: TimeoutsBySource::default(),
            unwritten: Vec::new(),
            lines: 0,
            lines_max: FEW_LINES,
            failure: None,
        }
    }

    /// Notes a change, for the next [`Self::save`].
    pub fn note(&mut self, entry: &Entry) {
        match entry {
            Entry::Timeouts(timeouts, source) => self.timeouts.note(*timeouts, *source),
            Entry::Set { key, value } => _ = self.settings.insert(key.clone(), value.clone()),
            Entry::Toml(toml, undone) => {
                self.header.toml.clone_from(toml);
                undone.iter().for_each(|key| _ = self.settings.remove(key));
            }
            Entry::Unconfirmed(commands) => {
                for command in commands {
                    if let Command::Add(Rule::Timeouts(timeouts)) = command {
                        self.timeouts.note(*timeouts, Source::RulesFile);
                    }
                }
            }
            Entry::Change(_) | Entry::Confirmed => {}
        }
        self.lines += 1;
        self.unwritten.extend(line_of(entry));
    }

    /// Writes the recorded changes. `present` returns the changes from an empty state to the current one, without
    /// settings and timeouts; `None` if the journal cannot be rewritten now.
    pub fn save(&mut self, present: impl Fn() -> Option<Vec<Entry>>) {
        if self.unwritten.is_empty() {
            return;
        }
        if self.lines > self.lines_max
            && let Some(present) = present()
        {
            self.lines_max = FEW_LINES.max(2 * present.len());
            if self.lines > self.lines_max {
                return self.write_anew(present);
            }
        }
        match &mut self.file {
            Some(file) => {
                let written = file.write_all(&self.unwritten);
                self.unwritten.clear();
                self.note_result(written);
            }
            None => {
                if let Some(present) = present() {
                    self.write_anew(present);
                }
            }
        }
    }

    /// Writes the whole journal with these changes, and replaces the old journal.
    pub fn write_anew(&mut self, mut entries: Vec<Entry>) {
        entries.extend(self.timeouts.iter().map(|(timeouts, source)| Entry::Timeouts(timeouts, source)));
        for (key, value) in &self.settings {
            entries.push(Entry::Set { key: key.clone(), value: value.clone() });
        }
        let mut bytes = line_of(&self.header);
        entries.iter().for_each(|entry| bytes.extend(line_of(entry)));
        self.lines = entries.len();
        self.unwritten.clear();
        let written = file::replace(&self.path, &bytes).map(|file| self.file = Some(file));
        self.note_result(written);
    }

    /// The warning that the last change could not be written.
    pub fn warning(&self) -> Option<Warning> {
        let error = self.failure.as_ref()?;
        let path = self.path.display();
        let text = format!(
            "{path}: {error}; changes of the configuration run, but are lost if xvsd ends now; make room or correct the \
             directory, and the next change writes all of them"
        );
        Some(Warning::new(WarningKind::JournalWrite, path, text))
    }

    /// Appends to this file from now on.
    #[cfg(test)]
    pub(crate) fn append_to(&mut self, file: File) {
        self.file = Some(file);
    }

    fn note_result(&mut self, written: io::Result<()>) {
        self.failure = written.err();
        if self.failure.is_some() {
            // Part of a line may be in the file.
            self.file = None;
        }
    }
}
