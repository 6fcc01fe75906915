//! The files of `docs/examples` as they stand, with the real programs: DNS over two clusters, proxies that choose by
//! content.
//!
//! Each test has a cluster of its own. Needs root. Not here: tutorials (`tests/netlab/tutorials.rs`).

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use xvs::clients::{self, connect};
use xvs::cluster::{REAL_SERVERS, VIP, complete, succeed, virtual_endpoint};
use xvs::director::program;
use xvs::request_stream::RequestStream;
use xvs::{Cluster, Director, Host, Layout, Workers, wait};

/// The second virtual address.
const VIP_B: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 101);

fn examples(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/examples").join(name)
}

/// Runs lines of a shell script on a host.
fn shell(cluster: &Cluster, host: Host, lines: &str) -> String {
    succeed(cluster.command(host, "sh").args(["-e", "-c", lines]))
}

/// A program that ends with its owner.
struct Started {
    process: Child,
    log: PathBuf,
}

impl Started {
    /// Runs the last of these lines of a shell script as the program, with a /run of its own.
    fn new(cluster: &Cluster, host: Host, lines: &str) -> Self {
        let lines = format!("mount -t tmpfs tmpfs /run\n{lines}");
        let log = cluster.state().join(format!("{}-program.log", host.name()));
        let err = fs::File::create(&log).expect("the cluster's folder takes a new file");
        let mut command = cluster.command(host, "sh");
        command.args(["-e", "-c", &lines]).stdout(Stdio::null()).stderr(err);
        Self { process: command.spawn().expect("scripts/netlab can be started"), log }
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        // What it has started ends with the cluster. A failure cannot be handled here.
        let _ = kill_process(Pid::from_child(&self.process), Signal::KILL);
        let _ = self.process.wait();
        if thread::panicking() {
            eprintln!("---- {}\n{}", self.log.display(), fs::read_to_string(&self.log).unwrap_or_default());
        }
    }
}

/// Gives the real servers a virtual address for direct routing.
fn add_vip(cluster: &Cluster, server: Host, vip: Ipv4Addr) {
    let words = format!("realserver up --vip {vip} --method dr --dev lan");
    succeed(cluster.command(server, program("xvs")).args(words.split(' ')));
}

/// Ends the nginx that netlab has started.
fn stop_nginx(cluster: &Cluster, server: Host) {
    let pid = cluster.state().join(server.name()).join("nginx.pid");
    shell(cluster, server, &format!("kill $(cat {0}); while [ -e {0} ]; do sleep 0.01; done", pid.display()));
}

fn start_nginx(cluster: &Cluster, server: Host) {
    let folder = cluster.state().join(server.name()).display().to_string();
    shell(cluster, server, &format!("nginx -e {folder}/error.log -p {folder} -c {folder}/nginx.conf"));
}

#[test]
fn a_dns_server_answers_in_turn_with_the_clusters_that_are_well_until_quorum_or_director_are_lost() {
    const CLIENT: Host = Host::Client;
    let cluster = Cluster::up(Layout::default());
    cluster.add_backup();
    add_vip(&cluster, Host::RealServer(1), VIP);
    add_vip(&cluster, Host::RealServer(2), VIP_B);
    cluster.ip(Host::Backup, &format!("address add {VIP_B}/32 dev lan"));
    cluster.ip(CLIENT, &format!("route add {VIP_B} via 192.0.2.2 dev back"));
    let conf = |name: &str| examples("dns").join(name).display().to_string();
    let director = |host, interfaces: &[&str], file: &str| {
        let metrics = ["--metrics", "0.0.0.0:9112", "--keepalived", file];
        Director::start_on(&cluster, host, &[interfaces, &metrics].concat())
    };
    let lan = ["--interface", "lan", "--workers", "1"];
    let both = [&["--interface", "wan"][..], &lan].concat();
    let _first = director(Host::Director, &both, &conf("keepalived-a.conf"));
    let mut second = director(Host::Backup, &lan, &conf("keepalived-b.conf"));

    let folder = examples("dns").display().to_string();
    let _gdnsd = Started::new(
        &cluster,
        CLIENT,
        &format!(
            "mount -t tmpfs tmpfs /var/lib/gdnsd; mount --bind {folder}/gdnsd /etc/gdnsd
             mount --bind {folder} /usr/local/bin; exec gdnsd start"
        ),
    );
    let addresses = || {
        let mut dig = cluster.command(CLIENT, "dig");
        let answer = complete(dig.args(["+short", "+tries=1", "+time=1", "www.example.com", "@127.0.0.1"]));
        String::from_utf8_lossy(&answer.stdout).lines().map(str::to_owned).collect::<Vec<_>>()
    };
    // In the order of the last answer.
    let await_addresses = |wanted: &[Ipv4Addr]| {
        let wanted: Vec<_> = wanted.iter().map(ToString::to_string).collect();
        wait::until(&format!("www.example.com is {wanted:?}"), || (addresses() == wanted).then_some(()));
    };
    await_addresses(&[VIP, VIP_B]);
    await_addresses(&[VIP_B, VIP]);

    // A client resolves the name itself.
    let resolver = cluster.state().join("resolv.conf");
    fs::write(&resolver, "nameserver 127.0.0.1\n").expect("the cluster's folder takes a new file");
    let fetch = || {
        let lines = format!(
            "mount --bind {} /etc/resolv.conf; exec curl -sS --max-time 10 http://www.example.com/",
            resolver.display()
        );
        shell(&cluster, CLIENT, &lines).trim_end().to_owned()
    };
    assert!(["rs1", "rs2"].contains(&fetch().as_str()));

    stop_nginx(&cluster, Host::RealServer(1));
    await_addresses(&[VIP_B]);
    assert_eq!([fetch(), fetch()], ["rs2", "rs2"]);
    start_nginx(&cluster, Host::RealServer(1));
    // A director that is dead gives no metrics.
    second.kill();
    await_addresses(&[VIP]);
    assert_eq!([fetch(), fetch()], ["rs1", "rs1"]);
}

/// The proxy of each real server, started from its example.
fn start_proxy(cluster: &Cluster, server: Host) -> Started {
    let file = |name: &str| examples("content").join(name).display().to_string();
    match server {
        Host::RealServer(1) => {
            Started::new(cluster, server, &format!("exec haproxy -db -f {}", file("haproxy.cfg")))
        }
        _ => start_nginx_of(cluster, server, &file("nginx.conf")),
    }
}

fn start_nginx_of(cluster: &Cluster, host: Host, file: &str) -> Started {
    let lines = format!("mount -t tmpfs tmpfs /var/log/nginx; exec nginx -g 'daemon off;' -c {file}");
    Started::new(cluster, host, &lines)
}

/// Waits until a host accepts connections to an endpoint of its own.
fn await_listener(cluster: &Cluster, host: Host, at: SocketAddrV4) {
    wait::until(&format!("a server listens at {at}"), || {
        cluster.run(host, || connect(at)).is_ok().then_some(())
    });
}

#[test]
fn proxies_behind_xvs_choose_by_url_host_and_cookie_know_the_client_and_drain_without_a_lost_request() {
    let cluster = Cluster::up(Layout::default());
    cluster.ip(Host::Director, &format!("address add {VIP_B}/32 dev wan"));
    // The last servers.
    for last in 21..=24 {
        cluster.ip(Host::Switch, &format!("address add 192.0.2.{last}/24 dev bridge"));
    }
    let servers = examples("content/servers.conf").display().to_string();
    let _servers = start_nginx_of(&cluster, Host::Switch, &servers);
    await_listener(&cluster, Host::Switch, SocketAddrV4::new([192, 0, 2, 24].into(), 80));
    let [haproxy, _nginx] = REAL_SERVERS.map(|server| {
        stop_nginx(&cluster, server);
        add_vip(&cluster, server, VIP_B);
        start_proxy(&cluster, server)
    });
    for server in REAL_SERVERS {
        await_listener(&cluster, server, SocketAddrV4::new(Ipv4Addr::LOCALHOST, 80));
    }
    let director = Director::start(&cluster, Workers::One);
    let rules = examples("content/rules").display().to_string();
    director.xvs(&format!("apply {rules}"));
    let plan = director.xvs(&format!("plan {rules}"));
    assert!(plan.is_empty() || plan.contains("no difference"), "{plan}");

    let fetch = |vip: Ipv4Addr, path: &str, header: &str| {
        let mut curl = clients::curl(&cluster);
        let page = succeed(curl.args(["--fail", "-H", header]).arg(format!("http://{vip}{path}")));
        page.trim_end().to_owned()
    };
    for vip in [VIP, VIP_B] {
        for (path, header, server) in [
            ("/", "Accept: */*", "shop"),
            ("/images/logo.png", "Accept: */*", "images"),
            ("/images", "Host: blog.example.com", "blog"),
            ("/images/1", "Host: blog.example.com", "images"),
            ("/cart", "Cookie: theme=dark; site=beta", "beta"),
            ("/cart", "Cookie: site=beta2", "shop"),
        ] {
            // Both proxies choose the same and pass on who asks.
            let want = ["haproxy", "nginx"].map(|proxy| format!("{server} 198.51.100.10 1.1 {proxy}"));
            let mut seen = [fetch(vip, path, header), fetch(vip, path, header)];
            seen.sort();
            assert_eq!(seen, want, "{path} {header} at {vip}");
        }
    }

    let by_haproxy = "shop 198.51.100.10 1.1 haproxy";
    let requests = RequestStream::start(&cluster, virtual_endpoint(80), Duration::from_secs(10));
    // A request of which one half has arrived at HAProxy.
    let mut half = wait::until("a connection to HAProxy", || {
        let mut stream = cluster.run(Host::Client, || connect(virtual_endpoint(80))).ok()?;
        stream.write_all(b"GET / HTTP/1.0\r\n").ok()?;
        let from = format!("{}", stream.local_addr().ok()?);
        let listed = director.adm("-Lnc");
        let is_there = |line: &str| line.contains(&from) && line.contains("192.0.2.11:8080");
        listed.lines().any(is_there).then_some(stream)
    });
    let mut drain = cluster.command(Host::Director, program("xvs"));
    let drained =
        complete(drain.args(["drain", "-t", &format!("{VIP}:80"), "192.0.2.11:8080", "--for", "1s"]));
    let said = String::from_utf8_lossy(&drained.stdout).into_owned();
    assert!(said.contains("the time is over: 1 connection active, "), "{said}");
    requests.await_all_by("shop 198.51.100.10 1.1 nginx");
    half.write_all(b"\r\n").expect("the connection is open");
    let mut answer = String::new();
    half.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.") && answer.trim_end().ends_with(by_haproxy), "{answer}");
    wait::until("no active connection to HAProxy", || {
        let listed = director.adm(&format!("-Ln -t {VIP}:80"));
        let row = listed.lines().find(|line| line.contains("192.0.2.11:8080"))?;
        (row.split_whitespace().nth(4) == Some("0")).then_some(())
    });

    // The proxy is exchanged.
    drop(haproxy);
    let _haproxy = start_proxy(&cluster, Host::RealServer(1));
    await_listener(&cluster, Host::RealServer(1), SocketAddrV4::new(Ipv4Addr::LOCALHOST, 80));
    let restore = said.lines().find(|line| line.contains("xvsadm -e")).expect("the command that restores");
    director.adm(restore.trim().strip_prefix("xvsadm ").expect("it is one of xvsadm"));
    requests.await_one_by(by_haproxy);
    let requests = requests.end();
    let failed: Vec<_> = requests.iter().filter(|request| request.has_failed()).collect();
    assert!(failed.is_empty(), "{failed:?}");
}
