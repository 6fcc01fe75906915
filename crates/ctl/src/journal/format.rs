//! The lines of a journal: a header, then one line of JSON for each change; and their parser.
//!
//! Pure, apart from reading the file. A last line without its line feed was being written when xvsd was killed; it is
//! left out. Any other unreadable line makes the whole journal unusable. `replay.rs` interprets the lines.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;
use xvs_model::config::command::Command;
use xvs_model::config::timeouts::Timeouts;
use xvs_model::report::setting::Source;

use crate::journal::file::{self, StateFileError};

/// The version of the format. A journal with another version is refused.
const VERSION: u32 = 1;

/// The first line: the files from which the state was loaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// The version of the format.
    xvs_journal: u32,
    /// The file xvs.toml; `None`: there was none.
    pub toml: Option<FileRecord>,
    /// The rules file; `None`: there was none.
    pub rules: Option<FileRecord>,
    /// The commands of the rules file.
    pub rules_commands: Vec<Command>,
}

/// A file, and its content when it was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// The file.
    pub path: PathBuf,
    /// The SHA-256 of the content, in hexadecimal digits.
    sha256: String,
}

/// A change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Entry {
    /// A command that was carried out; not one for timeouts.
    Change(Command),
    /// Timeouts that were set, and their source.
    Timeouts(Timeouts, Source),
    /// A setting of `xvs set`.
    Set {
        /// The setting's key.
        key: String,
        /// The setting's value, as typed.
        value: String,
    },
    /// An xvs.toml that was read again, and the settings of `xvs set` that it reverted, by their keys.
    Toml(Option<FileRecord>, Vec<String>),
    /// Rules that were applied and wait to be confirmed, as the commands that were carried out.
    Unconfirmed(Vec<Command>),
    /// The waiting rules were confirmed, or the changes before this one took them back.
    Confirmed,
}

/// A journal that was read.
#[derive(Debug)]
pub struct Contents {
    /// The first line.
    pub header: Header,
    /// The other lines, without a truncated one.
    pub entries: Vec<Entry>,
    /// Whether the last line is cut off.
    pub is_cut: bool,
    /// When it was last written, in milliseconds since 1970.
    pub saved_at_millis: u64,
}

impl Header {
    /// The header of a state that was loaded from these files.
    pub fn new(toml: Option<FileRecord>, rules: Option<FileRecord>, rules_commands: Vec<Command>) -> Self {
        Self { xvs_journal: VERSION, toml, rules, rules_commands }
    }
}

impl FileRecord {
    /// The record of a file with this content.
    pub fn of(path: &Path, content: &[u8]) -> Self {
        Self { path: path.to_owned(), sha256: format!("{:x}", Sha256::digest(content)) }
    }
}

/// Why a journal cannot be used.
#[derive(Debug, Error)]
pub enum JournalError {
    /// The file cannot be read.
    #[error(transparent)]
    File(#[from] StateFileError),
    /// The first line has no line feed.
    #[error("its first line is not complete")]
    HeaderCut,
    /// It has another version of the format.
    #[error("it has version {0} of the format, and this xvsd reads version {VERSION}")]
    Version(u32),
    /// A line is not of the format.
    #[error("line {0}: {1}")]
    Line(usize, serde_json::Error),
}

impl Contents {
    /// Reads a journal; `None` if there is none.
    ///
    /// # Errors
    ///
    /// See [`JournalError`].
    pub fn read(path: &Path) -> Result<Option<Self>, JournalError> {
        let Some((bytes, saved_at_millis)) = file::read(path)? else { return Ok(None) };
        Self::parse(&bytes, saved_at_millis).map(Some)
    }

    /// Parses a journal with this content.
    ///
    /// # Errors
    ///
    /// See [`JournalError`].
    pub fn parse(bytes: &[u8], saved_at_millis: u64) -> Result<Self, JournalError> {
        let mut lines = bytes.split_inclusive(|byte| *byte == b'\n');
        let header = lines.next().filter(|line| is_whole(line)).ok_or(JournalError::HeaderCut)?;
        let Version { xvs_journal } = from_line(1, header)?;
        if xvs_journal != VERSION {
            return Err(JournalError::Version(xvs_journal));
        }
        let header = from_line(1, header)?;
        let mut contents = Self { header, entries: Vec::new(), is_cut: false, saved_at_millis };
        for (number, line) in (2..).zip(lines) {
            if !is_whole(line) {
                contents.is_cut = true;
                break;
            }
            let entry = from_line(number, line)?;
            if let Entry::Toml(toml, _) = &entry {
                contents.header.toml.clone_from(toml);
            }
            contents.entries.push(entry);
        }
        Ok(contents)
    }
}

fn from_line<'l, T: Deserialize<'l>>(number: usize, line: &'l [u8]) -> Result<T, JournalError> {
    serde_json::from_slice(line).map_err(|error| JournalError::Line(number, error))
}

/// The part of the first line that every version has.
#[derive(Deserialize)]
struct Version {
    xvs_journal: u32,
}

/// The bytes of a line of the journal.
pub(super) fn line_of(value: &impl Serialize) -> Vec<u8> {
    // No value of these types is refused: they have no map with keys other than text.
    let mut line = serde_json::to_vec(value).unwrap_or_default();
    line.push(b'\n');
    line
}

fn is_whole(line: &[u8]) -> bool {
    line.ends_with(b"\n")
}
