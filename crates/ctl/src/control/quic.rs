//! Keys of QUIC configurations: read from their files when a configuration is added, when xvsd starts and at each
//! reload.
//!
//! A file without a key refuses the command or the reload, but not a start: then its configurations choose no real
//! server, with a warning, until a reload finds the file correct.

use std::path::Path;

use xvs_model::config::command::{Command, CommandError};
use xvs_model::config::quic::{QuicChange, QuicConfig, QuicRow};
use xvs_model::hexadecimal;

use crate::control::Control;
use crate::control::datapath::Datapath;
use crate::registry::quic::QuicKeys;
use crate::secret_file;

impl<D: Datapath> Control<D> {
    /// Refuses a configuration whose file gives no key, unless xvsd starts.
    pub(super) fn admit_quic(&self, command: &Command) -> Result<(), CommandError> {
        match key_file(command).filter(|_| !self.lists.starting) {
            Some(path) => read_key(path).map(|_| ()).map_err(failed),
            None => Ok(()),
        }
    }

    /// Reads the key of a configuration that a command adds, and forgets those that no configuration has any more.
    pub(super) fn note_quic(&mut self, command: &Command) {
        if !matches!(command, Command::Quic { .. }) {
            return;
        }
        let mut keys = self.registry.quic_keys.clone();
        if let Some(path) = key_file(command) {
            let key = read_key(path).inspect_err(|fault| tracing::error!("{fault}"));
            keys.insert(path.to_owned(), key);
        }
        keys.retain(|path, _| self.state.quic().key_files().any(|known| known == path));
        self.registry.set_quic_keys(keys, &self.state);
    }

    /// The keys that the files have now.
    ///
    /// # Errors
    /// The first file with a fault.
    pub(super) fn read_quic_keys(&self) -> Result<QuicKeys, CommandError> {
        let files = self.state.quic().key_files();
        files.map(|path| Ok((path.to_owned(), Ok(read_key(path).map_err(failed)?)))).collect()
    }

    /// The configurations and server IDs, as `xvs quic list` shows them.
    pub(super) fn quic_rows(&self) -> Vec<QuicRow> {
        let keys = &self.registry.quic_keys;
        self.state.quic().rows(|path| keys.get(path)?.as_ref().err().cloned())
    }

    /// Why keys of QUIC configurations are not known.
    pub(super) fn quic_faults(&self) -> impl Iterator<Item = &String> {
        self.registry.quic_keys.values().filter_map(|key| key.as_ref().err())
    }

    /// A sentence for each of them.
    pub(super) fn quic_warnings(&self) -> impl Iterator<Item = String> {
        self.quic_faults().map(|fault| {
            format!("{fault}; its QUIC configurations choose no real server until `xvs reload` finds the file correct")
        })
    }
}

/// The file of the key of a configuration that a command adds.
pub(crate) fn key_file(command: &Command) -> Option<&Path> {
    match command {
        Command::Quic { change: QuicChange::Add { options: QuicConfig { key_file, .. }, .. }, .. } => {
            key_file.as_deref()
        }
        _ => None,
    }
}

/// Reads a key: 32 hexadecimal digits, in a file that others than its owner and group have no access to.
///
/// # Errors
/// A sentence that names the file, what is wrong and the next step.
pub(crate) fn read_key(path: &Path) -> Result<[u8; 16], String> {
    let text = secret_file::read("QUIC key", path, HOW)?;
    let key = hexadecimal::decode(text.trim()).and_then(|key| key.try_into().ok());
    key.ok_or_else(|| format!("QUIC key {}: not 32 hexadecimal digits; {HOW}", path.display()))
}

fn failed(why: String) -> CommandError {
    CommandError::Failed { why: format!("xvs: {why}; nothing has changed") }
}

const HOW: &str = "`openssl rand -hex 16` prints a key";
