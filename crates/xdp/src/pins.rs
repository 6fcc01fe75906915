//! Pins: names in a bpffs for the links of the director's XDP programs. They keep the programs attached when the
//! process ends.
//!
//! Used at the start, when an interface is attached again, and for a release. A pin's path is
//! `BPFFS/xvs/DIRECTOR/INTERFACE`, with `:` for each `.`, because a bpffs refuses dots.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::{fs, io, thread};

use rustix::fs::statfs;
use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::mount::{MountFlags, mount};
use rustix::process::{chroot, fchdir};
use rustix::thread::{
    CapabilitySet, LinkNameSpaceType, UnshareFlags, capabilities, move_into_link_name_space, unshare_unsafe,
};

use super::bpf::{LinkInfo, detach, open_link, pin_link, query_xdp};
use super::mode::Mode;

/// Where administrators and systemd mount a bpffs.
const MOUNT_POINT: &str = "/sys/fs/bpf";
/// The host's mount point, for a process with a separate `/sys`, as under `ip netns exec`.
const MOUNT_POINT_OF_HOST: &str = "/proc/1/root/sys/fs/bpf";
/// The folder of all directors.
const FOLDER: &str = "xvs";
/// `BPF_FS_MAGIC` (linux/magic.h).
const MAGIC: u64 = 0xcafe_4a11;

/// The directory of all directors, as a path that this process can still search after giving up its rights.
static KEPT: OnceLock<Kept> = OnceLock::new();

#[derive(Debug)]
struct Kept {
    path: PathBuf,
    /// `None`: opened before this program was executed.
    descriptor: Option<OwnedFd>,
}

/// Uses this open directory of all directors from now on: only its permissions matter, not those of the bpffs above it.
pub fn keep(folder: OwnedFd) {
    let path = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd()));
    // A process has only one.
    let _ = KEPT.set(Kept { path, descriptor: Some(folder) });
}

/// Like [`keep`], with the path from [`kept`], in the program that the process then executed.
pub fn keep_path(path: PathBuf) {
    let _ = KEPT.set(Kept { path, descriptor: None });
}

/// The path of the directory from [`keep`]. The directory now stays open in a program that this process executes.
///
/// # Errors
///
/// The kernel's.
pub fn kept() -> io::Result<Option<PathBuf>> {
    let Some(kept) = KEPT.get() else { return Ok(None) };
    if let Some(descriptor) = &kept.descriptor {
        fcntl_setfd(descriptor, FdFlags::empty())?;
    }
    Ok(Some(kept.path.clone()))
}

/// The directory of all directors, if a bpffs is mounted.
pub fn folder() -> Option<PathBuf> {
    KEPT.get().map(|kept| kept.path.clone()).or_else(|| Some(mounted()?.join(FOLDER)))
}

/// Like [`folder`], but mounts a bpffs if there is none.
///
/// # Errors
///
/// No bpffs can be mounted, or only in a mount namespace that would end with this process.
pub fn folder_or_mount() -> io::Result<PathBuf> {
    folder().map_or_else(|| Ok(mounted_or_mount()?.join(FOLDER)), Ok)
}

/// The host's bpffs, if one is mounted.
fn mounted() -> Option<PathBuf> {
    [MOUNT_POINT, MOUNT_POINT_OF_HOST]
        .iter()
        .find(|path| statfs(**path).is_ok_and(|stat| stat.f_type as u64 & 0xffff_ffff == MAGIC))
        .map(PathBuf::from)
}

fn mounted_or_mount() -> io::Result<PathBuf> {
    // Not attempted without the right, because a system call filter would count it.
    if !capabilities(None)?.effective.contains(CapabilitySet::SYS_ADMIN) {
        return Err(Errno::PERM.into());
    }
    // A mount in this process's private namespace would end with the process, and so would the pins.
    let [own, host] = ["self", "1"].map(|process| fs::metadata(format!("/proc/{process}/ns/mnt")));
    match own?.ino() == host?.ino() {
        true => mount_bpffs()?,
        false => mount_on_host()?,
    }
    mounted().ok_or_else(|| io::ErrorKind::NotFound.into())
}

fn mount_bpffs() -> io::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    Ok(mount("bpf", MOUNT_POINT, "bpf", flags, Some(c"mode=0700"))?)
}

/// Mounts a bpffs from the host's mount namespace, on a separate thread that then ends.
fn mount_on_host() -> io::Result<()> {
    let namespace = fs::File::open("/proc/1/ns/mnt")?;
    let root = fs::File::open("/proc/1/root")?;
    thread::Builder::new()
        .name("xvs-mount".to_owned())
        .spawn(move || mount_in(&namespace, &root))?
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("the mounting thread has panicked")))
}

/// Moves the calling thread into a mount namespace with this root, and mounts a bpffs there.
fn mount_in(namespace: &fs::File, root: &fs::File) -> io::Result<()> {
    // SAFETY: descriptors stay shared; only the root and the working directory become private to the thread.
    unsafe { unshare_unsafe(UnshareFlags::FS) }?;
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount))?;
    // The root of the namespace need not be that of process 1.
    fchdir(root)?;
    chroot(".")?;
    mount_bpffs()
}

/// The name of the director that has pinned this program for the interface with this index.
pub fn director_of(folder: &Path, program: u32, interface: u32) -> Option<String> {
    let pinned = LinkInfo { program, interface };
    names(folder)
        .ok()?
        .into_iter()
        .find(|director| Pins::of(folder, director).links().iter().any(|(_, info)| *info == pinned))
}

/// The pins of one director.
#[derive(Debug, Clone)]
pub struct Pins {
    folder: PathBuf,
}

/// A link that was taken over from its pin.
pub(super) struct Pinned {
    pub(super) link: OwnedFd,
    pub(super) program: u32,
    pub(super) mode: Mode,
}

impl Pins {
    /// The pins of the director with this name, which contains no `/`, in the directory of all directors.
    pub fn of(folder: &Path, director: &str) -> Self {
        Self { folder: folder.join(director.replace('.', ":")) }
    }

    /// The link that is pinned for the interface with this index, and attached to it.
    pub(super) fn find(&self, interface: u32) -> Option<Pinned> {
        let (program, mode) = query_xdp(interface).ok()?.program?;
        // In another network namespace the same index may refer to another interface, with another program.
        let (link, _) =
            self.links().into_iter().find(|(_, info)| *info == LinkInfo { program, interface })?;
        Some(Pinned { link, program, mode: mode? })
    }

    /// Pins a link for an interface. Replaces any other pin for it.
    pub(super) fn pin(&self, interface: &str, link: BorrowedFd<'_>) -> io::Result<()> {
        let path = self.path(interface);
        fs::create_dir_all(&self.folder)?;
        remove(&path)?;
        pin_link(link, &path)
    }

    /// Whether a link is pinned for an interface with this name and index.
    pub(super) fn has(&self, interface: &str, index: u32) -> bool {
        open_link(&self.path(interface)).is_ok_and(|(_, info)| info.interface == index)
    }

    /// Removes the pins of all interfaces except these, which detaches their programs. Returns the interfaces' names.
    pub fn keep_only(&self, interfaces: &[&str]) -> Vec<String> {
        names(&self.folder)
            .unwrap_or_default()
            .into_iter()
            .filter(|name| !interfaces.contains(&name.as_str()) && remove(&self.path(name)).is_ok())
            .collect()
    }

    /// Detaches the programs of all pins, and removes the pins. Returns the interfaces' names.
    ///
    /// # Errors
    ///
    /// A pin cannot be removed.
    pub fn release(&self) -> io::Result<Vec<String>> {
        for (link, _) in self.links() {
            detach(link.as_fd());
        }
        let names = match names(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            names => names?,
        };
        for name in &names {
            remove(&self.path(name))?;
        }
        fs::remove_dir(&self.folder)?;
        // The directory of all directors, if this was the last one.
        let _ = self.folder.parent().map(fs::remove_dir);
        Ok(names)
    }

    fn path(&self, interface: &str) -> PathBuf {
        self.folder.join(interface.replace('.', ":"))
    }

    /// The pinned links.
    fn links(&self) -> Vec<(OwnedFd, LinkInfo)> {
        names(&self.folder)
            .unwrap_or_default()
            .into_iter()
            .filter_map(|name| open_link(&self.path(&name)).ok())
            .collect()
    }
}

/// The names in a directory, with each `:` of the bpffs replaced by `.`.
fn names(folder: &Path) -> io::Result<Vec<String>> {
    fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name().to_string_lossy().replace(':', "."))).collect()
}

/// Removes a pin. A missing one is not an error.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
