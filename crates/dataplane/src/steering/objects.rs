//! The object files of the steering program and of its companion programs, and their loading.
//!
//! Loading needs more rights than xvsd has with `user`: then the helper process loads them, and passes the descriptors
//! of maps and programs. A request therefore names one of these forms; the image is the executable's own.

use std::ffi::CStr;
use std::io;
use std::ops::RangeInclusive;

use rustix::fd::BorrowedFd;
use serde::{Deserialize, Serialize};
use xvs_helper::task::{Answer, Task};
use xvs_xdp::bpf::{KernelMap, Object, ObjectFile, program_info, repeated};

use super::maps::Marker;
use super::{hold, syn_limits};
use crate::conn::MAX_RECORDS;
use crate::offload::map as offload;

/// The program for interfaces.
pub(super) const PROGRAM: &CStr = c"redirect";
/// The program for test runs, in which frames have no interface.
pub(super) const VERDICT: &CStr = c"verdict";
/// The endpoints of clients on this machine, to which replies are steered.
pub(super) const CLIENTS: &CStr = c"clients";
pub(super) const FILTER: &CStr = c"filter";
/// The steered endpoints, and their addresses with others.
pub(super) const ENDPOINTS: &CStr = c"endpoints";
pub(super) const ADDRESSES: &CStr = c"addresses";

/// The maps that the programs of all interfaces share.
const STEERING: [&CStr; 17] = [
    FILTER,
    ENDPOINTS,
    ADDRESSES,
    c"prefixes",
    c"translated",
    hold::MAP,
    CLIENTS,
    c"list_filter",
    c"list_drops",
    c"list_scopes",
    c"list_lengths",
    c"lists",
    syn_limits::MAP,
    offload::STATE,
    offload::RECORDS,
    offload::KEYS,
    offload::MOVES,
];
/// The maps that the program for this machine's own packets also shares.
const OWN: [&CStr; 4] = [ENDPOINTS, ADDRESSES, CLIENTS, hold::MAP];

/// The numbers of entries in the maps whose size is a setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapSizes {
    /// The number of records for offloaded connections, a power of two up to 1,048,576.
    pub records: u32,
    /// Maximum number of steered endpoints, and of steered addresses, from 1,024 to 16,777,216. Each takes memory when
    /// it is steered; the maps take 32 bytes for each from the start.
    pub endpoints: u32,
}

impl MapSizes {
    /// The memory that the kernel takes for endpoints and addresses before any is steered: each map has an integer with
    /// a lock for each entry, their number rounded up to a power of two.
    pub fn bytes(self) -> u64 {
        2 * 16 * u64::from(self.endpoints).next_power_of_two()
    }

    /// The range of [`Self::endpoints`].
    pub const ENDPOINTS: RangeInclusive<u32> = 1 << 10..=1 << 24;

    fn set(self, file: &mut ObjectFile) -> io::Result<()> {
        let Self { records, endpoints } = self;
        if !records.is_power_of_two() || records > MAX_RECORDS as u32 || !Self::ENDPOINTS.contains(&endpoints)
        {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        [offload::RECORDS, offload::KEYS].iter().try_for_each(|map| file.set_entries(map, records))?;
        [ENDPOINTS, ADDRESSES].iter().try_for_each(|map| file.set_entries(map, endpoints))
    }
}

/// For programs that offload nothing and steer as much as xvsd does by default, and for test runs.
impl Default for MapSizes {
    fn default() -> Self {
        Self { records: 1 << 10, endpoints: 1 << 18 }
    }
}

/// An object file of the director, as it is loaded.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub enum Load {
    /// The maps of steering, without a program.
    Maps(MapSizes),
    /// The maps for steering, and the programs for test runs.
    ForTestRuns(MapSizes),
    /// The maps for steering, and only the program for interfaces, for test runs.
    ForOffloadedRuns(MapSizes),
    /// The steering program for an interface, with its marker.
    Steering(Marker),
    /// The programs for packets that this machine itself sends, which redirect them to the TAP with this index.
    Own(u32),
    /// The programs for the TAP of the interface with this index.
    Reinject(u32),
    /// The programs that count the forwarded packets which interfaces in the network namespace with this number refuse.
    Losses(u32),
}

impl Load {
    /// Loads the object. `steering` is the object whose maps it shares, if any.
    pub(super) fn object(self, steering: Option<&Object>) -> io::Result<Object> {
        let shared = steering
            .into_iter()
            .flat_map(|steering| self.shared().iter().map(|name| steering.map_descriptor(name)));
        let (programs, descriptors) = self.run(&shared.collect::<io::Result<Vec<_>>>()?)?;
        Object::of(programs, descriptors)
    }

    fn load(&self, maps: &[BorrowedFd<'_>]) -> io::Result<Answer<usize>> {
        let mut file = ObjectFile::open(match self {
            Self::Maps(_) | Self::ForTestRuns(_) | Self::ForOffloadedRuns(_) | Self::Steering(_) => REDIRECT,
            Self::Own(_) => OWN_PACKETS,
            Self::Reinject(_) => REINJECT,
            Self::Losses(_) => LOSSES,
        })?;
        match self {
            Self::Maps(_) => {
                file.leave_out(PROGRAM)?;
                file.leave_out(VERDICT)?;
            }
            Self::ForTestRuns(_) => {}
            Self::ForOffloadedRuns(_) => file.leave_out(VERDICT)?,
            Self::Steering(marker) => {
                file.set_constants(marker)?;
                file.leave_out(VERDICT)?;
            }
            Self::Own(number) | Self::Reinject(number) | Self::Losses(number) => {
                file.set_constants(&number.to_ne_bytes())?
            }
        }
        if let Self::Maps(sizes) | Self::ForTestRuns(sizes) | Self::ForOffloadedRuns(sizes) = self {
            sizes.set(&mut file)?;
        }
        let shared = self.shared();
        if shared.len() != maps.len() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        shared.iter().zip(maps).try_for_each(|(name, map)| file.share(name, *map))?;
        file.load_descriptors()
    }

    fn shared(self) -> &'static [&'static CStr] {
        match self {
            Self::Maps(_)
            | Self::ForTestRuns(_)
            | Self::ForOffloadedRuns(_)
            | Self::Reinject(_)
            | Self::Losses(_) => &[],
            Self::Steering(_) => &STEERING,
            Self::Own(_) => &OWN,
        }
    }
}

impl Task for Load {
    const NAME: &'static str = "load";
    /// The number of programs, which precede the maps.
    type Done = usize;

    fn carry_out(&self, maps: &[BorrowedFd<'_>]) -> io::Result<Answer<usize>> {
        repeated(|| self.load(maps))
    }
}

/// Opens the maps of an earlier process's steering program, with this id, that the next one reads: of the hold, of
/// clients on this machine, and of offloaded connections.
#[derive(Debug, Serialize, Deserialize)]
pub struct OpenFormerMaps {
    program: u32,
}

impl OpenFormerMaps {
    /// Opens the maps; the result is empty if they cannot be read.
    pub(super) fn maps(program: u32) -> Vec<KernelMap> {
        Self { program }
            .run(&[])
            .map(|(_, maps)| maps)
            .unwrap_or_default()
            .into_iter()
            .filter_map(|map| KernelMap::of(map).ok())
            .collect()
    }
}

impl Task for OpenFormerMaps {
    const NAME: &'static str = "open-former-maps";
    type Done = ();

    fn carry_out(&self, _: &[BorrowedFd<'_>]) -> io::Result<Answer<()>> {
        let program = program_info(self.program)?;
        if program.name.as_bytes() != PROGRAM.to_bytes() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let opened = program
            .maps
            .into_iter()
            .filter_map(|id| KernelMap::open(id).ok())
            .filter_map(|map| match is_one_of(&map, [offload::STATE, offload::RECORDS]) {
                // They are mapped, and the counts of records are taken.
                true => map.writable().ok(),
                false => is_one_of(&map, [hold::MAP, CLIENTS]).then_some(map),
            })
            .map(Into::into)
            .collect();
        Ok(((), opened))
    }
}

fn is_one_of(map: &KernelMap, names: [&CStr; 2]) -> bool {
    names.iter().any(|name| is_named(map, name))
}

/// The map with this name.
pub(super) fn named<'a>(maps: &'a [KernelMap], name: &CStr) -> Option<&'a KernelMap> {
    maps.iter().find(|map| is_named(map, name))
}

/// Whether a map has this name.
fn is_named(map: &KernelMap, name: &CStr) -> bool {
    map.name.as_bytes() == name.to_bytes()
}

const REDIRECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/redirect.bpf.o"));
const OWN_PACKETS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/own.bpf.o"));
const LOSSES: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/losses.bpf.o"));
const REINJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/reinject.bpf.o"));
