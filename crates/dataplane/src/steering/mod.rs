//! The steering program: loaded once, put on each interface, told at every change what is the director's.
//!
//! Runs on the control thread. The maps of what is steered are shared by all interfaces; each interface has a map of
//! its own for its sockets. An interface is left alone again when its [`Attached`] is dropped, and by the kernel when
//! the process dies. A map that is full refuses what does not fit and says which limit it met; what it holds
//! stays in force.

use std::ffi::CStr;
use std::io;

use rustix::rand::{GetRandomFlags, getrandom};
use xvs_xdp::bpf::{Map, Object, test_run};
use xvs_xdp::{AttachError, Attached, Mode, attach};

use self::maps::{Image, Marker, Roles};

mod maps;
pub mod reinject;
mod rules;

pub use self::rules::SteeringRules;

const OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/redirect.bpf.o"));
const SHARED: [&CStr; 4] = [c"endpoints", c"addresses", c"prefixes", c"translated"];

/// What the program returns (linux/bpf.h).
const REDIRECT: u32 = 4;

/// What steering says of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It goes to the director.
    Steered,
    /// The kernel has it.
    Kernel,
}

/// Why the maps could not be written.
#[derive(Debug, thiserror::Error)]
pub enum SteeringError {
    /// A map holds as many entries as it can.
    #[error("steering holds at most {limit} {what}; the others stay with the kernel")]
    Full {
        /// What the map holds, in the plural.
        what: &'static str,
        /// How many it can hold.
        limit: u32,
    },
    /// The kernel refused for another reason.
    #[error("steering: {0}")]
    Kernel(#[from] io::Error),
}

/// The loaded program with the maps that all interfaces share.
pub struct Steering {
    object: Object,
    /// What the maps hold. This alone writes them.
    installed: Image,
}

impl Steering {
    /// Loads the program; it steers nothing yet.
    ///
    /// # Errors
    /// What the kernel says: mostly that CAP_BPF, CAP_NET_ADMIN or CAP_PERFMON is missing. Why the verifier refused
    /// is on stderr.
    pub fn load() -> io::Result<Self> {
        let mut object = Object::open(OBJECT)?;
        object.leave_out(c"redirect")?;
        object.load()?;
        Ok(Self { object, installed: Image::default() })
    }

    /// Puts the program on an interface of this thread's network namespace: in native mode, or in generic mode if
    /// the driver refuses that.
    ///
    /// # Errors
    /// See [`AttachError`]; nothing stays attached.
    pub fn attach(&self, interface: &str) -> Result<Attached, AttachError> {
        let mut marker = Marker::default();
        getrandom(&mut marker, GetRandomFlags::empty())
            .map_err(|error| AttachError::Kernel { interface: interface.to_owned(), source: error.into() })?;
        attach(interface, c"redirect", &marker, |marker| self.object_for_an_interface(marker))
    }

    /// Before new rules become visible to the workers: steers also what `more` steers, as [`SteeringRules::add`] says.
    /// Costs what `more` names.
    ///
    /// # Errors
    /// [`SteeringError`]; the maps then hold part of it, and a later call completes it.
    pub fn add(&mut self, more: &SteeringRules) -> Result<(), SteeringError> {
        self.write(&self.installed.with(more))
    }

    /// After every worker has left the old rules: steers no longer what `less` names, as [`SteeringRules::subtract`] says.
    /// Costs what `less` names.
    ///
    /// # Errors
    /// As for [`Self::add`].
    pub fn subtract(&mut self, less: &SteeringRules) -> Result<(), SteeringError> {
        self.write(&self.installed.without(less))
    }

    /// After every worker has left the old rules: steers exactly what these steer. Costs what they name, and what was
    /// steered.
    ///
    /// # Errors
    /// As for [`Self::add`].
    pub fn set(&mut self, wanted: &SteeringRules) -> Result<(), SteeringError> {
        self.write(&self.installed.towards(Image::of(wanted)))
    }

    /// Both steps, where no worker needs to be waited for.
    ///
    /// # Errors
    /// As for [`Self::add`].
    pub fn update(&mut self, wanted: &SteeringRules) -> Result<(), SteeringError> {
        self.add(wanted)?;
        self.set(wanted)
    }

    /// What the program would do with a frame on an interface whose queues all have a socket.
    ///
    /// # Errors
    /// What the kernel says; it does not run frames below 14 bytes or above a page.
    pub fn test_run(&self, frame: &[u8]) -> io::Result<Verdict> {
        let (returned, _) = test_run(self.object.program(c"verdict")?, frame)?;
        Ok(if returned == REDIRECT { Verdict::Steered } else { Verdict::Kernel })
    }

    fn object_for_an_interface(&self, marker: &[u8]) -> io::Result<Object> {
        let mut object = Object::open(OBJECT)?;
        object.set_constants(marker)?;
        object.leave_out(c"verdict")?;
        for map in SHARED {
            object.share(map, &self.object)?;
        }
        object.load()?;
        Ok(object)
    }

    fn write(&mut self, change: &Image) -> Result<(), SteeringError> {
        let installed = &mut self.installed;
        // An endpoint answers only through the roles of its address, so the addresses come first; what is steered
        // too early is at worst passed back. Ports come before them: without, the role says nothing.
        let object = &self.object;
        converge("local addresses", &object.map(SHARED[3])?, &mut installed.translated, &change.translated)?;
        converge("addresses", &object.map(SHARED[1])?, &mut installed.addresses, &change.addresses)?;
        converge("endpoints", &object.map(SHARED[0])?, &mut installed.endpoints, &change.endpoints)?;
        converge("networks", &object.map(SHARED[2])?, &mut installed.prefixes, &change.prefixes)?;
        Ok(())
    }
}

/// Makes a map hold what a change says: additions and other roles first, then removals. `installed` is what it holds at
/// any moment, also after an error.
fn converge<const K: usize>(
    what: &'static str,
    map: &Map<'_, K>,
    installed: &mut Roles<K>,
    change: &Roles<K>,
) -> Result<(), SteeringError> {
    for (key, roles) in change.iter().filter(|(_, roles)| **roles != 0) {
        if installed.get(key) == Some(roles) {
            continue;
        }
        map.set(key, *roles).map_err(|error| match error.raw_os_error() {
            Some(libc::E2BIG | libc::ENOSPC) => SteeringError::Full { what, limit: map.limit() },
            _ => error.into(),
        })?;
        installed.insert(*key, *roles);
    }
    for (key, _) in change.iter().filter(|(_, roles)| **roles == 0) {
        if installed.contains_key(key) {
            map.unset(key)?;
            installed.remove(key);
        }
    }
    Ok(())
}

/// What must stand before a frame for the program on an interface to leave it to the kernel; nothing in native mode, where
/// the program sits before the point at which such a frame comes in.
pub(crate) fn marker(attached: &Attached) -> &[u8] {
    match attached.mode() {
        Mode::Native => &[],
        Mode::Generic => attached.constants(),
    }
}
