//! The file `last_hour` in the state directory: counts over the last hour, for the next xvsd.
//!
//! The control thread writes it once a minute, and when a successor takes over; the directory is on a tmpfs, so no
//! write waits for a disk. A kill loses the counts since the last write. An unusable file is ignored: the lines start
//! over. Cost: some 400 bytes of text for each service.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use xvs_ctl::journal::file;
use xvs_sched::ServiceKey;

use crate::history::drops;
use crate::last_hour::{Hour, LastHour, Total};
use crate::shared::Shared;

/// The version of the format. A file with another version is ignored.
const VERSION: u32 = 1;

/// The file; none if nothing outlives the process.
#[derive(Default)]
pub(crate) struct KeptHour {
    path: Option<PathBuf>,
}

/// The content of the file.
#[derive(Serialize, Deserialize)]
struct Content<H> {
    xvs_last_hour: u32,
    hour: H,
}

impl KeptHour {
    /// The file in this directory.
    pub(crate) fn new(directory: &Path) -> Self {
        Self { path: Some(directory.join("last_hour")) }
    }

    /// Adds what is due to the counts of the last hour, and writes them once a minute. Called by the control thread.
    pub(crate) fn record(&self, shared: &Shared) {
        // A successor that prepares must not write the file of the running process.
        if shared.owned.get().is_none() {
            return;
        }
        let now = shared.now();
        let hour = &shared.last_hour;
        if !hour.has_begun() {
            hour.begin(now, self.read(), || totals(shared), || services(shared));
        } else if hour.record(now, || totals(shared), || services(shared)) {
            self.write(hour);
        }
    }

    /// The counts of an earlier process; `None` if there are none. The reason for ignoring a file is logged.
    pub(crate) fn read(&self) -> Option<Hour> {
        let path = self.path.as_ref()?;
        file::read(path)
            .map_err(|error| error.to_string())
            .and_then(|read| {
                let Some((bytes, _)) = read else { return Ok(None) };
                match serde_json::from_slice(&bytes) {
                    Ok(Content { xvs_last_hour: VERSION, hour }) => Ok(Some(hour)),
                    Ok(Content { xvs_last_hour, .. }) => {
                        Err(format!("it has version {xvs_last_hour} of the format, not {VERSION}"))
                    }
                    Err(error) => Err(error.to_string()),
                }
            })
            .unwrap_or_else(|why| {
                tracing::warn!("{}: {why}; the lines of the status page begin anew", path.display());
                None
            })
    }

    /// Writes the counts, if there are any. A failure is logged; the next minute tries again.
    pub(crate) fn write(&self, hour: &LastHour) {
        let Some(path) = &self.path else { return };
        let mut content = None;
        hour.read(|hour| content = Some(serde_json::to_vec(&Content { xvs_last_hour: VERSION, hour })));
        let Some(content) = content else { return };
        if let Err(error) = content.map_err(Into::into).and_then(|bytes| file::replace(path, &bytes)) {
            tracing::warn!(
                "{}: {error}; after a restart the lines of the status page lack this time; make room, or remove what \
                 has its place",
                path.display()
            );
        }
    }
}

fn totals(shared: &Shared) -> Vec<(Total, u64)> {
    let counted = shared.total.sum();
    vec![
        (Total::Connections, counted.connections),
        (Total::InPackets, counted.in_packets),
        (Total::OutPackets, counted.out_packets),
        (Total::DroppedPackets, drops(&shared.counters).sum()),
    ]
}

fn services(shared: &Shared) -> Vec<(ServiceKey, u64)> {
    let snapshot = shared.published.load();
    snapshot.services.iter().map(|service| (service.key, service.live.stats().connections)).collect()
}
