//! Traffic that every forwarding method must carry, so all methods pass the same checks.
//!
//! One function per claim, called by `tests/netlab/` for each method and number of workers; each makes a cluster of its
//! own. Not here: behaviour of single methods.

use std::net::SocketAddrV4;

use crate::clients::{self, Asker};
use crate::cluster::{
    Cluster, DIRECTOR, Host, Layout, REAL_SERVERS, VIP, real_server, succeed, virtual_endpoint,
};
use crate::director::{Director, Protocol, Workers};
use crate::method::Method;
use crate::servers::{Echo, Receipt, Sink};

/// nginx's port, and the sinks'.
const HTTP: u16 = 80;
const UPLOAD: u16 = 9000;
const DATAGRAMS: u16 = 5300;

/// A cluster whose interfaces have a queue for each worker, its real servers ready for the method.
///
/// # Panics
///
/// If it can't be made.
pub fn prepared(method: Method, workers: Workers) -> Cluster {
    let cluster = Cluster::up(Layout { queues: workers.count(), ..Layout::default() });
    method.prepare(&cluster);
    cluster
}

/// Removes the director's interface towards the client and makes another of its name. With fewer queues than its other
/// end sends by, it has no native XDP.
///
/// # Panics
///
/// If it can't.
pub fn wan_comes_back(cluster: &Cluster, queues: u8, client_queues: u8) {
    cluster.ip(Host::Director, "link del wan");
    let there = cluster.namespace(Host::Client);
    let words = format!(
        "link add wan numrxqueues {queues} numtxqueues {queues} type veth peer name wan netns {there} \
         numrxqueues {queues} numtxqueues {client_queues}"
    );
    cluster.ip(Host::Director, &words);
    for host in [Host::Director, Host::Client] {
        succeed(cluster.command(host, "ethtool").args(["-K", "wan", "tx", "off", "gro", "off"]));
        cluster.ip(host, "link set wan up");
    }
    cluster.ip(Host::Client, "address add 198.51.100.10/24 dev wan");
    for address in [format!("{DIRECTOR}/24"), format!("{VIP}/32")] {
        cluster.ip(Host::Director, &format!("address add {address} dev wan"));
    }
}

/// Real servers take turns; a download of 20 MB from each of them and an upload to each of them arrive whole.
///
/// # Panics
///
/// If they do not.
pub fn tcp_whole_both_ways(method: Method, workers: Workers) {
    let cluster = prepared(method, workers);
    let _sinks = REAL_SERVERS.map(|host| Sink::start(&cluster, host, UPLOAD));
    let director = Director::start(&cluster, workers);
    director.add_service(Protocol::Tcp, HTTP, method);
    director.add_service(Protocol::Tcp, UPLOAD, method);

    let pages = clients::pages(&cluster, &format!("http://{VIP}/"), 8);
    assert!(clients::take_turns(&pages), "pages came from {pages:?}");

    let blob = cluster.blob();
    for _ in REAL_SERVERS {
        let body = clients::fetch(&cluster, &format!("http://{VIP}/blob")).expect("download");
        // assert_eq would print 20 MB.
        assert!(body == blob, "a download of {} bytes differs from the file", body.len());
    }
    let receipts: Vec<Receipt> = REAL_SERVERS
        .iter()
        .flat_map(|_| clients::parallel_uploads(&cluster, virtual_endpoint(UPLOAD), 1, &blob))
        .collect();
    assert_each_took(&receipts, 1, &blob);
}

/// 200 concurrent connections each carry their bytes; each real server has half of them.
///
/// # Panics
///
/// If they do not.
pub fn two_hundred_connections_at_once(method: Method, workers: Workers) {
    let cluster = prepared(method, workers);
    let _sinks = REAL_SERVERS.map(|host| Sink::start(&cluster, host, UPLOAD));
    let director = Director::start(&cluster, workers);
    director.add_service(Protocol::Tcp, UPLOAD, method);

    let bytes = &cluster.blob()[..100_000];
    let receipts = clients::parallel_uploads(&cluster, virtual_endpoint(UPLOAD), 200, bytes);
    assert_each_took(&receipts, 100, bytes);
}

/// Datagrams are answered from the VIP; flows take turns and each keeps its real server.
///
/// # Panics
///
/// If they are not.
pub fn udp_both_ways(method: Method, workers: Workers) {
    let cluster = prepared(method, workers);
    let _echoes = [1, 2].map(|number| {
        let mut endpoint = virtual_endpoint(DATAGRAMS);
        if method == Method::Nat {
            endpoint.set_ip(real_server(number));
        }
        Echo::start(&cluster, crate::Host::RealServer(number), endpoint)
    });
    let director = Director::start(&cluster, workers);
    director.add_service(Protocol::Udp, DATAGRAMS, method);

    let flows: Vec<Asker> = (0..8).map(|_| Asker::new(&cluster, virtual_endpoint(DATAGRAMS))).collect();
    let first: Vec<String> = flows.iter().map(|flow| flow.ask(b"who serves me?")).collect();
    assert!(clients::take_turns(&first), "flows were answered by {first:?}");
    let again: Vec<String> = flows.iter().map(|flow| flow.ask(&[0xa5; 1400])).collect();
    assert_eq!(first, again, "a flow changed its real server");
}

/// Client and real servers leave the checksums of TCP and UDP to their veths, which do not compute them: pages and
/// datagrams are answered, and the director counts the checksums that it has completed.
///
/// # Panics
///
/// If they are not.
pub fn checksums_are_completed(method: Method) {
    let cluster = prepared(method, Workers::One);
    for (host, ends) in [(Host::Client, "wan"), (Host::RealServer(1), "lan"), (Host::Switch, "dr rs1")] {
        for end in ends.split(' ') {
            succeed(cluster.command(host, "ethtool").args(["-K", end, "tx", "on"]));
        }
    }
    let server = if method.masquerades() { real_server(1) } else { VIP };
    let _echo = Echo::start(&cluster, Host::RealServer(1), SocketAddrV4::new(server, DATAGRAMS));
    let director = Director::start(&cluster, Workers::One);
    for (option, port) in [("-t", HTTP), ("-u", DATAGRAMS)] {
        director.adm(&format!("-A {option} {VIP}:{port}"));
        director.adm(&format!("-a {option} {VIP}:{port} -r {}:{port} {}", real_server(1), method.option()));
    }
    let body = clients::fetch(&cluster, &format!("http://{VIP}/blob")).expect("download");
    assert!(body == cluster.blob(), "a download of {} bytes differs from the file", body.len());
    assert_eq!(Asker::new(&cluster, virtual_endpoint(DATAGRAMS)).ask(b"who serves me?"), "rs1");
    assert!(director.xvs("counters").contains("checksums_completed"), "{}", director.xvs("counters"));
}

fn assert_each_took(receipts: &[Receipt], count: usize, bytes: &[u8]) {
    for host in REAL_SERVERS {
        let owed = clients::receipt(&host.name(), bytes);
        let whole = receipts.iter().filter(|&receipt| *receipt == owed).count();
        assert_eq!(whole, count, "uploads that {} took whole; all receipts: {receipts:?}", owed.host);
    }
}
