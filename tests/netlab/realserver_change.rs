//! `xvs realserver up` of an address that is up in another form: it changes in place, or stays as it was.

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use serde_json::Value;
use xvs::netns::{Netns, must};
use xvs::realserver::{
    PATIENCE, VIP, done, occupy, pair, refused, send_raw, set, state, status, text, tunnelled,
};

/// Runs `change` while a thread asks, without a pause, whether this machine has the virtual address and is quiet in ARP
/// for it on `dev`; both must be so each time.
fn never_missing_nor_answering_arp(server: &Netns, dev: &str, change: impl FnOnce()) {
    let (done, checks) = (AtomicBool::new(false), AtomicUsize::new(0));
    let highest = |name: &str| {
        let value = |dev| {
            let path = format!("/proc/sys/net/ipv4/conf/{dev}/{name}");
            let text = fs::read_to_string(path).expect("the interface is there");
            text.trim().parse::<i32>().expect("the setting is a number")
        };
        value("all").max(value(dev))
    };
    thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            server.run(|| {
                while !done.load(Ordering::Relaxed) {
                    UdpSocket::bind((VIP, 0)).expect("this machine has the address");
                    assert!(highest("arp_ignore") >= 1, "ARP requests for the address would be answered");
                    assert_eq!(highest("arp_announce"), 2, "the address would be in ARP requests");
                    checks.fetch_add(1, Ordering::Relaxed);
                }
            });
        });
        // At least one check precedes the changes.
        while checks.load(Ordering::Relaxed) == 0 && !watcher.is_finished() {
            thread::yield_now();
        }
        let changed = catch_unwind(AssertUnwindSafe(change));
        done.store(true, Ordering::Relaxed);
        watcher.join().expect("the address is never missing and ARP stays quiet");
        changed.unwrap_or_else(|failed| resume_unwind(failed));
    });
}

/// The routes whose source is the virtual address: the kernel removes them in any moment without the address.
fn routes_from_vip(server: &Netns) -> String {
    text(&must(server.command("ip").args(["-o", "route", "show", "203.0.113.0/24"])).stdout)
}

#[test]
fn another_method_changes_an_address_in_place_and_down_restores_what_the_first_up_found() {
    let (director, server) = pair();
    set(&server, "net.ipv4.conf.eth.rp_filter", 1);
    let before = state(&server);
    done(&server, &format!("up --vip {VIP}"));
    let routing = state(&server);
    server.ip(&format!("route add 203.0.113.0/24 via 10.0.0.1 src {VIP}"));
    let route = routes_from_vip(&server);
    assert!(route.contains(&format!("src {VIP}")), "{route}");

    never_missing_nor_answering_arp(&server, "eth", || {
        for _ in 0..3 {
            let changed = done(&server, &format!("up --vip {VIP} --method tunnel"));
            let said = format!("{VIP} is up, method tunnel (was up; changed: method dr to tunnel)\n");
            assert!(changed.starts_with(&said), "{changed}");
            let up = status(&server);
            assert_eq!((&up[0]["method"], &up[0]["problems"]), (&"tunnel".into(), &serde_json::json!([])));
            assert_eq!(up[0]["decapsulation"], "an XDP program on eth (native)");
            let changed = done(&server, &format!("up --vip {VIP} --method dr"));
            assert_eq!(changed, format!("{VIP} is up, method dr (was up; changed: method tunnel to dr)\n"));
            assert_eq!(state(&server), routing, "nothing of the tunnel is left");
            assert_eq!(status(&server)[0]["problems"], serde_json::json!([]));
        }
        done(&server, &format!("up --vip {VIP} --method tunnel"));
    });
    assert_eq!(routes_from_vip(&server), route);

    let echo = server.run(|| UdpSocket::bind((VIP, 5000)).expect("it is up"));
    echo.set_read_timeout(Some(PATIENCE)).expect("the time limit is not zero");
    let client = SocketAddrV4::new(Ipv4Addr::new(203, 0, 113, 9), 4000);
    send_raw(&director, Ipv4Addr::new(10, 0, 0, 2).into(), 4, &tunnelled(client, b"inside")[20..]);
    let mut buffer = [0; 100];
    assert_eq!(echo.recv(&mut buffer).expect("the tunnel is decapsulated"), 6);

    assert!(
        done(&server, &format!("up --vip {VIP}")).contains("method tunnel (already up"),
        "it keeps its method"
    );
    done(&server, &format!("down --vip {VIP}"));
    assert_eq!(state(&server), before);
}

#[test]
fn another_interface_or_gue_port_changes_an_address_in_place() {
    let (director, server) = pair();
    director.veth("back", &server, "out");
    set(&server, "net.ipv4.conf.out.rp_filter", 1);
    let before = state(&server);
    let vip6 = "2001:db8:1::1";
    for vip in [&VIP.to_string(), vip6, "198.51.100.2"] {
        done(&server, &format!("up --vip {vip} --method tunnel --dev eth"));
    }
    let shown = |name: &str| status(&server).as_array().unwrap().iter().map(|up| up[name].clone()).collect();
    never_missing_nor_answering_arp(&server, "eth", || {
        let changed = done(&server, &format!("up --vip {VIP} --dev out --gue-port 5555"));
        let said = "method tunnel (was up; changed: interface eth to out, GUE port 6080 to 5555)\n";
        assert!(changed.contains(said), "{changed}");
        let changed = done(&server, &format!("up --vip {vip6} --dev out"));
        assert!(changed.contains("(was up; changed: interface eth to out)\n"), "{changed}");
    });
    let devs: Vec<Value> = shown("dev");
    assert_eq!(devs, ["out", "eth", "out"]);
    let none = serde_json::json!([]);
    assert_eq!(shown("problems"), [none.clone(), none.clone(), none]);
    let settings = state(&server);
    assert!(settings.contains("net.ipv4.conf.out.arp_ignore = 1"), "{settings}");
    assert!(settings.contains("net.ipv4.conf.out.rp_filter = 2"), "{settings}");

    let changed = done(&server, "up --vip 198.51.100.2 --method dr --dev out");
    assert!(changed.contains("(was up; changed: method tunnel to dr, interface eth to out)"), "{changed}");
    let settings = state(&server);
    let eth = settings.lines().find(|line| line.starts_with("eth@")).expect("it is up");
    assert!(!eth.contains("XDP"), "the program is gone with the last address: {eth}");
    assert!(settings.contains("net.ipv4.conf.eth.arp_ignore = 0"), "{settings}");
    for vip in [&VIP.to_string(), vip6, "198.51.100.2"] {
        done(&server, &format!("down --vip {vip}"));
    }
    assert_eq!(state(&server), before);
}

#[test]
fn an_address_moves_between_lo_and_tunl0_without_a_moment_on_neither() {
    let (_director, server) = pair();
    server.ip("link add tunl0 type veth peer name far");
    server.ip("link set far up");
    set(&server, "net.ipv4.conf.all.rp_filter", 1);
    occupy(&server);
    let before = state(&server);
    done(&server, &format!("up --vip {VIP}"));
    let routing = state(&server);
    server.ip(&format!("route add 203.0.113.0/24 via 10.0.0.1 src {VIP}"));
    let route = routes_from_vip(&server);
    never_missing_nor_answering_arp(&server, "eth", || {
        let changed = done(&server, &format!("up --vip {VIP} --method tunnel"));
        assert!(
            changed.contains("(was up; changed: method dr to tunnel, address on lo to tunl0)"),
            "{changed}"
        );
        let up = status(&server);
        assert_eq!((&up[0]["address_on"], &up[0]["problems"]), (&"tunl0".into(), &serde_json::json!([])));
        let changed = done(&server, &format!("up --vip {VIP} --method dr"));
        assert!(
            changed.contains("(was up; changed: method tunnel to dr, address on tunl0 to lo)"),
            "{changed}"
        );
    });
    assert_eq!(routes_from_vip(&server), route);
    assert_eq!(state(&server), routing);
    done(&server, &format!("down --vip {VIP}"));
    assert_eq!(state(&server), before);
    server.ip("link set dev eth xdp off");
}

#[test]
fn a_change_that_fails_leaves_the_address_up_as_it_was() {
    let (director, server) = pair();
    director.veth("back", &server, "out");
    set(&server, "net.ipv4.conf.out.rp_filter", 1);
    occupy(&server);
    let before = state(&server);
    done(&server, &format!("up --vip {VIP} --dev out"));
    done(&server, "up --vip 198.51.100.2 --method tunnel --dev out");
    let (up, listed) = (state(&server), status(&server));
    never_missing_nor_answering_arp(&server, "out", || {
        for words in ["--method tunnel --dev eth", "--method tunnel --dev eth9"] {
            let reason = refused(&server, &format!("up --vip {VIP} {words}"));
            assert!(
                reason.contains("another XDP program") || reason.contains("no interface eth9"),
                "{reason}"
            );
            assert_eq!((state(&server), status(&server)), (up.clone(), listed.clone()), "{words}");
        }
        let reason = refused(&server, "up --vip 198.51.100.2 --dev eth");
        assert!(reason.contains("eth has another XDP program"), "{reason}");
        assert_eq!((state(&server), status(&server)), (up.clone(), listed.clone()));
    });
    done(&server, &format!("down --vip {VIP}"));
    done(&server, "down --vip 198.51.100.2");
    assert_eq!(state(&server), before);
    server.ip("link set dev eth xdp off");
}
