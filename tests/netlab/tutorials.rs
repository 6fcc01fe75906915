//! Scripts like those of tutorials on Linux Virtual Server, run unchanged with a running `xvsd`.
//!
//! `tests/tutorials/machine` gives each host a /sbin with ipvsadm, ipvsadm-save and ipvsadm-restore, an /etc and a
//! /var/lock of its own, which persist from one script to the next. Each test has a cluster of its own. Needs root.

use std::fs;
use std::path::Path;

use xvs::cluster::{REAL_SERVERS, complete, succeed};
use xvs::director::program;
use xvs::{Cluster, Director, Host, Layout, Workers, clients};

/// The virtual address of the scripts; no host has it before they run.
const SHOP: &str = "http://198.51.100.110/";

/// Runs a command on a host of the cluster, as on a machine of its own; returns its exit code and its output.
fn on(cluster: &Cluster, host: Host, words: &[&str]) -> (Option<i32>, String) {
    let machine = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tutorials/machine");
    let folder = cluster.state().join(format!("{}-machine", host.name()));
    let programs = program("xvsadm");
    let programs = programs.parent().expect("it stands in a folder");
    let mut command = cluster.command(host, machine);
    let output = complete(command.arg(folder).arg(programs).args(words));
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&said).into_owned())
}

/// Runs one of the scripts, which must succeed; returns its output, standard error included.
fn script(cluster: &Cluster, host: Host, name: &str, word: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tutorials").join(name);
    let (code, said) = on(cluster, host, &[&path.display().to_string(), word]);
    assert_eq!(code, Some(0), "{name} {word}: {said}");
    said
}

/// Number of pages from each real server, of `count` requests.
fn shares(cluster: &Cluster, count: usize) -> [usize; 2] {
    let pages = clients::pages(cluster, SHOP, count);
    ["rs1", "rs2"].map(|name| pages.iter().filter(|page| page.as_str() == name).count())
}

fn is_unreachable(cluster: &Cluster) -> bool {
    clients::fetch(cluster, SHOP).is_err()
}

const DR: Host = Host::Director;

#[test]
fn scripts_for_direct_routing_start_serve_report_their_status_and_stop() {
    let cluster = Cluster::up(Layout::default());
    let _director = Director::start(&cluster, Workers::One);
    for server in REAL_SERVERS {
        script(&cluster, server, "realserver-dr", "start");
        assert_eq!(script(&cluster, server, "realserver-dr", "status"), "the real server is running\n");
    }
    let said = script(&cluster, DR, "director-dr", "start");
    let listed = "\
TCP  198.51.100.110:80 rr
  -> 192.0.2.11:80                Route   2      0          0         
  -> 192.0.2.12:80                Route   1      0          0         
";
    assert!(
        said.starts_with("Starting the director\nIP Virtual Server version 1.2.1") && said.ends_with(listed),
        "{said}"
    );
    assert_eq!(shares(&cluster, 4), [2, 2]);
    assert_eq!(script(&cluster, DR, "director-dr", "status"), "ipvsadm is running...\n");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tutorials/director-dr");
    assert_eq!(on(&cluster, DR, &[&path.display().to_string(), "start"]).0, Some(1), "it runs already");

    script(&cluster, DR, "director-dr", "restart");
    assert_eq!(shares(&cluster, 4), [2, 2]);
    // The tutorial then changes weights at run time.
    for line in ["-E -t 198.51.100.110:80 -s wrr", "-e -t 198.51.100.110:80 -r 192.0.2.12:80 -g -w 6"] {
        let words: Vec<_> = ["/sbin/ipvsadm"].into_iter().chain(line.split(' ')).collect();
        assert_eq!(on(&cluster, DR, &words), (Some(0), String::new()), "{line}");
    }
    assert_eq!(shares(&cluster, 8), [2, 6]);
    script(&cluster, DR, "director-dr", "stop");
    assert!(is_unreachable(&cluster));
    for server in REAL_SERVERS {
        script(&cluster, server, "realserver-dr", "stop");
        assert_eq!(script(&cluster, server, "realserver-dr", "status"), "the real server is not running\n");
    }
}

#[test]
fn scripts_for_nat_serve_by_weight_and_the_service_saves_clears_and_loads_the_table() {
    let cluster = Cluster::up(Layout::default());
    let _director = Director::start(&cluster, Workers::One);
    let said = script(&cluster, DR, "director-nat", "start");
    assert!(said.contains("TCP  198.51.100.110:http wrr\n"), "host names are resolved: {said}");
    assert_eq!(shares(&cluster, 10), [6, 4]);

    let saved = "\
-A -t 198.51.100.110:80 -s wrr
-a -t 198.51.100.110:80 -r 192.0.2.11:80 -m -w 3
-a -t 198.51.100.110:80 -r 192.0.2.12:8080 -m -w 2
";
    assert_eq!(on(&cluster, DR, &["ipvsadm-save", "-n"]), (Some(0), saved.to_owned()));
    let service = |word| on(&cluster, DR, &["service", "ipvsadm", word]);
    assert_eq!(service("save").0, Some(0));
    assert_eq!(on(&cluster, DR, &["cat", "/etc/sysconfig/ipvsadm"]).1, saved);
    assert_eq!(service("stop").0, Some(0));
    assert!(is_unreachable(&cluster));
    assert_eq!(service("start").0, Some(0));
    assert!(service("status").1.contains("192.0.2.12:8080"), "{}", service("status").1);
    assert_eq!(shares(&cluster, 10), [6, 4]);

    // Rules saved by hand, with a comment; the table also has a service that the load must remove.
    let by_hand = "ipvsadm -A -u 198.51.100.110:53; (echo '# the shop'; cat /etc/sysconfig/ipvsadm) >/etc/rules && \
                   ipvsadm-restore </etc/rules && ipvsadm-save -n";
    assert_eq!(on(&cluster, DR, &["sh", "-c", by_hand]), (Some(0), saved.to_owned()));
    assert_eq!(shares(&cluster, 5).iter().sum::<usize>(), 5);
    assert_eq!(on(&cluster, DR, &["sh", "-c", "ipvsadm-save --help >/dev/null 2>&1"]).0, Some(1));
    script(&cluster, DR, "director-nat", "stop");
    assert!(is_unreachable(&cluster));
}

#[test]
fn scripts_for_tunnels_serve_and_stop() {
    let cluster = Cluster::up(Layout::default());
    let _director = Director::start(&cluster, Workers::One);
    for server in REAL_SERVERS {
        script(&cluster, server, "realserver-tun", "start");
    }
    assert_eq!(script(&cluster, DR, "director-tun", "start"), "");
    assert_eq!(shares(&cluster, 4), [2, 2]);
    script(&cluster, DR, "director-tun", "stop");
    assert!(is_unreachable(&cluster));
    for server in REAL_SERVERS {
        script(&cluster, server, "realserver-tun", "stop");
    }
    succeed(cluster.command(DR, "ip").args(["link", "show", "wan"]));
}

#[test]
fn the_example_keepalived_conf_has_no_fault_and_keepalived_ignores_only_the_keywords_of_xvs() {
    let cluster = Cluster::up(Layout::default());
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/keepalived.conf");
    let mut check = cluster.command(DR, program("xvs"));
    let said = succeed(check.args(["check", "--keepalived"]).arg(&example));
    assert!(said.ends_with("docs/keepalived.conf: no fault\n"), "{said}");
    let text = fs::read_to_string(&example).expect("it is in the sources");
    let here = text
        .replace("eth0", "wan")
        .replace("eth1", "lan")
        .replace("/usr/local/sbin/xvs healthy", "/usr/bin/true");
    let file = cluster.state().join("keepalived.conf");
    fs::write(&file, here).expect("the cluster's folder takes a new file");
    for director in ["director1", "director2"] {
        let mut check = cluster.command(DR, "keepalived");
        let checked = complete(check.args(["-t", "-i", director, "-f"]).arg(&file));
        let said = String::from_utf8_lossy(&checked.stderr);
        assert!(
            said.trim_end().ends_with("Unknown keyword 'rise'") && said.trim_end().lines().count() == 1,
            "{said}"
        );
    }
}
