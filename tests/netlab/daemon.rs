//! The daemon on real interfaces: traffic that it leaves to the kernel, its end, refusals at its start.
//!
//! Each test has a cluster of its own. Needs root. Not here: traffic of each forwarding method.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use rustix::process::Signal;
use xvs::cluster::{self, DIRECTOR, REAL_SERVERS, VIP, real_server, succeed, virtual_endpoint};
use xvs::director::Protocol;
use xvs::servers::Sink;
use xvs::wait::{self, DEADLINE};
use xvs::{Cluster, Director, Host, Layout, Method, Wan, Workers, clients, log_texts, traffic};

/// A TCP port of the director itself, which has no service.
const OWN: u16 = 2200;

#[test]
fn ping_arp_and_the_directors_own_tcp_service_work_while_it_runs() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let _own = Sink::start(&cluster, Host::Director, OWN);
    let director = Director::start(&cluster, Workers::One);
    director.add_service(Protocol::Tcp, 80, Method::Nat);
    assert_eq!(clients::pages(&cluster, &format!("http://{VIP}/"), 1).len(), 1);
    the_directors_kernel_answers(&cluster);
}

#[test]
fn after_a_daemon_is_killed_the_kernel_serves_ping_arp_its_own_services_and_the_vip() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let _own = Sink::start(&cluster, Host::Director, OWN);
    let mut director = Director::start(&cluster, Workers::One);
    director.add_service(Protocol::Tcp, 80, Method::Nat);
    clients::pages(&cluster, &format!("http://{VIP}/"), 1);

    director.kill();
    the_kernel_refuses(&cluster, virtual_endpoint(80));
    the_directors_kernel_answers(&cluster);
    assert_no_program(&cluster, &["wan", "lan"]);
}

#[test]
fn sigterm_ends_the_daemon_with_success_and_detaches_its_programs() {
    let cluster = traffic::prepared(Method::Nat, Workers::Two);
    let mut director = Director::start(&cluster, Workers::Two);
    director.add_service(Protocol::Tcp, 80, Method::Nat);
    clients::pages(&cluster, &format!("http://{VIP}/"), 1);

    let status = director.stop();
    assert!(status.success(), "xvsd ended by SIGTERM: {status}\n{}", director.log());
    assert_no_program(&cluster, &["wan", "lan"]);
    the_kernel_refuses(&cluster, virtual_endpoint(80));
}

#[test]
fn sighup_is_logged_and_the_daemon_continues() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let mut director = Director::start(&cluster, Workers::One);
    director.add_service(Protocol::Tcp, 80, Method::Nat);
    director.signal(Signal::HUP);
    wait::until("the log answers", || director.log().contains("SIGHUP").then_some(()));
    assert!(clients::take_turns(&clients::pages(&cluster, &format!("http://{VIP}/"), 4)));
    assert!(director.stop().success());
}

#[test]
fn a_log_that_cannot_be_written_ends_and_delays_nothing_and_is_shown_until_it_can() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let full = File::options().write(true).open("/dev/full").expect("Linux has it");
    let (reader, closed) = io::pipe().expect("a pipe");
    drop(reader);
    let (_still, mut stuck) = io::pipe().expect("a pipe");
    let room = rustix::pipe::fcntl_setpipe_size(&stuck, 4096).expect("a pipe of one page");
    stuck.write_all(&vec![b'.'; room]).expect("a whole page");
    let sinks: [(Stdio, &str); 3] = [
        (full.into(), "No space left on device"),
        (closed.into(), "Broken pipe"),
        (stuck.into(), "its reader takes nothing"),
    ];
    for (stderr, why) in sinks {
        let mut director = Director::start_logging_to(&cluster, stderr);
        director.adm("-C");
        director.add_service(Protocol::Tcp, 80, Method::Nat);
        director.signal(Signal::HUP);
        assert!(clients::take_turns(&clients::pages(&cluster, &format!("http://{VIP}/"), 4)), "{why}");
        wait::until("status shows it", || {
            let status = director.status();
            (status.contains("the log on stderr is not written") && status.contains(why)).then_some(())
        });
        assert!(director.stop().success(), "{why}");
    }
}

#[test]
fn each_setting_in_force_is_shown_with_its_source() {
    let cluster = Cluster::up(Layout::default());
    let file = |name: &str, text: &str| {
        let path = cluster.state().join(name);
        fs::write(&path, text).expect("the cluster's folder takes a new file");
        path.display().to_string()
    };
    let config = file(
        "xvs.toml",
        "conn_table_size = 4096\nworkers = 4\n[ipvs]\nsloppy_tcp = 1\nmss_clamp = \"all\"\n[feedback]\nservices = \"all\"\n",
    );
    let rules = file("rules", "--set 800 0 0\n");
    let keepalived = file(
        "keepalived.conf",
        "global_defs {\nlvs_timeouts udp 200\n}\nvirtual_server 198.51.100.7 80 {\nprotocol TCP\nreal_server 192.0.2.7 80 {\n}\n}\n",
    );
    let more = ["--config", &config, "--rules", &rules, "--keepalived", &keepalived];
    let director = Director::start_with(&cluster, Workers::One, &more);
    let lines = |words: &str| -> Vec<String> {
        let shown = director.xvs(words);
        shown.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
    };
    let shown = lines("get");
    for (key, expected) in [
        ("interfaces", "wan,lan command line"),
        ("workers", "1 command line"),
        ("conn_table_size", "4096 xvs.toml"),
        ("receive_ring", "4096 default"),
        ("sloppy_tcp", "1 xvs.toml"),
        ("mss_clamp", "all xvs.toml"),
        ("sloppy_sctp", "0 default"),
        ("feedback.services", "all xvs.toml"),
        ("timeouts.tcp_seconds", "800 rules file"),
        ("timeouts.tcp_fin_seconds", "120 default"),
        ("timeouts.udp_seconds", "200 keepalived.conf"),
        ("metrics_address", "- default"),
    ] {
        assert!(shown.contains(&format!("{key} {expected}")), "{key}: {shown:#?}");
    }
    director.xvs("set sloppy_tcp 0");
    director.xvs("set feedback.step 7");
    director.adm("--set 0 60 0");
    assert_eq!(lines("get sloppy_tcp"), ["sloppy_tcp 0 xvs set"]);
    let shown = lines("get");
    for line in ["feedback.step 7 xvs set", "timeouts.tcp_fin_seconds 60 xvsadm --set"] {
        assert!(shown.contains(&line.to_owned()), "{line}: {shown:#?}");
    }
    let json = |words: &str| -> serde_json::Value {
        serde_json::from_str(&director.xvs(words)).expect("xvs prints JSON")
    };
    assert_eq!(json("status --json")["settings"], json("get --json"));
    let mut unknown = cluster.command(Host::Director, xvs::director::program("xvs"));
    let unknown = cluster::complete(unknown.args(["get", "slopy_tcp"]));
    let why = String::from_utf8_lossy(&unknown.stderr).into_owned();
    assert!(unknown.status.code() == Some(3) && why.contains("sloppy_tcp"), "{why}");
}

#[test]
fn an_interface_that_goes_down_or_up_or_is_removed_is_logged_and_shown() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let director = Director::start(&cluster, Workers::One);
    director.add_service(Protocol::Tcp, 80, Method::Nat);
    // The status is ok once the real servers' link addresses are known.
    let ok = || Some(director.status()).filter(|status| status.starts_with("ok         xvsd "));
    let status = wait::until("all is well", ok);
    assert!(status.contains("interface  wan: up, native XDP, 1 queue\n"), "{status}");
    assert!(status.contains("1 virtual service, 2 real servers\n"), "{status}");
    let ip = |words: &[&str]| succeed(cluster.command(Host::Director, "ip").args(words));
    let shows = |text: &str| {
        wait::until(text, || director.status().contains(text).then_some(()));
    };
    ip(&["link", "set", "wan", "down"]);
    shows("warning    wan is down; `ip link set wan up`");
    assert!(director.status().starts_with("warning    xvsd "), "{}", director.status());
    ip(&["link", "set", "wan", "up"]);
    shows("interface  wan: up");
    ip(&["link", "del", "wan"]);
    shows("warning    wan is gone; it is attached again when it is back and up\n");
    let log = director.log();
    for line in ["wan is down", "wan is up again", "wan is gone; it is attached again"] {
        assert!(log.contains(line), "{line}:\n{log}");
    }
}

#[test]
fn a_killed_daemon_can_be_started_again_on_the_same_socket_and_interfaces() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    Director::start(&cluster, Workers::One).kill();
    let director = Director::start(&cluster, Workers::One);
    director.add_service(Protocol::Tcp, 80, Method::Nat);
    assert!(clients::take_turns(&clients::pages(&cluster, &format!("http://{VIP}/"), 4)));
}

#[test]
fn deleting_a_service_under_traffic_leaves_another_services_connection_alone() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let _sinks = REAL_SERVERS.map(|host| Sink::start(&cluster, host, 9000));
    let director = Director::start(&cluster, Workers::One);
    director.add_service(Protocol::Tcp, 80, Method::Nat);
    director.add_service(Protocol::Tcp, 9000, Method::Nat);
    let blob = cluster.blob();
    let mut upload = open(&cluster, 9000);
    upload.write_all(&blob[..1_000_000]).expect("upload");
    let _download = started_download(&cluster);

    director.adm(&format!("-D -t {VIP}:80"));
    the_kernel_refuses(&cluster, virtual_endpoint(80));
    let receipt = clients::upload(upload, &blob[1_000_000..]).expect("upload");
    assert_eq!(receipt, clients::receipt(&receipt.host, &blob));

    director.add_service(Protocol::Tcp, 80, Method::Nat);
    assert!(clients::take_turns(&clients::pages(&cluster, &format!("http://{VIP}/"), 4)));
}

#[test]
fn a_connection_continues_when_its_deleted_service_is_added_again() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let director = Director::start(&cluster, Workers::One);
    director.add_service(Protocol::Tcp, 80, Method::Nat);
    // Keeps TCP over IPv4 steered to the director while the other service is deleted.
    director.add_service(Protocol::Tcp, 9000, Method::Nat);
    let mut download = started_download(&cluster);

    director.adm(&format!("-D -t {VIP}:80"));
    director.add_service(Protocol::Tcp, 80, Method::Nat);
    let mut body = Vec::new();
    download.read_to_end(&mut body).expect("the connection still works");
    assert!(body.ends_with(&cluster.blob()), "{} bytes arrived, header included", body.len());
}

#[test]
fn a_second_daemon_on_the_socket_or_on_the_interface_is_refused_with_the_firsts_process() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let director = Director::start(&cluster, Workers::One);
    director.add_service(Protocol::Tcp, 80, Method::Nat);

    let (status, log) = Director::refusal(&cluster, &["--interface", "wan", "--interface", "lan"]);
    assert!(!status.success(), "{log}");
    assert!(log.contains(log_texts::SOCKET), "the message names the socket:\n{log}");
    let socket = cluster.state().join("second.sock");
    let arguments = ["--interface", "wan", "--socket", socket.to_str().expect("UTF-8")];
    let (status, log) = Director::refusal(&cluster, &arguments);
    assert_eq!(status.code(), Some(1), "the first may end, so a retry is worthwhile: {log}");
    let process = director.process();
    let text =
        format!("wan has an XDP program, that of another xvsd, held by process {process}; stop that xvsd");
    assert!(log.contains(&text), "{log}");
    assert!(clients::take_turns(&clients::pages(&cluster, &format!("http://{VIP}/"), 4)));
}

#[test]
fn an_interface_that_does_not_exist_is_named_and_nothing_stays_attached() {
    let cluster = Cluster::up(Layout::default());
    let (status, log) = Director::refusal(&cluster, &["--interface", "wan", "--interface", "wan7"]);
    assert!(!status.success(), "{log}");
    assert!(log.contains("wan7"), "the message names the interface:\n{log}");
    assert_no_program(&cluster, &["wan"]);
}

#[test]
fn an_altname_of_an_interface_is_refused_with_the_interfaces_own_name() {
    let cluster = Cluster::up(Layout::default());
    cluster.ip(Host::Director, "link property add dev wan altname uplink");
    let (status, log) = Director::refusal(&cluster, &["--interface", "uplink"]);
    assert!(!status.success(), "{log}");
    assert!(log.contains("uplink is another name of the interface wan"), "{log}");
    assert!(log.contains("`--interface wan`"), "{log}");
    assert_no_program(&cluster, &["wan"]);
}

#[test]
fn an_interface_that_another_xdp_program_holds_is_refused_and_the_program_stays() {
    let cluster = Cluster::up(Layout::default());
    let program = pass_everything(&cluster);
    let mut attach = cluster.command(Host::Director, "ip");
    succeed(attach.args(["link", "set", "lan", "xdp", "obj"]).arg(program).args(["sec", "xdp"]));

    let (status, log) = Director::refusal(&cluster, &["--interface", "wan", "--interface", "lan"]);
    assert!(!status.success(), "{log}");
    assert!(log.contains("lan has an XDP program, pass, id "), "{log}");
    assert!(log.contains("`ip link set dev lan xdp off` removes it"), "{log}");
    assert!(has_program(&cluster, "lan"), "the other program was detached");
    assert_no_program(&cluster, &["wan"]);
}

#[test]
fn an_interface_without_native_xdp_is_served_by_generic_xdp() {
    let cluster = Cluster::up(Layout { wan: Wan::Macvlan, ..Layout::default() });
    let _own = Sink::start(&cluster, Host::Director, OWN);
    let director = Director::start(&cluster, Workers::One);
    director.add_service(Protocol::Tcp, 80, Method::Nat);

    assert!(director.status().contains(log_texts::GENERIC), "{}", director.status());
    assert!(clients::take_turns(&clients::pages(&cluster, &format!("http://{VIP}/"), 4)));
    let body = clients::fetch(&cluster, &format!("http://{VIP}/blob")).expect("download");
    assert!(body == cluster.blob(), "a download of {} bytes differs from the file", body.len());
    the_directors_kernel_answers(&cluster);
}

#[test]
fn a_restore_continues_after_a_refused_line() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let director = Director::start(&cluster, Workers::One);
    let rules = format!(
        "-A -t {VIP}:80 -s rr\n-A -t {VIP}:80 -s rr\n-a -t {VIP}:80 -r {}:80 -m -w 1\n",
        real_server(1)
    );
    let output = director.adm_reading("-R", &rules);
    // The exit status is the last line's.
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "Service already exists\n");
    assert_eq!(clients::pages(&cluster, &format!("http://{VIP}/"), 2), ["rs1", "rs1"]);
}

#[test]
fn a_restore_ends_at_a_syntax_error_and_keeps_the_lines_before_it() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let director = Director::start(&cluster, Workers::One);
    let before = format!("-A -t {VIP}:80 -s rr\n-a -t {VIP}:80 -r {}:80 -m -w 1\n", real_server(1));
    let after = format!("-a -t {VIP}:80 -r {}:80 -m -w 1\n", real_server(2));
    let output = director.adm_reading("-R", &format!("{before}-A -t {VIP}:81 -s rr stray\n{after}"));
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "unexpected argument stray\n");
    assert_eq!(director.adm("-Sn"), before);
    assert_eq!(clients::pages(&cluster, &format!("http://{VIP}/"), 2), ["rs1", "rs1"]);
}

/// Ping of both addresses, ARP for them, and a TCP service of the director's own at both.
fn the_directors_kernel_answers(cluster: &Cluster) {
    let mut flush = cluster.command(Host::Client, "ip");
    succeed(flush.args(["neighbour", "flush", "dev", "wan"]));
    for address in [DIRECTOR, VIP] {
        ping(cluster, address);
        let endpoint = SocketAddrV4::new(address, OWN);
        let receipts = clients::parallel_uploads(cluster, endpoint, 1, b"to the director itself");
        assert_eq!(receipts, [clients::receipt("dr", b"to the director itself")]);
    }
    let mut show = cluster.command(Host::Client, "ip");
    let neighbours = succeed(show.args(["neighbour", "show", "dev", "wan"]));
    for address in [DIRECTOR, VIP] {
        let resolved = neighbours.lines().any(|line| line.starts_with(&format!("{address} lladdr ")));
        assert!(resolved, "no ARP answer for {address}:\n{neighbours}");
    }
}

fn ping(cluster: &Cluster, address: Ipv4Addr) {
    succeed(cluster.command(Host::Client, "ping").args(["-c1", "-W5", &address.to_string()]));
}

/// A SYN to an endpoint without service and socket gets the kernel's RST, at once or after a retransmission.
fn the_kernel_refuses(cluster: &Cluster, endpoint: SocketAddrV4) {
    let answer = cluster.run(Host::Client, || clients::connect(endpoint));
    assert_eq!(answer.map_err(|error| error.kind()).err(), Some(ErrorKind::ConnectionRefused));
}

fn open(cluster: &Cluster, port: u16) -> TcpStream {
    cluster.run(Host::Client, || clients::connect(virtual_endpoint(port))).expect("the service answers")
}

/// A download of the blob whose first bytes have arrived; the rest arrives only as it is read.
fn started_download(cluster: &Cluster) -> TcpStream {
    let mut stream = open(cluster, 80);
    stream.write_all(b"GET /blob HTTP/1.0\r\n\r\n").expect("request");
    // Peek waits for the first byte and consumes nothing.
    stream.peek(&mut [0]).expect("the answer begins");
    stream
}

fn has_program(cluster: &Cluster, interface: &str) -> bool {
    let mut show = cluster.command(Host::Director, "ip");
    succeed(show.args(["-details", "link", "show", "dev", interface])).contains("xdp")
}

/// Waits, because the kernel detaches a killed process's program a moment after its end.
fn assert_no_program(cluster: &Cluster, interfaces: &[&str]) {
    for interface in interfaces {
        let free = || (!has_program(cluster, interface)).then_some(());
        wait::until(&format!("no XDP program on {interface} within {DEADLINE:?}"), free);
    }
}

/// Object file of an XDP program that passes every packet, which is unknown to xvsd.
fn pass_everything(cluster: &Cluster) -> PathBuf {
    let source = cluster.state().join("pass.c");
    let object = cluster.state().join("pass.o");
    std::fs::write(
        &source,
        "__attribute__((section(\"xdp\"), used)) int pass(void *frame) { return 2; }\n\
         char terms[] __attribute__((section(\"license\"), used)) = \"MIT\";\n",
    )
    .expect("the cluster's folder takes a new file");
    cluster::succeed(
        Command::new("clang").args(["-O2", "-target", "bpf", "-c"]).arg(source).arg("-o").arg(&object),
    );
    object
}
