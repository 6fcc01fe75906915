//! FTP by NAT with real sockets and without persistence: curl downloads by every kind of data connection.
//!
//! Each test has a cluster of its own. Needs root. Not here: FTP by persistence (`persistence.rs`); segments
//! that no client sends (`lab/ftp.rs`).

use std::net::{IpAddr, SocketAddr};

use xvs::cluster::{Cluster, REAL_SERVERS, VIP, VIP6, real_server, real_server6, succeed};
use xvs::servers::Ftp;
use xvs::{Director, Method, Workers, clients, traffic};

/// Downloads the file with these options of curl; the name of its server.
fn download(cluster: &Cluster, vip: IpAddr, options: &[&str]) -> String {
    let url = format!("ftp://{}/file", SocketAddr::new(vip, 21));
    let text = succeed(clients::curl(cluster).args(options).arg(url));
    text.trim_end().to_owned()
}

/// Adds a service with both real servers, and downloads twice by each kind. Servers take turns, so a data connection
/// that did not follow its control connection would reach the other one, or none.
fn every_kind_reaches_the_server(vip: IpAddr, servers: [IpAddr; 2], kinds: &[&[&str]]) {
    let cluster = traffic::prepared(Method::Nat, Workers::Two);
    let _servers = REAL_SERVERS.map(|host| Ftp::start(&cluster, host));
    let director = Director::start(&cluster, Workers::Two);
    let service = SocketAddr::new(vip, 21);
    director.adm(&format!("-A -t {service} -s rr"));
    for server in servers {
        director.adm(&format!("-a -t {service} -r {} -m", SocketAddr::new(server, 21)));
    }
    for kind in kinds {
        let names: Vec<_> = (0..4).map(|_| download(&cluster, vip, kind)).collect();
        assert!(clients::take_turns(&names), "{kind:?}: {names:?}");
    }
    let listing = director.adm("-Lnc");
    assert!(!listing.contains(" LISTEN "), "no expected connection is left:\n{listing}");
}

#[test]
fn passive_and_active_transfers_reach_the_server_of_the_control_connection() {
    let servers = [1, 2].map(|number| real_server(number).into());
    let kinds: [&[&str]; 4] = [
        // curl connects to the address that the reply names.
        &["--disable-epsv", "--no-ftp-skip-pasv-ip"],
        &[],
        &["--ftp-port", "-", "--disable-eprt"],
        &["--ftp-port", "-"],
    ];
    every_kind_reaches_the_server(VIP.into(), servers, &kinds);
}

#[test]
fn extended_transfers_work_over_ipv6() {
    let servers = [1, 2].map(|number| real_server6(number).into());
    every_kind_reaches_the_server(VIP6.into(), servers, &[&[], &["--ftp-port", "-"]]);
}
