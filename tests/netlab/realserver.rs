//! `xvs realserver` in a namespace linked to that of a director: packets on the wire, and restoration by `down`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4, UdpSocket};
use std::thread;

use rustix::net::{AddressFamily, SendFlags, SocketType, ipproto, sendto, socket};
use xvs::netns::{Netns, must};
use xvs::realserver::{
    PATIENCE, VIP, complaint, done, ipv4, occupy, pair, refused, send_raw, set, state, status, text,
    tunnelled, xvs,
};

fn pings(netns: &Netns, dest: &str) -> bool {
    netns.command("ping").args(["-c1", "-W1", dest]).output().expect("ping starts").status.success()
}

#[test]
fn a_virtual_address_by_direct_routing_is_served_and_hidden_from_arp() {
    let (director, server) = pair();
    let vip = "10.0.0.100";
    server.ip("addr add 10.0.0.100/32 dev lo");
    assert!(pings(&director, vip), "without preparation the kernel answers ARP for it");
    server.ip("addr del 10.0.0.100/32 dev lo");
    director.ip("neigh flush dev wan");
    set(&server, "net.ipv4.conf.eth.arp_announce", 1);
    let before = state(&server);

    done(&server, "up --vip 10.0.0.100");
    assert!(!pings(&director, vip), "no machine answers ARP for it");
    assert!(pings(&director, "10.0.0.2"), "the server's own address is answered");
    let link = text(&must(server.command("ip").args(["-br", "link", "show", "dev", "eth"])).stdout);
    let mac = link.split_whitespace().nth(2).expect("name, state, address");
    director.ip(&format!("neigh replace {vip} lladdr {mac} dev wan"));
    assert!(pings(&director, vip), "a frame to its link address is");

    let up = status(&server);
    assert_eq!(up[0]["dev"], "eth", "that of the default route");
    assert_eq!(up[0]["problems"], serde_json::json!([]));
    let found: Vec<_> = up[0]["settings"].as_array().unwrap().iter().map(|one| &one["found"]).collect();
    assert_eq!(found, [0, 0, 1, 0], "all.arp_announce, all.arp_ignore, eth.arp_announce, eth.arp_ignore");

    assert!(done(&server, "up --vip 10.0.0.100 --method dr --dev eth").contains("already"));
    done(&server, "down --vip 10.0.0.100");
    assert_eq!(state(&server), before);
    assert_eq!(status(&server), serde_json::json!([]));
}

#[test]
fn an_ipv6_virtual_address_is_served_and_never_advertised_to_neighbours() {
    let (director, server) = pair();
    director.ip("addr add 2001:db8::1/64 dev wan nodad");
    server.ip("addr add 2001:db8::2/64 dev eth nodad");
    server.ip("route add default via 2001:db8::1");
    let vip = "2001:db8::100";
    server.ip(&format!("addr add {vip}/128 dev eth nodad"));
    // As soon as the link-local addresses of both have passed duplicate address detection.
    assert!((0..20).any(|_| pings(&director, vip)), "on the wire's interface the kernel answers for it");
    let wire = refused(&server, &format!("up --vip {vip}"));
    assert!(wire.contains("is an address of eth"), "{wire}");
    server.ip(&format!("addr del {vip}/128 dev eth"));
    director.ip("neigh flush dev wan");
    let before = state(&server);

    done(&server, &format!("up --vip {vip}"));
    assert!(!pings(&director, vip), "no machine answers for it");
    assert!(pings(&director, "2001:db8::2"), "the server's own address is answered for");
    let link = text(&must(server.command("ip").args(["-br", "link", "show", "dev", "eth"])).stdout);
    let mac = link.split_whitespace().nth(2).expect("name, state, address");
    director.ip(&format!("neigh replace {vip} lladdr {mac} dev wan"));
    // The server resolves its router anew for replies from the virtual address.
    server.ip("neigh flush dev eth");
    // It can do so only after duplicate address detection of its link-local address.
    assert!((0..20).any(|_| pings(&director, vip)), "a frame to its link address is");
    let neighbours = text(&must(director.command("ip").args(["-6", "neigh", "show", "dev", "wan"])).stdout);
    assert!(
        neighbours.lines().any(|line| line.starts_with(vip) && line.contains("PERMANENT")),
        "{neighbours}"
    );
    assert_eq!(status(&server)[0]["problems"], serde_json::json!([]));

    done(&server, &format!("down --vip {vip}"));
    assert_eq!(state(&server), before);
}

#[test]
fn settings_stay_until_the_last_virtual_address_is_removed_and_changes_by_others_are_kept() {
    let (_director, server) = pair();
    server.ip("link set lo down");
    let before = state(&server);
    done(&server, "up --vip 198.51.100.1");
    done(&server, "up --vip 2001:db8::1 --dev eth");
    done(&server, "up --vip 198.51.100.2");
    done(&server, "down --vip 198.51.100.1");
    assert_eq!(status(&server)[0]["problems"], serde_json::json!([]), "still quiet");
    set(&server, "net.ipv4.conf.all.arp_ignore", 0);
    server.ip("addr del 198.51.100.2/32 dev lo");
    let output = xvs(&server, "status --vip 198.51.100.2");
    assert_eq!(output.status.code(), Some(1), "a problem is not a success");
    let shown = text(&output.stdout);
    assert!(shown.contains("problem: lo does not have the address any more"), "{shown}");
    assert!(shown.contains("problem: net.ipv4.conf.all.arp_ignore is 0"), "{shown}");
    done(&server, "up --vip 198.51.100.2");
    done(&server, "status --vip 198.51.100.2");
    set(&server, "net.ipv4.conf.eth.arp_ignore", 2);
    done(&server, "down --vip 198.51.100.2");
    done(&server, "down --vip 2001:db8::1");
    set(&server, "net.ipv4.conf.eth.arp_ignore", 0);
    assert_eq!(state(&server), before);
}

/// A datagram of an IPv6 client to port 5000 of an IPv6 virtual address.
fn request6(vip: Ipv6Addr, text: &[u8]) -> Vec<u8> {
    let client = Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 9);
    let length = (8 + text.len() as u16).to_be_bytes();
    let udp = [&4000u16.to_be_bytes()[..], &5000u16.to_be_bytes(), &length, &[0, 0], text].concat();
    let pseudo = [&client.octets()[..], &vip.octets(), &[0, 17], &length, &udp].concat();
    let words = pseudo.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let sum: u32 = words.sum();
    let check = !((sum & 0xffff) as u16 + (sum >> 16) as u16);
    let header = [&[0x60, 0, 0, 0], &length[..], &[17, 64], &client.octets(), &vip.octets()].concat();
    [&header, &udp[..6], &check.to_be_bytes(), text].concat()
}

#[test]
fn every_tunnel_of_both_families_is_decapsulated_and_counted_and_other_packets_stay_with_the_kernel() {
    let (director, server) = pair();
    assert_every_tunnel_is_decapsulated(&director, &server, "eth", "native");
}

#[test]
fn without_native_xdp_every_tunnel_is_decapsulated() {
    let (director, server) = pair();
    server.ip("addr flush dev eth");
    server.ip("link add mac0 link eth type macvlan mode bridge");
    server.ip("link set mac0 up");
    server.ip("addr add 10.0.0.2/24 dev mac0");
    server.ip("route add default via 10.0.0.1");
    assert_every_tunnel_is_decapsulated(&director, &server, "mac0", "generic");
}

/// Sends one packet of every tunnel around each family to the server's interface `dev`.
fn assert_every_tunnel_is_decapsulated(director: &Netns, server: &Netns, dev: &str, mode: &str) {
    director.ip("addr add 2001:db8:2::1/64 dev wan nodad");
    server.ip(&format!("addr add 2001:db8:2::2/64 dev {dev} nodad"));
    let own_addr = Ipv4Addr::new(10, 0, 0, 2);
    let vip6 = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);
    let before = state(server);
    done(server, &format!("up --vip {VIP} --method tunnel --gue-port 5555"));
    done(server, &format!("up --vip {vip6} --method tunnel --dev {dev}"));

    let echoes = [IpAddr::from(VIP), vip6.into()]
        .map(|vip| server.run(|| UdpSocket::bind((vip, 5000)).expect("it is up")));
    let client = SocketAddrV4::new(Ipv4Addr::new(203, 0, 113, 9), 4000);
    for outer in [IpAddr::from(own_addr), Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 2).into()] {
        for (echo, family) in echoes.iter().zip([4, 6]) {
            echo.set_read_timeout(Some(PATIENCE)).expect("the time limit is not zero");
            let (direct, ethertype, gue_port) =
                if family == 4 { (4, 0x0800u16, 5555u16) } else { (41, 0x86dd, 6080) };
            for kind in ["ip", "gre", "gue"] {
                let text = format!("{kind} over {outer}");
                // The inner packet of `tunnelled` follows its outer header.
                let inner = match family {
                    4 => tunnelled(client, text.as_bytes())[20..].to_vec(),
                    _ => request6(vip6, text.as_bytes()),
                };
                let gre = [&[0, 0], &ethertype.to_be_bytes()[..], &inner].concat();
                let length = (12 + inner.len() as u16).to_be_bytes();
                let udp = [&[0x80, 0], &gue_port.to_be_bytes()[..], &length, &[0, 0]].concat();
                let gue = [&udp[..], &[0, direct, 0, 0], &inner].concat();
                let (protocol, payload) = match kind {
                    "ip" => (direct, inner),
                    "gre" => (47, gre),
                    _ => (17, gue),
                };
                send_raw(director, outer, protocol, &payload);
                let mut buffer = [0; 100];
                let len =
                    echo.recv(&mut buffer).unwrap_or_else(|error| panic!("{family} in {text}: {error}"));
                assert_eq!(&buffer[..len], text.as_bytes());
            }
        }
    }
    // Not to a virtual address: GRE with a packet to the server itself.
    let own = ipv4(17, *client.ip(), own_addr, &[0; 8]);
    send_raw(director, own_addr.into(), 47, &[&[0, 0, 8, 0], &own[..]].concat());
    // Sent after it to the same queue, so the one before has been counted when this one arrives.
    send_raw(director, own_addr.into(), 4, &tunnelled(client, b"last")[20..]);
    let mut buffer = [0; 100];
    assert_eq!(echoes[0].recv(&mut buffer).expect("the last request arrives"), 4);

    let up = status(server);
    assert_eq!(up[0]["problems"], serde_json::json!([]));
    assert_eq!(up[0]["decapsulation"], format!("an XDP program on {dev} ({mode})"));
    assert_eq!(up[0]["takes"], "IP in IP, GRE, GUE to UDP port 5555; IPv4 and IPv6 over IPv4 and IPv6");
    let counters = serde_json::json!({
        "ip": 5, "gre": 4, "gue": 4, "left_to_kernel": 1, "bad_checksum": 0, "congested": 0
    });
    assert_eq!(up[0]["counters"], counters);
    let shown = done(server, "status");
    assert!(shown.contains("packets taken: 5 IP in IP, 4 GRE, 4 GUE; left to the kernel: 1"), "{shown}");
    done(server, &format!("down --vip {VIP}"));
    done(server, &format!("down --vip {vip6}"));
    assert_eq!(state(server), before);
}

#[test]
fn a_tunnelled_request_is_decapsulated_and_its_reply_leaves_by_the_clients_route() {
    let (director, server) = pair();
    // The client is behind another link of the server; its requests still arrive from the director.
    director.veth("back", &server, "out");
    director.ip("addr add 10.1.0.1/24 dev back");
    director.ip("addr add 203.0.113.9/32 dev lo");
    server.ip("addr add 10.1.0.2/24 dev out");
    server.ip("route add 203.0.113.0/24 via 10.1.0.1");
    set(&server, "net.ipv4.conf.eth.rp_filter", 1);
    let before = state(&server);

    done(&server, &format!("up --vip {VIP} --method tunnel"));
    done(&server, "up --vip 198.51.100.2 --method tunnel");
    done(&server, "down --vip 198.51.100.2");
    let shown = done(&server, "status");
    assert!(shown.contains("decapsulation: an XDP program on eth (native)"), "{shown}");
    assert!(
        shown.contains("net.ipv4.conf.eth.rp_filter: 2 (was 1): decapsulated requests are accepted"),
        "{shown}"
    );

    let client = SocketAddrV4::new(Ipv4Addr::new(203, 0, 113, 9), 4000);
    let echo = server.run(|| UdpSocket::bind((VIP, 5000)).unwrap());
    let asker = director.run(|| UdpSocket::bind(client).unwrap());
    for one in [&echo, &asker] {
        one.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    director.run(|| {
        let raw = socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::RAW)).unwrap();
        let server = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 2), 0);
        sendto(raw, &tunnelled(client, b"anybody there?"), SendFlags::empty(), &server).unwrap();
    });
    let mut buffer = [0; 100];
    let (len, from) = echo.recv_from(&mut buffer).expect("the request arrives without its outer header");
    assert_eq!((&buffer[..len], from), (&b"anybody there?"[..], client.into()));
    echo.send_to(b"yes", from).unwrap();
    let (len, from) = asker.recv_from(&mut buffer).expect("the reply arrives");
    assert_eq!((&buffer[..len], from), (&b"yes"[..], SocketAddrV4::new(VIP, 5000).into()));

    server.ip("addr add 10.0.0.3/32 dev eth");
    let output = xvs(&server, "status");
    assert!(
        text(&output.stdout).contains("problem: the address 10.0.0.3 is new"),
        "{}",
        text(&output.stdout)
    );
    server.ip("addr del 10.0.0.3/32 dev eth");
    done(&server, &format!("down --vip {VIP}"));
    assert_eq!(state(&server), before);
}

#[test]
fn another_xdp_program_is_neither_replaced_nor_removed() {
    let (_director, server) = pair();
    occupy(&server);
    let before = state(&server);
    assert!(before.contains("with an XDP program"), "{before}");
    let occupied = refused(&server, "up --vip 198.51.100.1 --method tunnel");
    assert!(
        occupied.starts_with("xvs: decapsulation for 198.51.100.1: eth has another XDP program ("),
        "{occupied}"
    );
    assert!(occupied.contains("; `ip link set dev eth xdp off` removes it, or "), "{occupied}");
    assert_eq!(state(&server), before, "what was done is undone");
    server.ip("link set dev eth xdp off");
}

#[test]
fn with_another_xdp_program_the_kernels_tunl0_decapsulates_and_has_the_address() {
    let (_director, server) = pair();
    occupy(&server);
    // Not a tunnel, but with the name of the kernel's tunnel device.
    server.ip("link add tunl0 type veth peer name far");
    server.ip("link set far up");
    set(&server, "net.ipv4.conf.all.rp_filter", 1);
    let before = state(&server);
    done(&server, "up --vip 198.51.100.1 --method tunnel");
    let up = status(&server);
    assert_eq!((&up[0]["address_on"], &up[0]["dev"]), (&"tunl0".into(), &"eth".into()));
    assert_eq!(
        (&up[0]["decapsulation"], &up[0]["takes"]),
        (&"the kernel's tunl0".into(), &"IPv4 in IPv4".into())
    );
    let now = state(&server);
    assert!(now.contains("net.ipv4.conf.tunl0.rp_filter = 2"), "{now}");
    server.ip("link set dev eth xdp off");
    assert!(done(&server, "up --vip 198.51.100.1 --method tunnel").contains("already"));
    assert_eq!(status(&server)[0]["decapsulation"], "the kernel's tunl0", "who has it keeps it");
    done(&server, "down --vip 198.51.100.1");
    occupy(&server);
    assert_eq!(state(&server), before);
    server.ip("link set dev eth xdp off");
}

#[test]
fn an_interface_without_native_xdp_decapsulates_in_generic_mode_and_status_says_so() {
    let (_director, server) = pair();
    let before = state(&server);
    let output = xvs(&server, "up --vip 198.51.100.1 --method tunnel --dev lo");
    assert_eq!((output.status.code(), complaint(&output).as_str()), (Some(0), ""));
    // The MTU of lo less the outer headers of IPv6, UDP and GUE, and the headers of IPv4 and TCP.
    assert!(text(&output.stdout).contains("next: `advmss 65444` on the routes"), "{}", text(&output.stdout));
    assert_eq!(status(&server)[0]["decapsulation"], "an XDP program on lo (generic)");
    done(&server, "up --vip 198.51.100.2 --method tunnel --dev lo");
    done(&server, "down --vip 198.51.100.1");
    done(&server, "down --vip 198.51.100.2");
    assert_eq!(state(&server), before);
}

#[test]
fn an_address_that_another_program_has_set_up_is_listed_with_its_arp_settings() {
    let (_director, server) = pair();
    assert_eq!(done(&server, "status"), "no virtual address is up by `xvs realserver up`\n");
    server.ip(&format!("addr add {VIP}/32 dev lo"));
    let loud = format!(
        "{VIP} is on lo, not set up by `xvs realserver`; as a virtual address it answers ARP: net.ipv4.conf.eth.arp_ignore \
         is 0, not 1, net.ipv4.conf.eth.arp_announce is 0, not 2; `xvs realserver up --vip {VIP}` completes its settings"
    );
    assert!(done(&server, "status").ends_with(&format!("{loud}\n")), "{}", done(&server, "status"));
    assert_eq!(refused(&server, &format!("status --vip {VIP}")), format!("xvs: {loud}\n"));
    set(&server, "net.ipv4.conf.all.arp_ignore", 1);
    set(&server, "net.ipv4.conf.eth.arp_announce", 2);
    let quiet =
        format!("{VIP} is on lo, not set up by `xvs realserver`; `xvs realserver up --vip {VIP}` completes");
    assert!(done(&server, "status").contains(&quiet), "{}", done(&server, "status"));
    done(&server, &format!("up --vip {VIP}"));
    // The host's own address, as a cloud or DHCPv6 gives it.
    server.ip("addr add 203.0.113.9/32 dev eth");
    assert!(!done(&server, "status").contains("not set up"), "{}", done(&server, "status"));
}

#[test]
fn an_impossible_request_is_refused_with_the_reason_and_changes_nothing() {
    let (_director, server) = pair();
    server.ip("addr add 10.0.0.7/24 dev eth");
    let before = state(&server);
    let not_up = refused(&server, "down --vip 198.51.100.1");
    assert_eq!(not_up, "xvs: 198.51.100.1 is not up; `xvs realserver status` lists what is\n");
    let no_dev = refused(&server, "up --vip 198.51.100.1 --dev eth9");
    assert_eq!(no_dev, "xvs: no interface eth9; this machine has lo, eth\n");
    let wire = refused(&server, "up --vip 10.0.0.7");
    assert!(wire.starts_with("xvs: 10.0.0.7 is an address of eth, where it would answer ARP"), "{wire}");
    let gue = refused(&server, "up --vip 198.51.100.1 --gue-port 6080");
    assert!(gue.contains("it goes with --method tunnel"), "{gue}");
    for vip in
        ["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255", "::", "::1", "ff02::1", "::ffff:10.1.1.1"]
    {
        let no_host = refused(&server, &format!("up --vip {vip} --dev eth"));
        assert!(no_host.starts_with(&format!("xvs: {vip} is no unicast address")), "{no_host}");
    }
    assert_eq!(xvs(&server, "up --vip nonsense").status.code(), Some(2));
    assert_eq!(state(&server), before);
    done(&server, "up --vip 198.51.100.1");
    let otherwise = refused(&server, "down --vip 198.51.100.1 --method tunnel");
    assert!(
        otherwise.starts_with("xvs: 198.51.100.1 is up with --method dr --dev eth; `xvs "),
        "{otherwise}"
    );
    done(&server, "down --vip 198.51.100.1");
    server.ip("route del default");
    let no_route = refused(&server, "up --vip 198.51.100.1");
    assert!(no_route.contains("name it with --dev"), "{no_route}");
    assert_eq!(state(&server), before);
}

#[test]
fn an_address_of_another_machine_is_refused_and_a_later_conflict_is_shown() {
    let (_director, server) = pair();
    let vip = "198.51.100.1";
    let said = format!("{vip} is an address of eth, where it would answer ARP");
    server.ip(&format!("addr add {vip}/32 dev lo"));
    server.ip(&format!("addr add {vip}/32 dev eth"));
    let before = state(&server);
    let both = refused(&server, &format!("up --vip {vip}"));
    assert!(both.contains(&said), "{both}");
    assert_eq!(state(&server), before);
    server.ip(&format!("addr del {vip}/32 dev eth"));
    done(&server, &format!("up --vip {vip}"));
    assert!(done(&server, "status").starts_with("198.51.100.1  up  method dr"));
    server.ip(&format!("addr add {vip}/32 dev eth"));
    let shown = xvs(&server, "status");
    assert_eq!(shown.status.code(), Some(1));
    assert!(text(&shown.stdout).contains(&format!("  problem: {said}")), "{}", text(&shown.stdout));
}

#[test]
fn concurrent_commands_wait_for_each_other() {
    let (_director, server) = pair();
    let before = state(&server);
    for action in ["up", "down"] {
        thread::scope(|scope| {
            for last in 1..=4 {
                let server = &server;
                scope.spawn(move || {
                    done(server, &format!("{action} --vip 198.51.100.{last} --method tunnel"))
                });
            }
        });
    }
    assert_eq!(state(&server), before);
}
