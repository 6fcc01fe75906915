//! Services by firewall mark, through the lab: which service a packet belongs to, and where it goes.
//!
//! Not here: the rules' own forms (`crates/ctl/src/firewall_marks/tests/kernel_rules.rs`), and the kernel's
//! (`netlab/marks.rs`).

use std::net::{IpAddr, Ipv4Addr};

use serde_json::{Value, json};
use xvs::frames::SYN;
use xvs::lab_cluster::{CLIENT, CLIENT6, GATEWAY_MAC, VIP, VIP6, WAN_MAC, at, server, server6};
use xvs::{Datagram, LabCluster, Transport};

/// A second virtual address, without a service of its own.
const OTHER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);

fn mark(cluster: &mut LabCluster, rule: &str) {
    assert_eq!(cluster.xvs(&format!("mark add {rule}")), "");
}

/// The row of a new connection from this port of the client, without its time; none if the packet passed to the kernel.
fn scheduled(
    cluster: &mut LabCluster,
    transport: Transport,
    from: u16,
    to: (Ipv4Addr, u16),
) -> Option<String> {
    let judged = cluster.from_client(&Datagram::new(transport, at(CLIENT, from), at(to.0, to.1)));
    if judged.verdict == "pass" {
        return None;
    }
    let rows = cluster.adm("-Lnc");
    let client = at(CLIENT, from).to_string();
    let row = rows.lines().find(|row| row.split_whitespace().any(|word| word == client))?;
    Some(row.split_whitespace().skip(4).collect::<Vec<_>>().join(" "))
}

#[test]
fn a_marks_service_precedes_that_of_the_address_and_accepts_every_protocol_and_port() {
    let mut cluster = LabCluster::new();
    cluster.configure(&[
        &format!("-A -t {VIP}:80 -s rr"),
        &format!("-a -t {VIP}:80 -r {}:80 -m", server(1)),
        "-A -f 5 -s rr",
        &format!("-a -f 5 -r {} -g", server(2)),
    ]);
    let tcp = || Transport::Tcp(SYN);
    let row = |cluster: &mut LabCluster, from, transport, to| scheduled(cluster, transport, from, to);
    let direct = |to: Ipv4Addr, port| Some(format!("{to}:{port} {}:{port}", server(2)));
    let address = Some(format!("{VIP}:80 {}:80", server(1)));
    assert_eq!(row(&mut cluster, 1, tcp(), (VIP, 80)), address);
    mark(&mut cluster, &format!("-d {VIP}/25 --set-mark 5"));
    assert_eq!(row(&mut cluster, 2, tcp(), (VIP, 80)), direct(VIP, 80));
    assert_eq!(row(&mut cluster, 3, tcp(), (OTHER, 22)), direct(OTHER, 22));
    assert_eq!(row(&mut cluster, 4, Transport::Udp, (OTHER, 53)), direct(OTHER, 53));
    // A mark without a service has no effect.
    mark(&mut cluster, &format!("-d {VIP}/25 -p tcp --set-mark 6"));
    assert_eq!(row(&mut cluster, 5, tcp(), (VIP, 80)), address);
    assert_eq!(row(&mut cluster, 6, tcp(), (OTHER, 22)), None);
}

#[test]
fn a_mark_has_separate_services_in_ipv4_and_ipv6() {
    let mut cluster = LabCluster::new();
    cluster.configure(&["-A -f 5 -6 -s rr", &format!("-a -f 5 -6 -r [{}]:0 -g", server6(1))]);
    mark(&mut cluster, "-p tcp --dports 80,443 --set-mark 5");
    let tcp = || Transport::Tcp(SYN);
    let mut verdict = |from: IpAddr, to: IpAddr, port| {
        cluster.from_client(&Datagram::new(tcp(), at(from, 1), at(to, port))).verdict
    };
    assert_eq!(verdict(CLIENT6.into(), VIP6.into(), 443), "transmit");
    assert_eq!(verdict(CLIENT6.into(), VIP6.into(), 22), "pass");
    assert_eq!(verdict(CLIENT.into(), VIP.into(), 443), "pass");
    let rows = cluster.adm("-Lnc");
    assert!(
        rows.contains(&format!("[{VIP6}]:443")) && rows.contains(&format!("[{}]:443", server6(1))),
        "{rows}"
    );
}

#[test]
fn under_nat_a_marks_service_maps_every_port_to_its_real_servers_or_keeps_it_if_that_is_zero() {
    let mut cluster = LabCluster::new();
    cluster.configure(&["-A -f 1 -s rr", &format!("-a -f 1 -r {}:8080 -m", server(1))]);
    mark(&mut cluster, &format!("-d {VIP} --set-mark 1"));
    let row = |cluster: &mut LabCluster, from, port| {
        scheduled(cluster, Transport::Tcp(SYN), from, (VIP, port)).expect("a service")
    };
    assert_eq!(row(&mut cluster, 1, 80), format!("{VIP}:80 {}:8080", server(1)));
    assert_eq!(row(&mut cluster, 2, 443), format!("{VIP}:443 {}:8080", server(1)));
    cluster
        .configure(&[&format!("-d -f 1 -r {}:8080", server(1)), &format!("-a -f 1 -r {}:0 -m", server(1))]);
    assert_eq!(row(&mut cluster, 3, 443), format!("{VIP}:443 {}:443", server(1)));
}

#[test]
fn a_client_refused_by_a_marks_service_gets_the_error_from_the_address_it_sent_to() {
    let mut cluster = LabCluster::new();
    cluster.configure(&["-A -f 1 -s rr"]);
    mark(&mut cluster, &format!("-d {OTHER} --set-mark 1"));
    let syn = Datagram::new(Transport::Tcp(SYN), at(CLIENT, 1), at(OTHER, 80));
    let judged = cluster.from_client(&syn);
    assert_eq!(judged.verdict, "drop no_destination");
    assert_eq!(judged.sent[0].1[26..30], OTHER.octets());
    // Packets to other addresses are left to the kernel to forward.
    cluster.set("cache_bypass", 1);
    assert_eq!(cluster.from_client(&syn).verdict, "pass");
}

#[test]
fn a_multicast_packet_causes_no_icmp_error() {
    let mut cluster = LabCluster::new();
    cluster.configure(&["-A -f 1 -s rr", "-A -f 1 -6 -s rr"]);
    mark(&mut cluster, "-p udp --dport 99 --set-mark 1");
    let refused = |cluster: &mut LabCluster, frame: &[u8]| {
        let judged = cluster.inject("wan", frame);
        assert_eq!(judged.verdict, "drop no_destination");
        judged.sent.len()
    };
    let to = |source: IpAddr, dest: &str| {
        Datagram::new(Transport::Udp, at(source, 4000), at(dest.parse::<IpAddr>().expect("an address"), 99))
            .frame(GATEWAY_MAC, WAN_MAC)
    };
    // The link's own broadcast address, the limited broadcast address, and a multicast group.
    for dest in ["192.0.2.127", "255.255.255.255", "224.0.0.5"] {
        assert_eq!(refused(&mut cluster, &to(CLIENT.into(), dest)), 0, "{dest}");
    }
    assert_eq!(refused(&mut cluster, &to(CLIENT6.into(), "ff02::5")), 0);
    for mut one in [to(CLIENT.into(), "198.51.100.7"), to(CLIENT6.into(), "2001:db8:51::7")] {
        assert_eq!(refused(&mut cluster, &one), 1);
        one[..6].fill(0xff);
        assert_eq!(cluster.inject("wan", &one).verdict, "pass", "its link address was everybody's");
    }
}

#[test]
fn mark_rules_are_listed_and_deleted_as_they_were_added_and_refusals_say_what_to_do() {
    let mut cluster = LabCluster::new();
    assert_eq!(cluster.xvs("mark list"), "no mark rules; `xvs mark add --help` says how to add one\n");
    let rule = "-d 198.51.100.0/24 -s 203.0.113.0/24 -p tcp --dports 80,8000:8010 -i wan --set-mark 1/0xff";
    mark(&mut cluster, rule);
    mark(&mut cluster, "-p udp --dport 53 --set-mark 2");
    let listed = cluster.xvs("mark list");
    assert_eq!(
        listed,
        "mark  mask        protocol  source          destination      ports         interface\n\
         1     0xff        TCP       203.0.113.0/24  198.51.100.0/24  80,8000:8010  wan\n\
         2     0xffffffff  UDP       -               -                53            -\n"
    );
    let json = cluster.xvs("mark list --json");
    let rules: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(rules[0]["dports"], json!(["80", "8000:8010"]));
    let again = cluster.xvs_reading(&format!("mark add {rule}"));
    let message = format!("xvs: mark rule {rule} exists already; `xvs mark list` shows the existing ones\n");
    assert_eq!(again, (3, message));
    assert_eq!(cluster.xvs(&format!("mark delete {rule}")), "");
    let gone = cluster.xvs_reading(&format!("mark delete {rule}"));
    let message = format!("xvs: no mark rule {rule}; `xvs mark list` shows those that can be deleted\n");
    assert_eq!(gone, (3, message));
    for wrong in ["mark add --dport 80 --set-mark 1", "mark add -d 192.0.2.1", "mark add --set-mark x"] {
        assert_eq!(cluster.xvs_reading(wrong).0, 2, "{wrong}");
    }
}
