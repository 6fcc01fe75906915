//! The SYN proxy with real TCP: downloads, uploads, servers that speak first or refuse.
//!
//! Each test has a cluster of its own. Needs root. Not here: the numbers of segments (`lab/syn_proxy.rs`).

use std::io::{ErrorKind, Read};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use xvs::clients::{self, HalfUpload, fetch};
use xvs::cluster::{REAL_SERVERS, VIP, VIP6, real_server, real_server6, succeed};
use xvs::servers::{Ftp, Sink};
use xvs::{Cluster, Director, Host, Method, Workers, traffic};

/// The director's address in the real servers' network.
const LOCAL: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const UPLOAD: u16 = 9000;
/// No server listens here.
const CLOSED: u16 = 9999;

/// A service behind the proxy, with both real servers.
fn serve(director: &Director<'_>, vip: IpAddr, port: u16, method: Method) {
    let service = SocketAddr::new(vip, port);
    director.adm(&format!("-A -t {service} -s rr --syn-proxy on"));
    for number in [1, 2] {
        let server = match vip {
            IpAddr::V4(_) => SocketAddr::from((real_server(number), port)),
            IpAddr::V6(_) => SocketAddr::from((real_server6(number), port)),
        };
        director.adm(&format!("-a -t {service} -r {server} {}", method.option()));
    }
}

/// The value of a counter.
fn counter(director: &Director<'_>, name: &str) -> u64 {
    let all = director.xvs("counters");
    let mut words = all.split_whitespace();
    words
        .find(|word| *word == name)
        .and_then(|_| words.next())
        .map_or(0, |text| text.parse().expect("a count"))
}

fn refuses(cluster: &Cluster, target: SocketAddr) {
    // The director has accepted; the server's refusal comes afterwards.
    let answer = cluster.run(Host::Client, || {
        let mut stream = clients::connect(target)?;
        stream.read(&mut [0; 1])
    });
    assert_eq!(answer.expect_err("it is reset").kind(), ErrorKind::ConnectionReset);
}

fn carries_everything(method: Method, workers: Workers) {
    let cluster = traffic::prepared(method, workers);
    let _sinks = REAL_SERVERS.map(|host| Sink::start(&cluster, host, UPLOAD));
    let director = Director::start(&cluster, workers);
    if method == Method::FullNat {
        director.xvs(&format!("laddr add {LOCAL}"));
        director.xvs("laddr add 2001:db8:2::1");
    }
    let vips = [VIP.into(), VIP6.into()];
    for vip in vips {
        for port in [80, UPLOAD, CLOSED] {
            serve(&director, vip, port, method);
        }
    }
    let bytes = &cluster.blob()[..100_000];
    for vip in vips {
        let url = format!("http://{}/blob", SocketAddr::new(vip, 80));
        for _ in REAL_SERVERS {
            let body = fetch(&cluster, &url).unwrap_or_else(|error| panic!("{url}: {error}"));
            // assert_eq would print 20 MB.
            assert!(body == cluster.blob(), "{url}: {} bytes differ from the file", body.len());
        }
        let receipts = clients::parallel_uploads(&cluster, SocketAddr::new(vip, UPLOAD), 100, bytes);
        for (number, host) in ["rs1", "rs2"].into_iter().enumerate() {
            let expected = clients::receipt(host, bytes);
            let count = receipts.iter().filter(|receipt| **receipt == expected).count();
            assert_eq!(count, 50, "server {number} of {vip}: {receipts:?}");
        }
        refuses(&cluster, SocketAddr::new(vip, CLOSED));
    }
    assert_eq!(counter(&director, "syn_cookies_accepted"), 2 * (2 + 100 + 1));
    assert_eq!(counter(&director, "drop_bad_cookie"), 0);
}

#[test]
fn downloads_and_uploads_through_the_proxy_arrive_whole_by_nat_with_one_worker() {
    carries_everything(Method::Nat, Workers::One);
}

#[test]
fn downloads_and_uploads_through_the_proxy_arrive_whole_by_fullnat_with_two_workers() {
    carries_everything(Method::FullNat, Workers::Two);
}

#[test]
fn a_server_that_speaks_first_is_heard_and_its_data_connections_work() {
    let cluster = traffic::prepared(Method::Nat, Workers::Two);
    let _servers = REAL_SERVERS.map(|host| Ftp::start(&cluster, host));
    let director = Director::start(&cluster, Workers::Two);
    serve(&director, VIP.into(), 21, Method::Nat);
    for kind in [&["--disable-epsv", "--no-ftp-skip-pasv-ip"][..], &[], &["--ftp-port", "-"]] {
        let download = || {
            let url = format!("ftp://{VIP}/file");
            succeed(clients::curl(&cluster).args(kind).arg(url)).trim_end().to_owned()
        };
        let names: Vec<_> = (0..4).map(|_| download()).collect();
        assert!(clients::take_turns(&names), "{kind:?}: {names:?}");
    }
    assert_eq!(counter(&director, "syn_cookies_accepted"), 12);
}

#[test]
fn connections_through_the_proxy_outlive_a_kill_of_the_daemon() {
    let cluster = traffic::prepared(Method::Nat, Workers::Two);
    let _sinks = REAL_SERVERS.map(|host| Sink::start(&cluster, host, UPLOAD));
    let mut director = Director::start_with(&cluster, Workers::Two, &["--hold", "10s"]);
    serve(&director, VIP.into(), UPLOAD, Method::Nat);
    let uploads: Vec<_> = (0..10).map(|_| HalfUpload::begin(&cluster, UPLOAD)).collect();
    director.kill();
    let director = Director::start_with(&cluster, Workers::Two, &["--hold", "10s"]);
    uploads.into_iter().for_each(HalfUpload::finish);
    HalfUpload::begin(&cluster, UPLOAD).finish();
    // The service's option has come back from the journal.
    assert_eq!(counter(&director, "syn_cookies_accepted"), 1);
}
