//! Forwarding by FULLNAT with real sockets: a real server two hops away without a route through the director.
//!
//! The first real server of the cluster becomes a router, the second one is behind it in a network of its own; neither
//! has the director as its default route. Each test has a cluster of its own. Needs root.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::path::PathBuf;
use std::process::Child;
use std::thread;

use rustix::process::{Pid, Signal};
use xvs::clients::{self, fetch};
use xvs::cluster::{VIP, VIP6, complete, succeed};
use xvs::servers::{Echo, Sink};
use xvs::wait;
use xvs::{Cluster, Director, Host, Layout, Workers};

const ROUTER: Host = Host::RealServer(1);
const FAR: Host = Host::RealServer(2);
const FAR_ADDR: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
const FAR_ADDR6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 3, 0, 0, 0, 0, 0x10);
/// The director's local addresses, in the router's network.
const LOCAL: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const LOCAL6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 1);
const UPLOAD: u16 = 9000;
const ECHO: u16 = 5300;

/// Runs lines of a shell script on a host.
fn shell(cluster: &Cluster, host: Host, lines: &str) {
    succeed(cluster.command(host, "sh").args(["-e", "-c", lines]));
}

fn far_away(workers: Workers) -> Cluster {
    let cluster = Cluster::up(Layout { queues: workers.count(), ..Layout::default() });
    let router = cluster.namespace(ROUTER);
    shell(
        &cluster,
        Host::Switch,
        &format!("ip link set rs2 nomaster; ip link set rs2 netns {router} name far"),
    );
    shell(
        &cluster,
        ROUTER,
        "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
         ip address add 203.0.113.1/24 dev far; ip address add 2001:db8:3::1/64 dev far; ip link set far up
         ip route replace default via 192.0.2.254; ip -6 route replace default via 2001:db8:2::254",
    );
    shell(
        &cluster,
        FAR,
        "ip address flush dev lan scope global; ip route flush default || true
         ip address add 203.0.113.10/24 dev lan; ip address add 2001:db8:3::10/64 dev lan
         ip route replace default via 203.0.113.1; ip -6 route replace default via 2001:db8:3::1",
    );
    shell(
        &cluster,
        Host::Director,
        "ip route add 203.0.113.0/24 via 192.0.2.11; ip -6 route add 2001:db8:3::/64 via 2001:db8:2::11",
    );
    cluster
}

/// Adds services whose only real server is the distant one.
fn serve(director: &Director<'_>, services: &[(&str, SocketAddr, SocketAddr)]) {
    director.xvs(&format!("laddr add {LOCAL}"));
    director.xvs(&format!("laddr add {LOCAL6} --ports 5000-5999"));
    for (protocol, service, server) in services {
        director.adm(&format!("-A {protocol} {service} -s rr"));
        director.adm(&format!("-a {protocol} {service} -r {server} --fullnat"));
    }
}

fn carries_everything(workers: Workers) {
    let cluster = far_away(workers);
    let _sink = Sink::start(&cluster, FAR, UPLOAD);
    let _echo = Echo::start(&cluster, FAR, SocketAddrV4::new(FAR_ADDR, ECHO));
    let director = Director::start(&cluster, workers);
    let at = |addr: Ipv4Addr, port| SocketAddr::from((addr, port));
    serve(
        &director,
        &[
            ("-t", at(VIP, 8080), at(FAR_ADDR, 80)),
            ("-t", (VIP6, 80).into(), (FAR_ADDR6, 80).into()),
            ("-t", at(VIP, UPLOAD), at(FAR_ADDR, UPLOAD)),
            ("-u", at(VIP, ECHO), at(FAR_ADDR, ECHO)),
            // Clients and server of different families.
            ("-t", (VIP6, 8080).into(), at(FAR_ADDR, 80)),
            ("-t", at(VIP, 8081), (FAR_ADDR6, 80).into()),
            ("-t", (VIP6, UPLOAD).into(), at(FAR_ADDR, UPLOAD)),
            ("-u", (VIP6, ECHO).into(), at(FAR_ADDR, ECHO)),
        ],
    );
    let urls = [format!("{VIP}:8080"), format!("[{VIP6}]"), format!("[{VIP6}]:8080"), format!("{VIP}:8081")];
    for url in urls.map(|host| format!("http://{host}/blob")) {
        let body = fetch(&cluster, &url).unwrap_or_else(|error| panic!("{url}: {error}"));
        // assert_eq would print 20 MB.
        assert!(body == cluster.blob(), "{url}: {} bytes differ from the file", body.len());
    }
    let bytes = &cluster.blob()[..100_000];
    for service in [at(VIP, UPLOAD), (VIP6, UPLOAD).into()] {
        let receipts = clients::parallel_uploads(&cluster, service, 100, bytes);
        assert!(receipts.iter().all(|receipt| *receipt == clients::receipt("rs2", bytes)), "{receipts:?}");
    }
    for size in [10, 1400, 8192] {
        for service in [at(VIP, ECHO), (VIP6, ECHO).into()] {
            assert_eq!(clients::Asker::new(&cluster, service).ask(&vec![0xa5; size]), "rs2", "{service}");
        }
    }
}

#[test]
fn a_server_two_hops_away_without_a_route_to_the_director_serves_with_one_worker() {
    carries_everything(Workers::One);
}

#[test]
fn a_server_two_hops_away_without_a_route_to_the_director_serves_with_two_workers() {
    carries_everything(Workers::Two);
}

/// Starts an nginx on the distant server that reads PROXY headers at port 8081 and logs the client address in them.
fn start_nginx(cluster: &Cluster) -> (PathBuf, Started) {
    let folder = cluster.state().join("proxied");
    fs::create_dir_all(&folder).expect("the cluster's folder takes a new one");
    let (config, log) = (folder.join("nginx.conf"), folder.join("access.log"));
    let (folder, blob) = (folder.display(), cluster.state().join("blob"));
    let text = format!(
        "user root; daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log;
         events {{ }}
         http {{
             log_format client '$proxy_protocol_addr $proxy_protocol_server_addr $proxy_protocol_server_port $status';
             access_log {log} client;
             client_body_temp_path {folder}/temp;
             client_max_body_size 100m;
             server {{
                 listen 8081 proxy_protocol; listen [::]:8081 proxy_protocol ipv6only=on;
                 location = /blob {{ alias {blob}; }}
                 location = /upload {{ proxy_request_buffering on; proxy_pass http://127.0.0.1:80/; }}
             }}
         }}",
        log = log.display(),
        blob = blob.display()
    );
    fs::write(&config, text).expect("the folder was made above");
    let mut command = cluster.command(FAR, "nginx");
    command.args(["-p", &folder.to_string(), "-c", &config.display().to_string()]);
    let process = Started(command.spawn().expect("nginx is installed"));
    wait::until("nginx listens", || {
        let connected = cluster.run(FAR, || TcpStream::connect(("127.0.0.1", 8081)).is_ok());
        connected.then_some(())
    });
    (log, process)
}

/// A process that ends with its owner, before its cluster does.
pub(super) struct Started(pub(super) Child);

impl Drop for Started {
    fn drop(&mut self) {
        // nginx's master also ends its workers; a failure cannot be handled here.
        let _ = rustix::process::kill_process(Pid::from_child(&self.0), Signal::TERM);
        let _ = self.0.wait();
    }
}

fn nginx_reads_the_clients_address(workers: Workers) {
    let cluster = far_away(workers);
    // With this MTU, a full segment of the clamped size does not fit together with the PROXY header.
    shell(
        &cluster,
        ROUTER,
        "ip route change 203.0.113.0/24 dev far src 203.0.113.1 mtu 1300
         ip -6 route change 2001:db8:3::/64 dev far metric 256 mtu lock 1300",
    );
    let (log, _nginx) = start_nginx(&cluster);
    let director = Director::start(&cluster, workers);
    director.xvs(&format!("laddr add {LOCAL}"));
    director.xvs(&format!("laddr add {LOCAL6}"));
    // Port 81: clients and server of different families.
    for (service, server) in [
        (SocketAddr::from((VIP, 80)), SocketAddr::from((FAR_ADDR, 8081))),
        ((VIP6, 80).into(), (FAR_ADDR6, 8081).into()),
        ((VIP, 81).into(), (FAR_ADDR6, 8081).into()),
        ((VIP6, 81).into(), (FAR_ADDR, 8081).into()),
    ] {
        director.adm(&format!("-A -t {service} -s rr --client-address proxy"));
        director.adm(&format!("-a -t {service} -r {server} --fullnat"));
    }
    let upload = cluster.state().join("blob").display().to_string();
    let services = [(VIP, 80), (VIP, 81)].map(SocketAddr::from);
    let services = services.into_iter().chain([(VIP6, 80), (VIP6, 81)].map(SocketAddr::from));
    for vip in services.clone() {
        let url = format!("http://{vip}/blob");
        let body = fetch(&cluster, &url).unwrap_or_else(|error| panic!("{url}: {error}"));
        assert!(body == cluster.blob(), "{url}: {} bytes differ from the file", body.len());
        let mut curl = clients::curl(&cluster);
        succeed(
            curl.args(["--data-binary", &format!("@{upload}"), "-o", "/dev/null"])
                .arg(format!("http://{vip}/upload")),
        );
    }
    for vip in services.clone() {
        // The first segment has the full size.
        let request = format!("HEAD /blob HTTP/1.0\r\nX-Long: {}\r\n\r\n", "x".repeat(3000));
        let answer = cluster.run(Host::Client, || {
            let mut stream = clients::connect(vip)?;
            stream.write_all(request.as_bytes())?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).map(|_| answer)
        });
        assert!(answer.as_ref().is_ok_and(|answer| answer.contains("200 OK")), "{vip}: {answer:?}");
    }
    let lines: Vec<String> =
        fs::read_to_string(log).expect("nginx has answered").lines().map(str::to_owned).collect();
    let logged: Vec<_> =
        lines.iter().filter_map(|line| line.rsplit_once(' ')).map(|(addr, _)| addr).collect();
    let of = |vip: SocketAddr| match vip.ip() {
        IpAddr::V4(addr) => format!("198.51.100.10 {addr} {}", vip.port()),
        IpAddr::V6(addr) => format!("2001:db8:1::10 {addr} {}", vip.port()),
    };
    let wanted: Vec<_> =
        services.clone().flat_map(|vip| [of(vip), of(vip)]).chain(services.map(of)).collect();
    assert_eq!(logged, wanted, "{lines:?}");
}

#[test]
fn a_distant_nginx_logs_the_clients_address_from_the_proxy_header_with_one_worker() {
    nginx_reads_the_clients_address(Workers::One);
}

#[test]
fn a_distant_nginx_logs_the_clients_address_from_the_proxy_header_with_two_workers() {
    nginx_reads_the_clients_address(Workers::Two);
}

/// Starts a DNS server on the distant server that reads a PROXY header in each datagram, and logs its client's address.
fn start_unbound(cluster: &Cluster) -> (PathBuf, Started) {
    let folder = cluster.state().join("unbound");
    fs::create_dir_all(&folder).expect("the cluster's folder takes a new one");
    let (config, log) = (folder.join("unbound.conf"), folder.join("log"));
    let text = format!(
        "server:
           interface: {FAR_ADDR}@5353
           interface-action: {FAR_ADDR}@5353 allow
           interface: {FAR_ADDR6}@5353
           interface-action: {FAR_ADDR6}@5353 allow
           ip-freebind: yes
           proxy-protocol-port: 5353
           local-data: 'who.example. TXT known'
           log-queries: yes
           logfile: {log}
           use-syslog: no
           do-daemonize: no
           username: \"\"
           chroot: \"\"
           pidfile: \"\"
         remote-control:
           control-enable: no
        ",
        log = log.display()
    );
    fs::write(&config, text).expect("the folder was made above");
    let mut command = cluster.command(FAR, "unbound");
    command.args(["-d", "-c", &config.display().to_string()]);
    (log, Started(command.spawn().expect("unbound is installed")))
}

#[test]
fn a_dns_server_knows_the_client_of_each_datagram_by_the_proxy_header() {
    const QUESTIONS: usize = 5;
    let cluster = far_away(Workers::Two);
    let (log, _unbound) = start_unbound(&cluster);
    let director = Director::start(&cluster, Workers::Two);
    director.xvs(&format!("laddr add {LOCAL}"));
    director.xvs(&format!("laddr add {LOCAL6}"));
    let services = [
        (SocketAddr::from((VIP, 53)), SocketAddr::from((FAR_ADDR, 5353))),
        ((VIP6, 53).into(), (FAR_ADDR6, 5353).into()),
        ((VIP, 54).into(), (FAR_ADDR6, 5353).into()),
        ((VIP6, 54).into(), (FAR_ADDR, 5353).into()),
    ];
    for (service, server) in services {
        director.adm(&format!("-A -u {service} -s rr --client-address proxy"));
        director.adm(&format!("-a -u {service} -r {server} --fullnat"));
    }
    wait::until("unbound listens", || {
        fs::read_to_string(&log).is_ok_and(|log| !log.is_empty()).then_some(())
    });
    for (service, _) in services {
        // All from one port: one connection.
        let from = if service.is_ipv4() { "198.51.100.10#5301" } else { "2001:db8:1::10#5301" };
        for _ in 0..QUESTIONS {
            let mut dig = cluster.command(Host::Client, "dig");
            dig.args(["+short", "-b", from, "-p", &service.port().to_string()]);
            let answer = complete(dig.arg(format!("@{}", service.ip())).args(["who.example", "TXT"]));
            assert_eq!(String::from_utf8_lossy(&answer.stdout), "\"known\"\n", "{service}: {answer:?}");
        }
    }
    let log = fs::read_to_string(log).expect("unbound has answered");
    for client in [" 198.51.100.10 ", " 2001:db8:1::10 "] {
        let questions =
            log.lines().filter(|line| line.contains(client) && line.contains("who.example")).count();
        assert_eq!(questions, 2 * QUESTIONS, "{client}: {log}");
    }
    let rows = director.adm("-Lnc").lines().skip(2).count();
    assert_eq!(rows, services.len());
}

#[test]
fn downloads_between_families_go_on_over_a_take_over() {
    let cluster = far_away(Workers::Two);
    let mut director = Director::start_with(&cluster, Workers::Two, &["--hold", "1h"]);
    let (six, four) = ((VIP6, 80).into(), SocketAddr::from((VIP, 80)));
    serve(&director, &[("-t", six, (FAR_ADDR, 80).into()), ("-t", four, (FAR_ADDR6, 80).into())]);
    let download = |service: SocketAddr| {
        let mut curl = clients::curl(&cluster);
        // 20 MB in two and a half seconds.
        complete(curl.args(["--limit-rate", "8M"]).arg(format!("http://{service}/blob"))).stdout
    };
    thread::scope(|scope| {
        let downloads = [six, four].map(|service| (service, scope.spawn(move || download(service))));
        wait::until("both have begun", || {
            (director.adm("-Ln").matches(" 1          0").count() == 2).then_some(())
        });
        let successor = Director::take_over(&cluster, Workers::Two, &["--hold", "1h"]);
        let _successor = successor.unwrap_or_else(|log| panic!("{log}"));
        director.is_taken_over();
        for (service, download) in downloads {
            let body = download.join().expect("no panic");
            // assert_eq would print 20 MB.
            assert!(body == cluster.blob(), "{service}: {} bytes differ from the file", body.len());
        }
    });
}

#[test]
fn local_ports_are_reserved_in_the_kernel_while_the_daemon_runs_and_a_failure_is_logged() {
    let cluster = Cluster::up(Layout::default());
    let sysctl = |set: &str| {
        let mut command = cluster.command(Host::Director, "sysctl");
        succeed(command.args(["-n", "net.ipv4.ip_local_reserved_ports"]).args(set.split_whitespace()))
    };
    shell(&cluster, Host::Director, "sysctl -qw net.ipv4.ip_local_reserved_ports=80,443");
    let mut director = Director::start(&cluster, Workers::One);
    director.xvs(&format!("laddr add {LOCAL} --ports 5000-5999"));
    assert_eq!(sysctl("").trim(), "80,443,5000-5999");
    // Not an address of the director itself, so the kernel has no connections from it.
    director.xvs("laddr add 192.0.2.77 --ports 7000-7999");
    assert_eq!(sysctl("").trim(), "80,443,5000-5999");
    director.xvs(&format!("laddr add {LOCAL6} --ports 1024-65535"));
    assert_eq!(sysctl("").trim(), "80,443,5000-5999");
    assert!(director.status().contains("the kernel would have fewer than 1024"), "{}", director.status());
    director.xvs(&format!("laddr delete {LOCAL6}"));
    assert!(!director.status().contains("leave the kernel"), "{}", director.status());
    assert!(director.stop().success());
    assert_eq!(sysctl("").trim(), "80,443");
}
