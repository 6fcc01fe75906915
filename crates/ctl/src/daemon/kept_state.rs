//! The state that outlives xvsd: its directory, the connection table in it, and the numbers of destinations.
//!
//! Runs once, at the start. If the directory was not configured and cannot be used, xvsd goes on without it, with a
//! warning; a configured one is refused. Not here: the format of the table (`xvs_dataplane::conn`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use xvs_dataplane::clock::Millis;
use xvs_dataplane::conn::{AdoptError, Adopted, Boot, Counts, Table, TableConfig, TableFiles, random_secret};
use xvs_host::state_directory::{StateDirectory, StateDirectoryError};
use xvs_host::{boot, instance};

use crate::config::Config;
use crate::control::Control;
use crate::control::datapath::Datapath;
use crate::daemon::error::{DaemonError, system};
use crate::registry::kept::{Found, Kept};

/// What the daemon starts with.
pub(super) struct KeptState {
    /// The connection table.
    pub(super) table: Arc<Table>,
    /// Held until the daemon ends: no other process uses the directory.
    pub(super) directory: Option<StateDirectory>,
    /// Sentences for the operator.
    pub(super) warnings: Vec<String>,
    numbers: Option<(Kept, Found)>,
    counts: BTreeMap<u32, Counts>,
}

impl KeptState {
    /// Opens the directory, and takes over what an earlier process has left there.
    ///
    /// # Errors
    /// The configured directory cannot be used. Or there is no memory for the table.
    pub(super) fn open(config: &Config, table: TableConfig, now: Millis) -> Result<Self, DaemonError> {
        let in_memory = |warnings| -> Result<Self, DaemonError> {
            let table = Table::create(table).map_err(system("the connection table"))?;
            Ok(Self { table, directory: None, warnings, numbers: None, counts: BTreeMap::new() })
        };
        let Some(parent) = &config.state_directory else { return in_memory(Vec::new()) };
        let opened = StateDirectory::open(parent, &instance::name_of(&config.socket));
        match opened.and_then(|directory| Self::in_directory(directory, table, now)) {
            Ok(state) => Ok(state),
            Err(error) if config.is_given("state_directory") => Err(error.into()),
            Err(error) => in_memory(vec![format!(
                "a restart of xvsd will lose all connections: state_directory: {error}"
            )]),
        }
    }

    fn in_directory(
        directory: StateDirectory,
        config: TableConfig,
        now: Millis,
    ) -> Result<Self, StateDirectoryError> {
        let failed = |error| StateDirectoryError::System { path: directory.path().to_owned(), error };
        let (kept, found) =
            Kept::open(directory.file(DESTINATIONS)?, directory.file(SERVICES)?).map_err(failed)?;
        let known: BTreeSet<u32> = found.numbers().collect();
        let boot = Boot(boot::id().map_err(failed)?);
        let mut warnings = Vec::new();
        let files =
            TableFiles { connections: directory.file(CONNECTIONS)?, extensions: directory.file(EXTENSIONS)? };
        let is_new = files.connections.metadata().map_err(failed)?.len() == 0;
        let adopted = match is_new {
            true => None,
            false => match Table::adopt(&files, config, boot, now, |number| known.contains(&number)) {
                Ok(adopted) => Some(adopted),
                Err(AdoptError::Refused(why)) => {
                    let path = directory.path().join(CONNECTIONS);
                    warnings.push(format!(
                        "xvsd has begun with an empty connection table, because that of {} is refused: {why}",
                        path.display()
                    ));
                    None
                }
                Err(AdoptError::Kernel(error)) => return Err(failed(error)),
            },
        };
        let (table, counts) = match adopted {
            Some(Adopted { table, kept, discarded, destinations }) => {
                tracing::info!(
                    "connections: {kept} are taken over, {discarded} incomplete ones are discarded"
                );
                (table, destinations)
            }
            None => {
                let [connections, extensions] = config.file_bytes().map_err(failed)?;
                let files = TableFiles {
                    connections: directory.new_file(CONNECTIONS, connections)?,
                    extensions: directory.new_file(EXTENSIONS, extensions)?,
                };
                let secret = random_secret().map_err(failed)?;
                (Table::create_in(&files, config, secret, boot).map_err(failed)?, BTreeMap::new())
            }
        };
        Ok(Self { table, directory: Some(directory), warnings, numbers: Some((kept, found)), counts })
    }

    /// Lets the control plane continue with the numbers of destinations, and keep them. Returns the directory.
    pub(super) fn resume<D: Datapath>(self, control: &mut Control<D>, now: Millis) -> Option<StateDirectory> {
        if let Some((kept, found)) = self.numbers {
            control.keep(kept, found, &self.counts, now);
        }
        self.directory
    }
}

/// The files of the directory.
const CONNECTIONS: &str = "connections";
const EXTENSIONS: &str = "extensions";
const DESTINATIONS: &str = "destinations";
const SERVICES: &str = "services";
