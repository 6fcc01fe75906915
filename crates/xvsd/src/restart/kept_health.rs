//! The file `health` in the state directory: the view of the health checks, for the next xvsd.
//!
//! Written at most half a second after a change, on a thread of the checks that may block. An unusable file is ignored:
//! the checks begin as keepalived.conf configures.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use xvs_health::view::View;

use xvs_ctl::journal::file;

/// The version of the format. A file with another version is ignored.
const VERSION: u32 = 1;

/// The file.
pub(crate) struct KeptHealth {
    path: PathBuf,
}

/// The content of the file.
#[derive(Serialize, Deserialize)]
struct Content<V> {
    xvs_health: u32,
    view: V,
}

impl KeptHealth {
    /// The file in this directory.
    pub(crate) fn new(directory: &Path) -> Self {
        Self { path: directory.join("health") }
    }

    /// The view of an earlier process; empty if there is none. Why a file is left out is logged.
    pub(crate) fn read(&self) -> View {
        file::read(&self.path)
            .map_err(|error| error.to_string())
            .and_then(|read| {
                let Some((bytes, _)) = read else { return Ok(View::default()) };
                match serde_json::from_slice(&bytes) {
                    Ok(Content { xvs_health: VERSION, view }) => Ok(view),
                    Ok(Content { xvs_health, .. }) => {
                        Err(format!("it has version {xvs_health} of the format, not {VERSION}"))
                    }
                    Err(error) => Err(error.to_string()),
                }
            })
            .unwrap_or_else(|why| {
                let path = self.path.display();
                tracing::warn!("{path}: {why}; the health checks begin as the keepalived.conf says");
                View::default()
            })
    }

    /// Writes the view. A failure is logged; the next change tries again.
    pub(crate) fn write(&self, view: &View) {
        if let Err(error) = serde_json::to_vec(&Content { xvs_health: VERSION, view })
            .map_err(Into::into)
            .and_then(|bytes| file::replace(&self.path, &bytes))
        {
            tracing::warn!(
                "{}: {error}; after a restart the health checks begin with an earlier state; make room, or remove what has \
                 its place",
                self.path.display()
            );
        }
    }
}
