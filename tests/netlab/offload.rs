//! Flow offload over real interfaces: the XDP program forwards packets of connections.
//!
//! veth takes packets that an XDP program forwards if GRO is on at its other end. Each test has a cluster of its own.
//! Needs root. Not here: what the program makes of each packet (`XVS_OFFLOAD=1`, see `scripts/test`).

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::sync::mpsc::{self, TryRecvError};
use std::thread;
use std::time::Duration;

use xvs::clients::{self, Asker, HalfUpload};
use xvs::cluster::{
    REAL_SERVERS, VIP, VIP6, Wan, complete, real_server, real_server6, succeed, virtual_endpoint,
};
use xvs::director::{Protocol, program};
use xvs::exposition::{ADDRESS, Page};
use xvs::servers::{Echo, Sink};
use xvs::{Cluster, Director, Host, Layout, Method, Workers, traffic, wait};

const HTTP: u16 = 80;
const UPLOAD: u16 = 9000;
const DATAGRAMS: u16 = 5300;

/// The ends of the director's interfaces at their neighbours.
const ENDS: [(Host, &str); 2] = [(Host::Client, "wan"), (Host::Switch, "dr")];

/// A cluster whose director may forward by its XDP program.
fn cluster(method: Method) -> Cluster {
    let cluster = traffic::prepared(method, Workers::Two);
    ENDS.iter().for_each(|end| set_gro(&cluster, *end, "on"));
    cluster
}

fn set_gro(cluster: &Cluster, (host, interface): (Host, &str), to: &str) {
    succeed(cluster.command(host, "ethtool").args(["-K", interface, "gro", to]));
}

fn start(cluster: &Cluster) -> Director<'_> {
    Director::start_with(cluster, Workers::Two, &["--hold", "1min", "--metrics", ADDRESS])
}

/// Packets that the program has forwarded.
fn offloaded(cluster: &Cluster) -> f64 {
    Page::of(cluster, Host::Director).sum("xvs_worker_offloaded_packets_total", &[]).unwrap_or(0.0)
}

/// The real servers' addresses of each family.
const V4: fn(u8) -> IpAddr = |number| real_server(number).into();
const V6: fn(u8) -> IpAddr = |number| real_server6(number).into();

/// Downloads, uploads and datagrams by a virtual address of this cluster arrive whole, and each packet is counted.
fn arrive_whole_and_are_counted(cluster: &Cluster, method: Method, vip: IpAddr, server: fn(u8) -> IpAddr) {
    let _sinks = REAL_SERVERS.map(|host| Sink::start(cluster, host, UPLOAD));
    let _echoes = [1, 2].map(|number| {
        let at = if method.masquerades() { server(number) } else { vip };
        Echo::start(cluster, Host::RealServer(number), (at, DATAGRAMS))
    });
    let director = start(cluster);
    if method == Method::FullNat {
        director.xvs("laddr add 192.0.2.1 --ports 5000-5999");
        director.xvs("laddr add 2001:db8:2::1 --ports 5000-5999");
    }
    for (protocol, port) in [("-t", HTTP), ("-t", UPLOAD), ("-u", DATAGRAMS)] {
        let service = SocketAddr::new(vip, port);
        director.adm(&format!("-A {protocol} {service} -s rr"));
        for number in [1, 2] {
            let server = SocketAddr::new(server(number), port);
            director.adm(&format!("-a {protocol} {service} -r {server} {}", method.option()));
        }
    }
    let blob = cluster.blob();
    for _ in REAL_SERVERS {
        let body = clients::fetch(cluster, &format!("http://{}/blob", SocketAddr::new(vip, HTTP)));
        assert!(body.expect("download") == blob, "a download differs from the file");
    }
    let receipts = clients::parallel_uploads(cluster, (vip, UPLOAD), 8, &blob);
    receipts.iter().for_each(|receipt| assert_eq!(*receipt, clients::receipt(&receipt.host, &blob)));
    let asker = Asker::new(cluster, (vip, DATAGRAMS));
    let answers: Vec<_> = (0..200).map(|number| asker.ask(format!("{number}").as_bytes())).collect();
    assert!(answers.windows(2).all(|pair| pair[0] == pair[1]), "a flow changed its real server: {answers:?}");

    // What was forwarded is counted at services within a second: as much as the interfaces have carried.
    wait::until("all packets are counted", || {
        let page = Page::of(cluster, Host::Director);
        let sum = |name| page.sum(name, &[]).expect("the metric is there");
        let by_services =
            sum("xvs_service_incoming_packets_total") + sum("xvs_service_outgoing_packets_total");
        let carried = sum("xvs_worker_received_packets_total") + sum("xvs_worker_offloaded_packets_total");
        let others = sum("xvs_worker_passed_packets_total");
        // The errors about segments that are too large for a tunnel are replies.
        let carried = carried + sum("xvs_worker_originated_packets_total");
        assert_eq!(sum("xvs_worker_unaccounted_packets"), 0.0);
        (by_services + others == carried && sum("xvs_worker_offloaded_packets_total") > 10_000.0)
            .then_some(())
    });
}

/// The same by IPv4, with nothing that keeps packets from the program.
fn arrive_whole_by(method: Method) {
    let cluster = cluster(method);
    arrive_whole_and_are_counted(&cluster, method, VIP.into(), V4);
}

#[test]
fn offloaded_connections_by_nat_arrive_whole_and_are_counted() {
    arrive_whole_by(Method::Nat);
}

#[test]
fn offloaded_connections_by_full_nat_arrive_whole_and_are_counted() {
    arrive_whole_by(Method::FullNat);
}

#[test]
fn offloaded_connections_by_direct_routing_arrive_whole_and_are_counted() {
    arrive_whole_by(Method::DirectRouting);
}

#[test]
fn offloaded_connections_by_a_tunnel_arrive_whole_and_are_counted() {
    arrive_whole_by(Method::Tunnel);
}

#[test]
fn offloaded_connections_of_ipv6_arrive_whole_and_are_counted() {
    arrive_whole_and_are_counted(&cluster(Method::Nat), Method::Nat, VIP6.into(), V6);
}

#[test]
fn offloaded_connections_of_ipv6_with_servers_of_ipv4_arrive_whole_and_are_counted() {
    arrive_whole_and_are_counted(&cluster(Method::FullNat), Method::FullNat, VIP6.into(), V4);
}

#[test]
fn offloaded_connections_of_ipv4_with_servers_of_ipv6_arrive_whole_and_are_counted() {
    arrive_whole_and_are_counted(&cluster(Method::FullNat), Method::FullNat, VIP.into(), V6);
}

#[test]
fn each_connection_has_one_time_until_its_first_reply_whoever_forwards_that() {
    let cluster = cluster(Method::Nat);
    let director = start(&cluster);
    director.add_service(Protocol::Tcp, HTTP, Method::Nat);
    clients::pages(&cluster, &format!("http://{VIP}/"), 20);
    let seconds = wait::until("every connection has its time", || {
        let page = Page::of(&cluster, Host::Director);
        let of = |what: &str| page.sum(&format!("xvs_destination_{what}"), &[]);
        let (times, connections) = (of("response_seconds_count")?, of("connections_total")?);
        assert!(times <= connections, "{times} times of {connections} connections");
        (times == 20.0 && connections == 20.0).then(|| of("response_seconds_sum"))
    });
    // Both ends are on this machine.
    assert!(seconds.is_some_and(|seconds| seconds > 0.0 && seconds < 20.0), "{seconds:?}");
    assert!(offloaded(&cluster) > 0.0, "the program has forwarded nothing");
}

/// On one connection each, while xvsd is replaced: once for every ten files of 20 MB, of which there are `XVS_FILES`.
#[test]
fn files_arrive_whole_from_servers_of_the_other_family_with_and_without_offload() {
    let files = std::env::var("XVS_FILES").map_or(5, |files| files.parse().expect("a number"));
    let cluster = cluster(Method::FullNat);
    let wanted = cluster.blob().repeat(files);
    for offload in ["auto", "off"] {
        let (file, keys) = (cluster.state().join("xvs.toml"), "interfaces = [\"wan\", \"lan\"]\nworkers = 2");
        let text = format!("{keys}\nhold = \"1min\"\noffload = \"{offload}\"\n");
        fs::write(&file, text).expect("the cluster's folder takes files");
        let options = ["--config", file.to_str().expect("a plain path"), "--metrics", ADDRESS];
        let director = Director::start_on(&cluster, Host::Director, &options);
        director.xvs("laddr add 192.0.2.1");
        director.xvs("laddr add 2001:db8:2::1");
        let services = [(VIP6.into(), V4(1)), (IpAddr::from(VIP), V6(1))];
        let services = services.map(|(vip, server)| [vip, server].map(|addr| SocketAddr::new(addr, HTTP)));
        for [service, server] in services {
            director.adm(&format!("-A -t {service} -s rr"));
            director.adm(&format!("-a -t {service} -r {server} --fullnat"));
        }
        // Each ends the one that serves.
        let mut successors = Vec::new();
        thread::scope(|scope| {
            let downloads = services.map(|[service, _]| {
                let url = format!("http://{service}/blob?[1-{files}]");
                let mut curl = clients::curl(&cluster);
                curl.args(["--max-time", "300", "--limit-rate", "50M"]).arg(url);
                (service, scope.spawn(move || complete(&mut curl).stdout))
            });
            if offload == "auto" {
                wait::until("downloads are offloaded", || (offloaded(&cluster) > 1000.0).then_some(()));
            }
            for _ in 0..(files / 10).max(1) {
                thread::sleep(Duration::from_secs(1));
                let successor = Director::take_over_on(&cluster, Host::Director, &options);
                successors.push(successor.unwrap_or_else(|log| panic!("{log}")));
            }
            for (service, download) in downloads {
                let body = download.join().expect("no panic");
                // assert_eq would print all of them.
                assert!(body == wanted, "{service}: {} bytes differ from the file", body.len());
            }
        });
        assert!(offload == "auto" || offloaded(&cluster) == 0.0, "{}", director.status());
    }
}

#[test]
fn in_generic_mode_requests_are_offloaded_although_their_interface_takes_no_replies() {
    let cluster = Cluster::up(Layout { wan: Wan::Macvlan, queues: 2, ..Layout::default() });
    set_gro(&cluster, ENDS[1], "on");
    arrive_whole_and_are_counted(&cluster, Method::Nat, VIP.into(), V4);
}

#[test]
fn nothing_is_lost_while_the_offload_is_switched_on_and_off_under_load() {
    let cluster = cluster(Method::Nat);
    let _sinks = REAL_SERVERS.map(|host| Sink::start(&cluster, host, UPLOAD));
    let file = cluster.state().join("xvs.toml");
    let write = |keys: &str| {
        let text = format!("interfaces = [\"wan\", \"lan\"]\nworkers = 2\nhold = \"1min\"\n{keys}\n");
        fs::write(&file, text).expect("the cluster's folder takes files");
    };
    write("offload = \"off\"");
    let path = file.to_str().expect("a plain path");
    let mut director = Director::start_on(&cluster, Host::Director, &["--config", path]);
    director.add_service(Protocol::Tcp, HTTP, Method::Nat);
    director.add_service(Protocol::Tcp, UPLOAD, Method::Nat);
    let half = HalfUpload::begin(&cluster, UPLOAD);
    let blob = cluster.blob();
    let downloads = thread::scope(|scope| {
        let (done, is_done) = mpsc::channel::<()>();
        let (cluster, blob) = (&cluster, &blob);
        let loading = scope.spawn(move || {
            let mut downloads = 0;
            // Also if the reloads fail.
            while is_done.try_recv() == Err(TryRecvError::Empty) {
                let body = clients::fetch(cluster, &format!("http://{VIP}/blob")).expect("download");
                assert!(body == *blob, "a download differs from the file");
                downloads += 1;
            }
            downloads
        });
        let shows = |text: &str| {
            let mut status = cluster.command(Host::Director, program("xvs"));
            let output = complete(status.arg("status"));
            String::from_utf8_lossy(&output.stdout).contains(text)
        };
        assert!(!shows("\noffload"), "it is off");
        for (keys, shown) in [
            ("", "offload    "),
            ("offload_excluded = [\"lan\"]", "offload    not by lan: `offload_excluded` names it"),
            ("offload_after = 0", "; "),
        ] {
            write(keys);
            succeed(cluster.command(Host::Director, program("xvs")).arg("reload"));
            wait::until("the successor says so", || shows(shown).then_some(()));
            let is_off = keys.contains("lan");
            wait::until("packets are offloaded", || {
                (is_off || !shows("; 0 packets forwarded")).then_some(())
            });
        }
        director.is_taken_over();
        drop(done);
        loading.join().expect("downloads arrive")
    });
    half.finish();
    assert!(downloads > 3, "{downloads} downloads");
}

/// A director with a service of datagrams, and a flow that is offloaded.
fn offloaded_flow(cluster: &Cluster) -> (Director<'_>, [Echo; 2], Asker, String) {
    let echoes =
        [1, 2].map(|number| Echo::start(cluster, Host::RealServer(number), (real_server(number), DATAGRAMS)));
    let director = start(cluster);
    director.add_service(Protocol::Udp, DATAGRAMS, Method::Nat);
    let asker = Asker::new(cluster, virtual_endpoint(DATAGRAMS));
    let server = asker.ask(b"the first");
    wait::until("the flow is offloaded", || {
        (0..20).for_each(|number| drop(asker.ask(format!("{number}").as_bytes())));
        (offloaded(cluster) > 0.0).then_some(())
    });
    let (from, to) = (asker.addr(), virtual_endpoint(DATAGRAMS));
    let explained = director.xvs(&format!("explain --proto udp --from {from} --to {to}"));
    assert!(explained.contains("offload     the XDP program forwards"), "{explained}");
    (director, echoes, asker, server)
}

#[test]
fn a_removed_real_server_gets_no_packet_of_an_offloaded_flow_from_then_on() {
    let cluster = cluster(Method::Nat);
    let (director, _echoes, asker, server) = offloaded_flow(&cluster);
    let number = if server == "rs1" { 1 } else { 2 };
    director.adm(&format!("-d -u {VIP}:{DATAGRAMS} -r {}:{DATAGRAMS}", real_server(number)));
    // A datagram of a removed real server is scheduled again.
    for question in 0..50 {
        assert_ne!(asker.ask(format!("now {question}").as_bytes()), server);
    }
}

#[test]
fn an_offloaded_flow_goes_on_while_no_xvsd_runs_and_with_the_next_one() {
    let cluster = cluster(Method::Nat);
    let (mut director, _echoes, asker, server) = offloaded_flow(&cluster);
    director.kill();
    // Within the hold nobody but the program can forward.
    assert_eq!(asker.ask(b"without xvsd"), server);
    let next = start(&cluster);
    assert_eq!(asker.ask(b"with the next one"), server);
    let next = {
        let arguments = ["--hold", "1min", "--metrics", ADDRESS];
        let successor = Director::take_over(&cluster, Workers::Two, &arguments);
        drop(next);
        successor.unwrap_or_else(|log| panic!("{log}"))
    };
    assert_eq!(asker.ask(b"after a take-over"), server);
    assert!(next.adm("-Lnc").contains("UDP"));
}

/// The packets and bytes of both directions that the service of datagrams has counted.
fn counted(director: &Director) -> [u64; 4] {
    let listing = director.adm(&format!("-Ln --stats --exact -u {VIP}:{DATAGRAMS}"));
    let row = listing.lines().find(|line| line.starts_with("UDP")).expect("the service");
    let numbers: Vec<_> =
        row.split_whitespace().skip(3).map(|word| word.parse().expect("a number")).collect();
    numbers.try_into().expect("four numbers")
}

#[test]
fn packets_forwarded_while_no_xvsd_runs_are_counted_and_keep_their_connection_by_the_next_one() {
    // Some times what a start takes under load.
    const TIMEOUT: Duration = Duration::from_secs(15);
    let cluster = cluster(Method::Nat);
    let (mut director, _echoes, asker, server) = offloaded_flow(&cluster);
    director.adm(&format!("--set 0 0 {}", TIMEOUT.as_secs()));
    assert_eq!(asker.ask(b"with this timeout"), server);
    // So that all is counted, and totals outlive a kill.
    thread::sleep(Duration::from_secs(3));
    let (before, sent_before) = (counted(&director), asker.sent());
    director.kill();
    for _ in 0..7 {
        assert_eq!(asker.ask(b"a question"), server);
        thread::sleep(TIMEOUT / 6);
    }
    let next = start(&cluster);
    let bytes = 28 + b"a question".len() as u64;
    // A late reply lets it ask again.
    let sent = asker.sent() - sent_before;
    // Requests, replies, and bytes of requests, which a listing may see one after the other.
    let expected = [sent, sent, sent * bytes];
    let more = wait::until("they are counted", || {
        let after = counted(&next);
        let more = [0, 1, 2].map(|place| after[place] - before[place]);
        more.iter().zip(expected).all(|(more, expected)| *more >= expected).then_some(more)
    });
    assert_eq!(more, expected);
    assert_eq!(asker.ask(b"by the same connection"), server);
}

#[test]
fn flows_go_back_to_workers_if_an_interface_refuses_what_the_program_forwards() {
    let cluster = cluster(Method::Nat);
    let _sinks = REAL_SERVERS.map(|host| Sink::start(&cluster, host, UPLOAD));
    let director = start(&cluster);
    director.add_service(Protocol::Tcp, UPLOAD, Method::Nat);
    let blob = cluster.blob();
    clients::parallel_uploads(&cluster, virtual_endpoint(UPLOAD), 2, &blob);
    wait::until("flows are offloaded", || (offloaded(&cluster) > 0.0).then_some(()));
    set_gro(&cluster, ENDS[1], "off");
    let half = HalfUpload::begin(&cluster, UPLOAD);
    let receipts = clients::parallel_uploads(&cluster, virtual_endpoint(UPLOAD), 2, &blob);
    receipts.iter().for_each(|receipt| assert_eq!(*receipt, clients::receipt(&receipt.host, &blob)));
    half.finish();
    wait::until("status says so", || director.status().contains("offload    not by lan: it ").then_some(()));
}

#[test]
fn short_connections_are_the_programs_from_their_second_packet_on_and_inactive_at_once() {
    const EACH: usize = 50;
    let cluster = cluster(Method::Nat);
    let director = start(&cluster);
    director.adm(&format!("-A -t {VIP}:{HTTP} -s wlc"));
    for number in [1, 2] {
        director.adm(&format!("-a -t {VIP}:{HTTP} -r {}:{HTTP} -m", real_server(number)));
    }
    let page = format!("http://{VIP}/");
    let fetch = || clients::fetch(&cluster, &page).expect("the page");
    wait::until("packets are offloaded", || {
        fetch();
        (offloaded(&cluster) > 0.0).then_some(())
    });
    let inactive = |director: &Director<'_>| {
        let listing = director.adm("-Ln");
        let rows = listing.lines().filter(|row| row.contains("Masq"));
        let counts =
            rows.map(|row| row.split_whitespace().skip(4).map(|count| count.parse().expect("a count")));
        let sums = counts.fold([0_usize; 2], |[active, inactive], mut row| {
            [active + row.next().unwrap_or(0), inactive + row.next().unwrap_or(0)]
        });
        assert_eq!(sums[0], 0, "each is closed before the next one begins: {listing}");
        sums[1]
    };
    let page = || Page::of(&cluster, Host::Director);
    let received = || page().sum("xvs_worker_received_packets_total", &[]).expect("a counter");
    let (before, received_before) = (inactive(&director), received());
    for number in 1..=EACH {
        fetch();
        assert_eq!(inactive(&director), before + number);
    }
    // Nothing but SYNs, and perhaps a segment that was sent again.
    let by_workers = received() - received_before;
    assert!((EACH as f64..1.5 * EACH as f64).contains(&by_workers), "{by_workers} packets by workers");
}
