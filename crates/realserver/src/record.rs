//! The record of virtual addresses and of the values that `xvs realserver up` changed, for `down` to restore.
//!
//! One JSON file for each network namespace under `/run/xvs-realserver`. A reboot removes it, like the settings. A
//! command that changes the file locks it and replaces it with rename(2), so `status` can read it without a lock.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::{fs, io};

use rustix::process::geteuid;
use serde::{Deserialize, Serialize};
use xvs_host::lock_file;
use xvs_host::lock_file::{Lock, LockAttempt, Owner};
use xvs_xdp::network_cookie;

use crate::method::Method;

/// Virtual addresses that are up, and the previous state of everything that they changed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The virtual addresses that are up.
    pub(crate) virtuals: BTreeMap<IpAddr, Served>,
    /// The former configuration of addresses, as long as parts of it may be left.
    #[serde(default)]
    pub(crate) former: Vec<(IpAddr, Served)>,
    /// Settings that were changed for any of them, by their path under `/proc/sys`.
    pub(crate) settings: BTreeMap<String, Setting>,
    /// Interfaces that were down until one of them needed it.
    pub(crate) raised: BTreeSet<String>,
}

/// A virtual address that is up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Served {
    pub(crate) method: Method,
    /// The interface that receives the director's packets.
    pub(crate) dev: String,
    /// The interface that has the virtual address.
    pub(crate) holder: String,
    pub(crate) address: Origin,
    /// The keys of the settings that it needs.
    pub(crate) settings: BTreeSet<String>,
    /// How tunnels are decapsulated.
    pub(crate) decapsulation: Option<Decapsulation>,
}

/// Whether an address was there before `up`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Origin {
    /// It was there before; `down` leaves it.
    Found,
    /// `up` added it; `down` removes it.
    Added,
}

/// How tunnels are decapsulated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "by")]
pub(crate) enum Decapsulation {
    /// By the kernel's interface for IPv4 in IPv4.
    Tunl0,
    /// By the XDP program: packets to these addresses of this machine, GUE at this UDP port.
    Xdp { outer_dests: BTreeSet<IpAddr>, gue_port: u16 },
}

/// The value of a setting before `up`, and the value that `up` wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Setting {
    pub(crate) found: i32,
    pub(crate) set: i32,
}

/// The record, with a lock that keeps other commands waiting until it is dropped.
#[derive(Debug)]
pub(crate) struct LockedRecord {
    pub(crate) record: Record,
    path: PathBuf,
    _lock: Lock,
}

impl LockedRecord {
    /// Locks and reads the record of this network namespace; a missing file is an empty record.
    pub(crate) fn open(folder: &Path) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        // Whoever can write there could choose the values that `down` writes as root.
        if fs::symlink_metadata(folder)?.uid() != geteuid().as_raw() {
            return Err(io::Error::other(format!("{} belongs to another user; remove it", folder.display())));
        }
        let lock = match lock_file::lock(&folder.join("realserver.lock"), Owner::Own)? {
            LockAttempt::Locked(lock) => lock,
            LockAttempt::Held(held) => {
                let by = held.by.map(|pid| format!(" (process {pid})")).unwrap_or_default();
                let _ = writeln!(io::stderr(), "xvs: waiting for another `xvs realserver`{by} to end");
                held.wait()?
            }
        };
        let path = path(folder)?;
        Ok(Self { record: read(&path)?, path, _lock: lock })
    }

    /// Writes the file, or removes it if the record is empty.
    pub(crate) fn save(&self) -> io::Result<()> {
        if self.record == Record::default() {
            return match fs::remove_file(&self.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            };
        }
        let new = self.path.with_extension("new");
        let mut file = File::create(&new)?;
        serde_json::to_writer_pretty(&mut file, &self.record)?;
        file.write_all(b"\n")?;
        fs::rename(&new, &self.path)
    }

    /// The path of the file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// The file of this thread's network namespace.
fn path(folder: &Path) -> io::Result<PathBuf> {
    let namespace = network_cookie(UnixDatagram::unbound()?.as_fd())?;
    Ok(folder.join(format!("realserver-{namespace}.json")))
}

fn read(path: &Path) -> io::Result<Record> {
    match fs::read(path) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Record::default()),
        Err(error) => Err(error),
    }
}

impl Record {
    /// Reads the record without a lock and creates no file; a missing file is an empty record.
    pub(crate) fn read(folder: &Path) -> io::Result<Self> {
        read(&path(folder)?)
    }

    /// Removes from the record, and returns, the settings and interfaces that no virtual address needs any more.
    pub(crate) fn take_unneeded(&mut self) -> (Vec<(String, Setting)>, Vec<String>) {
        let needed: BTreeSet<&String> = self.virtuals.values().flat_map(|served| &served.settings).collect();
        let keys: Vec<String> = self.settings.keys().filter(|key| !needed.contains(key)).cloned().collect();
        let holders: BTreeSet<&String> = self.virtuals.values().map(|served| &served.holder).collect();
        let raised: Vec<String> = self.raised.iter().filter(|dev| !holders.contains(dev)).cloned().collect();
        self.raised.retain(|dev| !raised.contains(dev));
        let settings = keys.into_iter().filter_map(|key| self.settings.remove_entry(&key)).collect();
        (settings, raised)
    }
}

#[cfg(test)]
mod tests {
    use crate::record::*;

    fn served(dev: &str, settings: &[&str]) -> Served {
        Served {
            method: Method::Dr,
            dev: dev.to_owned(),
            holder: "lo".to_owned(),
            address: Origin::Added,
            settings: settings.iter().map(|&key| key.to_owned()).collect(),
            decapsulation: None,
        }
    }

    #[test]
    fn a_setting_is_restored_when_the_last_address_that_needs_it_is_removed() {
        let mut record = Record::default();
        let setting = Setting { found: 0, set: 1 };
        for key in ["all", "eth0", "eth1"] {
            record.settings.insert(key.to_owned(), setting);
        }
        let [one, two] = ["192.0.2.1", "192.0.2.2"].map(|addr| addr.parse::<IpAddr>().unwrap());
        record.virtuals.insert(one, served("eth0", &["all", "eth0"]));
        record.virtuals.insert(two, served("eth1", &["all", "eth1"]));
        record.raised.insert("lo".to_owned());
        assert_eq!(record.take_unneeded(), (vec![], vec![]));
        record.virtuals.remove(&one);
        assert_eq!(record.take_unneeded(), (vec![("eth0".to_owned(), setting)], vec![]));
        record.virtuals.remove(&two);
        let (settings, raised) = record.take_unneeded();
        assert_eq!((settings.len(), raised), (2, vec!["lo".to_owned()]));
        assert_eq!(record, Record::default());
    }
}
