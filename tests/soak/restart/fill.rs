//! Connections that fill a director's table, for the suites `restart`, `failover` and `mixed`.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, ipproto, sendto, socket_with};
use xvs::cluster::{real_server, virtual_endpoint};
use xvs::{Cluster, Datagram, Director, Host, Transport};

/// Adds the service of [`fill`] to a director: NAT, with a timeout of a day.
pub(crate) fn add_fill_service(director: &Director<'_>) {
    director.adm("--set 0 0 86400");
    let service = format!("-u {}", virtual_endpoint(PORT));
    director.adm(&format!("-A {service}"));
    director.adm(&format!("-a {service} -r {}:{PORT} -m", real_server(1)));
}

/// Sends a datagram from each of `count` clients, 100,000 a second, so that a director has that many more connections.
pub(crate) fn fill(cluster: &Cluster, count: usize) {
    // It is never read, so datagrams that it has no room for are dropped, without an ICMP error.
    let bind = || UdpSocket::bind(("0.0.0.0", PORT)).expect("the port is free");
    let _sink = cluster.run(Host::RealServer(1), bind);
    let dest = virtual_endpoint(PORT);
    let addresses = (u32::from(FIRST)..).map(Ipv4Addr::from);
    let clients = addresses.flat_map(|ip| (2000..).take(PORTS).map(move |port| SocketAddrV4::new(ip, port)));
    cluster.run(Host::Client, || {
        let flags = SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::INET, SocketType::RAW, flags, Some(ipproto::RAW));
        // It sends any source.
        let socket = socket.expect("root has raw sockets");
        let start = Instant::now();
        for (sent, client) in clients.take(count).enumerate() {
            let packet = Datagram::new(Transport::UdpUnsummed, client.into(), dest.into()).packet();
            // One that is lost leaves the table with one entry less.
            let _ = sendto(&socket, &packet, SendFlags::empty(), &dest);
            if sent % 100 == 0 {
                thread::sleep(Duration::from_micros(sent as u64 * 10).saturating_sub(start.elapsed()));
            }
        }
    });
}

/// The port of the datagrams that fill the table.
pub(crate) const PORT: u16 = 5301;
/// The first address from which they come; of a network for benchmarks (RFC 2544).
const FIRST: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
/// How many of them come from an address.
const PORTS: usize = 60_000;
