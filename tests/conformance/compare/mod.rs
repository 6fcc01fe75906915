//! The rules by which a result of xvs counts as equal to the kernel's.
//!
//! Frames are compared as a multiset of link and bytes, with what cannot be predicted masked: the identification of
//! headers that the director writes (and the sum over it) and of IPv6 fragments, and the source port of GUE. Reports of
//! multicast groups are left out. Below a service listings must be equal; the order of services, in the kernel that of
//! a hash table, and the table's size may differ. Saved mark rules are left out: the kernel's are netfilter's.
//! Remaining times may differ by the delay of the kernel's timers.

pub(crate) mod sync;

use serde_json::Value;

/// The difference between two lists of frames, in words.
pub(crate) fn frames(want: &Value, got: &Value) -> Result<(), String> {
    let want = list(want).iter().filter(|frame| !is_membership_report(&frame["f"]));
    let mut want: Vec<_> = want.map(|frame| masked(&frame["port"], &frame["hex"])).collect();
    let mut got: Vec<_> = list(got).iter().map(|frame| masked(&frame["link"], &frame["frame"])).collect();
    want.sort();
    got.sort();
    if want == got { Ok(()) } else { Err(format!("frames\n  want {want:?}\n  got  {got:?}")) }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// Whether the kernel's own stack reports with this frame that it joined or left a multicast group (IGMP, MLDv2).
fn is_membership_report(fields: &Value) -> bool {
    fields["proto"] == 2 || fields["proto"] == 58 && fields["type"] == 143
}

fn masked(link: &Value, hex: &Value) -> (String, String) {
    let mut bytes = unhex(hex.as_str().unwrap_or_default());
    let gue = mask_gue(&mut bytes) || is_later_piece_of_tunnel(&bytes);
    let by_the_director = |protocol: u8| gue || matches!(protocol, 1 | 4 | 41 | 47);
    if bytes.len() >= 34 && bytes[12..14] == [0x08, 0x00] && by_the_director(bytes[23]) {
        bytes[18..20].fill(0);
        bytes[24..26].fill(0);
    }
    // An IPv6 fragment header right behind the fixed one.
    if bytes.len() >= 62 && bytes[12..14] == [0x86, 0xdd] && bytes[20] == 44 {
        bytes[58..62].fill(0);
    }
    let text = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    (link.as_str().unwrap_or_default().to_owned(), text)
}

/// Whether a frame holds a later fragment of UDP that the director itself sends: of a GUE tunnel.
fn is_later_piece_of_tunnel(frame: &[u8]) -> bool {
    const DIRECTOR: [u8; 4] = [10, 2, 0, 1];
    let is_later = |frame: &[u8]| frame[20] & 0x1f != 0 || frame[21] != 0;
    frame.len() >= 34 && frame[12..14] == [0x08, 0x00] && frame[26..30] == DIRECTOR && is_later(frame)
}

/// Masks the source port of a GUE frame; of its checksum remains whether there is one and whether it is right.
fn mask_gue(frame: &mut [u8]) -> bool {
    let (addrs, udp) = match frame.get(12..14) {
        Some([0x08, 0x00]) if frame[23] == 17 => (26..34, 34),
        Some([0x86, 0xdd]) if frame[20] == 17 => (22..54, 54),
        _ => return false,
    };
    let Some(&[0, protocol @ (4 | 41), 0, 0, first]) = frame.get(udp + 8..udp + 13) else { return false };
    if first >> 4 != (if protocol == 4 { 4 } else { 6 }) {
        return false;
    }
    let words = |bytes: &[u8]| -> u64 {
        bytes.chunks(2).map(|word| u64::from(u16::from_be_bytes([word[0], *word.get(1).unwrap_or(&0)]))).sum()
    };
    let sum = words(&frame[addrs]) + words(&frame[udp..]) + 17 + (frame.len() - udp) as u64;
    let summed = frame[udp + 6..udp + 8] != [0, 0];
    let right = sum != 0 && sum.is_multiple_of(0xffff);
    frame[udp..udp + 2].fill(0);
    frame[udp + 6..udp + 8].copy_from_slice(&[u8::from(summed), u8::from(summed && right)]);
    true
}

/// Has the recorded ICMPv4 errors of a step say this path MTU.
pub(crate) fn set_path_mtu(recorded: &mut Value, mtu: u16) {
    for frame in recorded.as_array_mut().into_iter().flatten() {
        let mut bytes = unhex(frame["hex"].as_str().unwrap_or_default());
        assert_eq!((bytes[23], &bytes[34..36]), (1, &[3, 4][..]), "fragmentation needed");
        bytes[36..38].fill(0);
        bytes[40..42].copy_from_slice(&mtu.to_be_bytes());
        let sum = etherparse::checksum::Sum16BitWords::new().add_slice(&bytes[34..]).ones_complement();
        bytes[36..38].copy_from_slice(&sum.to_ne_bytes());
        frame["hex"] = Value::String(bytes.iter().map(|byte| format!("{byte:02x}")).collect());
    }
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len() / 2).map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).expect("hex")).collect()
}

/// The recorded frames without those that the kernel's own stack made of a packet which IPVS passed to it: a reset
/// or an ICMP message from the address that was asked, or the packet itself, routed on.
pub(crate) fn without_the_kernels_own(recorded: &Value, packet: &str, vips: &[String]) -> Value {
    let packet = unhex(packet);
    let (Some(source), Some(dest)) = (addr(&packet, 12, 8), addr(&packet, 16, 24)) else {
        return Value::Array(Vec::new());
    };
    let to_a_vip = vips.contains(&dest);
    let made_by_kernel = |frame: &Value| {
        let fields = &frame["f"];
        let answers = fields["src"] == *dest || !to_a_vip;
        let resets = fields["flags"].as_str().is_some_and(|flags| flags.contains('R'));
        let reports = fields["proto"] == 1 || fields["proto"] == 58;
        let routed_on = !to_a_vip && fields["src"] == *source && fields["dst"] == *dest;
        routed_on || answers && (resets || reports)
    };
    list(recorded).iter().filter(|frame| !made_by_kernel(frame)).cloned().collect()
}

/// An address in the network header of an untagged frame, as text.
fn addr(frame: &[u8], v4: usize, v6: usize) -> Option<String> {
    match frame.get(12..14)? {
        [0x08, 0x00] => {
            let octets: [u8; 4] = frame.get(14 + v4..18 + v4)?.try_into().ok()?;
            Some(std::net::Ipv4Addr::from(octets).to_string())
        }
        [0x86, 0xdd] => {
            let octets: [u8; 16] = frame.get(14 + v6..30 + v6)?.try_into().ok()?;
            Some(std::net::Ipv6Addr::from(octets).to_string())
        }
        _ => None,
    }
}

/// The difference between what a command printed and what it was recorded to print, in words.
pub(crate) fn output(argv: &[String], recorded: &Value, got: &Value) -> Result<(), String> {
    let differs =
        |what: &str, want: &str, got: &str| Err(format!("{what}\n--- want\n{want}--- got\n{got}---"));
    if recorded["rc"] != got["exit"] {
        return Err(format!("exit code {} instead of {}: {}", got["exit"], recorded["rc"], got["stderr"]));
    }
    let (want_err, got_err) = (text(&recorded["stderr"]), text(&got["stderr"]));
    if want_err != got_err {
        return differs("stderr", want_err, got_err);
    }
    let (want, got) = (text(&recorded["stdout"]), text(&got["stdout"]));
    let same = if want.starts_with("IPVS connection entries") {
        connections(want, got)
    } else {
        let saved = argv.iter().any(|word| word.starts_with("-S") || word == "--save");
        services(want, saved) == services(got, saved)
    };
    if same { Ok(()) } else { differs("stdout", want, got) }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// A listing with its services in a fixed order and its table's size struck out.
fn services(listing: &str, saved: bool) -> (Vec<String>, Vec<String>) {
    let mut head = Vec::new();
    let mut blocks: Vec<String> = Vec::new();
    for line in listing.lines().filter(|line| !line.starts_with("#xvs mark add ")) {
        let begins = match saved {
            true => line.starts_with("-A "),
            false => ["TCP ", "UDP ", "SCTP ", "FWM "].iter().any(|name| line.starts_with(name)),
        };
        match blocks.last_mut() {
            _ if begins => blocks.push(format!("{line}\n")),
            Some(block) => block.push_str(&format!("{line}\n")),
            None if line.starts_with("IP Virtual Server version") => {
                head.push(line.split(" (size=").next().unwrap_or(line).to_owned());
            }
            None => head.push(line.to_owned()),
        }
    }
    blocks.sort();
    (head, blocks)
}

/// Whether two connection listings have the same rows with about the same times left.
fn connections(want: &str, got: &str) -> bool {
    let (mut want, mut got) = (rows(want), rows(got));
    want.sort();
    got.sort();
    let mut rest = got;
    for (row, seconds) in want {
        let close = |(other, left): &(String, u64)| {
            let apart = left.abs_diff(seconds);
            let is_near = match row.contains("  ASSURED ") || row.contains("  NONE ") {
                // A template that controls connections begins another minute when its own is over, late by an eighth.
                true => apart.min(apart.abs_diff(60)) <= 2 + seconds.max(*left).max(60) / 8,
                false => apart <= 2 + seconds.max(*left) / 8,
            };
            *other == row && is_near
        };
        match rest.iter().position(close) {
            Some(at) => drop(rest.remove(at)),
            // The kernel's timers fire late: a connection whose time is over may be gone here.
            None if seconds == 0 => {}
            None => return false,
        }
    }
    rest.is_empty()
}

/// Rows without their time, and the time in seconds; title lines have none.
fn rows(listing: &str) -> Vec<(String, u64)> {
    listing
        .lines()
        .map(|line| {
            let time = line.get(4..).and_then(|rest| rest.split_whitespace().next()).unwrap_or_default();
            let seconds = time.split_once(':').and_then(|(minutes, seconds)| {
                Some(minutes.parse::<u64>().ok()? * 60 + seconds.parse::<u64>().ok()?)
            });
            match seconds {
                Some(seconds) => (line.replacen(time, "", 1), seconds),
                None => (line.to_owned(), 0),
            }
        })
        .collect()
}
