//! The file `fleet` of the state directory: facts about the rules in etcd for the next xvsd.
//!
//! An unusable file is ignored; then the rules from etcd are applied once more.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};
use xvs_model::report::fleet::RunningRules;

use xvs_ctl::journal::file;

/// The version of the format. A file with another version is ignored.
const VERSION: u32 = 1;

/// The content of the file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Kept {
    xvs_fleet: u32,
    /// The name of the fleet.
    pub(super) fleet: String,
    /// The random digits that identify this director.
    pub(super) instance: String,
    /// The number of the cluster, and the revision of its store when the rules were taken.
    pub(super) cluster: u64,
    pub(super) revision: u64,
    /// The rules in force, without those of a trial.
    pub(super) runs: Option<RunningRules>,
    /// The trial whose time was over on this director before it was over in etcd.
    #[serde(default)]
    pub(super) ended_trial: Option<u64>,
}

/// The file.
pub(super) struct KeptFile {
    path: Option<PathBuf>,
    /// Whether this process keeps the journal: the file must not claim rules that the journal does not have.
    has_journal: Arc<AtomicBool>,
    written: Option<Kept>,
}

impl KeptFile {
    /// The file in this directory; `None` if nothing outlives the process.
    pub(super) fn new(directory: Option<&Path>, has_journal: Arc<AtomicBool>) -> Self {
        Self { path: directory.map(|directory| directory.join("fleet")), has_journal, written: None }
    }

    /// The content that an earlier process of this fleet has left.
    pub(super) fn read(&self, fleet: &str) -> Kept {
        self.path
            .as_ref()
            .and_then(|path| file::read(path).ok().flatten())
            .and_then(|(bytes, _)| serde_json::from_slice::<Kept>(&bytes).ok())
            .filter(|kept| kept.xvs_fleet == VERSION && kept.fleet == fleet)
            .unwrap_or_else(|| Kept {
                xvs_fleet: VERSION,
                fleet: fleet.to_owned(),
                instance: format!("{:08x}", random()),
                ..Kept::default()
            })
    }

    /// Writes what has changed. A failure is logged: after a restart the rules are applied once more.
    pub(super) fn write(&mut self, kept: &Kept) {
        let Some(path) = &self.path else { return };
        if !self.has_journal.load(Ordering::Relaxed) || self.written.as_ref() == Some(kept) {
            return;
        }
        self.written = Some(kept.clone());
        let written =
            serde_json::to_vec(kept).map_err(Into::into).and_then(|bytes| file::replace(path, &bytes));
        if let Err(error) = written {
            tracing::warn!(
                "{}: {error}; the next xvsd applies the rules of etcd once more; make room, or remove what has its place",
                path.display()
            );
        }
    }
}

fn random() -> u32 {
    let mut bytes = [0; 4];
    // Without random numbers two directors of one name may not see each other.
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    u32::from_ne_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restarted_director_has_its_digits_and_rules_again_but_not_those_of_another_fleet() {
        let directory = std::env::temp_dir().join(format!("xvs-fleet-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let has_journal = Arc::new(AtomicBool::new(false));
        let mut file = KeptFile::new(Some(&directory), has_journal.clone());
        let runs = Some(RunningRules { revision: 7, sha256: "ab".to_owned() });
        let kept = Kept { cluster: 1, revision: 9, runs, ended_trial: Some(8), ..file.read("prod") };
        file.write(&kept);
        assert_eq!(file.read("prod").runs, None, "the journal is another process's");
        has_journal.store(true, Ordering::Relaxed);
        file.write(&kept);
        assert_eq!(file.read("prod"), kept);
        let other = file.read("test");
        assert_eq!((other.runs, other.revision), (None, 0));
        std::fs::write(directory.join("fleet"), "{").unwrap();
        assert_eq!(file.read("prod").runs, None);
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
