//! Attaching an XDP program to an interface: in native mode, or in generic mode if the driver refuses native mode.
//!
//! Runs on the control thread. Unless it is pinned, the program is detached when the [`Attached`] is dropped, and by
//! the kernel when the process dies. A pinned program stays; a later process takes over its link and replaces the
//! program without a gap.

use std::ffi::CStr;
use std::num::NonZeroU32;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Instant;
use std::{io, thread};

use xvs_helper::task::Task as _;

use super::bpf::{Object, attach_xdp, detach, query_xdp, replace_xdp};
use super::device::{Program, SetReceiveQueues, receive_queues};
use super::drivers::leaves_checksums;
use super::kernel::present_lack;
use super::mode::{Mode, Refusal, Settings, Wanted, WantedMode};
use super::pins::{Pinned, Pins};
use super::sys::{LOOK_INTERVAL, OCCUPIED, Request, index_of};
use super::tap::is_director_tap;

/// `NETDEV_XDP_ACT_NDO_XMIT` (linux/netdev.h).
const TAKES_REDIRECTED: u64 = 1 << 2;
/// `NETDEV_XDP_ACT_XSK_ZEROCOPY`.
const ZERO_COPY: u64 = 1 << 3;

/// An interface with an attached XDP program, which is detached on drop unless it is pinned.
pub struct Attached {
    link: OwnedFd,
    object: Object,
    interface: String,
    index: u32,
    settings: Settings,
    leaves_checksums: bool,
    is_veth: bool,
    wanted: Wanted,
    mode: Mode,
    native_refused: Option<io::Error>,
    constants: Vec<u8>,
    /// Whether the link stays when this value is dropped.
    is_pinned: bool,
    /// The program of an earlier process on the link, until [`Self::put_in_force`].
    former: Option<Former>,
}

/// The program of an earlier process.
#[derive(Clone, Copy)]
struct Former {
    program: u32,
    mode: Mode,
}

impl Attached {
    /// The interface's name.
    pub fn interface(&self) -> &str {
        &self.interface
    }

    /// The kernel's index of the interface.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// The settings for which sockets are opened: those at the time of attaching, or from the last
    /// [`Self::set_settings`].
    pub fn settings(&self) -> Settings {
        self.settings
    }

    /// Whether the interface no longer exists; another one may have the same name.
    pub fn is_gone(&self) -> bool {
        index_of(&self.interface).ok() != Some(self.index)
    }

    /// The interface's current settings.
    ///
    /// # Errors
    ///
    /// The interface is gone, or the settings would corrupt packets.
    pub fn present_settings(&self) -> Result<Settings, AttachError> {
        let interface = &self.interface;
        if self.is_gone() {
            return Err(AttachError::NoSuchInterface { interface: interface.clone() });
        }
        let settings = Settings::of(interface).map_err(|source| kernel_error(interface, source))?;
        not_refused(interface, settings.refusal(interface, self.mode()))?;
        Ok(settings)
    }

    /// Replaces the settings for sockets that are opened from now on. The wanted queues do not change.
    pub fn set_settings(&mut self, settings: Settings) {
        self.settings = settings;
        if let Some(queues) = self.wanted.queues {
            self.settings.receive_queues = queues.get();
        }
    }

    /// Sets the card's number of receive queues to the wanted one, if it differs. An interface that is gone gets its
    /// queues when it is attached again. No socket may be open on it. Blocks for seconds if the queue of a closed
    /// socket is occupied. Many drivers reset the link.
    ///
    /// # Errors
    ///
    /// The driver refuses.
    pub fn set_queues(&self) -> Result<(), AttachError> {
        let Some(queues) = self.wanted.queues else { return Ok(()) };
        match set_queues(&self.interface, self.index, queues) {
            Err(_) if self.is_gone() => Ok(()),
            done => done,
        }
    }

    /// The largest packet that the interface's sockets receive, in bytes.
    pub fn mtu(&self) -> u32 {
        self.settings.mtu
    }

    /// The size of a frame for the interface's packets or their fragments in several buffers, in bytes.
    pub fn frame_bytes(&self) -> u32 {
        self.settings.frame_bytes
    }

    /// The number of receive queues for which sockets are opened. The kernel gets packets from a queue without a
    /// socket.
    pub fn receive_queues(&self) -> u32 {
        self.settings.receive_queues
    }

    /// Whether the driver may deliver packets with partial checksums.
    pub fn leaves_checksums(&self) -> bool {
        self.leaves_checksums
    }

    /// Whether the interface accepts frames that a program in native mode redirects to it. Kernels before 6.3 do not
    /// report this; with them, any driver in native mode except veth is assumed to accept them. `None` for veth, which
    /// must be tried.
    pub fn takes_redirected(&self) -> Option<bool> {
        match query_xdp(self.index) {
            Ok(state) if state.features != 0 => Some(state.features & TAKES_REDIRECTED != 0),
            _ if self.mode() == Mode::Generic => Some(false),
            _ => (!self.is_veth).then_some(true),
        }
    }

    /// Whether the driver may support zero-copy. Kernels before 6.3 do not report this; with them, every driver except
    /// veth may.
    pub fn may_have_zero_copy(&self) -> bool {
        match query_xdp(self.index) {
            Ok(state) if state.features != 0 => state.features & ZERO_COPY != 0,
            _ => !self.is_veth,
        }
    }

    /// The number of descriptors in the card's receive ring; 0 if the driver does not report it.
    pub fn card_ring(&self) -> u32 {
        Request::new(&self.interface).ok().and_then(|mut request| request.rings()).map_or(0, |rings| rings.rx)
    }

    /// The interface's current link address.
    ///
    /// # Errors
    ///
    /// The interface is gone.
    pub fn link_address(&self) -> io::Result<[u8; 6]> {
        Request::new(&self.interface)?.link_address()
    }

    /// Where the program runs.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// The operator's settings for the interface.
    pub fn wanted(&self) -> Wanted {
        self.wanted
    }

    /// The reason for generic mode, if the operator did not request it.
    pub fn native_refused(&self) -> Option<&io::Error> {
        self.native_refused.as_ref()
    }

    /// The constants of the loaded program.
    pub fn constants(&self) -> &[u8] {
        &self.constants
    }

    /// Replaces the program with another instance, without a gap. `load` and `program` are as for [`attach()`]. Sockets
    /// must be reopened, because the new instance has a separate map for them.
    ///
    /// # Errors
    ///
    /// The kernel refuses; nothing has changed.
    pub fn replace_program(
        &mut self,
        program: &CStr,
        load: impl FnOnce(&[u8]) -> io::Result<Object>,
    ) -> Result<(), AttachError> {
        self.object = load(&self.constants)
            .and_then(|object| {
                if self.former.is_none() {
                    replace_xdp(self.link.as_fd(), object.program(program)?)?;
                }
                Ok(object)
            })
            .map_err(|source| kernel_error(&self.interface, source))?;
        Ok(())
    }

    /// The id of an earlier process's program that is still in force on the interface.
    pub fn former_program(&self) -> Option<u32> {
        self.former.map(|former| former.program)
    }

    /// Whether the program stays when the process ends.
    pub fn is_pinned(&self) -> bool {
        self.is_pinned
    }

    /// Replaces the program of an earlier process, if there is one, with this program: without a gap, unless their
    /// modes differ, because the kernel does not exchange programs with different modes.
    ///
    /// # Errors
    ///
    /// The kernel refuses; the earlier program stays in force, unless its mode differs.
    pub fn put_in_force(&mut self, program: &CStr) -> io::Result<()> {
        if self.former.is_some_and(|former| former.mode != self.mode) {
            self.attach_anew(program)?;
        } else if self.former.is_some() {
            replace_xdp(self.link.as_fd(), self.object.program(program)?)?;
            self.former = None;
        }
        Ok(())
    }

    /// Puts this program in force again after another process has replaced it.
    ///
    /// # Errors
    ///
    /// The kernel refuses; the other program stays in force.
    pub fn restore(&mut self, program: &CStr) -> io::Result<()> {
        replace_xdp(self.link.as_fd(), self.object.program(program)?)
    }

    /// Detaches the program of an earlier process and attaches this one, in generic mode if the driver refuses native
    /// mode.
    ///
    /// # Errors
    /// The kernel refuses; no program is attached.
    pub fn attach_anew(&mut self, program: &CStr) -> io::Result<()> {
        detach(self.link.as_fd());
        (self.is_pinned, self.former) = (false, None);
        let program = self.object.program(program)?;
        let suits_generic = self.settings.refusal(&self.interface, Mode::Generic).is_none();
        self.link = match attach_xdp(program, self.index, self.mode) {
            Err(error) if self.mode == Mode::Native && suits_generic => {
                let link = attach_xdp(program, self.index, Mode::Generic)?;
                (self.mode, self.native_refused) = (Mode::Generic, Some(error));
                link
            }
            result => result?,
        };
        Ok(())
    }

    /// Pins the program, if it is not pinned yet: from now on it stays when the process ends.
    ///
    /// # Errors
    ///
    /// The kernel refuses; the program ends with the process.
    pub fn pin(&mut self, pins: &Pins) -> io::Result<()> {
        // A link that was taken over may be pinned under the interface's former name.
        if !(self.is_pinned && pins.has(&self.interface, self.index)) {
            pins.pin(&self.interface, self.link.as_fd())?;
        }
        self.is_pinned = true;
        Ok(())
    }

    /// Makes drop detach the program although it is pinned. The pin stays, without effect.
    pub fn release(&mut self) {
        self.is_pinned = false;
    }

    /// Makes the program steer a queue to a socket until the socket is closed. The program's map of sockets is named
    /// `xsks`.
    pub(super) fn enter_socket(&self, queue: u32, socket: BorrowedFd<'_>) -> io::Result<()> {
        self.object.map(c"xsks")?.set(&queue, socket.as_raw_fd() as u32)
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        if !self.is_pinned {
            detach(self.link.as_fd());
        }
    }
}

impl std::fmt::Debug for Attached {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Attached({} {} {:?})", self.interface, self.mode(), self.link)
    }
}

/// Sets an interface's number of receive queues if it has no XDP program: some drivers, such as virtio_net, refuse a
/// change while one is attached. If there is a program, [`Attached::set_queues`] sets the number.
fn set_queues_before(interface: &str, index: u32, wanted: NonZeroU32) -> Result<(), AttachError> {
    let most = Request::new(interface).and_then(|mut request| request.most_receive_queues());
    match (most, Program::on(index)) {
        (Ok((_, most @ 1..)), _) if wanted.get() > most => {
            Err(AttachError::FewerQueues { interface: interface.to_owned(), wanted, most })
        }
        (_, Ok(None)) => set_queues(interface, index, wanted),
        _ => Ok(()),
    }
}

/// See [`Attached::set_queues`].
fn set_queues(interface: &str, index: u32, queues: NonZeroU32) -> Result<(), AttachError> {
    let queues = queues.get();
    let present = receive_queues(interface).map_err(|source| kernel_error(interface, source))?;
    if present == queues {
        return Ok(());
    }
    let task = SetReceiveQueues { interface: interface.to_owned(), index, queues };
    let until = Instant::now() + OCCUPIED;
    loop {
        match task.run(&[]) {
            Ok(_) => return Ok(()),
            // The kernel frees the queue of a closed socket some time after the close.
            Err(error)
                if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EBUSY))
                    && Instant::now() < until =>
            {
                thread::sleep(LOOK_INTERVAL);
            }
            Err(source) => {
                return Err(AttachError::Queues { interface: task.interface, present, queues, source });
            }
        }
    }
}

/// Attaches a program to an interface in this thread's network namespace: in native mode, or in generic mode if the
/// driver refuses native mode or `wanted` requests it. The interface gets the wanted receive queues first, or in
/// [`Attached::set_queues`] if it already has a program. `load` loads an object into the kernel with these constants;
/// the object contains the program with this name. If an earlier process has pinned a program for the interface in
/// `pins`, this function takes over its link: the earlier program is in force until [`Attached::put_in_force`].
///
/// # Errors
///
/// See [`AttachError`]. Only a program that was attached before stays attached.
pub fn attach(
    interface: &str,
    wanted: Wanted,
    program: &CStr,
    constants: &[u8],
    pins: Option<&Pins>,
    load: impl FnOnce(&[u8]) -> io::Result<Object>,
) -> Result<Attached, AttachError> {
    let refused = |error| kernel_error(interface, error);
    let index = index_of(interface).map_err(|error| match error.raw_os_error() {
        Some(libc::ENODEV) => AttachError::NoSuchInterface { interface: interface.to_owned() },
        _ => refused(error),
    })?;
    let mut request = Request::new(interface).map_err(refused)?;
    if request.is_loopback().map_err(refused)? {
        return Err(AttachError::Loopback { interface: interface.to_owned() });
    }
    let driver = request.driver().map_err(refused)?;
    if is_director_tap(interface, &driver) {
        return Err(AttachError::DirectorTap { interface: interface.to_owned() });
    }
    if let Some(queues) = wanted.queues {
        set_queues_before(interface, index, queues)?;
    }
    let settings = Settings::of(interface).map_err(refused)?;
    not_refused(interface, settings.refusal(interface, Mode::Native))?;
    let object = load(constants).map_err(|error| match present_lack() {
        Some(lack) => AttachError::OldKernel { interface: interface.to_owned(), lack },
        None => refused(error),
    })?;
    let running = match pins.and_then(|pins| pins.find(index)) {
        Some(pinned) => take_over(pinned, interface, &settings, wanted.mode)?,
        None => {
            let program = object.program(program).map_err(refused)?;
            start(program, interface, index, &settings, wanted.mode)?
        }
    };
    let mut attached = Attached {
        link: running.link,
        object,
        interface: interface.to_owned(),
        index,
        settings,
        leaves_checksums: leaves_checksums(&driver),
        is_veth: driver == "veth",
        wanted,
        mode: running.mode,
        native_refused: running.native_refused,
        constants: constants.to_vec(),
        is_pinned: running.former.is_some(),
        former: running.former,
    };
    attached.set_settings(settings);
    Ok(attached)
}

/// The link of an attached program, and where the program runs.
struct Running {
    link: OwnedFd,
    mode: Mode,
    /// The reason for generic mode, if the operator did not request it.
    native_refused: Option<io::Error>,
    former: Option<Former>,
}

/// Takes over a pinned link, if its mode is a wanted one.
fn take_over(
    pinned: Pinned,
    interface: &str,
    settings: &Settings,
    wanted: WantedMode,
) -> Result<Running, AttachError> {
    let mode = match wanted {
        WantedMode::Auto => pinned.mode,
        WantedMode::Generic => Mode::Generic,
        WantedMode::ZeroCopy | WantedMode::Copy => Mode::Native,
    };
    not_refused(interface, settings.refusal(interface, mode))?;
    let native_refused = (mode == Mode::Generic && wanted != WantedMode::Generic)
        .then(|| io::Error::other("the program that was taken over is generic"));
    let former = Some(Former { program: pinned.program, mode: pinned.mode });
    Ok(Running { link: pinned.link, mode, native_refused, former })
}

/// Attaches a program in native mode, unless generic mode is wanted or the driver refuses.
fn start(
    program: BorrowedFd<'_>,
    interface: &str,
    index: u32,
    settings: &Settings,
    wanted: WantedMode,
) -> Result<Running, AttachError> {
    let mut native_refused = None;
    if wanted != WantedMode::Generic {
        match attach_xdp(program, index, Mode::Native) {
            Ok(link) => return Ok(Running { link, mode: Mode::Native, native_refused, former: None }),
            Err(error) => match attach_error(interface, index, error) {
                AttachError::Kernel { source, .. } => native_refused = Some(source),
                other => return Err(other),
            },
        }
    }
    not_refused(interface, settings.refusal(interface, Mode::Generic))?;
    let link =
        attach_xdp(program, index, Mode::Generic).map_err(|error| attach_error(interface, index, error))?;
    Ok(Running { link, mode: Mode::Generic, native_refused, former: None })
}

fn not_refused(interface: &str, refusal: Option<Refusal>) -> Result<(), AttachError> {
    refusal.map_or(Ok(()), |why| Err(AttachError::Refused { interface: interface.to_owned(), why }))
}

fn attach_error(interface: &str, index: u32, error: io::Error) -> AttachError {
    match error.raw_os_error() {
        Some(libc::EBUSY | libc::EEXIST) => match Program::on(index) {
            Ok(Some(program)) => AttachError::Occupied { interface: interface.to_owned(), program },
            // It has just been detached.
            _ => kernel_error(interface, error),
        },
        _ => kernel_error(interface, error),
    }
}

fn kernel_error(interface: &str, source: io::Error) -> AttachError {
    AttachError::Kernel { interface: interface.to_owned(), source }
}

/// Checks that a port of an attached bridge, or an interface below a port, does not merge packets. An interface that is
/// gone merges none.
///
/// # Errors
///
/// The setting, with the command that changes it.
pub fn check_port(port: &str) -> Result<(), AttachError> {
    not_refused(port, Settings::of(port).ok().and_then(|settings| settings.refusal_of_port(port)))
}

/// Checks that an interface with VLANs on it leaves their tags in the packets: cards strip tags before the program
/// runs, in native mode, too. veth restores them.
///
/// # Errors
///
/// The setting, with the command that changes it.
pub fn check_tags(interface: &str) -> Result<(), AttachError> {
    let is_veth =
        Request::new(interface).and_then(|mut request| request.driver()).is_ok_and(|driver| driver == "veth");
    let refusal = Settings::of(interface).ok().and_then(|settings| settings.refusal_of_tags(interface));
    not_refused(interface, refusal.filter(|_| !is_veth))
}

/// Why an interface could not be attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// No interface has this name.
    #[error("no interface {interface}; `ip link` shows those that exist")]
    NoSuchInterface {
        /// The interface's name.
        interface: String,
    },
    /// The card does not support that many receive queues.
    #[error(
        "{interface} can have at most {most} of the {wanted} receive queues that xvs.toml wants; set `queues` of \
         `[interfaces.{interface}]` to {most} or less"
    )]
    FewerQueues {
        /// The interface.
        interface: String,
        /// The requested number.
        wanted: NonZeroU32,
        /// The maximum number.
        most: u32,
    },
    /// The driver refuses the number of receive queues.
    #[error(
        "{interface} has {present} receive queues and does not take {queues}: {source}; `dmesg` may say why; some \
         drivers take another number only from a stopped xvsd (`xvs stop --release`), and virtio_net then adds one for \
         each CPU, if the card has as many; otherwise set `queues` of `[interfaces.{interface}]` to {present}, or \
         remove the key"
    )]
    Queues {
        /// The interface.
        interface: String,
        /// The current number.
        present: u32,
        /// The requested number.
        queues: u32,
        /// The driver's error.
        source: io::Error,
    },
    /// It already has an XDP program.
    #[error("{interface} has an XDP program, {program}; {}", program.remedy(interface))]
    Occupied {
        /// The interface.
        interface: String,
        /// The interface's current program.
        program: Program,
    },
    /// A loopback interface, whose packets come from this machine.
    #[error(
        "{interface} is a loopback interface, which receives no packets of clients; name the one that does: `ip route` \
         shows it"
    )]
    Loopback {
        /// The interface's name.
        interface: String,
    },
    /// It is a TAP of a director.
    #[error(
        "{interface} is a TAP of xvsd, by which it passes packets to the kernel, and no network is behind it; name the \
         interfaces of the machine's networks (`ip link`)"
    )]
    DirectorTap {
        /// The interface's name.
        interface: String,
    },
    /// The interface's settings would corrupt packets.
    #[error("{interface}: {why}")]
    Refused {
        /// The interface.
        interface: String,
        /// The reason.
        why: Refusal,
    },
    /// The kernel refused the program and is too old for it.
    #[error("{interface}: the XDP program could not be attached: {lack}")]
    OldKernel {
        /// The interface.
        interface: String,
        /// The missing feature and the next step.
        lack: String,
    },
    /// The kernel refused.
    #[error("{interface}: the XDP program could not be attached: {source}")]
    Kernel {
        /// The interface.
        interface: String,
        /// The kernel's error.
        source: io::Error,
    },
}
