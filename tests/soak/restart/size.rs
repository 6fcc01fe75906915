//! An xvsd's memory, descriptors, pins and files, which must not grow; for the suites `restart` and `mixed`.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use xvs::director::process;
use xvs::{Cluster, Host};

/// Memory may grow by so much: the allocator's slack.
const SLACK_KB: u64 = 8 << 10;

/// What an xvsd occupies.
pub(crate) struct Size {
    /// Without the files that it maps, which are the connection table.
    pub(crate) memory_kb: u64,
    descriptors: u64,
    pins: u64,
    files: u64,
}

impl Size {
    /// That of the xvsd that runs on a host.
    pub(crate) fn of(cluster: &Cluster, host: Host) -> Self {
        let process = process(cluster, host).as_raw_nonzero();
        let status = fs::read_to_string(format!("/proc/{process}/status")).expect("xvsd runs");
        let anonymous = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let kilobytes = anonymous.and_then(|value| value.split_whitespace().next()?.parse().ok());
        // The connections of commands and of this suite come and go.
        let descriptors = || {
            thread::sleep(Duration::from_millis(100));
            files(Path::new(&format!("/proc/{process}/fd")))
        };
        let state = cluster.state().join(host.name());
        Self {
            memory_kb: kilobytes.expect("/proc says so"),
            descriptors: (0..10).map(|_| descriptors()).min().unwrap_or_default(),
            pins: files(&state.join("bpf")),
            files: files(&state.join("shm")),
        }
    }

    /// Each number with its name.
    pub(crate) fn rows(&self) -> [(&'static str, u64); 4] {
        let Self { memory_kb, descriptors, pins, files } = *self;
        [("memory, kB", memory_kb), ("descriptors", descriptors), ("pins", pins), ("files", files)]
    }

    /// What is more than before.
    pub(crate) fn grown(&self, before: &Self) -> Vec<&'static str> {
        let slack = |name: &str| if name == "memory, kB" { SLACK_KB } else { 0 };
        let pairs = self.rows().into_iter().zip(before.rows());
        pairs
            .filter(|((name, now), (_, before))| *now > before + slack(name))
            .map(|((name, _), _)| name)
            .collect()
    }
}

/// Files below a folder, without the counts of the last hour, which xvsd keeps from its second minute on.
fn files(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name() != "last_hour")
        .map(|entry| if entry.file_type().is_ok_and(|kind| kind.is_dir()) { files(&entry.path()) } else { 1 })
        .sum()
}
