//! The hold: while no xvsd runs, its pinned XDP programs keep the packets of services from the kernel, for some time.
//!
//! The director has the VIP, so a packet that reaches its kernel draws a reset. Each test has a cluster of its own,
//! with a bpffs of its own. Needs root. Not here: the decision of the program on a frame (`kernel/steering_hold.rs` of
//! `dataplane`).

use std::fs;
use std::io::ErrorKind;
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use xvs::cluster::{VIP, complete, succeed, virtual_endpoint};
use xvs::director::{Protocol, program};
use xvs::servers::Echo;
use xvs::{Cluster, Director, Host, Method, Workers, clients, traffic, wait};

/// Far longer than a test.
const LONG: [&str; 2] = ["--hold", "1h"];
/// Options of unshare(1) for mounts of a process's own, also below a root that is no mount, as in a chroot. The host's
/// mounts pass nothing on (`scripts/netlab`).
const MOUNTS: [&str; 3] = ["--mount", "--propagation", "unchanged"];
/// Where xvsd pins its programs.
const PINS: &str = "bpf/xvs/run-xvs-xvsd:sock";

#[test]
fn packets_of_services_are_held_after_a_kill_and_the_kernel_has_them_when_the_hold_is_over() {
    let cluster = traffic::prepared(Method::Nat, Workers::Two);
    served(&cluster, &LONG).kill();
    assert_eq!(attempt(&cluster), Err(ErrorKind::TimedOut), "a reset within the hold");
    assert_eq!(pinned(&cluster), ["lan", "wan"]);
    ping(&cluster);
    let mut director = served(&cluster, &["--hold", "5s"]);
    let status = director.status();
    let held = status.split("hold       5s after the end of xvsd; ").nth(1).expect("status shows the hold");
    let held: u64 = held.split(' ').next().and_then(|packets| packets.parse().ok()).expect("a number");
    assert!(held >= 1, "{status}");
    director.kill();
    wait::until("the kernel has the packets", || {
        (attempt(&cluster) == Err(ErrorKind::ConnectionRefused)).then_some(())
    });
    let director = served(&cluster, &["--hold", "5s"]);
    assert_served(&cluster);
    let status = director.status();
    assert!(status.contains("wan: up, native XDP, 2 queues, pinned"), "{status}");
}

#[test]
fn an_xvsd_that_was_idle_for_longer_than_the_hold_serves_the_next_packet() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let _director = served(&cluster, &["--hold", "1s"]);
    assert_served(&cluster);
    // Only beats of the sleeping worker keep the hold from ending.
    thread::sleep(Duration::from_millis(2500));
    assert_eq!(open(&cluster), Ok(()));
}

#[test]
fn an_xvsd_that_hangs_loses_its_packets_to_the_kernel_after_the_hold_and_has_them_back_when_it_goes_on() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let mut director = served(&cluster, &["--hold", "1s"]);
    // A real server on the director, whose replies are redirected to xvsd.
    let (service, here) = (virtual_endpoint(9000), virtual_endpoint(8080));
    director.adm(&format!("-A -u {service} -s rr"));
    director.adm(&format!("-a -u {service} -r {here} -m"));
    let _echo = Echo::start(&cluster, Host::Director, here);
    let ask = |to| clients::Asker::new(&cluster, to).ask(b"hello");
    assert_eq!(ask(service), "dr");
    director.signal(Signal::STOP);
    wait::until("the kernel has the packets", || {
        (attempt(&cluster) == Err(ErrorKind::ConnectionRefused)).then_some(())
    });
    assert_eq!(ask(here), "dr", "the kernel has the server's packets");
    director.signal(Signal::CONT);
    wait::until("xvsd serves again", || attempt(&cluster).is_ok().then_some(()));
    assert_eq!(ask(service), "dr");
    assert!(director.stop().success());
}

#[test]
fn a_connection_that_begins_while_xvsd_is_restarted_succeeds() {
    for kill in [false, true] {
        let cluster = traffic::prepared(Method::Nat, Workers::One);
        let mut director = served(&cluster, &LONG);
        let rules = rules(&cluster, &director);
        if kill {
            director.kill();
        } else {
            assert!(director.stop().success());
        }
        thread::scope(|scope| {
            let connecting = scope.spawn(|| open(&cluster));
            wait::until("its first packet is sent", || is_connecting(&cluster).then_some(()));
            let director = Director::start_with(
                &cluster,
                Workers::One,
                &["--rules", &rules.display().to_string(), LONG[0], LONG[1]],
            );
            let stream = connecting.join().expect("no panic");
            assert!(stream.is_ok(), "killed: {kill}: {stream:?}\n{}", director.log());
            assert!(director.log().contains("wan: this XDP program has replaced the pinned one"));
        });
    }
}

#[test]
fn a_generic_program_is_pinned_and_taken_over_too() {
    let cluster = Cluster::up(xvs::Layout { wan: xvs::Wan::Macvlan, ..Default::default() });
    let mut director = served(&cluster, &LONG);
    director.kill();
    assert_eq!(attempt(&cluster), Err(ErrorKind::TimedOut));
    let mut director = served(&cluster, &LONG);
    assert!(director.status().contains("wan: up, generic XDP"), "{}", director.status());
    assert_served(&cluster);
    assert!(director.stop().success());
    assert_eq!(attempt(&cluster), Err(ErrorKind::TimedOut));
}

#[test]
fn a_release_gives_the_kernel_its_packets_at_once_from_a_running_and_from_an_ended_xvsd() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let director = served(&cluster, &LONG);
    assert_eq!(director.xvs("stop --release"), "");
    assert_released(&cluster);
    drop(director);

    let mut director = served(&cluster, &LONG);
    director.kill();
    assert_eq!(attempt(&cluster), Err(ErrorKind::TimedOut));
    let mut released: Vec<_> = director.xvs("stop --release").lines().map(str::to_owned).collect();
    released.sort();
    let state = "/dev/shm/xvs/run-xvs-xvsd.sock: removed";
    assert_eq!(released, [state, "lan: the kernel has its packets", "wan: the kernel has its packets"]);
    assert_released(&cluster);
    let nothing = "no xvsd listens on /run/xvs/xvsd.sock, and none has left anything\n";
    assert_eq!(director.xvs("stop --release"), nothing);
}

#[test]
fn xvs_stop_returns_when_xvsd_has_ended_and_leaves_its_programs() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let mut director = served(&cluster, &LONG);
    director.xvs("stop");
    assert!(director.log().trim_end().ends_with("stopped"), "{}", director.log());
    assert_eq!(attempt(&cluster), Err(ErrorKind::TimedOut));
    assert!(director.stop().success());
    let again = complete(cluster.command(Host::Director, program("xvs")).arg("stop"));
    assert_eq!(again.status.code(), Some(4), "{again:?}");
}

#[test]
fn an_xvsd_without_hold_removes_the_pins_of_an_earlier_one_and_leaves_none() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    served(&cluster, &LONG).kill();
    let mut director = served(&cluster, &["--hold", "0"]);
    assert_served(&cluster);
    assert!(!director.status().contains("pinned"), "{}", director.status());
    assert!(director.stop().success());
    assert_released(&cluster);
}

#[test]
fn the_program_of_an_ended_director_is_refused_by_its_socket_and_removed_by_the_named_command() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let socket = cluster.state().join("dr/other-1.sock").display().to_string();
    Director::start_with(&cluster, Workers::One, &["--socket", &socket, LONG[0], LONG[1]]).kill();
    let (status, log) = Director::refusal(&cluster, &["--interface", "wan", "--interface", "lan"]);
    assert_eq!(status.code(), Some(1), "{log}");
    let refused = format!(
        "wan has the XDP program of the director with the socket {socket}, which does not run; `XVS_SOCKET={socket} xvs \
         stop --release` removes it"
    );
    assert!(log.contains(&refused), "{log}");
    let mut release = cluster.command(Host::Director, "env");
    succeed(release.arg(format!("XVS_SOCKET={socket}")).arg(program("xvs")).args(["stop", "--release"]));
    let _director = served(&cluster, &LONG);
    assert_served(&cluster);
}

#[test]
fn the_pin_of_an_interface_that_is_no_longer_attached_is_removed() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    served(&cluster, &LONG).kill();
    let _director = Director::start_on(&cluster, Host::Director, &["--interface", "wan", LONG[0], LONG[1]]);
    assert_eq!(pinned(&cluster), ["wan"]);
}

#[test]
fn an_interface_that_comes_back_is_pinned_anew() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let mut director = served(&cluster, &LONG);
    let ip = |arguments: &str| {
        let mut command = cluster.command(Host::Director, "ip");
        succeed(command.args(arguments.split_whitespace()));
    };
    ip("link add spare type veth peer name spare-end");
    director.kill();
    let arguments = ["--interface", "spare", LONG[0], LONG[1]];
    let director = Director::start_on(&cluster, Host::Director, &arguments);
    ip("link del spare");
    wait::until("it is gone", || director.status().contains("spare: gone").then_some(()));
    ip("link add spare type veth peer name spare-end");
    ip("link set spare-end up");
    ip("link set spare up");
    wait::until("it is attached again", || {
        director
            .status()
            .contains("spare: up, native XDP, 1 queue, pinned, attached again once")
            .then_some(())
    });
    assert_eq!(pinned(&cluster), ["spare"]);
}

#[test]
fn pins_are_in_the_hosts_bpffs_also_from_a_process_with_a_sys_of_its_own() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    // Process 1 of a PID namespace stands for the host's. The inner shell has a /sys as `ip netns exec` gives it.
    let own_sys = "umount -l /sys && mount -t sysfs sysfs /sys && exec \"$@\"";
    let mut command = cluster.command(Host::Director, "unshare");
    command.args(MOUNTS).args(["--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c"]);
    command.args(["\"$@\"; wait", "sh", "unshare"]).args(MOUNTS).args(["sh", "-c", own_sys, "sh"]);
    command.arg(program("xvsd")).args(["--interface", "wan", "--interface", "lan", LONG[0], LONG[1]]);
    let mut process =
        Ended(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("unshare starts"));
    wait::until("its programs are pinned", || (pinned(&cluster) == ["lan", "wan"]).then_some(()));
    process.end();
    assert_eq!(pinned(&cluster), ["lan", "wan"]);
    // Without its process, the pins alone keep the programs.
    let mut show = cluster.command(Host::Director, "ip");
    assert!(succeed(show.args(["-details", "link", "show", "dev", "wan"])).contains("xdp"));
}

#[test]
fn a_bpffs_is_mounted_on_the_host_if_there_is_none() {
    // Process 1 of a PID namespace stands for the host's; it has no bpffs.
    let hidden = "while umount -l /sys/fs/bpf 2>/dev/null; do :; done; \"$@\"; wait";
    for mounts in [&["env"][..], &["unshare", MOUNTS[0], MOUNTS[1], MOUNTS[2]]] {
        let cluster = traffic::prepared(Method::Nat, Workers::One);
        let mut command = cluster.command(Host::Director, "unshare");
        command.args(MOUNTS).args([
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "sh",
            "-c",
            hidden,
            "sh",
        ]);
        command.args(mounts).arg(program("xvsd")).args(["--interface", "wan", LONG[0], LONG[1]]);
        let spawned = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let process = Ended(spawned.expect("unshare starts"));
        let children = format!("/proc/{0}/task/{0}/children", process.0.id());
        wait::until("the program is pinned on the host", || {
            let first = fs::read_to_string(&children).ok()?;
            let root = format!("/proc/{}/root/sys/fs/{PINS}/wan", first.trim());
            fs::metadata(root).is_ok().then_some(())
        });
    }
}

#[test]
fn without_a_bpffs_xvsd_serves_without_hold_and_says_how_to_have_one() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let mut command = without_bpffs(&cluster);
    let process = Ended(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("sh starts"));
    let xvs = |arguments: &[&str]| complete(cluster.command(Host::Director, program("xvs")).args(arguments));
    wait::until("xvsd serves", || xvs(&["healthy"]).status.success().then_some(()));
    let status = String::from_utf8_lossy(&xvs(&["status"]).stdout).replace("\n           ", " ");
    assert!(status.contains("warning    there is no hold, so the kernel resets"), "{status}");
    assert!(status.contains("`mount -t bpf bpf /sys/fs/bpf`") && !status.contains("pinned"), "{status}");
    drop(process);
}

#[test]
fn a_take_over_without_the_bpffs_of_the_running_xvsd_says_how_to_enter_its_mount_namespace() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let director = Director::start_with(&cluster, Workers::One, &LONG);
    let output = complete(without_bpffs(&cluster).arg("--take-over"));
    let said = String::from_utf8_lossy(&output.stderr);
    let step = "`nsenter --mount --target PID` enters that";
    assert!(!output.status.success() && said.contains("this mount namespace has none"), "{said}");
    assert!(said.contains(step) && !said.contains("there is no hold"), "{said}");
    drop(director);
}

/// An xvsd that sees no bpffs and cannot mount one.
fn without_bpffs(cluster: &Cluster) -> Command {
    let mut command = cluster.command(Host::Director, "sh");
    // The cluster's bpffs, and the machine's under it. Without CAP_SYS_ADMIN nothing can be mounted.
    let hidden = "while umount -l /sys/fs/bpf 2>/dev/null; do :; done; exec setpriv --bounding-set -sys_admin,-sys_ptrace \"$@\"";
    command.args(["-c", hidden, "sh"]).arg(program("xvsd"));
    command.args(["--interface", "wan", "--interface", "lan", LONG[0], LONG[1]]);
    command
}

/// A process that is killed when dropped.
struct Ended(Child);

impl Ended {
    fn end(&mut self) {
        let _ = self.0.kill();
        self.0.wait().expect("a child of this process");
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        self.end();
    }
}

/// A director with a web service.
fn served<'a>(cluster: &'a Cluster, arguments: &[&str]) -> Director<'a> {
    let director = Director::start_with(cluster, Workers::One, arguments);
    director.add_service(Protocol::Tcp, 80, Method::Nat);
    director
}

/// The service gives pages.
fn assert_served(cluster: &Cluster) {
    assert!(clients::take_turns(&clients::pages(cluster, &format!("http://{VIP}/"), 2)));
}

/// The kernel has the packets, no program is on the interfaces, and no pin is left.
fn assert_released(cluster: &Cluster) {
    assert_eq!(attempt(cluster), Err(ErrorKind::ConnectionRefused));
    for interface in ["wan", "lan"] {
        let mut show = cluster.command(Host::Director, "ip");
        let shown = succeed(show.args(["-details", "link", "show", "dev", interface]));
        assert!(!shown.contains("xdp"), "{shown}");
    }
    assert_eq!(pinned(cluster), Vec::<String>::new());
}

/// One SYN of the client, and what answers it within half a second, before it is sent again.
fn attempt(cluster: &Cluster) -> Result<(), ErrorKind> {
    let connect = || TcpStream::connect_timeout(&virtual_endpoint(80).into(), Duration::from_millis(500));
    cluster.run(Host::Client, connect).map(drop).map_err(|error| error.kind())
}

/// A connection of the client, which sends its SYN again until it is answered.
fn open(cluster: &Cluster) -> Result<(), ErrorKind> {
    cluster
        .run(Host::Client, || clients::connect(virtual_endpoint(80)))
        .map(drop)
        .map_err(|error| error.kind())
}

fn ping(cluster: &Cluster) {
    succeed(cluster.command(Host::Client, "ping").args(["-c1", "-W5", &VIP.to_string()]));
}

/// The names of the pins.
fn pinned(cluster: &Cluster) -> Vec<String> {
    let names = fs::read_dir(cluster.state().join("dr").join(PINS)).into_iter().flatten();
    let mut names: Vec<_> =
        names.map(|entry| entry.expect("a name").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// A file with the rules of a director.
fn rules(cluster: &Cluster, director: &Director<'_>) -> PathBuf {
    let path = cluster.state().join("rules");
    fs::write(&path, director.adm("-Sn")).expect("the cluster's folder takes a new file");
    path
}

/// Whether the client waits for the answer to a SYN.
fn is_connecting(cluster: &Cluster) -> bool {
    let mut sockets = cluster.command(Host::Client, "ss");
    succeed(sockets.args(["-Htn", "state", "syn-sent"])).contains(&format!("{VIP}:80"))
}
