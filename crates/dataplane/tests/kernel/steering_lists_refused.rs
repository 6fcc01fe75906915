//! Access lists that the kernel has no room for, which workers check alone. The test runs in a process of its own,
//! whose limit of open files it lowers. Needs root, or CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON; fails without them.

use std::env;
use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::Arc;

use etherparse::PacketBuilder;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use xvs_dataplane::snapshot::lists::{List, Lists, Scope};
use xvs_dataplane::steering::{Steering, SteeringRules, Verdict};
use xvs_proto::{Endpoint, Prefix, Protocol};

/// Set in the process of this test.
const OWN_PROCESS: &str = "XVS_TEST_IN_OWN_PROCESS";
const VIP: [u8; 4] = [198, 51, 100, 1];
const FORMER: [u8; 4] = [203, 0, 113, 7];
const NEW: [u8; 4] = [203, 0, 113, 8];

#[test]
fn if_the_kernel_has_no_room_for_a_list_the_program_has_neither_that_one_nor_the_former() {
    const TEST: &str = "steering_lists_refused::\
        if_the_kernel_has_no_room_for_a_list_the_program_has_neither_that_one_nor_the_former";
    if env::var_os(OWN_PROCESS).is_none() {
        let mut command = Command::new(env::current_exe().unwrap());
        let output = command.args(["--exact", TEST]).env(OWN_PROCESS, "yes").output().unwrap();
        let printed = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && printed.contains(" 1 passed;"), "{printed}");
        return;
    }
    let mut steering =
        Steering::load_for_test_runs().expect("run as root: the kernel must take BPF programs");
    let services = [(Protocol::TCP, Endpoint::new(VIP, 80))].into();
    steering.update(&SteeringRules { services, ..SteeringRules::default() }).unwrap();
    let deny = |client: [u8; 4]| {
        let networks = [Prefix::host(Ipv4Addr::from(client).into())].into_iter().collect();
        let deny = List { parts: [Some(Arc::new(networks)), None], ..List::default() };
        Some((Arc::new(Lists::new(Scope { deny, ..Scope::default() }, [])), Vec::new()))
    };
    let verdict = |steering: &Steering, client| {
        let mut frame = Vec::new();
        let ethernet = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        ethernet.ipv4(client, VIP, 64).tcp(1024, 80, 1, 1000).write(&mut frame, b"hello").unwrap();
        steering.test_run(&frame).unwrap()
    };
    steering.set_lists(deny(FORMER)).unwrap();
    assert_eq!(verdict(&steering, FORMER), Verdict::Refused);

    // A map needs a descriptor.
    let limit = getrlimit(Resource::Nofile);
    let first_free = File::open("/dev/null").unwrap().as_raw_fd() as u64;
    setrlimit(Resource::Nofile, Rlimit { current: Some(first_free), ..limit }).unwrap();
    let refused = steering.set_lists(deny(NEW));
    setrlimit(Resource::Nofile, limit).unwrap();
    assert!(refused.is_err());
    for client in [FORMER, NEW] {
        assert_eq!(verdict(&steering, client), Verdict::Steered, "{client:?}");
    }

    steering.set_lists(deny(NEW)).unwrap();
    assert_eq!([FORMER, NEW].map(|client| verdict(&steering, client)), [Verdict::Steered, Verdict::Refused]);
}
