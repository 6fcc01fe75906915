//! The cluster of the other namespace tests, without the daemon.
//!
//! If one of these tests fails, the fault is in the machine or in netlab, and the other results are meaningless.
//! Needs root. Not here: xvs itself.

use std::io::Read;
use std::net::SocketAddrV4;
use std::path::Path;
use std::process::{Command, Stdio};

use xvs::clients::{self, Asker};
use xvs::cluster::{self, DIRECTOR, REAL_SERVERS, VIP, real_server};
use xvs::servers::{Echo, Sink};
use xvs::{Cluster, Host, Layout, Wan, wait};

#[test]
fn every_server_answers_the_client_at_its_own_address() {
    let cluster = Cluster::up(Layout::default());
    for address in [DIRECTOR, VIP] {
        cluster::succeed(cluster.command(Host::Client, "ping").args(["-c1", "-W5", &address.to_string()]));
    }
    for (number, host) in [1, 2].into_iter().zip(REAL_SERVERS) {
        let address = real_server(number);
        assert_eq!(clients::pages(&cluster, &format!("http://{address}/"), 1), [host.name()]);
        let body = clients::fetch(&cluster, &format!("http://{address}/blob")).expect("download");
        assert!(body == cluster.blob(), "a download of {} bytes differs from the file", body.len());
    }
}

#[test]
fn sinks_and_echoes_report_the_bytes_and_the_server() {
    let cluster = Cluster::up(Layout { queues: 2, wan: Wan::Macvlan, ..Layout::default() });
    let address = real_server(1);
    let _sink = Sink::start(&cluster, Host::RealServer(1), 9000);
    let _echo = Echo::start(&cluster, Host::RealServer(1), SocketAddrV4::new(address, 5300));
    let target = SocketAddrV4::new(address, 9000);
    let receipts = clients::parallel_uploads(&cluster, target, 20, b"some bytes");
    assert_eq!(receipts, vec![clients::receipt("rs1", b"some bytes"); 20]);
    let asker = Asker::new(&cluster, SocketAddrV4::new(address, 5300));
    assert_eq!(asker.ask(b"two words"), "rs1");
}

#[test]
fn a_dropped_cluster_leaves_no_namespace_no_process_and_no_file() {
    let cluster = Cluster::up(Layout::default());
    let namespace = cluster.namespace(Host::RealServer(1));
    let state = cluster.state().to_owned();
    let mut left_running = cluster.command(Host::RealServer(1), "sh");
    left_running.args(["-c", "echo started; exec sleep 600"]).stdout(Stdio::piped());
    let mut left_running = left_running.spawn().expect("scripts/netlab can be started");
    let stdout = left_running.stdout.as_mut().expect("it was asked for above");
    stdout.read_exact(&mut [0]).expect("the process runs");
    drop(cluster);
    let ended = wait::until("the process ends", || left_running.try_wait().expect("it is our child"));
    assert!(!ended.success(), "a process that still ran was ended by a signal, not: {ended}");
    assert!(!Path::new("/run/netns").join(namespace).exists());
    assert!(!state.exists());
    let mut nginx = Command::new("ps");
    let processes = cluster::succeed(nginx.args(["-e", "-o", "args"]));
    assert!(!processes.contains(state.to_str().expect("netlab's names are ASCII")), "{processes}");
}

#[test]
fn a_host_has_a_bpffs_of_its_own_also_where_the_machine_has_one_as_systemd_mounts_it() {
    let cluster = Cluster::up(Layout::default());
    let machine = "while umount -l /sys/fs/bpf 2>/dev/null; do :; done; mount -t bpf bpf /sys/fs/bpf; \
                   mkdir /sys/fs/bpf/machine; exec \"$@\" ls /sys/fs/bpf";
    let mut list = cluster.command(Host::Director, "sh");
    list.args(["-c", machine, "sh"]);
    list.arg(cluster.state().join("enter")).arg(cluster.state()).arg(Host::Director.name());
    let names = cluster::succeed(&mut list);
    assert!(!names.contains("machine"), "{names}");
}
