//! What was found before `xvs realserver up` changed it, so that `down` can put it back.
//!
//! One JSON file for each network namespace under `/run/xvs`, gone with the machine's uptime like the settings
//! themselves. It is locked while a command works on it, and replaced in one step; so who only looks needs no lock.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::{fs, io};

use serde::{Deserialize, Serialize};
use xvs_host::lock_file;
use xvs_host::lock_file::{Lock, Tried};
use xvs_xdp::network_cookie;

use crate::method::Method;

/// What is up, and what was there before.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The virtual addresses that are up.
    pub(crate) virtuals: BTreeMap<IpAddr, Served>,
    /// Settings that were changed for any of them, by their place under `/proc/sys`.
    pub(crate) settings: BTreeMap<String, Setting>,
    /// Interfaces that were down before one of them needed it.
    pub(crate) raised: BTreeSet<String>,
}

/// A virtual address that is up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Served {
    pub(crate) method: Method,
    /// The interface that the director's packets come in by.
    pub(crate) dev: String,
    /// The interface that has the virtual address.
    pub(crate) holder: String,
    pub(crate) address: Origin,
    /// The places of the settings that it needs.
    pub(crate) settings: BTreeSet<String>,
    /// Who takes off the outer header.
    pub(crate) decapsulation: Option<Decapsulation>,
}

/// How a thing came to be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Origin {
    /// It was there before, and stays.
    Found,
    /// We made it, and remove it.
    Added,
}

/// Who takes the outer header off.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "by")]
pub(crate) enum Decapsulation {
    /// The kernel's interface for IPv4 in IPv4.
    Tunl0,
    /// Our XDP program, for packets to these addresses of this machine, and for GUE to this port.
    Xdp { outer_dests: BTreeSet<IpAddr>, gue_port: u16 },
}

/// A setting that was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Setting {
    pub(crate) found: i32,
    pub(crate) set: i32,
}

/// The record, locked against other commands until it is dropped.
#[derive(Debug)]
pub(crate) struct Locked {
    pub(crate) record: Record,
    path: PathBuf,
    _lock: Lock,
}

impl Locked {
    /// Reads the record of this network namespace; none is an empty one.
    pub(crate) fn open(folder: &Path) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let lock = match lock_file::lock(&folder.join("realserver.lock"))? {
            Tried::Locked(lock) => lock,
            Tried::Held(held) => {
                let by = held.by.map(|pid| format!(" (process {pid})")).unwrap_or_default();
                eprintln!("xvs: waiting for another `xvs realserver`{by} to end");
                held.wait()?
            }
        };
        let path = path(folder)?;
        Ok(Self { record: read(&path)?, path, _lock: lock })
    }

    /// Writes it down, or removes the file when nothing is up.
    pub(crate) fn save(&self) -> io::Result<()> {
        if self.record == Record::default() {
            return match fs::remove_file(&self.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            };
        }
        let beside = self.path.with_extension("new");
        let mut file = File::create(&beside)?;
        serde_json::to_writer_pretty(&mut file, &self.record)?;
        file.write_all(b"\n")?;
        fs::rename(&beside, &self.path)
    }

    /// Where it stands.
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
    /// The record as it is now; none is an empty one. Makes no file and waits for nobody.
    pub(crate) fn look(folder: &Path) -> io::Result<Self> {
        read(&path(folder)?)
    }

    /// Takes out what nobody needs any more, to be put back: settings and interfaces.
    pub(crate) fn take_unneeded(&mut self) -> (Vec<(String, Setting)>, Vec<String>) {
        let needed = |place: &str| self.virtuals.values().any(|served| served.settings.contains(place));
        let places: Vec<String> = self.settings.keys().filter(|place| !needed(place)).cloned().collect();
        let held = |dev: &str| self.virtuals.values().any(|served| served.holder == dev);
        let raised: Vec<String> = self.raised.iter().filter(|dev| !held(dev)).cloned().collect();
        self.raised.retain(|dev| !raised.contains(dev));
        let settings = places.into_iter().filter_map(|place| self.settings.remove_entry(&place)).collect();
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
            settings: settings.iter().map(|&place| place.to_owned()).collect(),
            decapsulation: None,
        }
    }

    #[test]
    fn a_setting_is_put_back_when_the_last_address_that_needs_it_goes() {
        let mut record = Record::default();
        let setting = Setting { found: 0, set: 1 };
        for place in ["all", "eth0", "eth1"] {
            record.settings.insert(place.to_owned(), setting);
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
