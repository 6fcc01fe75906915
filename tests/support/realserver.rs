//! `xvs realserver` in a namespace linked to that of a director: commands, state, packets; for
//! `tests/netlab/realserver*.rs`.

use std::fs;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::num::NonZeroU32;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use rustix::net::{AddressFamily, Protocol, RawProtocol, SendFlags, SocketType, sendto, socket};
use serde_json::Value;

use crate::director::program;
use crate::netns::{Netns, must};

/// Time limit of a wait, which only a failing test reaches.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The virtual address of the tests.
pub const VIP: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);

/// A director 10.0.0.1 and a real server 10.0.0.2 on one link.
pub fn pair() -> (Netns, Netns) {
    let (director, server) = (Netns::new("rs-d"), Netns::new("rs-s"));
    director.veth("wan", &server, "eth");
    director.ip("addr add 10.0.0.1/24 dev wan");
    server.ip("addr add 10.0.0.2/24 dev eth");
    server.ip("route add default via 10.0.0.1");
    (director, server)
}

/// Runs `xvs realserver` with these words.
pub fn xvs(netns: &Netns, words: &str) -> Output {
    let mut command = netns.command(program("xvs"));
    command.arg("realserver").args(words.split_whitespace());
    command.output().expect("xvs starts")
}

/// The output of a program as text.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("xvs prints UTF-8")
}

/// Runs it; it must succeed.
pub fn done(netns: &Netns, words: &str) -> String {
    let output = xvs(netns, words);
    assert!(output.status.success(), "{words}: {}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// A command's error message, without the note that it waited for another command: the namespaces of all tests share
/// one lock.
pub fn complaint(output: &Output) -> String {
    let stderr = text(&output.stderr);
    let lines = stderr.split_inclusive('\n').filter(|line| !line.starts_with("xvs: waiting for another "));
    lines.collect()
}

/// Runs it; it must fail; returns the reason.
pub fn refused(netns: &Netns, words: &str) -> String {
    let output = xvs(netns, words);
    assert_eq!(output.status.code(), Some(1), "{words}: {}", text(&output.stdout));
    complaint(&output)
}

/// What `xvs realserver status --json` prints; nothing may have a problem.
pub fn status(netns: &Netns) -> Value {
    serde_json::from_str(&done(netns, "status --json")).expect("status prints JSON")
}

/// Sets a setting of sysctl(8).
pub fn set(netns: &Netns, name: &str, value: i32) {
    must(netns.command("sysctl").args(["-q", "-w", &format!("{name}={value}")]));
}

/// All state that `up` may change, as text.
pub fn state(netns: &Netns) -> String {
    let devs = must(netns.command("ls").arg("/proc/sys/net/ipv4/conf"));
    let devs = text(&devs.stdout);
    let settings = devs.split_whitespace().flat_map(|dev| {
        ["arp_ignore", "arp_announce", "rp_filter"].map(|name| format!("net/ipv4/conf/{dev}/{name}"))
    });
    let settings = must(netns.command("sysctl").args(settings));
    // Link-local addresses appear at any time.
    let addresses = must(netns.command("ip").args(["-o", "addr", "show", "scope", "global"]));
    let links = must(netns.command("ip").args(["-o", "link", "show", "up"]));
    let links = text(&links.stdout);
    let links = links.lines().map(|line| {
        let name = line.split_whitespace().nth(1).unwrap_or_default();
        let program = if line.contains("xdp") { "with an XDP program" } else { "" };
        format!("{name} is up {program}\n")
    });
    [text(&settings.stdout), text(&addresses.stdout), links.collect()].concat()
}

/// An IPv4 header without checksum, which the kernel fills in for packets from raw sockets.
pub fn ipv4(protocol: u8, source: Ipv4Addr, dest: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let total = (20 + payload.len()) as u16;
    let mut packet = vec![0x45, 0, 0, 0, 0, 7, 0, 0, 64, protocol, 0, 0];
    packet[2..4].copy_from_slice(&total.to_be_bytes());
    packet.extend([source.octets(), dest.octets()].concat());
    let words = packet.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let sum: u32 = words.sum();
    let check = !((sum & 0xffff) as u16).wrapping_add((sum >> 16) as u16);
    packet[10..12].copy_from_slice(&check.to_be_bytes());
    [&packet, payload].concat()
}

/// A datagram from a client to the virtual address, port 5000, in a tunnel from the director to the real server.
pub fn tunnelled(client: SocketAddrV4, text: &[u8]) -> Vec<u8> {
    let mut udp = client.port().to_be_bytes().to_vec();
    udp.extend(5000u16.to_be_bytes());
    udp.extend((8 + text.len() as u16).to_be_bytes());
    // A checksum of 0 means none (RFC 768).
    udp.extend([0, 0]);
    udp.extend(text);
    let inner = ipv4(17, *client.ip(), VIP, &udp);
    ipv4(4, Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2), &inner)
}

/// Sends a payload of an IP packet of this protocol; the kernel writes the header.
pub fn send_raw(director: &Netns, server: IpAddr, protocol: u8, payload: &[u8]) {
    director.run(|| {
        let family = if server.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let number = NonZeroU32::new(protocol.into()).map(|number| Protocol::from_raw(number as RawProtocol));
        let raw = socket(family, SocketType::RAW, number).expect("this test runs as root");
        sendto(raw, payload, SendFlags::empty(), &SocketAddr::new(server, 0)).expect("there is a route");
    });
}

/// Attaches an XDP program that xvs does not know to the server's interface.
pub fn occupy(server: &Netns) {
    let object = std::env::temp_dir().join(format!("{}.bpf.o", server.name));
    let source = "__attribute__((section(\"xdp\"), used)) int other(void *frame) { return 2; }";
    let mut clang = Command::new("clang");
    clang.args(["-O2", "-target", "bpf", "-x", "c", "-c", "-", "-o"]).arg(&object).stdin(Stdio::piped());
    let mut clang = clang.spawn().expect("clang is there: the build needs it");
    let mut stdin = clang.stdin.take().expect("it was asked for above");
    stdin.write_all(source.as_bytes()).expect("clang reads its input");
    drop(stdin);
    assert!(clang.wait().expect("it is a child of this process").success());
    // ip(8) mounts a bpffs where it finds none.
    let mut attach = server.command_with_mounts();
    attach.args(["ip", "link", "set", "dev", "eth", "xdp", "obj"]).arg(&object).args(["sec", "xdp"]);
    must(&mut attach);
    fs::remove_file(object).expect("clang made it");
}
