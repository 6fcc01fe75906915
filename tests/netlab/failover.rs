//! Failover between two directors: real keepalived moves the VIP, with `xvs healthy` as its check script.
//!
//! Each director runs xvsd and keepalived, VRRP alone (`-P`), one-armed on the segment of client and real servers; the
//! real servers have the VIP too and reply themselves. Each test has a cluster of its own. Needs root. The duration of
//! a failover and the number of lost requests are printed, never asserted.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::path::PathBuf;
use std::process::Child;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use xvs::cluster::{REAL_SERVERS, real_server};
use xvs::director::program;
use xvs::keepalived::{self, DIRECTORS, Keepalived};
use xvs::servers::Sink;
use xvs::{Cluster, Director, Host, clients, wait};

/// Services of the VIP on the segment of all; the client reaches it through `back`.
const VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 100);

const WEB: SocketAddrV4 = SocketAddrV4::new(VIP, 80);
const UPLOADS: SocketAddrV4 = SocketAddrV4::new(VIP, 9000);

/// Starts xvsd and keepalived on both directors, both programs with the same file, services with this scheduler; the
/// first director has the VIP.
fn served<'a>(cluster: &'a Cluster, scheduler: &str) -> [(Director<'a>, Keepalived); 2] {
    let both = DIRECTORS.map(|host| {
        let conf = keepalived::conf(cluster, host);
        let text = [vrrp(host), virtual_server(WEB, scheduler), virtual_server(UPLOADS, scheduler)].concat();
        fs::write(&conf, text).expect("the cluster's folder takes a new file");
        let words = ["--interface", "lan", "--workers", "1", "--keepalived", &conf.to_string_lossy()];
        (Director::start_on(cluster, host, &words), Keepalived::start(cluster, host))
    });
    await_master(cluster, Host::Director);
    both
}

/// The part of a keepalived.conf for keepalived.
fn vrrp(host: Host) -> String {
    let script = format!(
        "vrrp_script xvsd {{
            script \"{} healthy\"
            interval 1
            timeout 2
            fall 2
            rise 2
        }}\n",
        program("xvs").display()
    );
    let instance = keepalived::vrrp_instance(host, &[VIP], "track_script {\nxvsd\n}");
    ["global_defs {\nscript_user root\n}\n", &script, &instance].concat()
}

/// The part of a keepalived.conf for xvs.
fn virtual_server(service: SocketAddrV4, scheduler: &str) -> String {
    let port = service.port();
    let server =
        |number| format!("real_server {} {port} {{ TCP_CHECK {{ retry 3 }} }}\n", real_server(number));
    format!(
        "virtual_server {VIP} {port} {{
            lb_algo {scheduler}
            lb_kind DR
            protocol TCP
            delay_loop 3
            {}{}}}\n",
        server(1),
        server(2)
    )
}

/// A tcpdump of the client's ARP packets about the VIP.
struct Arp {
    process: Child,
    heard: PathBuf,
}

impl Arp {
    fn listen(cluster: &Cluster) -> Self {
        let (heard, says) = (cluster.state().join("arp"), cluster.state().join("arp.err"));
        let create = |path| File::create_new(path).expect("the cluster's folder takes a new file");
        let mut command = cluster.command(Host::Client, "tcpdump");
        command.args(["-l", "-e", "-n", "-i", "back", &format!("arp src host {VIP}")]);
        let process = command.stdout(create(&heard)).stderr(create(&says)).spawn();
        let process = process.expect("scripts/netlab can be started");
        let listens = || fs::read_to_string(&says).ok().filter(|says| says.contains("listening on"));
        wait::until("tcpdump listens", listens);
        Self { process, heard }
    }

    /// Whether this director has announced the VIP (gratuitous ARP).
    fn was_announced(&self, cluster: &Cluster, host: Host) -> bool {
        let mac = link_address(cluster, host);
        let heard = fs::read_to_string(&self.heard).expect("tcpdump writes it");
        let own = |line: &&str| line.contains(&format!("{mac} > ff:ff:ff:ff:ff:ff"));
        heard.lines().filter(own).any(|line| line.contains(&format!("Request who-has {VIP} ")))
    }

    /// Whether this director has sent any ARP packet for the VIP.
    fn was_said_by(&self, cluster: &Cluster, host: Host) -> bool {
        fs::read_to_string(&self.heard).expect("tcpdump writes it").contains(&link_address(cluster, host))
    }
}

impl Drop for Arp {
    fn drop(&mut self) {
        // Neither call fails for a process that has ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn link_address(cluster: &Cluster, host: Host) -> String {
    let shown = cluster.ip(host, "link show dev lan");
    let address = shown.split_whitespace().skip_while(|word| *word != "link/ether").nth(1);
    address.expect("a veth has a link address").to_owned()
}

/// Waits until this director alone has the VIP and the client sends to it.
fn await_master(cluster: &Cluster, host: Host) {
    keepalived::await_addresses(cluster, host, &[VIP]);
    let mac = link_address(cluster, host);
    wait::until(&format!("the client sends to {}", host.name()), || {
        // A request also makes the client resolve the VIP, in case it missed the announcement.
        page(cluster).ok()?;
        cluster.ip(Host::Client, &format!("neighbour show {VIP} dev back")).contains(&mac).then_some(())
    });
}

/// The name of the real server that answers the client within a quarter of a second.
fn page(cluster: &Cluster) -> io::Result<String> {
    const PATIENCE: Duration = Duration::from_millis(250);
    cluster.run(Host::Client, || {
        let mut stream = TcpStream::connect_timeout(&WEB.into(), PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (_, body) = answer.split_once("\r\n\r\n").ok_or(ErrorKind::InvalidData)?;
        Ok(body.trim_end().to_owned())
    })
}

/// Repeats requests of the client until the director that has taken over the VIP has forwarded one; prints how many
/// were lost.
fn request_until_taken_over(cluster: &Cluster, by: &Director<'_>, what: &str) {
    let (begun, before) = (Instant::now(), connections(by));
    let (mut lost, mut answered) = (0, 0);
    wait::until(&format!("{what}: the other director serves"), || {
        match page(cluster) {
            Ok(_) => answered += 1,
            Err(_) => lost += 1,
        }
        (connections(by) > before).then_some(())
    });
    let time = begun.elapsed();
    eprintln!(
        "{what}: the other director serves after {time:.1?}; {answered} requests answered, {lost} lost"
    );
}

/// Number of connections that a director has created.
fn connections(director: &Director<'_>) -> u64 {
    let counters = director.xvs("counters");
    let count = counters.lines().find_map(|line| line.strip_prefix("connections "));
    count.map_or(0, |count| count.parse().expect("a number"))
}

/// An upload whose first bytes were sent.
fn begun_upload(cluster: &Cluster) -> TcpStream {
    let mut stream = cluster.run(Host::Client, || clients::connect(UPLOADS)).expect("the service answers");
    stream.write_all(b"before and ").expect("upload");
    stream
}

#[test]
fn when_keepalived_ends_the_backup_announces_and_serves_the_vip() {
    let cluster = Cluster::with_backup(VIP);
    let _sinks = REAL_SERVERS.map(|host| Sink::start(&cluster, host, 9000));
    let [(first, keepalived), (second, _kept)] = served(&cluster, "rr");
    let arp = Arp::listen(&cluster);
    // All machines resolve the VIP anew: the backup does not answer.
    cluster.ip(Host::Client, "neighbour flush dev back");
    await_master(&cluster, Host::Director);
    assert!(clients::take_turns(&[page(&cluster).expect("a page"), page(&cluster).expect("a page")]));
    assert!(!arp.was_said_by(&cluster, Host::Backup));
    let mut upload = begun_upload(&cluster);
    wait::until("the upload's connection is known", || {
        first.adm("-L -n -c").contains(&UPLOADS.to_string()).then_some(())
    });

    keepalived.stop();
    request_until_taken_over(&cluster, &second, "keepalived ends");
    await_master(&cluster, Host::Backup);
    wait::until("the backup announces the VIP", || arp.was_announced(&cluster, Host::Backup).then_some(()));
    // Segments without a connection pass to its kernel, which has the VIP and no listening socket.
    let ended = wait::until("the upload ends", || upload.write_all(b"after").err());
    assert!(matches!(ended.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{ended}");
}

#[test]
fn a_director_with_a_stopped_xvsd_loses_the_vip_and_regains_it_when_xvsd_continues() {
    let cluster = Cluster::with_backup(VIP);
    let _sinks = REAL_SERVERS.map(|host| Sink::start(&cluster, host, 9000));
    let [(first, _keepalived), (second, _kept)] = served(&cluster, "mh");
    for director in [&first, &second] {
        director.xvs("set sloppy_tcp 1");
    }
    let mut upload = begun_upload(&cluster);

    first.signal(Signal::STOP);
    request_until_taken_over(&cluster, &second, "xvsd is stopped");
    await_master(&cluster, Host::Backup);
    // A hashing scheduler chooses the same real server on every director.
    upload.write_all(b"meanwhile and ").expect("upload");
    wait::until("the second director has the upload's connection", || {
        second.adm("-L -n -c").contains(&UPLOADS.to_string()).then_some(())
    });

    first.signal(Signal::CONT);
    request_until_taken_over(&cluster, &first, "xvsd goes on");
    await_master(&cluster, Host::Director);
    let receipt = clients::upload(upload, b"after").expect("the connection is still there");
    assert_eq!(receipt, clients::receipt(&receipt.host, b"before and meanwhile and after"));
}

#[test]
fn a_disconnected_director_loses_the_vip_and_regains_it_when_it_is_connected_again() {
    let cluster = Cluster::with_backup(VIP);
    let [(first, _keepalived), (second, _kept)] = served(&cluster, "rr");
    cluster.ip(Host::Switch, "link set dr down");
    request_until_taken_over(&cluster, &second, "a cable is pulled");
    cluster.ip(Host::Switch, "link set dr up");
    request_until_taken_over(&cluster, &first, "the cable is back");
    await_master(&cluster, Host::Director);
}
