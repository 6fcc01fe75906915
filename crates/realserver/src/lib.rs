//! Prepares a real server: its virtual address, the ARP settings for it, decapsulation of tunnels.
//!
//! `up` has the effect of the script in LVS tutorials. It adds the virtual address to `lo` (or `tunl0`) with a host
//! prefix. It keeps the interface of the director's packets from sending ARP replies for the address (`arp_ignore` 1)
//! and from using it as sender of ARP requests (`arp_announce` 2). For tunnels, outer headers are removed by an XDP
//! program, which needs no process, or by the kernel's `tunl0` if the interface has another XDP program.
//!
//! Settings are only raised, never lowered. A record keeps their previous values. `down` restores these when the last
//! virtual address that needs them is removed, unless another program has changed them since. Runs on the real server
//! as one command, not as a daemon.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use xvs_proto::is_host;

use crate::decapsulation::{AttachedProgram, Tunnels};
use crate::error::failed;
use crate::interfaces::{AdminState, Interfaces, TUNL0};
use crate::record::{Decapsulation, LockedRecord, Origin, Record, Served, Setting};
use crate::status::{Status, outer_dests};
use crate::sysctl::MinimumValue;

pub use crate::error::RealserverError;
pub use crate::foreign::Foreign;
pub use crate::method::Method;

pub mod decapsulation;
mod error;
mod foreign;
mod interfaces;
mod method;
mod mss;
mod record;
pub mod status;
mod sysctl;

/// The result of [`Realserver::up`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The virtual address was not up before.
    New,
    /// The address was up; missing parts of its configuration were restored.
    Restored,
    /// The address was up in another form; each difference as "method dr to tunnel".
    Changed(Vec<String>),
}

/// This machine, with the record of the changes that were made to it.
#[derive(Debug)]
pub struct Realserver {
    interfaces: Interfaces,
    locked: LockedRecord,
}

impl Realserver {
    /// Reads the interfaces, and locks and reads the record of this network namespace in `folder`.
    pub fn open(folder: &Path) -> Result<Self, RealserverError> {
        let locked = LockedRecord::open(folder).map_err(failed(|| record_in(folder)))?;
        let interfaces = Interfaces::read().map_err(failed(|| "reading the interfaces".to_owned()))?;
        Ok(Self { interfaces, locked })
    }

    /// Makes this machine a real server for `vip`, for packets that arrive on `dev`. By default, method, `dev` and the
    /// UDP port for GUE packets do not change for a `vip` that is up; a new one has direct routing, the interface of
    /// the default route, and 6080. Also returns the method.
    ///
    /// If `vip` is up in another form, it is changed in place: missing parts are added before anything is removed, so
    /// the address is never missing and never answers ARP. An error undoes the changes of this call.
    pub fn up(
        &mut self,
        vip: IpAddr,
        method: Option<Method>,
        dev: Option<&str>,
        gue_port: Option<u16>,
    ) -> Result<(Method, Change), RealserverError> {
        let before = self.locked.record.virtuals.get(&vip).cloned();
        let method = method.or(before.as_ref().map(|before| before.method)).unwrap_or(Method::Dr);
        if method != Method::Tunnel && gue_port.is_some() {
            return Err(RealserverError::GueWithoutTunnel);
        }
        if !is_host(vip) {
            return Err(RealserverError::NotUnicast(vip));
        }
        let default =
            before.as_ref().map(|before| before.dev.as_str()).or_else(|| self.interfaces.default_dev(vip));
        let dev = dev.or(default).ok_or(RealserverError::NoDefaultRoute(vip))?.to_owned();
        let wanted = self.plan(vip, method, &dev, gue_port)?;
        let change = match before.as_ref().map(|before| before.differences(&wanted)) {
            None => Change::New,
            Some(none) if none.is_empty() => Change::Restored,
            Some(differences) => Change::Changed(differences),
        };
        if let Err(error) = self.apply(vip, wanted) {
            // The first error is the one to report; anything that this cannot undo stays in the record for `down`.
            let _ = match before {
                Some(before) => self.apply(vip, before),
                None if self.locked.record.virtuals.contains_key(&vip) => self.down(vip, None, None),
                None => Ok(()),
            };
            return Err(error);
        }
        Ok((method, change))
    }

    /// Reverts [`up`](Self::up). If method and interface are given, they must be those of `up`.
    pub fn down(
        &mut self,
        vip: IpAddr,
        method: Option<Method>,
        dev: Option<&str>,
    ) -> Result<(), RealserverError> {
        let record = &mut self.locked.record;
        let served = record.virtuals.get(&vip).ok_or(RealserverError::NotUp(vip))?.clone();
        served.check_matches(vip, method, dev)?;
        record.virtuals.remove(&vip);
        record.former.push((vip, served));
        self.remove_former(vip)
    }

    /// The state of all virtual addresses, or of `vip`, in the record of this network namespace in `folder`. A `vip`
    /// that is not up is an error. Changes nothing. Reading the XDP program of a tunnel needs CAP_BPF and
    /// CAP_NET_ADMIN.
    pub fn status(folder: &Path, vip: Option<IpAddr>) -> Result<Vec<Status>, RealserverError> {
        let (record, interfaces) = read(folder)?;
        if let Some(vip) = vip
            && !record.virtuals.contains_key(&vip)
        {
            let foreign = Foreign::all(&interfaces, &record).into_iter().find(|found| found.addr == vip);
            return Err(foreign.map_or(RealserverError::NotUp(vip), RealserverError::Foreign));
        }
        record
            .virtuals
            .iter()
            .filter(|&(&up, _)| vip.is_none_or(|vip| vip == up))
            .map(|(&vip, served)| Status::of(vip, served, &record, &interfaces))
            .collect()
    }

    /// The host addresses that other programs have set up on this machine, which may be virtual ones.
    pub fn foreign(folder: &Path) -> Result<Vec<Foreign>, RealserverError> {
        read(folder).map(|(record, interfaces)| Foreign::all(&interfaces, &record))
    }

    /// The configuration with which `vip` must be up; changes nothing.
    fn plan(
        &self,
        vip: IpAddr,
        method: Method,
        dev: &str,
        gue_port: Option<u16>,
    ) -> Result<Served, RealserverError> {
        let decapsulation = match method {
            Method::Dr => {
                self.ifindex(dev)?;
                None
            }
            Method::Tunnel => Some(self.decapsulation(vip, dev, gue_port)?),
        };
        let holder = if decapsulation == Some(Decapsulation::Tunl0) { TUNL0 } else { LOOPBACK };
        let record = &self.locked.record;
        let former = record.former.iter().filter(|(other, _)| *other == vip).map(|(_, former)| former);
        // An address that `up` added elsewhere moves; one that another program added stays, and would be a second one.
        let mut holders: Vec<_> = record
            .virtuals
            .get(&vip)
            .into_iter()
            .chain(former)
            .filter(|served| served.address == Origin::Added)
            .map(|served| &*served.holder)
            .collect();
        let was_added = holders.contains(&holder);
        holders.push(holder);
        if let Some(other) = self.interfaces.other_link_with(vip, &holders) {
            return Err(RealserverError::AnswersArp { vip, dev: other.name.clone() });
        }
        Ok(Served {
            method,
            dev: dev.to_owned(),
            holder: holder.to_owned(),
            address: if was_added { Origin::Added } else { Origin::Found },
            settings: BTreeSet::new(),
            decapsulation,
        })
    }

    /// Adds the parts that `served` needs, then removes those that the virtual address no longer needs.
    fn apply(&mut self, vip: IpAddr, mut served: Served) -> Result<(), RealserverError> {
        let dev = served.dev.clone();
        let holder = served.holder.clone();
        let ifindex = self.ifindex(&holder)?;
        let minimums = self.minimums(vip, &served)?;
        // The record is written before each change, so that `down` can undo a change that was interrupted.
        served.settings = self.record_settings(&minimums)?;
        let held = self.interfaces.link(&holder).map(|link| &link.addresses);
        if !held.is_some_and(|held| held.iter().any(|&(addr, _)| addr == vip)) {
            served.address = Origin::Added;
        }
        if let Some(before) = self.locked.record.virtuals.insert(vip, served.clone())
            && before != served
        {
            self.locked.record.former.push((vip, before));
        }
        if !self.interfaces.link(&holder).is_some_and(|link| link.up) {
            self.locked.record.raised.insert(holder.clone());
        }
        self.save()?;
        for key in &served.settings {
            let setting = self.locked.record.settings[key];
            sysctl::write(key, setting.set).map_err(failed(|| format!("setting {}", sysctl::name(key))))?;
        }
        if served.has_program_on(&dev) {
            self.update_program(vip, &dev)?;
        }
        self.interfaces.set(ifindex, AdminState::Up).map_err(failed(|| format!("setting {holder} up")))?;
        let added = self.interfaces.add_address(ifindex, vip);
        if added.map_err(failed(|| format!("adding {vip} to {holder}")))? == Origin::Added {
            served.address = Origin::Added;
        }
        self.locked.record.virtuals.insert(vip, served);
        self.save()?;
        self.interfaces.wait_until_local(vip).map_err(failed(|| format!("waiting for {vip} on {holder}")))?;
        self.remove_former(vip)
    }

    /// The settings that a virtual address needs in this form.
    fn minimums(&self, vip: IpAddr, served: &Served) -> Result<Vec<MinimumValue>, RealserverError> {
        // The kernel has neither ARP nor rp_filter for IPv6.
        if !vip.is_ipv4() {
            return Ok(Vec::new());
        }
        let mut minimums = sysctl::quiet_arp(&served.dev);
        if served.method == Method::Tunnel {
            let inner_dev = if served.holder == TUNL0 { TUNL0 } else { &served.dev };
            let loose = sysctl::loose_source_check(inner_dev);
            let strict = sysctl::checks_strictly(inner_dev)
                .map_err(failed(|| format!("reading rp_filter of {inner_dev}")))?;
            // A check that was strict until `up` of another virtual address changed it needs the setting, too.
            if strict || self.locked.record.settings.contains_key(&loose.key) {
                minimums.push(loose);
            }
        }
        Ok(minimums)
    }

    /// Removes the former parts of a virtual address that it no longer needs: address, program, settings.
    fn remove_former(&mut self, vip: IpAddr) -> Result<(), RealserverError> {
        let record = &self.locked.record;
        let now = record.virtuals.get(&vip);
        for (_, former) in record.former.iter().filter(|(other, _)| *other == vip) {
            // The address goes first: as long as the machine has it, the ARP settings must stay.
            if former.address == Origin::Added
                && now.is_none_or(|now| now.holder != former.holder)
                && let Some(ifindex) = self.interfaces.link(&former.holder).map(|link| link.ifindex)
            {
                self.interfaces
                    .remove_address(ifindex, vip)
                    .map_err(failed(|| format!("removing {vip} from {}", former.holder)))?;
            }
            if former.has_program_on(&former.dev) && now.is_none_or(|now| !now.has_program_on(&former.dev)) {
                self.update_program(vip, &former.dev)?;
            }
        }
        let mut record = record.clone();
        record.former.retain(|(other, _)| *other != vip);
        let (settings, raised) = record.take_unneeded();
        for (key, setting) in settings {
            restore(&key, setting)?;
        }
        for dev in raised {
            if let Some(ifindex) = self.interfaces.link(&dev).map(|link| link.ifindex) {
                self.interfaces
                    .set(ifindex, AdminState::Down)
                    .map_err(failed(|| format!("setting {dev} down as it was")))?;
            }
        }
        self.locked.record = record;
        self.save()
    }

    /// How packets to `vip` on `dev` are decapsulated: as now, if `vip` is up; otherwise by the XDP program, or by the
    /// kernel's tunl0 if the interface has another XDP program.
    fn decapsulation(
        &self,
        vip: IpAddr,
        dev: &str,
        gue_port: Option<u16>,
    ) -> Result<Decapsulation, RealserverError> {
        let ifindex = self.ifindex(dev)?;
        let served = self.locked.record.virtuals.get(&vip);
        let before = served.and_then(|served| served.decapsulation.as_ref());
        let by_tunl0 = match before.filter(|_| served.is_some_and(|served| served.dev == dev)) {
            Some(before) => *before == Decapsulation::Tunl0,
            None => {
                vip.is_ipv4()
                    && self.interfaces.link(TUNL0).is_some()
                    && matches!(decapsulation::attached_program(ifindex), Ok(AttachedProgram::Other(_)))
            }
        };
        if by_tunl0 {
            return Ok(Decapsulation::Tunl0);
        }
        let known_port = match before {
            Some(Decapsulation::Xdp { gue_port, .. }) => *gue_port,
            _ => GUE_PORT,
        };
        Ok(Decapsulation::Xdp {
            outer_dests: outer_dests(&self.interfaces, &self.locked.record),
            gue_port: gue_port.unwrap_or(known_port),
        })
    }

    /// Records the current values of settings that are too low; returns the keys of the settings that `up` changed.
    fn record_settings(&mut self, minimums: &[MinimumValue]) -> Result<BTreeSet<String>, RealserverError> {
        let mut changed = BTreeSet::new();
        for MinimumValue { key, at_least } in minimums {
            let value = sysctl::read(key).map_err(failed(|| format!("reading {}", sysctl::name(key))))?;
            let known = self.locked.record.settings.contains_key(key);
            if value < *at_least {
                // Not changed by xvs, or changed by another program since: `down` restores this value.
                self.locked.record.settings.insert(key.clone(), Setting { found: value, set: *at_least });
            }
            if value < *at_least || known {
                changed.insert(key.clone());
            }
        }
        Ok(changed)
    }

    /// Installs the XDP program on `dev` with the addresses in the record, or removes it if there are none. An error if
    /// `vip` needs it and the interface has another program.
    fn update_program(&self, vip: IpAddr, dev: &str) -> Result<(), RealserverError> {
        // A removed interface has no program.
        let Some(link) = self.interfaces.link(dev) else { return Ok(()) };
        let mut tunnels = Tunnels::default();
        for (vip, served) in &self.locked.record.virtuals {
            if let Some(Decapsulation::Xdp { outer_dests, gue_port }) = &served.decapsulation
                && served.dev == dev
            {
                tunnels.virtuals.insert(*vip);
                tunnels.outer_dests.extend(outer_dests);
                tunnels.gue_ports.insert(*gue_port);
            }
        }
        match decapsulation::attached_program(link.ifindex) {
            // Another program has replaced this one, and is left in place.
            Ok(AttachedProgram::Other(_)) if !tunnels.virtuals.contains(&vip) => Ok(()),
            Ok(_) if tunnels.virtuals.is_empty() => decapsulation::remove(dev, link.ifindex),
            Ok(_) => decapsulation::install(dev, link.ifindex, &tunnels).map(drop),
            Err(error) => Err(error),
        }
        .map_err(|error| RealserverError::Decap { vip, error })
    }

    fn ifindex(&self, dev: &str) -> Result<u32, RealserverError> {
        self.interfaces.link(dev).map(|link| link.ifindex).ok_or_else(|| RealserverError::NoInterface {
            dev: dev.to_owned(),
            present: self.interfaces.names().join(", "),
        })
    }

    fn save(&self) -> Result<(), RealserverError> {
        self.locked.save().map_err(failed(|| format!("writing {}", self.locked.path().display())))
    }
}

impl Served {
    /// Whether the XDP program on this interface decapsulates its packets.
    fn has_program_on(&self, dev: &str) -> bool {
        self.dev == dev && matches!(self.decapsulation, Some(Decapsulation::Xdp { .. }))
    }

    /// The differences that `up` with another form makes, each as "method dr to tunnel".
    fn differences(&self, wanted: &Self) -> Vec<String> {
        ["method", "interface", "address on", "GUE port"]
            .into_iter()
            .zip(self.parts())
            .zip(wanted.parts())
            .filter_map(|((name, before), now)| Some((name, before?, now?)))
            .filter(|(_, before, now)| before != now)
            .map(|(name, before, now)| format!("{name} {before} to {now}"))
            .collect()
    }

    /// Method, interface, the interface with the address, and the GUE port.
    fn parts(&self) -> [Option<String>; 4] {
        let gue_port = match &self.decapsulation {
            Some(Decapsulation::Xdp { gue_port, .. }) => Some(gue_port.to_string()),
            _ => None,
        };
        [Some(self.method.to_string()), Some(self.dev.clone()), Some(self.holder.clone()), gue_port]
    }

    /// An error if a command names another method or interface than `up` did.
    fn check_matches(
        &self,
        vip: IpAddr,
        method: Option<Method>,
        dev: Option<&str>,
    ) -> Result<(), RealserverError> {
        if method.is_none_or(|method| method == self.method) && dev.is_none_or(|dev| dev == self.dev) {
            return Ok(());
        }
        Err(RealserverError::UpDifferently { vip, method: self.method, dev: self.dev.clone() })
    }
}

/// Restores a setting, unless another program has changed it since or its interface has been removed.
fn restore(key: &str, setting: Setting) -> Result<(), RealserverError> {
    match sysctl::read(key) {
        Ok(value) if value == setting.set => sysctl::write(key, setting.found),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
    .map_err(failed(|| format!("restoring {} to {}", sysctl::name(key), setting.found)))
}

/// The record of this network namespace in `folder`, and the interfaces.
fn read(folder: &Path) -> Result<(Record, Interfaces), RealserverError> {
    let record = Record::read(folder).map_err(failed(|| record_in(folder)))?;
    Ok((record, Interfaces::read().map_err(failed(|| "reading the interfaces".to_owned()))?))
}

fn record_in(folder: &Path) -> String {
    format!("the record of virtual addresses, in {}", folder.display())
}

const LOOPBACK: &str = "lo";

/// The default UDP port of GUE (IANA: `gue`).
const GUE_PORT: u16 = 6080;
