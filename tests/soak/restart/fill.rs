//! Connections that fill a director's table, for the suites `restart`, `failover` and `mixed`.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::{Duration, Instant};

use xvs::cluster::{real_server, virtual_endpoint};
use xvs::{Cluster, Director, Host};

/// Adds the service of [`fill`] to a director: NAT, with a timeout of a day.
pub(crate) fn add_fill_service(director: &Director<'_>) {
    director.adm("--set 0 0 86400");
    let service = format!("-u {}", virtual_endpoint(PORT));
    director.adm(&format!("-A {service}"));
    director.adm(&format!("-a {service} -r {}:{PORT} -m", real_server(1)));
}

/// Lets `count` clients send a datagram each, so that a director has that many more connections.
pub(crate) fn fill(cluster: &Cluster, count: usize) {
    // It is never read, so datagrams that it has no room for are dropped, without an ICMP error.
    let bind = || UdpSocket::bind(("0.0.0.0", PORT)).expect("the port is free");
    let _sink = cluster.run(Host::RealServer(1), bind);
    let addresses = (0..count.div_ceil(PORTS)).map(|at| Ipv4Addr::new(198, 51, 100, 101 + at as u8));
    for address in addresses.clone() {
        cluster.ip(Host::Client, &format!("address add {address}/32 dev wan"));
    }
    let clients = addresses.flat_map(|ip| (2000..).take(PORTS).map(move |port| SocketAddrV4::new(ip, port)));
    cluster.run(Host::Client, || {
        let start = Instant::now();
        for (sent, client) in clients.take(count).enumerate() {
            let socket = UdpSocket::bind(client).expect("the address is there and the port free");
            // One that is lost leaves the table with one entry less.
            let _ = socket.send_to(&[0], virtual_endpoint(PORT));
            // 25,000 a second.
            if sent % 100 == 0 {
                std::thread::sleep(Duration::from_micros(sent as u64 * 40).saturating_sub(start.elapsed()));
            }
        }
    });
}

/// The port of the datagrams that fill the table.
pub(crate) const PORT: u16 = 5301;
/// How many of them come from an address.
const PORTS: usize = 60_000;
