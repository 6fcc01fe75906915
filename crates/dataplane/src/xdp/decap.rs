//! Decapsulation on a real server, for kernels without the `ipip` module (`bpf/decap.bpf.c`).
//!
//! [`install`] puts the program on an interface by netlink, where it stays without any process until [`remove`]
//! or the end of the interface; its maps live as long. To change what it lets through, install it again: the
//! new one takes the old one's place in one step. Another XDP program is never replaced or removed. Used by
//! `xvs realserver`, on the real server; the director's own program is another.

use std::ffi::CStr;
use std::fmt;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use libxdp_sys as sys;
use thiserror::Error;

use super::bpf::{Object, check};

/// How the program runs on an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecapMode {
    /// In the driver, before the kernel makes a packet of a frame.
    Native,
    /// After that, because the driver has no XDP: works on every interface, and costs more.
    Generic,
}

/// Which XDP program an interface has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occupant {
    /// None.
    Nobody,
    /// This module's.
    Ours(DecapMode),
    /// Another one, by the kernel's id.
    Foreign(u32),
}

/// Why the program could not be put on an interface or taken off.
#[derive(Debug, Error)]
pub enum DecapError {
    /// Somebody else's program is there.
    #[error(
        "interface {ifindex} has another XDP program (id {program}); remove it (`ip link set dev … xdp off`), or \
         decapsulate with the kernel's tunl0 (`modprobe ipip`)"
    )]
    Occupied {
        /// The interface's index.
        ifindex: u32,
        /// The other program's id.
        program: u32,
    },
    /// More addresses than the program has room for.
    #[error("{0} addresses are more than the {MAX_ADDRESSES} that the XDP program has room for")]
    TooMany(usize),
    /// The kernel or libbpf refused.
    #[error("{what}: {error}")]
    Refused {
        /// What was tried.
        what: &'static str,
        /// Why not.
        error: io::Error,
    },
}

/// Decapsulates, from now on, what comes in by this interface in an IPv4 header to one of `outer_dests` and is
/// itself to one of `virtuals`; and nothing else that an earlier call had named.
///
/// Native where the driver can, else generic; the one chosen is returned.
pub fn install(
    ifindex: u32,
    outer_dests: &[Ipv4Addr],
    virtuals: &[Ipv4Addr],
) -> Result<DecapMode, DecapError> {
    let occupant = occupant(ifindex)?;
    if let Occupant::Foreign(program) = occupant {
        return Err(DecapError::Occupied { ifindex, program });
    }
    let object = load(outer_dests, virtuals)?;
    let program = object.program(PROGRAM).map_err(refused("finding the XDP program"))?;
    let attach = |flags| attach(ifindex, program.as_raw_fd(), flags);
    match occupant {
        Occupant::Ours(mode) => attach(mode.flags()).map_err(refused("replacing the XDP program"))?,
        // The driver may have XDP and yet not for this interface as it is set up (its MTU, its queues).
        _ => attach(AS_THE_DRIVER_CAN)
            .or_else(|_| attach(DecapMode::Generic.flags()))
            .map_err(refused("attaching the XDP program"))?,
    }
    match self::occupant(ifindex)? {
        Occupant::Ours(mode) => Ok(mode),
        Occupant::Foreign(program) => Err(DecapError::Occupied { ifindex, program }),
        Occupant::Nobody => {
            let error = io::Error::other("it was taken off again at once by somebody else");
            Err(DecapError::Refused { what: "attaching the XDP program", error })
        }
    }
}

/// Takes the program off an interface; that it is not there is fine.
pub fn remove(ifindex: u32) -> Result<(), DecapError> {
    match occupant(ifindex)? {
        Occupant::Nobody => Ok(()),
        Occupant::Foreign(program) => Err(DecapError::Occupied { ifindex, program }),
        Occupant::Ours(mode) => {
            attach(ifindex, DETACH, mode.flags()).map_err(refused("detaching the XDP program"))
        }
    }
}

/// Which XDP program an interface has.
pub fn occupant(ifindex: u32) -> Result<Occupant, DecapError> {
    // SAFETY: the options are integers.
    let mut options: sys::bpf_xdp_query_opts = unsafe { std::mem::zeroed() };
    options.sz = size_of::<sys::bpf_xdp_query_opts>();
    // SAFETY: `options` says its size and is written during the call only.
    let found = unsafe { sys::bpf_xdp_query(ifindex as i32, 0, &mut options) };
    check(found).map_err(refused("asking for the interface's XDP program"))?;
    let (id, mode) = match options {
        sys::bpf_xdp_query_opts { drv_prog_id: id @ 1.., .. } => (id, DecapMode::Native),
        sys::bpf_xdp_query_opts { skb_prog_id: id @ 1.., .. } => (id, DecapMode::Generic),
        sys::bpf_xdp_query_opts { prog_id: id @ 1.., .. } => return Ok(Occupant::Foreign(id)),
        _ => return Ok(Occupant::Nobody),
    };
    let name = program_name(id).map_err(refused("asking for an XDP program's name"))?;
    Ok(if name.as_slice() == PROGRAM.to_bytes() { Occupant::Ours(mode) } else { Occupant::Foreign(id) })
}

/// The program with its maps filled, in the kernel and not attached.
fn load(outer_dests: &[Ipv4Addr], virtuals: &[Ipv4Addr]) -> Result<Object, DecapError> {
    let mut object = Object::open(IMAGE).map_err(refused("reading the XDP program"))?;
    object.load().map_err(refused("loading the XDP program (needs CAP_BPF and CAP_NET_ADMIN)"))?;
    for (name, addresses) in [(c"outer_dests", outer_dests), (c"virtuals", virtuals)] {
        if addresses.len() > MAX_ADDRESSES {
            return Err(DecapError::TooMany(addresses.len()));
        }
        let map = object.map::<4>(name).map_err(refused("finding a map of the XDP program"))?;
        for addr in addresses {
            map.set(&addr.octets(), 1).map_err(refused("filling a map of the XDP program"))?;
        }
    }
    Ok(object)
}

fn attach(ifindex: u32, program: i32, flags: u32) -> io::Result<()> {
    // SAFETY: no options are given; libbpf passes three integers on to the kernel, which checks them.
    check(unsafe { sys::bpf_xdp_attach(ifindex as i32, program, flags, std::ptr::null()) }).map(drop)
}

/// The name of a program, without its padding.
fn program_name(id: u32) -> io::Result<Vec<u8>> {
    // SAFETY: takes and returns integers.
    let fd = check(unsafe { sys::bpf_prog_get_fd_by_id(id) })?;
    // SAFETY: the call has just made this descriptor for us.
    let program = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: the structure is integers and arrays of them.
    let mut info: sys::bpf_prog_info = unsafe { std::mem::zeroed() };
    let mut len = size_of::<sys::bpf_prog_info>() as u32;
    // SAFETY: `info` is zero (no buffers for the kernel to fill) and `len` bytes long.
    check(unsafe { sys::bpf_prog_get_info_by_fd(program.as_raw_fd(), &mut info, &mut len) })?;
    Ok(info.name.iter().map(|&byte| byte as u8).take_while(|&byte| byte != 0).collect())
}

fn refused(what: &'static str) -> impl Fn(io::Error) -> DecapError {
    move |error| DecapError::Refused { what, error }
}

impl DecapMode {
    /// As `include/uapi/linux/if_link.h` has them: `XDP_FLAGS_DRV_MODE`, `XDP_FLAGS_SKB_MODE`.
    fn flags(self) -> u32 {
        match self {
            Self::Native => 1 << 2,
            Self::Generic => 1 << 1,
        }
    }
}

impl fmt::Display for DecapMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Native => "native",
            Self::Generic => "generic",
        })
    }
}

const IMAGE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/decap.bpf.o"));

/// The program's name, by which it is recognised later.
const PROGRAM: &CStr = c"xvs_decap";

/// `max_entries` of the program's maps.
const MAX_ADDRESSES: usize = 1024;

/// Instead of a program (kernel `net/core/dev.c`, `dev_change_xdp_fd`).
const DETACH: i32 = -1;

/// No mode named: native if the driver has XDP, else generic.
const AS_THE_DRIVER_CAN: u32 = 0;

#[cfg(test)]
mod tests {
    use super::*;

    const VIP: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
    const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
    const PASS: u32 = 2;
    const DROP: u32 = 1;

    /// What the program makes of a frame: its verdict and the frame afterwards.
    fn run(frame: &[u8]) -> (u32, Vec<u8>) {
        let object = load(&[SERVER], &[VIP]).expect("this test needs root: it loads a BPF program");
        let program = object.program(PROGRAM).unwrap();
        let mut after = vec![0; 2048];
        // SAFETY: the options are integers and pointers that may be null.
        let mut options: sys::bpf_test_run_opts = unsafe { std::mem::zeroed() };
        options.sz = size_of::<sys::bpf_test_run_opts>();
        options.data_in = frame.as_ptr().cast();
        options.data_size_in = frame.len() as u32;
        options.data_out = after.as_mut_ptr().cast();
        options.data_size_out = after.len() as u32;
        options.repeat = 1;
        // SAFETY: both buffers outlive the call and are as long as said.
        check(unsafe { sys::bpf_prog_test_run_opts(program.as_raw_fd(), &mut options) }).unwrap();
        after.truncate(options.data_size_out as usize);
        (options.retval, after)
    }

    fn sum(header: &[u8]) -> u16 {
        let words = header.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
        let total: u32 = words.sum();
        (total & 0xffff) as u16 + (total >> 16) as u16
    }

    /// A header with its checksum, around a payload; `options` bytes of no-operation options.
    fn ipv4(tos: u8, protocol: u8, dest: Ipv4Addr, options: usize, payload: &[u8]) -> Vec<u8> {
        let mut header = vec![1; 20 + options];
        let total = (header.len() + payload.len()) as u16;
        header[0] = 0x45 + (options / 4) as u8;
        header[1] = tos;
        header[2..4].copy_from_slice(&total.to_be_bytes());
        header[4..12].copy_from_slice(&[0, 7, 0, 0, 64, protocol, 0, 0]);
        header[12..16].copy_from_slice(&[10, 0, 0, 1]);
        header[16..20].copy_from_slice(&dest.octets());
        let check = !sum(&header);
        header[10..12].copy_from_slice(&check.to_be_bytes());
        [&header, payload].concat()
    }

    fn frame(tags: &[u8], packet: &[u8]) -> Vec<u8> {
        [&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1], tags, &[8, 0], packet].concat()
    }

    /// The inner packet, whose payload no header looks into.
    fn request(tos: u8) -> Vec<u8> {
        ipv4(tos, 17, VIP, 0, b"0123456789")
    }

    #[test]
    fn the_outer_header_goes_whatever_its_options_and_the_frames_tags() {
        let request = request(0);
        for options in [0, 4, 40] {
            for tags in [&[][..], &[0x81, 0, 0, 5], &[0x88, 0xa8, 0, 6, 0x81, 0, 0, 5]] {
                let tunnelled = frame(tags, &ipv4(0, 4, SERVER, options, &request));
                assert_eq!(run(&tunnelled), (PASS, frame(tags, &request)), "{options} {tags:?}");
            }
        }
    }

    #[test]
    fn what_is_not_exactly_ours_goes_to_the_kernel_untouched() {
        let good = ipv4(0, 4, SERVER, 0, &request(0));
        let edit = |at: usize, value: u8| {
            let mut packet = good.clone();
            packet[at] = value;
            // The outer checksum is made right again, so that only the edit can be the reason.
            packet[10..12].fill(0);
            let check = !sum(&packet[..20]);
            packet[10..12].copy_from_slice(&check.to_be_bytes());
            packet
        };
        let mut wrong_checksum = good.clone();
        wrong_checksum[11] ^= 1;
        let cases = [
            ("outer destination", edit(19, 9)),
            ("inner destination", edit(39, 9)),
            ("another protocol", edit(9, 47)),
            ("first fragment", edit(6, 0x20)),
            ("later fragment", edit(7, 1)),
            ("total length beyond the frame", edit(3, 250)),
            ("total length without an inner header", edit(3, 30)),
            ("header length below five words", edit(0, 0x44)),
            ("header length beyond the packet", edit(0, 0x4f)),
            ("inner version", edit(20, 0x65)),
            ("inner total length beyond the outer", edit(23, 200)),
            ("outer checksum", wrong_checksum),
            ("cut inside the inner header", good[..30].to_vec()),
        ];
        for (what, packet) in cases {
            let frame = frame(&[], &packet);
            assert_eq!(run(&frame), (PASS, frame), "{what}");
        }
        let mut arp = frame(&[], &good);
        arp[13] = 6;
        assert_eq!(run(&arp), (PASS, arp));
    }

    #[test]
    fn congestion_that_the_tunnel_met_is_handed_on_or_the_packet_dropped() {
        const CE: u8 = 3;
        let around = |tos| frame(&[], &ipv4(0xb8 | CE, 4, SERVER, 0, &request(tos)));
        for capable in [1, 2, CE] {
            let expected = frame(&[], &request(0x28 | CE));
            assert_eq!(run(&around(0x28 | capable)), (PASS, expected), "{capable}");
        }
        assert_eq!(run(&around(0x28)).0, DROP);
    }
}
