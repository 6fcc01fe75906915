//! The steering program: the XDP program of the director (`bpf/redirect.bpf.c`), loaded once, attached to each
//! interface, and updated at every change of the steered traffic.
//!
//! Runs on the control thread. All interfaces share the maps of steered traffic; each interface has its own map of
//! sockets. Dropping an [`Attached`] detaches the program from its interface; the kernel does so when the process ends.
//! A full map refuses further entries with an error that names its limit; its entries stay in force.

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
/// The program for interfaces.
const PROGRAM: &CStr = c"redirect";
/// The same for test runs, in which frames have no interface.
const VERDICT: &CStr = c"verdict";
const SHARED: [&CStr; 4] = [c"endpoints", c"addresses", c"prefixes", c"translated"];

/// The return value of the program for a redirected frame (linux/bpf.h).
const REDIRECT: u32 = 4;

/// The decision of the steering program on a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It goes to the director.
    Steered,
    /// It goes to the kernel.
    Kernel,
}

/// The reason why the maps could not be written.
#[derive(Debug, thiserror::Error)]
pub enum SteeringError {
    /// The map is full.
    #[error("steering holds at most {limit} {what}; the others stay with the kernel")]
    Full {
        /// The kind of its entries, in the plural.
        what: &'static str,
        /// The most entries that it can hold.
        limit: u32,
    },
    /// The kernel refused for another reason.
    #[error("steering: {0}")]
    Kernel(#[from] io::Error),
}

/// The loaded program with the maps that all interfaces share.
pub struct Steering {
    object: Object,
    /// The contents of the maps, which only this value writes.
    installed: Image,
}

impl Steering {
    /// Makes the maps; nothing is steered yet. The kernel verifies the program for each interface.
    ///
    /// # Errors
    /// The kernel's error: usually CAP_BPF, CAP_NET_ADMIN or CAP_PERFMON is missing. The verifier's reasons are on
    /// stderr.
    pub fn load() -> io::Result<Self> {
        let mut object = Object::open(OBJECT)?;
        object.leave_out(PROGRAM)?;
        object.leave_out(VERDICT)?;
        object.load()?;
        Ok(Self { object, installed: Image::default() })
    }

    /// The same, and loads the program for [`Self::test_run`].
    ///
    /// # Errors
    /// As for [`Self::load`].
    pub fn load_for_test_runs() -> io::Result<Self> {
        let mut object = Object::open(OBJECT)?;
        object.leave_out(PROGRAM)?;
        object.load()?;
        Ok(Self { object, installed: Image::default() })
    }

    /// Attaches the program to an interface of this thread's network namespace: in native mode, or in generic mode if
    /// the driver refuses that.
    ///
    /// # Errors
    /// See [`AttachError`]; the program then stays detached.
    pub fn attach(&self, interface: &str) -> Result<Attached, AttachError> {
        let mut marker = Marker::default();
        getrandom(&mut marker, GetRandomFlags::empty())
            .map_err(|error| AttachError::Kernel { interface: interface.to_owned(), source: error.into() })?;
        attach(interface, PROGRAM, &marker, |marker| self.object_for_an_interface(marker))
    }

    /// Attaches the program of an interface anew, because veth does not run it on queues that were added since. Sockets
    /// have to be opened anew.
    ///
    /// # Errors
    /// See [`AttachError`]; nothing has changed.
    pub fn renew(&self, attached: &mut Attached) -> Result<(), AttachError> {
        attached.replace_program(PROGRAM, |marker| self.object_for_an_interface(marker))
    }

    /// Adds the traffic that `more` steers, as [`SteeringRules::add`] defines. Called before new rules become visible
    /// to the workers. Costs what `more` names.
    ///
    /// # Errors
    /// [`SteeringError`]; the maps then contain part of the change, and a later call completes it.
    pub fn add(&mut self, more: &SteeringRules) -> Result<(), SteeringError> {
        self.write(&self.installed.with(more))
    }

    /// Removes the traffic that `less` names, as [`SteeringRules::subtract`] defines. Called after every worker has
    /// left the old rules. Costs what `less` names.
    ///
    /// # Errors
    /// As for [`Self::add`].
    pub fn subtract(&mut self, less: &SteeringRules) -> Result<(), SteeringError> {
        self.write(&self.installed.without(less))
    }

    /// Steers exactly the traffic of `wanted`. Called after every worker has left the old rules. Costs what `wanted`
    /// and the rules before it name.
    ///
    /// # Errors
    /// As for [`Self::add`].
    pub fn set(&mut self, wanted: &SteeringRules) -> Result<(), SteeringError> {
        self.write(&self.installed.towards(Image::of(wanted)))
    }

    /// Adds and then removes, where no worker has to be waited for.
    ///
    /// # Errors
    /// As for [`Self::add`].
    pub fn update(&mut self, wanted: &SteeringRules) -> Result<(), SteeringError> {
        self.add(wanted)?;
        self.set(wanted)
    }

    /// The program's decision on a frame from an interface whose queues all have a socket.
    ///
    /// # Errors
    /// The kernel's error; an invalid argument unless it was loaded for test runs. It does not run frames below 14
    /// bytes or above a page.
    pub fn test_run(&self, frame: &[u8]) -> io::Result<Verdict> {
        let (returned, _) = test_run(self.object.program(VERDICT)?, frame)?;
        Ok(if returned == REDIRECT { Verdict::Steered } else { Verdict::Kernel })
    }

    fn object_for_an_interface(&self, marker: &[u8]) -> io::Result<Object> {
        let mut object = Object::open(OBJECT)?;
        object.set_constants(marker)?;
        object.leave_out(VERDICT)?;
        for map in SHARED {
            object.share(map, &self.object)?;
        }
        object.load()?;
        Ok(object)
    }

    fn write(&mut self, change: &Image) -> Result<(), SteeringError> {
        let installed = &mut self.installed;
        // An endpoint is effective only with the roles of its address, so the addresses are written first. Frames that
        // are steered too early are at worst passed back. The ports precede the addresses, because the role of an
        // address has no effect without them.
        let object = &self.object;
        converge("local addresses", &object.map(SHARED[3])?, &mut installed.translated, &change.translated)?;
        converge("addresses", &object.map(SHARED[1])?, &mut installed.addresses, &change.addresses)?;
        converge("endpoints", &object.map(SHARED[0])?, &mut installed.endpoints, &change.endpoints)?;
        converge("networks", &object.map(SHARED[2])?, &mut installed.prefixes, &change.prefixes)?;
        Ok(())
    }
}

/// Applies a change to a map: first additions and changed roles, then removals. `installed` is the map's contents at
/// any time, also after an error.
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

/// The bytes that make the program on an interface leave a frame to the kernel. None in native mode, where such a frame
/// arrives after the program.
pub(crate) fn marker(attached: &Attached) -> &[u8] {
    match attached.mode() {
        Mode::Native => &[],
        Mode::Generic => attached.constants(),
    }
}
