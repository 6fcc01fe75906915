//! System calls without a safe wrapper in `rustix` and libxdp: requests about an interface, the two wake-ups of an
//! AF_XDP socket, and socket options.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{c_int, c_ulong, c_void};
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;
use std::{array, io, ptr};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::netdevice::name_to_index;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

/// Commands of ethtool (linux/ethtool.h).
#[derive(Debug, Clone, Copy)]
pub(super) enum Ethtool {
    /// A set of [`FLAG_LRO`] and [`FLAG_RX_VLAN`].
    Flags = 0x25,
    /// Generic receive offload, 0 or 1.
    Gro = 0x2b,
}

pub(super) const FLAG_RX_VLAN: u32 = 1 << 8;
pub(super) const FLAG_LRO: u32 = 1 << 15;

/// `ethtool -l`.
const GET_CHANNELS: u32 = 0x3c;
/// `ethtool -L`.
const SET_CHANNELS: u32 = 0x3d;

/// `struct ethtool_value`.
#[repr(C)]
struct EthtoolValue {
    command: u32,
    data: u32,
}

/// `struct ethtool_channels`.
#[repr(C)]
#[derive(Default)]
struct EthtoolChannels {
    command: u32,
    /// In the order of the fields below.
    max: [u32; 4],
    rx: u32,
    tx: u32,
    other: u32,
    combined: u32,
}

/// `ethtool -k`: the number of the kernel's features, their names, and which are enabled.
const GET_SET_INFO: u32 = 0x37;
const GET_STRINGS: u32 = 0x1b;
const GET_FEATURES: u32 = 0x3a;
/// `ETH_SS_STATS`, `ETH_SS_FEATURES`.
const STATISTICS: u32 = 1;
const FEATURES: u32 = 4;
/// `ethtool -S`.
const GET_STATISTICS: u32 = 0x1d;
/// `ETH_GSTRING_LEN`.
const NAME_BYTES: usize = 32;
/// Room for names and counters that appear between two requests, more than any driver has. Older kernels write all that
/// exist, whatever number the request contains (net/ethtool/ioctl.c, `ethtool_get_strings`, `ethtool_get_stats`); newer
/// ones write none if the number is wrong. Uses no memory until the kernel writes there.
const ROOM: usize = 1 << 16;
/// Attempts to read a set whose size changes.
const ATTEMPTS: usize = 3;
const CHANGES: &str = "the number of its counters changes while they are read";
/// `struct ethtool_get_features_block`: available, requested, active, never changed.
const FEATURE_WORDS: usize = 4;
const ACTIVE: usize = 2;

/// `struct ethtool_sset_info` for one set.
#[repr(C)]
struct EthtoolSetInfo {
    command: u32,
    reserved: u32,
    mask: u64,
    count: u32,
}

/// `ethtool -i`.
const GET_DRIVER: u32 = 0x03;

/// `struct ethtool_drvinfo`.
#[repr(C)]
struct EthtoolDriver {
    command: u32,
    driver: [u8; 32],
    version: [u8; 32],
    firmware: [u8; 32],
    /// The bus, and the sizes of other replies.
    rest: [u8; 96],
}

/// `ethtool -g`.
const GET_RINGS: u32 = 0x10;

/// `struct ethtool_ringparam`; sizes in descriptors.
#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct EthtoolRings {
    command: u32,
    pub rx_max: u32,
    rx_mini_max: u32,
    rx_jumbo_max: u32,
    pub tx_max: u32,
    pub rx: u32,
    rx_mini: u32,
    rx_jumbo: u32,
    pub tx: u32,
}

/// `ethtool -a`.
const GET_PAUSE: u32 = 0x12;

/// `struct ethtool_pauseparam`; each 0 or 1.
#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct EthtoolPause {
    command: u32,
    autoneg: u32,
    pub rx: u32,
    pub tx: u32,
}

/// `ethtool -c`.
const GET_COALESCING: u32 = 0x0e;

/// `struct ethtool_coalesce`.
#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct EthtoolCoalescing {
    command: u32,
    pub rx_micros: u32,
    pub rx_frames: u32,
    /// Values for transmission, and for times when an interrupt is being handled.
    others: [u32; 7],
    pub rx_adaptive: u32,
    /// Values for transmission, and those from which adaptive coalescing chooses.
    rest: [u32; 12],
}

/// `ethtool -n eth0 rx-flow-hash`.
const GET_HASH: u32 = 0x29;

/// Kinds of packets whose hash can be queried (linux/ethtool.h).
#[derive(Debug, Clone, Copy)]
pub(super) enum Flow {
    Udp4 = 0x02,
    Udp6 = 0x06,
}

/// The fields that the hash covers: addresses (`RXH_IP_SRC`, `RXH_IP_DST`), ports (`RXH_L4_B_0_1`, `RXH_L4_B_2_3`).
pub(super) const HASH_ADDRESSES: u64 = 0b11 << 4;
pub(super) const HASH_PORTS: u64 = 0b11 << 6;

/// `struct ethtool_rxnfc`.
#[repr(C)]
struct EthtoolHash {
    command: u32,
    flow: u32,
    data: u64,
    /// A filter, which this request does not have.
    rest: [u64; 22],
}

/// A request about the interface with this name.
pub(super) struct Request {
    socket: OwnedFd,
    body: libc::ifreq,
}

impl Request {
    pub(super) fn new(name: &str) -> io::Result<Self> {
        let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
        Ok(Self { socket, body: body(name)? })
    }

    /// The interface's MTU in bytes.
    pub(super) fn mtu(&mut self) -> io::Result<u32> {
        self.call(libc::SIOCGIFMTU)?;
        // SAFETY: the kernel has just set this member of the union.
        Ok(unsafe { self.body.ifr_ifru.ifru_mtu } as u32)
    }

    /// The interface's link address.
    pub(super) fn link_address(&mut self) -> io::Result<[u8; 6]> {
        self.call(libc::SIOCGIFHWADDR)?;
        // SAFETY: the kernel has just set this member of the union.
        let bytes = unsafe { self.body.ifr_ifru.ifru_hwaddr }.sa_data;
        Ok(array::from_fn(|place| bytes[place] as u8))
    }

    /// Whether it is a loopback interface.
    pub(super) fn is_loopback(&mut self) -> io::Result<bool> {
        Ok(self.flags()? & libc::IFF_LOOPBACK as i16 != 0)
    }

    /// Whether it is up and has a carrier.
    pub(super) fn has_carrier(&mut self) -> io::Result<bool> {
        self.flags().map(|flags| c_int::from(flags) & libc::IFF_RUNNING != 0)
    }

    /// The interface's flags (`IFF_…`).
    fn flags(&mut self) -> io::Result<i16> {
        self.call(libc::SIOCGIFFLAGS)?;
        // SAFETY: the kernel has just set this member of the union.
        Ok(unsafe { self.body.ifr_ifru.ifru_flags })
    }

    /// Sets flags (`IFF_…`) in addition to those that the interface already has.
    pub(super) fn add_flags(&mut self, flags: c_int) -> io::Result<()> {
        self.body.ifr_ifru.ifru_flags = self.flags()? | flags as i16;
        self.call(libc::SIOCSIFFLAGS)
    }

    /// An ethtool value; 0 if the driver does not support it.
    pub(super) fn ethtool(&mut self, command: Ethtool) -> io::Result<u32> {
        let mut value = EthtoolValue { command: command as u32, data: 0 };
        or_unsupported(self.exchange(&raw mut value))?;
        Ok(value.data)
    }

    /// The name of the interface's driver; empty if unknown.
    pub(super) fn driver(&mut self) -> io::Result<String> {
        self.driver_info().map(|info| text(&info.driver))
    }

    /// The firmware version; empty if unknown.
    pub(super) fn firmware(&mut self) -> io::Result<String> {
        self.driver_info().map(|info| text(&info.firmware))
    }

    fn driver_info(&mut self) -> io::Result<EthtoolDriver> {
        let zeros = [0; 32];
        let mut info = EthtoolDriver {
            command: GET_DRIVER,
            driver: zeros,
            version: zeros,
            firmware: zeros,
            rest: [0; 96],
        };
        or_unsupported(self.exchange(&raw mut info))?;
        Ok(info)
    }

    /// The number of the interface's receive queues; 1 if the driver does not report it.
    pub(super) fn receive_queues(&mut self) -> io::Result<u32> {
        self.channels().map(|channels| (channels.rx + channels.combined).max(1))
    }

    /// The `ethtool -L` argument that sets the number of receive queues, and the maximum number; 0 if the driver does
    /// not report it.
    pub(super) fn most_receive_queues(&mut self) -> io::Result<(&'static str, u32)> {
        let [rx, _, _, combined] = self.channels()?.max;
        Ok(if combined > 0 { ("combined", combined) } else { ("rx", rx) })
    }

    /// Sets the number of receive queues.
    pub(super) fn set_receive_queues(&mut self, queues: u32) -> io::Result<()> {
        let mut channels = self.channels()?;
        channels.command = SET_CHANNELS;
        // As in `most_receive_queues`, receive-only queues count, too.
        let [.., most_combined] = channels.max;
        (channels.rx, channels.combined) =
            if most_combined > 0 { (0, queues) } else { (queues, channels.combined) };
        self.exchange(&raw mut channels)
    }

    fn channels(&mut self) -> io::Result<EthtoolChannels> {
        let mut channels = EthtoolChannels { command: GET_CHANNELS, ..Default::default() };
        or_unsupported(self.exchange(&raw mut channels))?;
        Ok(channels)
    }

    /// The ring sizes; `None` if the driver does not report them.
    pub(super) fn rings(&mut self) -> Option<EthtoolRings> {
        let mut rings = EthtoolRings { command: GET_RINGS, ..Default::default() };
        self.exchange(&raw mut rings).ok().map(|()| rings)
    }

    /// Whether the card sends and obeys pause frames; `None` if the driver does not report it.
    pub(super) fn pause(&mut self) -> Option<EthtoolPause> {
        let mut pause = EthtoolPause { command: GET_PAUSE, ..Default::default() };
        self.exchange(&raw mut pause).ok().map(|()| pause)
    }

    /// The interrupt coalescing; `None` if the driver does not report it.
    pub(super) fn coalescing(&mut self) -> Option<EthtoolCoalescing> {
        let mut coalescing = EthtoolCoalescing { command: GET_COALESCING, ..Default::default() };
        self.exchange(&raw mut coalescing).ok().map(|()| coalescing)
    }

    /// The fields covered by the hash that chooses a packet's receive queue (`HASH_…`); `None` if the driver does not
    /// report it.
    pub(super) fn hash(&mut self, flow: Flow) -> Option<u64> {
        let mut hash = EthtoolHash { command: GET_HASH, flow: flow as u32, data: 0, rest: [0; 22] };
        self.exchange(&raw mut hash).ok().map(|()| hash.data)
    }

    /// The enabled features, by the kernel's names (`netdev_features_strings`).
    pub(super) fn features(&mut self) -> io::Result<BTreeSet<String>> {
        let names = self.strings(FEATURES)?;
        let blocks = names.len().div_ceil(32);
        let mut words = vec![0_u32; 2 + blocks * FEATURE_WORDS];
        words[..2].copy_from_slice(&[GET_FEATURES, blocks as u32]);
        self.exchange(words.as_mut_ptr())?;
        Ok(names
            .into_iter()
            .enumerate()
            .filter(|(number, _)| words[2 + number / 32 * FEATURE_WORDS + ACTIVE] >> (number % 32) & 1 == 1)
            .map(|(_, name)| name)
            .collect())
    }

    /// The interface's counters, by the names in `ethtool -S`.
    pub(super) fn statistics(&mut self) -> io::Result<BTreeMap<String, u64>> {
        for _ in 0..ATTEMPTS {
            let names = self.strings(STATISTICS)?;
            // Two 32-bit integers precede the counters.
            let words = [GET_STATISTICS, names.len() as u32].map(u32::to_ne_bytes);
            let head = u64::from_ne_bytes(words.concat().try_into().expect("two words are eight bytes"));
            let mut counters = vec![0_u64; 1 + names.len() + ROOM];
            counters[0] = head;
            self.exchange(counters.as_mut_ptr())?;
            // The reply has the number of counters.
            if counters[0] == head {
                return Ok(names.into_iter().zip(counters.into_iter().skip(1)).collect());
            }
        }
        Err(io::Error::other(CHANGES))
    }

    /// The names of a set.
    fn strings(&mut self, of: u32) -> io::Result<Vec<String>> {
        for _ in 0..ATTEMPTS {
            let mut set = EthtoolSetInfo { command: GET_SET_INFO, reserved: 0, mask: 1 << of, count: 0 };
            self.exchange(&raw mut set)?;
            if let Some(names) = self.names(of, set.count)? {
                return Ok(names);
            }
        }
        Err(io::Error::other(CHANGES))
    }

    /// The names in a set with this size; `None` if its size has changed.
    fn names(&mut self, of: u32, count: u32) -> io::Result<Option<Vec<String>>> {
        let mut names = vec![0_u32; 3 + (count as usize + ROOM) * NAME_BYTES / size_of::<u32>()];
        let head = [GET_STRINGS, of, count];
        names[..3].copy_from_slice(&head);
        self.exchange(names.as_mut_ptr())?;
        if names[..3] != head {
            return Ok(None);
        }
        Ok(Some(
            names[3..]
                .chunks_exact(NAME_BYTES / size_of::<u32>())
                .take(count as usize)
                .map(|name| text(&name.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<_>>()))
                .collect(),
        ))
    }

    /// Performs an ethtool request, whose command is the first integer in these live data.
    fn exchange<T>(&mut self, data: *mut T) -> io::Result<()> {
        self.body.ifr_ifru.ifru_data = data.cast();
        self.call(libc::SIOCETHTOOL)
    }

    fn call(&mut self, request: c_ulong) -> io::Result<()> {
        // SAFETY: `body` is the `ifreq` of all requests in this module, with a name that ends in a zero byte. Where it
        // points to data, the caller set the pointer just before to a live value of that request's type.
        check(unsafe { libc::ioctl(self.socket.as_raw_fd(), request as _, &raw mut self.body) }).map(drop)
    }
}

/// Turns an open `/dev/net/tun` into an interface. `pattern` may contain `%d` for the first free number. Returns the
/// name.
pub(super) fn make_tap(tun: BorrowedFd<'_>, pattern: &str) -> io::Result<String> {
    let mut body = body(pattern)?;
    body.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as i16;
    // SAFETY: TUNSETIFF reads and writes one `ifreq`.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF as _, &raw mut body) })?;
    Ok(body.ifr_name.iter().take_while(|byte| **byte != 0).map(|byte| char::from(*byte as u8)).collect())
}

/// The result of a call to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kick {
    /// The kernel sent the maximum number of frames for one call.
    Sent,
    /// The kernel had no room or stopped early: repeat the call.
    Again,
    /// The interface is down or gone.
    Down,
}

/// Makes the kernel send the frames in a socket's TX ring. In copy mode one call sends at most 32 frames; a higher
/// limit (`XDP_MAX_TX_SKB_BUDGET`) saved nothing measurable (docs/performance.md).
pub(super) fn kick_transmit(socket: BorrowedFd<'_>) -> Kick {
    // SAFETY: no buffer and no address are passed.
    let sent =
        unsafe { libc::sendto(socket.as_raw_fd(), ptr::null(), 0, libc::MSG_DONTWAIT, ptr::null(), 0) };
    if sent >= 0 {
        return Kick::Sent;
    }
    match io::Error::last_os_error().raw_os_error() {
        Some(libc::ENETDOWN | libc::ENXIO | libc::ENODEV) => Kick::Down,
        _ => Kick::Again,
    }
}

/// Wakes the driver after frames were added to a socket's fill ring.
pub(super) fn kick_receive(socket: BorrowedFd<'_>) {
    let fd = socket.as_raw_fd();
    let none = ptr::null_mut::<c_void>();
    // SAFETY: no buffer and no address are passed. The result does not matter: a socket that is not ready is woken
    // again at the next refill.
    let _ = unsafe { libc::recvfrom(fd, none, 0, libc::MSG_DONTWAIT, ptr::null_mut(), ptr::null_mut()) };
}

/// Wakes a socket's driver if one of its flags requests it.
pub(super) fn wake(socket: BorrowedFd<'_>) {
    // The result does not matter: the rings are checked in any case.
    let _ = poll(&mut [PollFd::from_borrowed_fd(socket, PollFlags::IN)], Some(&Timespec::default()));
}

/// Sets an integer option of level `SOL_SOCKET`.
pub(super) fn set_option(socket: BorrowedFd<'_>, name: c_int, value: c_int) -> io::Result<()> {
    let size = size_of::<c_int>() as libc::socklen_t;
    // SAFETY: the kernel reads `value`, whose length is `size`.
    check(unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, name, (&raw const value).cast(), size)
    })
    .map(drop)
}

/// Maximum time that the kernel may take to free the queue of a closed socket, and the interval between attempts.
/// Sockets of other queues that are closed at the same time delay it: 32 of them by 0.8 s in an emulated machine.
pub(super) const OCCUPIED: Duration = Duration::from_secs(3);
pub(super) const LOOK_INTERVAL: Duration = Duration::from_millis(1);

/// Gives this thread a realtime priority: when it is runnable, it precedes all threads on its core without a realtime
/// class. The kernel's receive threads (NAPI threads, ksoftirqd) have none. Under overload they therefore receive no
/// more than this thread forwards, and the interface drops the rest at no cost. Source: sched(7), `SCHED_RR`.
///
/// # Errors
///
/// The kernel's error, EPERM without CAP_SYS_NICE; nothing has changed.
pub fn precede_receive_threads() -> io::Result<()> {
    let lowest = libc::sched_param { sched_priority: 1 };
    // SAFETY: the kernel reads one `sched_param`; 0 is the calling thread.
    check(unsafe { libc::sched_setscheduler(0, libc::SCHED_RR | libc::SCHED_RESET_ON_FORK, &lowest) })
        .map(drop)
}

/// The supplementary groups of the process at the other end of a Unix socket, at the time of its connection.
///
/// It is in this crate because it is a raw system call. Source: unix(7), `SO_PEERGROUPS`.
///
/// # Errors
///
/// The kernel's error for a socket without such a peer.
pub fn peer_groups(socket: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    let mut groups = vec![0_u32; 32];
    loop {
        let mut bytes = size_of_val(&groups[..]) as libc::socklen_t;
        let fd = socket.as_raw_fd();
        let buffer = groups.as_mut_ptr().cast();
        // SAFETY: `buffer` is the start of `groups`, which is alive and not used during the call, and `bytes` is its
        // length. The kernel writes no more than that, as 32-bit integers, each of which is a valid `u32`.
        let got = unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_PEERGROUPS, buffer, &mut bytes) };
        let count = bytes as usize / size_of::<u32>();
        match check(got) {
            Ok(_) => {
                groups.truncate(count);
                return Ok(groups);
            }
            // `count` is the number of groups; a process may have 65,536 (NGROUPS_MAX).
            Err(error) if error.raw_os_error() == Some(libc::ERANGE) && count > groups.len() => {
                groups.resize(count, 0);
            }
            Err(error) => return Err(error),
        }
    }
}

/// The cookie of a socket's network namespace. It stays unique while the machine is up; inodes of namespaces are
/// reused.
///
/// In this crate for the same reason as [`peer_groups`]. Source: Linux, `include/uapi/asm-generic/socket.h`,
/// `SO_NETNS_COOKIE` (since 5.14).
///
/// # Errors
///
/// The kernel's error; for an older kernel, with the next step.
pub fn network_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut cookie: u64 = 0;
    let mut size = size_of::<u64>() as libc::socklen_t;
    let buffer = (&raw mut cookie).cast();
    // SAFETY: the kernel writes one 64-bit integer into `cookie`, and `size` is its length.
    check(unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_NETNS_COOKIE, buffer, &mut size)
    })
    .map_err(|error| match error.raw_os_error() {
        Some(libc::ENOPROTOOPT) => {
            io::Error::other("the kernel gives network namespaces no number; boot Linux 5.14 or later")
        }
        _ => error,
    })?;
    Ok(cookie)
}

/// The flag of a socket whose packets may span several descriptors (linux/if_xdp.h: `XDP_USE_SG`, since 6.6).
pub(super) const SEVERAL_BUFFERS: u16 = 1 << 4;

/// Whether the kernel supports [`SEVERAL_BUFFERS`]. This function binds a socket with the flag to no interface: a
/// kernel that does not know the flag refuses it before it looks up the interface (net/xdp/xsk.c, `xsk_bind`).
pub(super) fn passes_several_buffers() -> io::Result<bool> {
    let socket = socket_with(AddressFamily::XDP, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    let address = libc::sockaddr_xdp {
        sxdp_family: libc::AF_XDP as u16,
        sxdp_flags: SEVERAL_BUFFERS,
        sxdp_ifindex: 0,
        sxdp_queue_id: 0,
        sxdp_shared_umem_fd: 0,
    };
    let start = (&raw const address).cast();
    let size = size_of_val(&address) as libc::socklen_t;
    // SAFETY: the kernel reads `address`, and `size` is its length.
    let bound = check(unsafe { libc::bind(socket.as_raw_fd(), start, size) });
    Ok(bound.err().is_some_and(|error| error.raw_os_error() != Some(libc::EINVAL)))
}

/// The kernel's index of an interface in this thread's network namespace.
///
/// # Errors
///
/// The kernel's error if there is no such interface.
pub fn index_of(interface: &str) -> io::Result<u32> {
    let any = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    Ok(name_to_index(any, interface)?)
}

fn body(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: an `ifreq` consists of bytes, integers and pointers that may be null.
    let mut body: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= body.ifr_name.len() || name.contains('\0') {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    for (to, from) in body.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(body)
}

/// The characters before the first zero byte.
fn text(bytes: &[u8]) -> String {
    bytes.iter().take_while(|byte| **byte != 0).map(|byte| char::from(*byte)).collect()
}

fn or_unsupported(result: io::Result<()>) -> io::Result<()> {
    result.or_else(|error| if error.raw_os_error() == Some(libc::EOPNOTSUPP) { Ok(()) } else { Err(error) })
}

/// Converts the result of a system call: a value, or -1 with the error in `errno`.
pub(super) fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::{fs, thread};

    use rustix::thread::{UnshareFlags, unshare_unsafe};

    use super::*;

    /// Realtime priority and policy of this thread: fields 40 and 41 of proc_pid_stat(5), of which two precede `) `.
    fn scheduling() -> (u32, i32) {
        let stat = fs::read_to_string("/proc/thread-self/stat").unwrap();
        let fields: Vec<_> = stat.rsplit(") ").next().unwrap().split(' ').collect();
        (fields[37].parse().unwrap(), fields[38].parse().unwrap())
    }

    #[test]
    fn names_of_a_set_that_has_another_size_by_now_are_not_read() {
        let mut lo = Request::new("lo").unwrap();
        let count = lo.strings(FEATURES).unwrap().len() as u32;
        assert!(lo.names(FEATURES, count).unwrap().is_some_and(|names| names.len() == count as usize));
        // The number differs from the requested one, as after a driver has gained counters.
        for count in [1, count - 1, count + 1] {
            assert_eq!(lo.names(FEATURES, count).unwrap(), None, "{count}");
        }
    }

    #[test]
    fn counters_have_their_drivers_names_also_after_the_driver_has_gained_some() {
        let run = |words: &str| {
            let (program, words) = words.split_once(' ').unwrap();
            assert!(
                Command::new(program).args(words.split(' ')).status().unwrap().success(),
                "{program} {words}"
            );
        };
        thread::spawn(move || {
            // SAFETY: only this thread enters the new namespace, and no file of another one is used in it.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.expect("run as root");
            run("ip link add wan numrxqueues 4 numtxqueues 4 type veth peer name far numrxqueues 4 numtxqueues 4");
            run("ethtool -L wan rx 1 tx 1");
            let mut wan = Request::new("wan").unwrap();
            let count = wan.strings(STATISTICS).unwrap().len();
            run("ethtool -L wan rx 4 tx 4");
            assert_eq!(wan.names(STATISTICS, count as u32).unwrap(), None);
            let counters = wan.statistics().unwrap();
            assert!(counters.len() > count);
            assert_eq!(counters["peer_ifindex"], u64::from(index_of("far").unwrap()));
        })
        .join()
        .unwrap();
    }

    #[test]
    fn a_thread_precedes_others_by_the_lowest_realtime_priority_and_those_that_it_starts_do_not() {
        thread::spawn(|| {
            precede_receive_threads().expect("run as root");
            assert_eq!(scheduling(), (1, libc::SCHED_RR));
            let started = thread::spawn(scheduling).join().unwrap();
            assert_eq!(started, (0, libc::SCHED_OTHER));
        })
        .join()
        .unwrap();
    }
}
