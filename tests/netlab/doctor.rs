//! `xvs doctor` on a real machine: each fault is made, found, and corrected by the printed command.
//!
//! Each test has a cluster of its own. Needs root. Not here: the evaluation of facts (`crates/cli/src/doctor/`).

use std::fs;
use std::net::TcpStream;
use std::process::Command;
use std::thread;
use std::time::Duration;

use serde_json::Value;
use xvs::cluster::{REAL_SERVERS, VIP, complete, succeed, virtual_endpoint};
use xvs::director::{Protocol, program};
use xvs::wait::{self, DEADLINE};
use xvs::{Cluster, Director, Host, Layout, Method, Workers, clients, traffic};

/// The output of `xvs doctor`, and its exit code.
struct Diagnosis {
    findings: Vec<Value>,
    exit: i32,
}

impl Diagnosis {
    /// Runs it with more arguments on the director of a cluster.
    fn of(cluster: &Cluster, words: &[&str]) -> Self {
        let output =
            complete(cluster.command(Host::Director, program("xvs")).args(["doctor", "--json"]).args(words));
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let report: Value = serde_json::from_str(&said)
            .unwrap_or_else(|error| panic!("{error}: {said}{}", String::from_utf8_lossy(&output.stderr)));
        let findings = report["findings"].as_array().expect("findings").clone();
        Self { findings, exit: output.status.code().expect("it ended by itself") }
    }

    /// The findings of a check of an object that are not ok.
    fn wrong(&self, check: &str, object: &str) -> Vec<&Value> {
        let of =
            |found: &&Value| found["level"] != "ok" && found["check"] == check && found["object"] == object;
        self.findings.iter().filter(of).collect()
    }

    /// The findings that are not ok, as lines.
    fn complaints(&self) -> Vec<String> {
        let wrong = self.findings.iter().filter(|found| found["level"] != "ok");
        wrong.map(|found| format!("{} {}: {}", found["check"], found["object"], found["found"])).collect()
    }

    /// Asserts that nothing is wrong.
    fn assert_well(&self) {
        assert_eq!((self.complaints(), self.exit), (vec![], 0));
    }
}

fn shell(cluster: &Cluster, host: Host, command: &str) -> Command {
    let mut shell = cluster.command(host, "sh");
    let programs = program("xvs").parent().expect("it stands in a folder").display().to_string();
    let path = format!("{programs}:{}", std::env::var("PATH").unwrap_or_default());
    shell.args(["-c", command]).env("PATH", path);
    shell
}

/// A command that makes a fault, with the check that must find it and the object.
type Fault<'a> = (&'a str, (&'a str, &'a str));

/// Makes faults on a host, which must be found; runs the command of each finding, on `on`, after which no fault must be
/// left. Returns what was found.
fn broken_and_mended(
    cluster: &Cluster,
    words: &[&str],
    host: Host,
    faults: &[Fault<'_>],
    on: Host,
) -> Diagnosis {
    for (breaking, _) in faults {
        succeed(&mut shell(cluster, host, breaking));
    }
    // The daemon learns of some changes a little later.
    let diagnosis = wait::until(&format!("all are found: {faults:?}"), || {
        let diagnosis = Diagnosis::of(cluster, words);
        let is_found = |&(_, (check, object)): &Fault<'_>| !diagnosis.wrong(check, object).is_empty();
        faults.iter().all(is_found).then_some(diagnosis)
    });
    for &(breaking, (check, object)) in faults {
        let complaint = diagnosis.wrong(check, object)[0];
        let least = if complaint["level"] == "fail" { 2 } else { 1 };
        assert!(diagnosis.exit >= least, "`{breaking}` exits with {}", diagnosis.exit);
        let mend = complaint["mend"]["command"].as_str().unwrap_or_else(|| panic!("no command: {complaint}"));
        succeed(&mut shell(cluster, on, mend));
    }
    wait::until(&format!("the printed commands fix {faults:?}; last: {:?}", diagnosis.complaints()), || {
        (Diagnosis::of(cluster, words).exit == 0).then_some(())
    });
    diagnosis
}

const DR: Host = Host::Director;

#[test]
fn with_a_daemon_each_fault_of_the_director_is_found_and_corrected_by_the_printed_command() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let director = Director::start(&cluster, Workers::One);
    director.add_service(Protocol::Tcp, 80, Method::Nat);
    director.xvs("laddr add 192.0.2.1 --ports 30000-40000");
    // The kernel may not have resolved the next hops yet.
    wait::until("all is well", || Diagnosis::of(&cluster, &[]).complaints().is_empty().then_some(()));
    Diagnosis::of(&cluster, &[]).assert_well();

    let vip = VIP.to_string();
    let no_vip = format!("ip address del {vip}/32 dev wan");
    let quiet = format!("{no_vip}; ip address add {vip}/32 dev lo; sysctl -w net.ipv4.conf.wan.arp_ignore=1");
    let elsewhere = "ip route add default via 192.0.2.254 dev lan; \
                     sysctl -w net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.lan.send_redirects=0";
    for faults in [
        // Those that hide no other together, because each run waits for answers to ARP.
        &[
            (no_vip.as_str(), ("address", vip.as_str())),
            ("sysctl -w net.ipv4.ip_forward=0", ("forwarding", "")),
            ("ip route add unreachable 192.0.2.12", ("route", "192.0.2.12")),
            ("echo >/proc/sys/net/ipv4/ip_local_reserved_ports", ("ports", "192.0.2.1")),
        ][..],
        &[(&quiet, ("arp", &vip))],
        &[("ip link set dev wan down", ("interface", "wan"))],
        &[(elsewhere, ("source check", "wan"))],
        // The route stays.
        &[("sysctl -w net.ipv4.conf.lan.send_redirects=1", ("redirects", "lan"))],
    ] {
        broken_and_mended(&cluster, &[], DR, faults, DR);
    }
}

#[test]
fn a_real_server_that_answers_arp_for_the_virtual_address_is_named_and_corrected_by_the_printed_command() {
    let cluster = Cluster::up(Layout::default());
    let director = Director::start(&cluster, Workers::One);
    director.add_service(Protocol::Tcp, 80, Method::DirectRouting);
    let rs1 = Host::RealServer(1);
    let vip = VIP.to_string();
    let careless = format!("ip address add {vip}/32 dev lo");
    let diagnosis = broken_and_mended(&cluster, &[], rs1, &[(&careless, ("arp", &vip))], rs1);
    assert_eq!(diagnosis.wrong("arp", &vip)[0]["mend"]["on"], "192.0.2.11");
}

#[test]
fn a_real_server_without_answer_is_found_and_removed_by_the_printed_command() {
    let cluster = Cluster::up(Layout::default());
    succeed(&mut shell(&cluster, Host::RealServer(2), "ip link set dev lan down"));
    let director = Director::start(&cluster, Workers::One);
    director.add_service(Protocol::Tcp, 80, Method::Nat);
    broken_and_mended(&cluster, &[], DR, &[("true", ("neighbour", "192.0.2.12"))], DR);
    assert!(!director.adm("-Ln").contains("192.0.2.12"));
}

#[test]
fn tunnels_too_narrow_for_clients_packets_are_found_and_corrected_by_the_printed_command() {
    let cluster = traffic::prepared(Method::Tunnel, Workers::One);
    let director = Director::start(&cluster, Workers::One);
    director.add_service(Protocol::Tcp, 80, Method::Tunnel);
    let web = "TCP 198.51.100.100:80 to 192.0.2.11:80";
    broken_and_mended(&cluster, &[], DR, &[("xvs set mss_clamp off", ("mtu", web))], DR);
    // A smaller path MTU to one of them, as the kernel has learnt it from a router.
    let narrow =
        "ip link set dev lan mtu 1520; ip route add 192.0.2.11 dev lan mtu 1400; xvs set mss_clamp off";
    broken_and_mended(&cluster, &[], DR, &[(narrow, ("mtu", web))], DR);
    let names = "ip route del 192.0.2.11 dev lan; ip link set dev lan mtu 1500; xvsadm -A -u 198.51.100.100:53; \
                 xvsadm -a -u 198.51.100.100:53 -r 192.0.2.11 -i";
    let dns = "UDP 198.51.100.100:53 to 192.0.2.11:53";
    broken_and_mended(&cluster, &[], DR, &[(names, ("mtu", dns))], DR);
}

#[test]
fn without_a_daemon_the_machine_and_the_configuration_files_are_checked() {
    let cluster = Cluster::up(Layout::default());
    let rules = cluster.state().join("rules");
    let config = cluster.state().join("xvs.toml");
    fs::write(&rules, "-A -t 198.51.100.100:80\n-a -t 198.51.100.100:80 -r 192.0.2.11:80 -m\n")
        .expect("a new file");
    let text = format!("interfaces = [\"wan\", \"lan\"]\nrules = {rules:?}\n");
    fs::write(&config, text).expect("a new file");
    let config = config.display().to_string();
    let words = ["--config", &config];
    Diagnosis::of(&cluster, &words).assert_well();

    let object = cluster.state().join("pass.o").display().to_string();
    let foreign = format!(
        "echo '__attribute__((section(\"xdp\"))) int pass(void *frame) {{ return 2; }}' | \
         clang -O2 -target bpf -x c -c - -o {object} && ip link set dev lan xdp obj {object} sec xdp"
    );
    let unfinished = "xvs realserver up --vip 203.0.113.1 --dev wan; ip address del 203.0.113.1/32 dev lo";
    for faults in [
        &[
            (foreign.as_str(), ("xdp", "lan")),
            ("ip route add 192.0.2.11 dev lo", ("route", "192.0.2.11")),
            (unfinished, ("real server", "203.0.113.1")),
        ][..],
        &[("ip link set dev lan down", ("interface", "lan"))],
    ] {
        broken_and_mended(&cluster, &words, DR, faults, DR);
    }

    let missing = Diagnosis::of(&cluster, &["--interface", "nic9"]);
    assert_eq!((missing.exit, missing.wrong("interface", "nic9").len()), (2, 1));
    fs::write(&rules, "-A -t 198.51.100.100:80\n-a -t 198.51.100.100:80 -r nowhere.invalid:99999 -m\n")
        .expect("the file");
    let faulty = Diagnosis::of(&cluster, &words);
    assert_eq!(faulty.exit, 2);
    let [complaint] = &faulty.complaints()[..] else { panic!("{:?}", faulty.complaints()) };
    assert!(complaint.contains("line 2"), "{complaint}");

    let keepalived = cluster.state().join("keepalived.conf");
    fs::write(&config, format!("interfaces = [\"wan\"]\n[keepalived]\nfile = {keepalived:?}\n"))
        .expect("the file");
    let refused = || {
        let diagnosis = Diagnosis::of(&cluster, &words);
        assert_eq!(diagnosis.exit, 2);
        diagnosis.complaints().concat()
    };
    assert!(refused().contains("keepalived.conf: No such file or directory"), "{}", refused());
    fs::write(&keepalived, "virtual_server 198.51.100.100 80 {\n").expect("a new file");
    let said = refused();
    assert!(
        said.contains("xvsd refuses the file; its first error is ") && said.contains("keepalived.conf:1: "),
        "{said}"
    );
}

#[test]
fn a_limit_of_locked_memory_below_the_workers_need_fails_and_one_above_it_passes() {
    let cluster = Cluster::up(Layout::default());
    let doctor = |kibibytes: u32| {
        let without = "setpriv --inh-caps=-ipc_lock --bounding-set=-ipc_lock";
        // A test machine may not allow more than 8 MiB.
        let config = "interfaces = [\"wan\", \"lan\"]\nreceive_ring = 1024";
        let doctor = format!(
            "printf '{config}' >/run/xvs/x.toml; ulimit -l {kibibytes}; {without} xvs doctor --config /run/xvs/x.toml"
        );
        let output = complete(&mut shell(&cluster, DR, &doctor));
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (exit, said) = doctor(64);
    assert_eq!(exit, Some(2), "{said}");
    assert!(said.contains("memory lock: this user may lock 64 KiB"), "{said}");
    // The command needs CAP_SYS_RESOURCE, which not every test machine has.
    assert!(said.contains("      fix: ulimit -l unlimited\n"), "{said}");
    let (exit, said) = doctor(7296);
    assert_eq!(exit, Some(0), "{said}");
}

#[test]
fn queues_added_after_the_start_that_cannot_be_served_are_found_and_removed_by_the_printed_command() {
    // A worker has room for 63 queues of all interfaces together.
    let cluster = Cluster::up(Layout { queues: 63, ..Layout::default() });
    // A veth has no native XDP while its other end has more TX queues than it has RX queues.
    succeed(&mut shell(&cluster, Host::Switch, "ethtool -L dr tx 1"));
    succeed(&mut shell(&cluster, Host::Client, "ethtool -L wan tx 1"));
    succeed(&mut shell(&cluster, DR, "ethtool -L wan rx 1; ethtool -L lan rx 1"));
    let director = Director::start(&cluster, Workers::One);
    succeed(&mut shell(&cluster, DR, "ethtool -L lan rx 63"));
    wait::until("xvs status names the queues and the step", || {
        let status = director.status();
        let named = "warning    lan has 63 receive queues, and xvsd serves 1, so packets on the others are not forwarded";
        (status.contains(named) && status.contains("`ethtool -L lan rx 1`")).then_some(())
    });
    let diagnosis = Diagnosis::of(&cluster, &[]);
    let warnings = diagnosis.wrong("daemon", "");
    let told = warnings.iter().any(|one| one["found"].to_string().contains("`ethtool -L lan rx 1`"));
    assert!(told, "{:?}", diagnosis.complaints());
    succeed(&mut shell(&cluster, DR, "ethtool -L lan rx 1"));
    wait::until("the warning is over", || director.log().contains("over: lan has 63").then_some(()));
}

#[test]
fn rules_of_iptables_and_nftables_that_drop_a_services_packets_have_no_effect_and_are_named() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let director = Director::start(&cluster, Workers::One);
    director.add_service(Protocol::Tcp, 80, Method::Nat);
    let set = [
        "iptables-nft -A INPUT -p tcp -m multiport --dports 22 -j DROP",
        "iptables-nft -A INPUT -s 198.51.100.10 -j DROP",
        "nft add table inet guard",
        "nft add chain inet guard in { type filter hook input priority 0 ; policy drop ; }",
        "nft add rule inet guard in tcp dport 22 accept",
        "nft add rule inet guard in ip daddr 198.51.100.100 udp dport 53 drop",
    ];
    succeed(&mut shell(&cluster, DR, &set.map(|line| line.replace(';', "\\;")).join(" && ")));
    assert_eq!(clients::pages(&cluster, &format!("http://{VIP}/"), 2).len(), 2);
    let diagnosis = Diagnosis::of(&cluster, &[]);
    let found: Vec<_> = diagnosis.wrong("firewall", "").iter().map(|one| one["found"].to_string()).collect();
    assert_eq!((found.len(), diagnosis.exit), (2, 1), "{:?}", diagnosis.complaints());
    for rule in ["-A INPUT -s 198.51.100.10/32 -j DROP»", "«policy drop of nft inet guard in»"] {
        assert!(found.iter().any(|found| found.contains(rule)), "{rule}: {found:?}");
    }
}

#[test]
fn in_generic_mode_offloads_that_merge_packets_are_found_and_switched_off_by_the_printed_command() {
    let cluster = Cluster::up(Layout::default());
    // An ifb device has no native XDP.
    succeed(&mut shell(&cluster, DR, "ip link add nic type ifb; ip link set nic up; ethtool -K nic gro off"));
    let words = ["--interface", "nic"];
    let before = Diagnosis::of(&cluster, &words);
    assert_eq!((before.wrong("mode", "nic").len(), before.exit), (1, 1), "{:?}", before.complaints());
    succeed(&mut shell(&cluster, DR, "ethtool -K nic gro on"));
    let broken = Diagnosis::of(&cluster, &words);
    assert_eq!(broken.exit, 2);
    let mend = broken.wrong("offload", "nic")[0]["mend"]["command"].as_str().expect("a command").to_owned();
    succeed(&mut shell(&cluster, DR, &mend));
    assert_eq!(Diagnosis::of(&cluster, &words).complaints(), before.complaints());
}

#[test]
fn the_clock_of_another_director_is_compared_and_one_without_answer_is_a_warning() {
    let cluster = Cluster::up(Layout::default());
    let diagnosis = Diagnosis::of(&cluster, &["--director", "192.0.2.11", "--director", "192.0.2.99"]);
    let clocks: Vec<_> = diagnosis.findings.iter().filter(|finding| finding["check"] == "clock").collect();
    let clock = |at: usize| (clocks[at]["object"].as_str(), clocks[at]["level"].as_str());
    // Both are namespaces of one machine with one clock.
    assert_eq!([clock(0), clock(1)], [(Some("192.0.2.11"), Some("ok")), (Some("192.0.2.99"), Some("warn"))]);
    assert!(
        clocks[0]["found"]
            .as_str()
            .is_some_and(|found| found.ends_with(" ms apart from this machine's clock"))
    );
}

#[test]
fn interfaces_without_a_device_have_nothing_to_tune_and_apply_needs_tune() {
    let cluster = Cluster::up(Layout::default());
    let diagnosis = Diagnosis::of(&cluster, &["--tune", "--interface", "wan", "--interface", "lan"]);
    diagnosis.assert_well();
    let found: Vec<_> = diagnosis.findings.iter().map(|finding| finding["found"].as_str()).collect();
    assert_eq!(found, [Some("no device is behind wan, lan, so there is nothing to tune")]);
    let refused = complete(&mut shell(&cluster, DR, "xvs doctor --apply --interface wan"));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(2), "{said}");
    assert!(said.contains("--tune"), "{said}");
}

#[test]
fn a_report_has_what_each_mode_of_a_card_does_with_frames_from_another_one_and_leaves_nothing_attached() {
    let cluster = Cluster::up(Layout::default());
    let file = cluster.state().join("report.json");
    let report = |words: &[&str]| {
        let file = file.to_str().expect("a plain path");
        Diagnosis::of(&cluster, &[&["--report", file], words].concat())
    };
    succeed(&mut shell(&cluster, DR, "ip link add nic0 type veth peer name nic1"));
    let refused = |words: &str| {
        let command = format!("xvs doctor --report /dev/null {words}");
        let output = complete(&mut shell(&cluster, DR, &command));
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(refused("--interface nic0").contains("`ip link set dev nic0 up` fixes it"), "it is down");
    succeed(&mut shell(&cluster, DR, "ip link set nic0 up && ip link set nic1 up"));
    succeed(&mut shell(&cluster, DR, "for nic in nic0 nic1; do ethtool -K $nic rxvlan off gro off; done"));
    assert!(refused("--interface nic0 --interface nic1").contains("about one interface"));
    assert!(refused("--interface nic0 --source nic0").contains("nic0 cannot send to itself"));
    assert!(refused("--interface nic0 --source nic9").contains("nic9"));

    let diagnosis = report(&["--interface", "nic0", "--source", "nic1"]);
    assert_eq!(diagnosis.complaints().len(), 2, "zero-copy twice: {:?}", diagnosis.complaints());
    let text = fs::read_to_string(&file).expect("it was written");
    let written: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(written["cards"][0]["driver"], "veth");
    let (modes, none) = (written["modes"].as_array().expect("modes"), Value::Array(Vec::new()));
    for (at, name) in ["generic", "copy"].into_iter().enumerate() {
        assert_eq!(modes[at]["mode"], name);
        assert!(modes[at]["pause_ms"].is_u64());
        for (direction, to) in ["nic0", "nic1"].into_iter().enumerate() {
            let seen = &modes[at]["directions"][direction];
            assert_eq!(
                (&seen["to"], &seen["lost_sizes"], &seen["unsent_sizes"]),
                (&to.into(), &none, &none),
                "{text}"
            );
            for (rate, size) in [60, 1514].into_iter().enumerate() {
                let seen = &seen["rates"][rate];
                assert_eq!(seen["frame_bytes"], size);
                assert!(seen["received_per_second"].as_u64().is_some_and(|rate| rate > 0), "{text}");
            }
        }
    }
    for mode in &modes[2..] {
        assert_eq!(mode["failed"], "zero-copy is refused by nic0 at an MTU of 1500");
    }
    let links = succeed(&mut shell(&cluster, DR, "ip link show nic0; ip link show nic1"));
    assert!(!links.contains("xdp"), "{links}");
    let address = links.split_whitespace().find(|word| word.matches(':').count() == 5).expect("an address");
    assert!(!text.contains(address), "it is for others");

    // An interrupt leaves no file where there was none.
    let ended = cluster.state().join("ended.json");
    let command = format!(
        "timeout --signal INT 1 xvs doctor --report {} --interface nic0 --source nic1",
        ended.display()
    );
    complete(&mut shell(&cluster, DR, &command));
    assert!(!ended.exists());

    // Without another card it still says which modes a driver takes; one that a director serves is left alone.
    let alone = report(&["--interface", "nic0"]);
    assert_eq!(alone.complaints().len(), 2, "{:?}", alone.complaints());
    let _director = Director::start(&cluster, Workers::One);
    assert!(refused("--interface wan").contains("wan has the program of an xvsd; `xvs stop --release`"));
}

#[test]
fn the_text_has_one_line_for_each_passed_check_and_a_command_below_each_fault() {
    let cluster = Cluster::up(Layout::default());
    let output = complete(&mut shell(&cluster, DR, "xvs doctor --interface wan --vip 203.0.113.9"));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("ok    interface wan: it is up, MTU 1500 [ip link]\n"), "{said}");
    assert!(said.contains("      fix: ip address add 203.0.113.9/32 dev wan\n"), "{said}");
    assert!(said.ends_with(" ok, 1 warning, 0 failures\n"), "{said}");
    let closed = complete(&mut shell(&cluster, DR, "xvs doctor --interface wan | true"));
    assert!(closed.stderr.is_empty(), "{}", String::from_utf8_lossy(&closed.stderr));
}

/// Tries a connection from the client to each of these ports at once; returns how many succeed in time.
fn connect(cluster: &Cluster, ports: &[u16], limit: Duration) -> usize {
    let succeeds = |port: u16| TcpStream::connect_timeout(&virtual_endpoint(port).into(), limit).is_ok();
    cluster.run(Host::Client, || {
        thread::scope(|scope| {
            let tries: Vec<_> = ports.iter().map(|&port| scope.spawn(move || succeeds(port))).collect();
            tries.into_iter().map(|one| usize::from(one.join().expect("no panic"))).sum()
        })
    })
}

#[test]
fn replies_of_direct_routing_that_come_by_the_director_are_named_and_forward_shared_forwards_them() {
    let cluster = traffic::prepared(Method::DirectRouting, Workers::One);
    // The director is their gateway for these replies, too.
    for server in REAL_SERVERS {
        cluster.ip(server, "rule del from 198.51.100.0/24 lookup 100");
    }
    let director = Director::start(&cluster, Workers::One);
    director.add_service(Protocol::Tcp, 80, Method::DirectRouting);
    assert_eq!(connect(&cluster, &[80; 8], Duration::from_millis(1500)), 0);
    let warning = "TCP 198.51.100.100:80: 192.0.2.11:80: 4 connections, none answered; its replies come by this \
                   director, whose kernel drops them because 198.51.100.100 is its own address; `xvs set \
                   forward_shared 1` forwards them, or give 192.0.2.11 another gateway";
    let said = director.status();
    assert!(said.contains(warning), "{said}");
    let exit_code = || complete(&mut shell(&cluster, DR, "xvs status --exit-code")).status.code();
    assert_eq!(exit_code(), Some(1));

    director.xvs("set forward_shared 1");
    assert_eq!(connect(&cluster, &[80; 4], DEADLINE), 4);
    let body = clients::fetch(&cluster, &format!("http://{VIP}/blob")).expect("a download");
    assert!(body == cluster.blob(), "a download of {} bytes differs from the file", body.len());
    wait::until("the warnings end", || (!director.status().contains("none answered")).then_some(()));
    wait::until("the replies are counted, and connections established", || {
        let listing = director.adm("-Ln --stats --exact");
        let row = listing.lines().find(|line| line.starts_with("TCP")).expect("the service's row");
        let sent: u64 = row.split_whitespace().last().and_then(|word| word.parse().ok()).expect("OutBytes");
        (sent > 20_000_000).then_some(())
    });
    assert_eq!(exit_code(), Some(0));
    drop(director);
    assert_eq!(exit_code(), Some(2), "no xvsd answers");
}

#[test]
fn a_real_server_that_answers_no_client_is_named_with_its_likely_cause_until_it_answers() {
    let cluster = Cluster::up(Layout::default());
    let director = Director::start(&cluster, Workers::One);
    // Neither real server has the virtual address, and one has no route to clients.
    director.add_service(Protocol::Tcp, 80, Method::DirectRouting);
    director.add_service(Protocol::Tcp, 8080, Method::Nat);
    // Nothing listens there.
    director.add_service(Protocol::Tcp, 81, Method::Nat);
    assert_eq!(connect(&cluster, &[81; 6], DEADLINE), 0);
    let refused = "TCP 198.51.100.100:81: 192.0.2.11:81: 3 connections, none answered; it refuses them (RST): nothing \
                   listens on 192.0.2.11:81, or its firewall refuses them; on 192.0.2.11 see `ss -ltn`";
    let said = director.status();
    assert!(said.contains(refused), "{said}");
    // A firewall rejects it.
    director.add_service(Protocol::Tcp, 82, Method::Nat);
    let reject = "nft 'add table inet f; add chain inet f in { type filter hook input priority 0; }; \
                  add rule inet f in tcp dport 82 reject with icmpx port-unreachable'";
    succeed(&mut shell(&cluster, Host::RealServer(1), reject));
    assert_eq!(connect(&cluster, &[82; 6], DEADLINE), 0);
    let rejected = "TCP 198.51.100.100:82: 192.0.2.11:82: 3 connections, none answered; an ICMP error answers them: its \
                    firewall, or a router's, rejects them; on 192.0.2.11 see `nft list ruleset`, `iptables -S`";
    let said = director.status();
    assert!(said.contains(rejected), "{said}");
    for port in [81, 82] {
        director.adm(&format!("-D -t 198.51.100.100:{port}"));
    }
    director.add_service(Protocol::Tcp, 81, Method::Nat);
    assert!(!director.status().contains("none answered"), "a service that is added again has no past");
    director.adm("-D -t 198.51.100.100:81");
    succeed(&mut shell(&cluster, Host::RealServer(1), "ip route del default"));
    // Only the other one answers by NAT. A client repeats its SYN after a second.
    let ports = [80, 80, 80, 80, 80, 80, 8080, 8080, 8080, 8080, 8080, 8080];
    assert_eq!(connect(&cluster, &ports, Duration::from_millis(1500)), 3);

    let status = || director.status();
    let direct = |server| {
        let missing = "none answered; it probably has not the virtual address; on";
        format!(
            "TCP 198.51.100.100:80: {server}:80: 3 connections, {missing} {server}: `xvs realserver up --vip 198.51.100.100`"
        )
    };
    let nat = "TCP 198.51.100.100:8080: 192.0.2.11:8080: 3 connections, none answered; its replies probably do not pass";
    let said = status();
    for warning in [&direct("192.0.2.11"), &direct("192.0.2.12"), nat] {
        assert!(said.contains(warning), "{warning}\n{said}");
    }
    assert!(!said.contains("192.0.2.12:8080"), "{said}");
    let diagnosed = Diagnosis::of(&cluster, &[]).complaints();
    assert_eq!(diagnosed.iter().filter(|line| line.contains("none answered")).count(), 3, "{diagnosed:?}");
    let scraped = director.xvs("top --once");
    assert!(scraped.contains("3 unanswered"), "{scraped}");

    Method::DirectRouting.prepare(&cluster);
    succeed(&mut shell(&cluster, Host::RealServer(1), "ip route add default via 192.0.2.1"));
    assert_eq!(connect(&cluster, &[80, 80, 8080, 8080], DEADLINE), 4);
    wait::until("the warnings end", || (!status().contains("none answered")).then_some(()));
}
