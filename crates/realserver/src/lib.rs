//! Preparing a real server: the virtual address, silence about it on the wire, decapsulation.
//!
//! What the tutorials' script does, and undone exactly: `up` puts the virtual address on `lo` (or `tunl0`) with a
//! host prefix, keeps the interface of the director's packets from answering ARP for it (`arp_ignore` 1) and from
//! naming it in questions (`arp_announce` 2), and for tunnels has the outer headers taken off: by an XDP program that
//! stays without a process, or by the kernel's `tunl0` where another XDP program is in its place. Settings are only
//! raised, never lowered; what stood there is kept in a record and put back when the last virtual address that needs
//! it goes down, unless somebody has changed it since. Runs on the real server, for one command, and leaves.

pub use crate::error::RealserverError;
pub use crate::method::Method;
use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use xvs_proto::is_host;

use crate::decapsulation::{Occupant, Tunnels};
use crate::error::failed;
use crate::interfaces::{Administrative, Interfaces, TUNL0};
use crate::record::{Decapsulation, Locked, Origin, Record, Served, Setting};
use crate::status::{Status, outer_dests};
use crate::sysctl::Wanted;

pub mod decapsulation;
mod error;
mod interfaces;
mod method;
mod record;
pub mod status;
mod sysctl;

/// Whether a command found something to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It was not up before.
    New,
    /// It was up; what had got lost was restored.
    Again,
}

/// This machine, with the record of what was changed on it.
#[derive(Debug)]
pub struct Realserver {
    interfaces: Interfaces,
    locked: Locked,
}

impl Realserver {
    /// Reads the machine and takes the record of this network namespace out of `folder`, locked.
    pub fn open(folder: &Path) -> Result<Self, RealserverError> {
        let locked = Locked::open(folder).map_err(failed(|| the_record(folder)))?;
        let interfaces = Interfaces::read().map_err(failed(|| "reading the interfaces".to_owned()))?;
        Ok(Self { interfaces, locked })
    }

    /// Makes this machine serve `vip`, by the interface of the default route if none is given; tunnels by GUE end at
    /// `gue_port`, which stays what it was if none is given, and is 6080 at first. What was not done when an error is
    /// returned is not needed; what was done is undone.
    pub fn up(
        &mut self,
        vip: IpAddr,
        method: Method,
        dev: Option<&str>,
        gue_port: Option<u16>,
    ) -> Result<Change, RealserverError> {
        if method != Method::Tunnel && gue_port.is_some() {
            return Err(RealserverError::GueWithoutTunnel);
        }
        if !is_host(vip) {
            return Err(RealserverError::NoHost(vip));
        }
        let known = self.locked.record.virtuals.get(&vip);
        let default = known.map(|served| served.dev.as_str()).or_else(|| self.interfaces.default_dev(vip));
        let dev = dev.or(default).ok_or(RealserverError::NoDefaultRoute(vip))?.to_owned();
        if let Some(served) = known {
            served.must_be(vip, Some(method), Some(&dev))?;
        }
        let change = if known.is_some() { Change::Again } else { Change::New };
        let done = self.apply(vip, method, &dev, gue_port);
        if done.is_err() && change == Change::New && self.locked.record.virtuals.contains_key(&vip) {
            // The first error is the one to report; what this cannot undo stays in the record for `down`.
            let _ = self.down(vip, None, None);
        }
        done.map(|()| change)
    }

    /// The longest TCP segment, in bytes, that this machine should ask of clients by `vip`, so that none of their packets
    /// is fragmented in a tunnel of whichever kind; none if it is not up by tunnel. Fragments are left to the kernel.
    pub fn tunnel_mss(&self, vip: IpAddr) -> Option<u32> {
        let served =
            self.locked.record.virtuals.get(&vip).filter(|served| served.method == Method::Tunnel)?;
        let headers = TUNNEL_HEADERS + if vip.is_ipv4() { 20 } else { 40 } + 20;
        self.interfaces.link(&served.dev)?.mtu.checked_sub(headers)
    }

    /// Puts back what [`up`](Self::up) found. Method and interface, where given, must be those it is up with.
    pub fn down(
        &mut self,
        vip: IpAddr,
        method: Option<Method>,
        dev: Option<&str>,
    ) -> Result<(), RealserverError> {
        let served = self.locked.record.virtuals.get(&vip).ok_or(RealserverError::NotUp(vip))?.clone();
        served.must_be(vip, method, dev)?;
        // The address first: while it is there, ARP must stay quiet.
        if served.address == Origin::Added
            && let Some(ifindex) = self.interfaces.link(&served.holder).map(|link| link.ifindex)
        {
            let gone = self.interfaces.remove_address(ifindex, vip);
            gone.map_err(failed(|| format!("removing {vip} from {}", served.holder)))?;
        }
        let mut record = std::mem::take(&mut self.locked.record);
        record.virtuals.remove(&vip);
        let (settings, raised) = record.take_unneeded();
        self.locked.record = record;
        if matches!(served.decapsulation, Some(Decapsulation::Xdp { .. })) {
            self.program(vip, &served.dev)?;
        }
        for (place, setting) in settings {
            put_back(&place, setting)?;
        }
        for dev in raised {
            if let Some(ifindex) = self.interfaces.link(&dev).map(|link| link.ifindex) {
                let lowered = self.interfaces.set(ifindex, Administrative::Down);
                lowered.map_err(failed(|| format!("setting {dev} down as it was")))?;
            }
        }
        self.save()
    }

    /// What is up (all, or this one) in this network namespace by the record in `folder`, and what is wrong with it.
    /// That this one is not up is an error. Changes nothing; tunnels by an XDP program need the right to look at it.
    pub fn status(folder: &Path, vip: Option<IpAddr>) -> Result<Vec<Status>, RealserverError> {
        let record = Record::look(folder).map_err(failed(|| the_record(folder)))?;
        if let Some(vip) = vip
            && !record.virtuals.contains_key(&vip)
        {
            return Err(RealserverError::NotUp(vip));
        }
        let asked = record.virtuals.iter().filter(|&(&up, _)| vip.is_none_or(|vip| vip == up));
        let interfaces = Interfaces::read().map_err(failed(|| "reading the interfaces".to_owned()))?;
        asked.map(|(&vip, served)| Status::of(vip, served, &record, &interfaces)).collect()
    }

    fn apply(
        &mut self,
        vip: IpAddr,
        method: Method,
        dev: &str,
        gue_port: Option<u16>,
    ) -> Result<(), RealserverError> {
        let decapsulation = match method {
            Method::Dr => {
                self.ifindex(dev)?;
                None
            }
            Method::Tunnel => Some(self.decapsulation(vip, dev, gue_port)?),
        };
        let holder = if decapsulation == Some(Decapsulation::Tunl0) { TUNL0 } else { LOOPBACK };
        if let Some(other) = self.interfaces.other_with(vip, holder) {
            return Err(RealserverError::OnTheWire { vip, dev: other.name.clone() });
        }
        let ifindex = self.ifindex(holder)?;

        let mut wanted = if vip.is_ipv4() { sysctl::quiet_arp(dev) } else { Vec::new() };
        // IPv6 has no such check.
        if method == Method::Tunnel && vip.is_ipv4() {
            let arrives = if holder == TUNL0 { TUNL0 } else { dev };
            let loose = sysctl::loose_source_check(arrives);
            let strict = sysctl::checks_strictly(arrives);
            let strict = strict.map_err(failed(|| format!("reading rp_filter of {arrives}")))?;
            // Also where it was strict before another virtual address went up.
            if strict || self.locked.record.settings.contains_key(&loose.place) {
                wanted.push(loose);
            }
        }
        let before = self.locked.record.virtuals.get(&vip);
        let mut served = Served {
            method,
            dev: dev.to_owned(),
            holder: holder.to_owned(),
            address: before.map_or(Origin::Found, |before| before.address),
            settings: before.map(|before| before.settings.clone()).unwrap_or_default(),
            decapsulation,
        };
        // Whatever happens from here on, the record knows of it first.
        served.settings.extend(self.note(&wanted)?);
        self.locked.record.virtuals.insert(vip, served.clone());
        if !self.interfaces.link(holder).is_some_and(|link| link.up) {
            self.locked.record.raised.insert(holder.to_owned());
        }
        self.save()?;
        for place in &served.settings {
            let setting = self.locked.record.settings[place];
            sysctl::write(place, setting.set)
                .map_err(failed(|| format!("setting {}", sysctl::name(place))))?;
        }
        if matches!(served.decapsulation, Some(Decapsulation::Xdp { .. })) {
            self.program(vip, dev)?;
        }
        self.interfaces
            .set(ifindex, Administrative::Up)
            .map_err(failed(|| format!("setting {holder} up")))?;
        let added = self.interfaces.add_address(ifindex, vip);
        if added.map_err(failed(|| format!("adding {vip} to {holder}")))? == Origin::Added {
            served.address = Origin::Added;
        }
        self.locked.record.virtuals.insert(vip, served);
        self.save()
    }

    /// Who takes the outer headers off what comes for `vip`: whoever does so already, else the XDP program, or the
    /// kernel's tunl0 where another XDP program is on the interface.
    fn decapsulation(
        &self,
        vip: IpAddr,
        dev: &str,
        gue_port: Option<u16>,
    ) -> Result<Decapsulation, RealserverError> {
        let ifindex = self.ifindex(dev)?;
        let before = self.locked.record.virtuals.get(&vip).and_then(|served| served.decapsulation.as_ref());
        let by_tunl0 = match before {
            Some(before) => *before == Decapsulation::Tunl0,
            None => {
                vip.is_ipv4()
                    && self.interfaces.link(TUNL0).is_some()
                    && matches!(decapsulation::occupant(ifindex), Ok(Occupant::Foreign(_)))
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

    /// Enters what stands where something else is wanted, and returns the places that are ours to keep.
    fn note(&mut self, wanted: &[Wanted]) -> Result<BTreeSet<String>, RealserverError> {
        let mut ours = BTreeSet::new();
        for Wanted { place, at_least } in wanted {
            let value = sysctl::read(place).map_err(failed(|| format!("reading {}", sysctl::name(place))))?;
            let known = self.locked.record.settings.contains_key(place);
            if value < *at_least {
                // New, or changed by somebody since: what stands there now is what they want back.
                self.locked.record.settings.insert(place.clone(), Setting { found: value, set: *at_least });
            }
            if value < *at_least || known {
                ours.insert(place.clone());
            }
        }
        Ok(ours)
    }

    /// Has the XDP program on `dev` be what the record says: there with these addresses, or not there.
    fn program(&self, vip: IpAddr, dev: &str) -> Result<(), RealserverError> {
        // With its interface the program has gone too.
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
        let done = if tunnels.virtuals.is_empty() {
            match decapsulation::occupant(link.ifindex) {
                // Whoever replaced ours has to take theirs off.
                Ok(Occupant::Foreign(_)) => Ok(()),
                Ok(_) => decapsulation::remove(link.ifindex),
                Err(error) => Err(error),
            }
        } else {
            decapsulation::install(link.ifindex, &tunnels).map(drop)
        };
        done.map_err(|error| RealserverError::Decap { vip, error })
    }

    fn ifindex(&self, dev: &str) -> Result<u32, RealserverError> {
        let link = self.interfaces.link(dev).ok_or_else(|| RealserverError::NoInterface {
            dev: dev.to_owned(),
            present: self.interfaces.names().join(", "),
        })?;
        Ok(link.ifindex)
    }

    fn save(&self) -> Result<(), RealserverError> {
        self.locked.save().map_err(failed(|| format!("writing {}", self.locked.path().display())))
    }
}

impl Served {
    /// Refuses a command that means another way than the one it is up by.
    fn must_be(&self, vip: IpAddr, method: Option<Method>, dev: Option<&str>) -> Result<(), RealserverError> {
        let otherwise =
            method.is_some_and(|method| method != self.method) || dev.is_some_and(|dev| dev != self.dev);
        if !otherwise {
            return Ok(());
        }
        Err(RealserverError::UpOtherwise { vip, method: self.method, dev: self.dev.clone() })
    }
}

/// Writes what was found, unless somebody has changed it since or it went with its interface.
fn put_back(place: &str, setting: Setting) -> Result<(), RealserverError> {
    let done = match sysctl::read(place) {
        Ok(value) if value == setting.set => sysctl::write(place, setting.found),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    };
    done.map_err(failed(|| format!("putting {} back to {}", sysctl::name(place), setting.found)))
}

fn the_record(folder: &Path) -> String {
    format!("the record of what is up, in {}", folder.display())
}

const LOOPBACK: &str = "lo";

/// The longest that a director writes around a packet, in bytes: IPv6, UDP and GUE.
const TUNNEL_HEADERS: u32 = 40 + 8 + 4;

/// Where GUE goes to if nobody says otherwise (IANA: `gue`).
const GUE_PORT: u16 = 6080;
