//! What outlives xvsd: connections, their destinations and totals, after a kill and a start.
//!
//! Each test has a cluster of its own. Needs root. Not here: packets that arrive while no xvsd runs
//! (`netlab_hold.rs`), the rules (`netlab_journal.rs`).

use std::io::Write;
use std::net::TcpStream;

use xvs::cluster::virtual_endpoint;
use xvs::director::Protocol;
use xvs::servers::Sink;
use xvs::{Cluster, Director, Host, Method, Workers, clients, traffic};

/// The port of the service and of the servers behind it.
const PORT: u16 = 9000;

const BYTES: &[u8] = b"half of an upload, ";

/// Connections of the client whose first bytes have arrived.
fn half_uploads(cluster: &Cluster, count: usize) -> Vec<TcpStream> {
    let open = || {
        let mut stream =
            cluster.run(Host::Client, || clients::connect(virtual_endpoint(PORT))).expect("connection");
        stream.write_all(BYTES).expect("first half");
        stream
    };
    (0..count).map(|_| open()).collect()
}

/// Sends the rest; the receipts show which server got all of it.
fn finish(streams: Vec<TcpStream>) {
    for stream in streams {
        let receipt = clients::upload(stream, BYTES).expect("second half");
        let all = [BYTES, BYTES].concat();
        assert_eq!(receipt, clients::receipt(&receipt.host, &all));
    }
}

fn serve(director: &Director<'_>, method: Method) {
    if method == Method::FullNat {
        director.xvs("laddr add 192.0.2.1 --ports 5000-5999");
    }
    director.add_service(Protocol::Tcp, PORT, method);
}

fn goes_on_after_a_kill(method: Method) {
    let cluster = traffic::prepared(method, Workers::Two);
    let _servers = [1, 2].map(|number| Sink::start(&cluster, Host::RealServer(number), PORT));
    let mut director = Director::start(&cluster, Workers::Two);
    serve(&director, method);
    let streams = half_uploads(&cluster, 20);
    let (listed, entries) = (director.adm("-Ln"), director.adm("-Lnc").lines().count());
    director.kill();

    let director = Director::start(&cluster, Workers::Two);
    assert_eq!(director.adm("-Ln"), listed);
    assert_eq!(director.adm("-Lnc").lines().count(), entries);
    finish(streams);
    assert!(director.log().contains("connections: 20 are taken over"), "{}", director.log());
}

#[test]
fn nat_connections_go_on_after_a_kill_and_a_start() {
    goes_on_after_a_kill(Method::Nat);
}

#[test]
fn full_nat_connections_go_on_after_a_kill_and_a_start() {
    goes_on_after_a_kill(Method::FullNat);
}

#[test]
fn direct_routing_connections_go_on_after_a_kill_and_a_start() {
    goes_on_after_a_kill(Method::DirectRouting);
}
