//! The file `last_hour` in the state directory: counts over the last hour, for the next xvsd.
//!
//! The control thread writes it once a minute, and when a successor takes over; the directory is on a tmpfs, so no
//! write waits for a disk. A kill loses the counts since the last write. An unusable file is ignored: the lines start
//! over. Cost: some 400 bytes of text for each service.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use xvs_ctl::journal::file;

use crate::last_hour::{Hour, LastHour};

/// The version of the format. A file with another version is ignored.
const VERSION: u32 = 1;

/// The file.
pub(crate) struct KeptHour {
    path: PathBuf,
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
        Self { path: directory.join("last_hour") }
    }

    /// The counts of an earlier process; `None` if there are none. The reason for ignoring a file is logged.
    pub(crate) fn read(&self) -> Option<Hour> {
        file::read(&self.path)
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
                tracing::warn!("{}: {why}; the lines of the status page begin anew", self.path.display());
                None
            })
    }

    /// Writes the counts, if there are any. A failure is logged; the next minute tries again.
    pub(crate) fn write(&self, hour: &LastHour) {
        let mut content = None;
        hour.read(|hour| content = Some(serde_json::to_vec(&Content { xvs_last_hour: VERSION, hour })));
        let Some(content) = content else { return };
        let written = content.map_err(Into::into).and_then(|bytes| file::replace(&self.path, &bytes));
        if let Err(error) = written {
            let path = self.path.display();
            tracing::warn!(
                "{path}: {error}; after a restart the lines of the status page lack this time; make room, or remove what \
                 has its place"
            );
        }
    }
}
