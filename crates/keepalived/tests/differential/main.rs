//! keepalived 2.2.7 and xvs read the same files: random ones, and those of this tree.
//!
//! What both take must be the same services, servers and checks with all values. What xvs refuses, keepalived must
//! complain of, and the reverse: what keepalived complains of, xvs names. Needs keepalived, unshare and cc
//! (`scripts/setup`). `SEEDS=A..B` chooses the random files; `scripts/fuzz keepalived` reads more of them.

mod grammar;
mod keepalived;
mod ours;

use std::collections::BTreeSet;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use xvs_model::health_checks::fault::Fault;
use xvs_model::health_checks::virtual_server::Configuration;

use crate::keepalived::{Keepalived, Reading};

#[test]
fn random_files_mean_the_same_to_keepalived_and_xvs() {
    let seeds = std::env::var("SEEDS").map_or(1..201, |text| {
        let (first, end) = text.split_once("..").expect("SEEDS is A..B");
        let number = |text: &str| text.parse().expect("SEEDS has two numbers");
        number(first)..number(end)
    });
    let folder = Folder::new("random");
    let keepalived = Keepalived::new(&folder.0);
    let differences = differences(seeds.clone(), |seed| {
        let path = folder.0.join(format!("{seed}.conf"));
        let included = format!("{seed}.included");
        let files = grammar::files(seed, &included);
        fs::write(&path, &files.main).unwrap();
        fs::write(folder.0.join(&included), &files.included).unwrap();
        let difference = difference(&keepalived, &path);
        fs::remove_file(&path).unwrap();
        difference.map(|why| format!("seed {seed}: {why}\n{}--- included:\n{}", files.main, files.included))
    });
    let number = differences.len();
    let shown: Vec<_> = differences.into_iter().take(5).collect();
    assert!(number == 0, "{number} of {seeds:?} differ:\n{}", shown.join("\n\n"));
}

#[test]
fn the_files_of_this_tree_mean_the_same_to_keepalived_and_xvs() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut found = Vec::new();
    for folder in ["crates/keepalived/src/cases", "docs", "crates/cli", "tests"] {
        find(&root.join(folder), &mut found);
    }
    assert!(found.len() > 40, "{found:?}");
    let folder = Folder::new("tree");
    let keepalived = Keepalived::new(&folder.0);
    found.retain(|path| !OTHER.iter().any(|(name, _)| path.ends_with(name)));
    let all: Vec<_> = found
        .iter()
        .filter_map(|path| Some(format!("{}: {}", path.display(), difference(&keepalived, path)?)))
        .collect();
    assert!(all.is_empty(), "{} of {} differ:\n{}", all.len(), found.len(), all.join("\n\n"));
}

/// Files with another meaning for xvs, and why; docs/limits-all.md has the differences.
const OTHER: [(&str, &str); 16] = [
    ("cases/ipv6.conf", "scripts that are missing"),
    ("docs/keepalived.conf", "`rise`"),
    ("cases/families.conf", "FNAT"),
    ("cases/groups.conf", "a mark of 0"),
    ("cases/mail-hosts.conf", "`connect_timeout` in front of a `host`"),
    ("cases/methods.conf", "`lb_kind` of a real server"),
    ("cases/openstack.conf", "a network namespace that is missing"),
    ("cases/own-lines-wrong.conf", "lines of xvs"),
    ("cases/persistence.conf", "text behind a number, and a granularity of the other family"),
    ("cases/port-0.conf", "a check of a server without a port"),
    ("cases/quorum.conf", "a sorry server that is a real server"),
    ("cases/sctp.conf", "a certificate that is missing"),
    ("cases/sorry-server.conf", "scripts that are missing"),
    ("cases/sorry-server-port.conf", "a sorry server without a port"),
    ("cases/twice.conf", "a service of two virtual servers"),
    ("cases/dual-stack.conf", "a group of both families"),
];

/// Adds the files below a folder that name a virtual server.
fn find(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("the folder is in the tree").map_while(Result::ok) {
        let path = entry.path();
        if path.is_dir() {
            find(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "conf")
            && fs::read_to_string(&path)
                .is_ok_and(|text| text.lines().any(|line| line.starts_with("virtual_server")))
        {
            found.push(path);
        }
    }
    found.sort();
}

/// What differs of these numbers, read by two threads.
fn differences(seeds: Range<u64>, one: impl Fn(u64) -> Option<String> + Sync) -> Vec<String> {
    let (next, found) = (AtomicU64::new(seeds.start), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        break;
                    }
                    found.lock().expect("no thread panics with it").extend(one(seed));
                }
            });
        }
    });
    found.into_inner().expect("no thread has panicked with it")
}

/// What differs between the two readings of a file.
fn difference(keepalived: &Keepalived, path: &Path) -> Option<String> {
    let theirs = keepalived.read(path);
    let ours = xvs_keepalived::read(path, "lb1").expect("the file is there");
    compare(&theirs, &ours).map(|why| {
        let faults: Vec<_> = ours.faults.iter().map(Fault::to_string).collect();
        format!("{why}\n--- keepalived:\n{}\n--- xvs:\n{}", theirs.messages.join("\n"), faults.join("\n"))
    })
}

fn compare(theirs: &Reading, ours: &Configuration) -> Option<String> {
    if !ours.is_usable() {
        return theirs.messages.is_empty().then(|| "xvs refuses it, keepalived says nothing".to_owned());
    }
    if ours.faults.is_empty() && !theirs.messages.is_empty() {
        return Some("keepalived complains, xvs does not".to_owned());
    }
    if theirs.messages.iter().any(|message| DOCUMENTED.iter().any(|known| message.contains(known))) {
        return None;
    }
    let Some(found) = &theirs.found else {
        return (!ours.virtual_servers.is_empty()).then(|| "keepalived ends, xvs takes it".to_owned());
    };
    let ours: Vec<_> = ours::found(ours);
    let found: Vec<_> = found.iter().map(|line| with_ranges(line)).collect();
    let (they, we): (BTreeSet<_>, BTreeSet<_>) = (found.iter().collect(), ours.iter().collect());
    let theirs: Vec<_> = they.difference(&we).map(|line| format!("- {line}")).collect();
    let ours: Vec<_> = we.difference(&they).map(|line| format!("+ {line}")).collect();
    (!theirs.is_empty() || !ours.is_empty()).then(|| format!("{}\n{}", theirs.join("\n"), ours.join("\n")))
}

/// Messages of files that have another meaning for xvs, which docs/limits-all.md lists.
const DOCUMENTED: [&str; 4] = [
    // After a refused `connect_ip` it takes any `bindto`.
    "does not match address family of bindto",
    // A group of another family than its first server.
    "family doesn't match virtual server",
    "with IPv4 & IPv6 doesn't match virtual server",
    // The block of an unknown keyword.
    "Unexpected '{'",
];

/// The line with the addresses of its ranges.
fn with_ranges(line: &str) -> String {
    let words = line.split(' ').collect::<Vec<_>>();
    let mut text = Vec::new();
    let mut rest = words.iter();
    while let Some(word) = rest.next() {
        let range =
            word.split_once('-').and_then(|(first, last)| Some((first.parse().ok()?, last.parse().ok()?)));
        match range {
            Some((first, last)) => {
                let port = rest.next().unwrap_or(&"0");
                for service in addresses(first, last).into_iter().map(|addr| format!("{addr} {port}")) {
                    if !text.contains(&service) {
                        text.push(service);
                    }
                }
            }
            None => text.push((*word).to_owned()),
        }
    }
    text.join(" ")
}

fn addresses(first: std::net::IpAddr, last: std::net::IpAddr) -> Vec<std::net::IpAddr> {
    match (first, last) {
        (std::net::IpAddr::V4(first), std::net::IpAddr::V4(last)) => (first.to_bits()..=last.to_bits())
            .map(|bits| std::net::Ipv4Addr::from_bits(bits).into())
            .collect(),
        (std::net::IpAddr::V6(first), std::net::IpAddr::V6(last)) => (first.to_bits()..=last.to_bits())
            .map(|bits| std::net::Ipv6Addr::from_bits(bits).into())
            .collect(),
        _ => Vec::new(),
    }
}

/// A directory that is removed when the test ends.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("xvs-differential-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).expect("the system has a folder for temporary files");
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
