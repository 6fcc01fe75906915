//! Tunnels over and of IPv6 with real sockets: curl, nginx and uploads, each kind in every combination with IPv4.
//!
//! Each test has a cluster of its own. Needs root. Not here: IPv4 in IPv4 (`tunnel.rs`).

use std::net::{IpAddr, SocketAddr};

use xvs::cluster::{REAL_SERVERS, VIP, VIP6, real_server, real_server6, succeed};
use xvs::director::program;
use xvs::servers::{Receipt, Sink};
use xvs::{Director, Method, Workers, clients, traffic};

const UPLOAD: u16 = 9000;
const KINDS: [Method; 5] = [Method::Tunnel, Method::Gre, Method::GreSummed, Method::Gue, Method::GueSummed];

/// Real servers take turns, and a download from and an upload to each arrive whole, with each kind of tunnel.
fn carries_whole(vip: IpAddr, server: impl Fn(u8) -> IpAddr) {
    let cluster = traffic::prepared(Method::Nat, Workers::Two);
    for host in REAL_SERVERS {
        let mut command = cluster.command(host, program("xvs"));
        let vip = vip.to_string();
        succeed(command.args(["realserver", "up", "--vip", &vip, "--method", "tunnel", "--dev", "lan"]));
    }
    let _sinks = REAL_SERVERS.map(|host| Sink::start(&cluster, host, UPLOAD));
    let director = Director::start(&cluster, Workers::Two);
    let blob = cluster.blob();
    let authority = SocketAddr::new(vip, 80);
    for kind in KINDS {
        director.adm("-C");
        for port in [80, UPLOAD] {
            let service = SocketAddr::new(vip, port);
            director.adm(&format!("-A -t {service} -s rr"));
            for number in [1, 2] {
                let dest = SocketAddr::new(server(number), port);
                director.adm(&format!("-a -t {service} -r {dest} {}", kind.option()));
            }
        }
        let pages = clients::pages(&cluster, &format!("http://{authority}/"), 4);
        assert!(clients::take_turns(&pages), "{kind:?}: pages came from {pages:?}");
        for host in REAL_SERVERS {
            let body = clients::fetch(&cluster, &format!("http://{authority}/blob")).expect("download");
            assert!(body == blob, "{kind:?}: a download of {} bytes differs from the file", body.len());
            let upload = SocketAddr::new(vip, UPLOAD);
            let receipts = clients::parallel_uploads(&cluster, upload, 2, &blob[..5_000_000]);
            let owed: Receipt = clients::receipt(&host.name(), &blob[..5_000_000]);
            assert!(receipts.contains(&owed), "{kind:?}: {receipts:?}");
        }
    }
}

#[test]
fn ipv6_in_ipv6_arrives_whole_by_every_kind_of_tunnel() {
    carries_whole(VIP6.into(), |number| real_server6(number).into());
}

#[test]
fn ipv6_in_ipv4_arrives_whole_by_every_kind_of_tunnel() {
    carries_whole(VIP6.into(), |number| real_server(number).into());
}

#[test]
fn ipv4_in_ipv6_arrives_whole_by_every_kind_of_tunnel() {
    carries_whole(VIP.into(), |number| real_server6(number).into());
}
