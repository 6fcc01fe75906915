//! FTP's helper through the lab: what both ends of a control connection see, and which data connections follow.
//!
//! The director's addresses are those of the lab's cluster. As text the virtual address is longer or shorter than the
//! server's, so sequence numbers are shifted. Not here: clients and servers with kernels of their own
//! (`netlab/persistence.rs`); the recording of the kernel (`ftp-nat` in `conformance/main.rs`).

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use etherparse::TcpOptionElement;
use proptest::prelude::*;
use serde_json::json;
use xvs::lab_cluster::{
    CLIENT, CLIENT6, GATEWAY_MAC, LAN_MAC, SILENT, VIP6, WAN_MAC, server, server_mac, server6,
};
use xvs::{LabCluster, Segment};
use xvs_model::protocol::client::Director as _;
use xvs_model::protocol::question::{Reply, Request};
use xvs_model::report::connection::Filter;

/// Text of 14 bytes; that of the server has 12.
const LONG_VIP: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 100);
/// Text of 8 bytes.
const SHORT_VIP: Ipv4Addr = Ipv4Addr::new(10, 9, 8, 7);
const CLIENT_PORT: u16 = 40_000;
/// The first numbers behind SYN and SYN+ACK.
const CLIENT_FIRST: u32 = 1001;
const SERVER_FIRST: u32 = 5001;

type End = (IpAddr, u16);

/// A control connection, with a step for each segment.
struct Session {
    cluster: LabCluster,
    vip: IpAddr,
    client: IpAddr,
    server: IpAddr,
    /// What each end sends next, by its own numbers.
    client_next: u32,
    server_next: u32,
    /// What the client expects next.
    client_due: u32,
}

impl Session {
    /// An established connection to the one server of the service.
    fn open(vip: impl Into<IpAddr>) -> Self {
        let mut session = Self::begin(vip.into(), "-m");
        let syn = Segment { syn: true, sequence: CLIENT_FIRST - 1, ..Segment::default() };
        session.request(&syn);
        session.reply(&Segment { sequence: SERVER_FIRST - 1, ack: Some(CLIENT_FIRST), ..syn });
        session.request(&session.acknowledgement());
        session
    }

    /// No connection yet.
    fn begin(vip: IpAddr, method: &str) -> Self {
        let mut cluster = LabCluster::new();
        let (client, server): (IpAddr, IpAddr) = match vip {
            IpAddr::V4(_) => (CLIENT.into(), server(1).into()),
            IpAddr::V6(_) => (CLIENT6.into(), server6(1).into()),
        };
        let (service, dest) = (SocketAddr::new(vip, 21), SocketAddr::new(server, 21));
        cluster
            .configure(&[&format!("-A -t {service} -s rr"), &format!("-a -t {service} -r {dest} {method}")]);
        let (client_next, server_next, client_due) = (CLIENT_FIRST, SERVER_FIRST, SERVER_FIRST);
        Self { cluster, vip, client, server, client_next, server_next, client_due }
    }

    fn control(&self) -> [End; 3] {
        [(self.client, CLIENT_PORT), (self.vip, 21), (self.server, 21)]
    }

    /// The client's segment that acknowledges all that it has received.
    fn acknowledgement(&self) -> Segment {
        Segment { sequence: self.client_next, ack: Some(self.client_due), ..Segment::default() }
    }

    /// What the server receives for a client's segment of the control connection.
    fn request(&mut self, segment: &Segment) -> Segment {
        let [client, vip, server] = self.control();
        self.client_sends(segment, client, vip, server)
    }

    /// What the client receives for a server's segment of the control connection.
    fn reply(&mut self, segment: &Segment) -> Segment {
        let [client, vip, server] = self.control();
        self.server_sends(segment, server, client, vip)
    }

    fn client_sends(&mut self, segment: &Segment, client: End, vip: End, server: End) -> Segment {
        let sent = self.sent("wan", &segment.frame(client, vip, (GATEWAY_MAC, WAN_MAC)));
        Segment::between(&sent, client, server)
    }

    fn server_sends(&mut self, segment: &Segment, server: End, client: End, vip: End) -> Segment {
        let sent = self.sent("lan", &segment.frame(server, client, (server_mac(1), LAN_MAC)));
        Segment::between(&sent, vip, client)
    }

    fn sent(&mut self, link: &str, frame: &[u8]) -> Vec<u8> {
        let judged = self.cluster.inject(link, frame);
        assert_eq!((judged.verdict.as_str(), judged.sent.len()), ("transmit", 1), "{judged:?}");
        judged.sent.into_iter().next().expect("one frame").1
    }

    /// The client sends text, which arrives as it is, and the server acknowledges it.
    fn ask(&mut self, text: &str) {
        let segment = Segment { data: text.into(), ..self.acknowledgement() };
        let seen = self.request(&segment);
        assert_eq!((seen.sequence, seen.data), (segment.sequence, segment.data));
        assert_eq!(seen.ack, Some(self.server_next), "the server has sent so much");
        self.client_next += text.len() as u32;
        let empty = Segment { sequence: self.server_next, ack: Some(self.client_next), ..Segment::default() };
        assert_eq!(self.reply(&empty).sequence, self.client_due);
    }

    /// The server's next segment, with this text.
    fn answer(&mut self, text: &str) -> Segment {
        let ack = Some(self.client_next);
        let segment = Segment { sequence: self.server_next, ack, data: text.into(), ..Segment::default() };
        self.server_next += text.len() as u32;
        segment
    }

    /// The server sends text; what the client receives, which acknowledges it.
    fn tell(&mut self, text: &str) -> String {
        let segment = self.answer(text);
        let seen = self.reply(&segment);
        assert_eq!(seen.sequence, self.client_due);
        self.client_due += seen.data.len() as u32;
        let acknowledged = self.request(&self.acknowledgement());
        assert_eq!((acknowledged.ack, acknowledged.sequence), (Some(self.server_next), self.client_next));
        String::from_utf8(seen.data).expect("text")
    }

    /// The listed connections but the control connection, as `TIME STATE CLIENT VIRTUAL DEST`.
    fn data(&mut self) -> Vec<String> {
        let rows = self.cluster.connections().into_iter();
        let control = format!("{}", SocketAddr::new(self.client, CLIENT_PORT));
        let rows = rows.filter(|row| row.split(' ').nth(3) != Some(&*control));
        rows.map(|row| row.split_once(' ').expect("columns").1.to_owned()).collect()
    }

    fn not_followed(&mut self) -> u64 {
        self.cluster.counters().get("ftp_not_followed").copied().unwrap_or(0)
    }

    /// A client's SYN to this port of the virtual address: the verdict.
    fn connect(&mut self, client: End, port: u16) -> String {
        let syn = Segment { syn: true, sequence: 1, ..Segment::default() };
        self.cluster.inject("wan", &syn.frame(client, (self.vip, port), (GATEWAY_MAC, WAN_MAC))).verdict
    }
}

/// Reply 227 for an endpoint.
fn passive(addr: IpAddr, port: u16) -> String {
    let numbers = addr.to_string().replace('.', ",");
    format!("227 Entering Passive Mode ({numbers},{},{}).\r\n", port >> 8, port & 0xff)
}

fn extended(port: u16) -> String {
    format!("229 Entering Extended Passive Mode (|||{port}|)\r\n")
}

#[test]
fn the_reply_to_pasv_has_the_virtual_address_and_the_client_reaches_the_port_that_it_names() {
    for vip in [LONG_VIP, SHORT_VIP] {
        let mut session = Session::open(vip);
        let (client, server) = (session.client, session.server);
        session.tell("220 ready\r\n");
        session.ask("PASV\r\n");
        assert_eq!(session.tell(&passive(server, 51_210)), passive(vip.into(), 51_210));
        assert_eq!(session.data(), [format!("02:00 LISTEN {client}:0 {vip}:51210 {server}:51210")]);
        assert_eq!(session.connect((SILENT.into(), 1500), 51_210), "pass", "it is for this client alone");

        let ends = ((client, 1500), (vip.into(), 51_210), (server, 51_210));
        let syn = Segment { syn: true, sequence: 8, ..Segment::default() };
        assert_eq!(session.client_sends(&syn, ends.0, ends.1, ends.2), syn);
        assert_eq!(session.data(), [format!("01:00 SYN_RECV {client}:1500 {vip}:51210 {server}:51210")]);
        let accepted = Segment { ack: Some(9), sequence: 70, ..syn };
        assert_eq!(session.server_sends(&accepted, ends.2, ends.0, ends.1), accepted);
        // Data is not read.
        let data =
            Segment { sequence: 71, ack: Some(9), data: passive(server, 1).into(), ..Segment::default() };
        assert_eq!(session.server_sends(&data, ends.2, ends.0, ends.1), data);
        assert_eq!(session.connect((client, 1501), 51_210), "pass", "the expected connection has come");
        session.ask("RETR file\r\n");
        session.tell("226 done\r\n");
        assert_eq!(session.not_followed(), 0);
    }
}

#[test]
fn epsv_needs_no_other_text_and_works_for_both_families() {
    for vip in [IpAddr::from(LONG_VIP), VIP6.into()] {
        let mut session = Session::open(vip);
        let (client, server) = (session.client, session.server);
        session.ask("EPSV\r\n");
        assert_eq!(session.tell(&extended(6446)), extended(6446));
        let at = |addr, port| SocketAddr::new(addr, port);
        let expected = format!("02:00 LISTEN {} {} {}", at(client, 0), at(vip, 6446), at(server, 6446));
        assert_eq!(session.data(), [expected]);
        assert_eq!(session.connect((client, 1500), 6446), "transmit");
        assert_eq!(session.data().len(), 1);
    }
}

#[test]
fn after_port_and_eprt_the_server_reaches_the_client_from_the_port_below_the_services() {
    let families = [IpAddr::from(LONG_VIP), VIP6.into()].into_iter().zip(["PORT 192,0,2,200,200,20", ""]);
    for (vip, port) in families {
        let eprt = format!("EPRT |{}|", if vip.is_ipv4() { 1 } else { 2 });
        for command in [port.to_owned(), eprt].into_iter().filter(|command| !command.is_empty()) {
            let mut session = Session::open(vip);
            let (client, server) = (session.client, session.server);
            let end = if command.starts_with("EPRT") { format!("{client}|51220|") } else { String::new() };
            session.ask(&format!("{command}{end}\r\n"));
            let at = |addr, port| SocketAddr::new(addr, port);
            let ends = format!("{} {} {}", at(client, 51_220), at(vip, 20), at(server, 20));
            assert_eq!(session.data(), [format!("02:00 LISTEN {ends}")]);

            let syn = Segment { syn: true, sequence: 8, ..Segment::default() };
            let (client, vip, server) = ((client, 51_220), (vip, 20), (server, 20));
            assert_eq!(session.server_sends(&syn, server, client, vip), syn);
            let accepted = Segment { ack: Some(9), sequence: 70, ..syn };
            assert_eq!(session.client_sends(&accepted, client, vip, server), accepted);
            let last = Segment { ack: Some(71), sequence: 9, ..Segment::default() };
            assert_eq!(session.server_sends(&last, server, client, vip), last);
            assert_eq!(session.data(), [format!("15:00 ESTABLISHED {ends}")]);
        }
    }
}

#[test]
fn selective_acknowledgements_of_the_client_are_shifted_too() {
    let mut session = Session::open(LONG_VIP);
    session.ask("PASV\r\n");
    session.tell(&passive(session.server, 2000));
    let (due, next) = (session.client_due, session.server_next);
    let option = |from: u32| TcpOptionElement::SelectiveAcknowledgement((from + 10, from + 20), [None; 3]);
    let segment = Segment { options: vec![TcpOptionElement::Noop, option(due)], ..session.acknowledgement() };
    let seen = session.request(&segment);
    assert_eq!(seen.ack, Some(next));
    assert!(seen.options.contains(&option(next)), "{seen:?}");
}

#[test]
fn a_segment_that_is_sent_again_arrives_as_before_and_is_expected_once() {
    let mut session = Session::open(LONG_VIP);
    session.ask("PASV\r\n");
    let reply = session.answer(&passive(session.server, 2000));
    let seen = session.reply(&reply);
    assert_eq!((seen.sequence, seen.data.len()), (reply.sequence, reply.data.len() + 2));
    session.cluster.advance(100.0);
    assert_eq!(session.reply(&reply), seen);
    assert_eq!(
        session.data(),
        [format!("00:20 LISTEN {}:0 {LONG_VIP}:2000 {}:2000", session.client, session.server)]
    );
    // The client has received the changed text in part.
    let partial = Segment { ack: Some(SERVER_FIRST + 35), ..session.acknowledgement() };
    assert_eq!(
        session.request(&partial).ack,
        Some(SERVER_FIRST + 27),
        "the first number behind the parenthesis"
    );
}

#[test]
fn an_endpoint_that_is_not_the_senders_own_is_not_followed_and_is_counted() {
    for command in [
        "PORT 192,0,2,201,200,20",
        "PORT 192,0,2,200,0,0",
        "PORT 203,0,113,11,200,20",
        "PORT 1,2,3",
        "EPRT |1|x|1|",
        "EPRT |2|::1|2000|",
    ] {
        let mut session = Session::open(LONG_VIP);
        session.ask(&format!("{command}\r\n"));
        assert_eq!((session.data(), session.not_followed()), (vec![], 1), "{command}");
    }
    for (addr, port) in
        [(IpAddr::from(SILENT), 2000), (CLIENT.into(), 2000), (server(1).into(), 22), (server(1).into(), 0)]
    {
        let mut session = Session::open(LONG_VIP);
        session.ask("PASV\r\n");
        let text = passive(addr, port);
        assert_eq!(session.tell(&text), text, "it passes as it is");
        assert_eq!((session.data(), session.not_followed()), (vec![], 1), "{text}");
    }
    let mut session = Session::open(LONG_VIP);
    session.ask("EPSV\r\n");
    session.tell(&extended(22));
    assert_eq!((session.data(), session.not_followed()), (vec![], 1));
}

#[test]
fn a_client_that_nothing_proves_to_exist_asks_for_nothing() {
    let mut session = Session::begin(LONG_VIP.into(), "-m");
    session.request(&Segment { syn: true, sequence: CLIENT_FIRST - 1, ..Segment::default() });
    let data = b"PORT 192,0,2,200,200,20\r\nPASV\r\n".to_vec();
    // A sender with a forged address does not know the server's number.
    session.request(&Segment { data, ack: Some(77), ..session.acknowledgement() });
    let reply = session.answer(&passive(server(1).into(), 2000));
    session.reply(&reply);
    assert_eq!(session.data(), [""; 0]);
}

#[test]
fn of_several_commands_in_a_segment_the_last_one_holds() {
    let mut session = Session::open(LONG_VIP);
    session.ask("PORT 192,0,2,200,200,20\r\nPORT 192,0,2,200,200,21\r\n");
    assert_eq!(session.data(), [format!("02:00 LISTEN {CLIENT}:51221 {LONG_VIP}:20 {}:20", session.server)]);
}

#[test]
fn no_syn_of_the_client_changes_how_numbers_are_shifted() {
    let mut session = Session::open(LONG_VIP);
    session.ask("PASV\r\n");
    session.tell(&passive(session.server, 2000));
    session.request(&Segment { syn: true, sequence: 99, ..Segment::default() });
    session.tell("200 so\r\n");
}

#[test]
fn a_changed_reply_that_is_sent_again_after_the_next_command_is_changed_again() {
    let mut session = Session::open(LONG_VIP);
    session.ask("PASV\r\n");
    let reply = session.answer(&passive(session.server, 2000));
    let seen = session.reply(&reply);
    session.client_due += seen.data.len() as u32;
    session.request(&Segment { data: b"RETR a\r\n".to_vec(), ..session.acknowledgement() });
    assert_eq!(session.reply(&reply), seen);
}

#[test]
fn a_packet_from_port_0_takes_the_expected_connection_and_servers_stay_counted() {
    let mut session = Session::open(LONG_VIP);
    session.ask("PASV\r\n");
    session.tell(&passive(session.server, 2000));
    assert_eq!(session.connect((CLIENT.into(), 0), 2000), "transmit");
    assert_eq!(session.connect((CLIENT.into(), 1500), 2000), "pass");
    session.cluster.advance(2000.0);
    assert_eq!(session.cluster.connections(), [""; 0]);
    let server = SocketAddr::new(session.server, 21);
    assert_eq!(session.cluster.load(server), (0, 0));
    // One more is one more.
    session.connect((CLIENT.into(), 1501), 21);
    assert_eq!(session.cluster.load(server), (1, 0));
}

#[test]
fn the_port_of_another_service_stays_with_that() {
    let mut session = Session::open(LONG_VIP);
    session.cluster.adm(&format!("-A -t {LONG_VIP}:2000 -s rr"));
    session.ask("EPSV\r\n");
    session.tell(&extended(2000));
    assert_eq!((session.data(), session.not_followed()), (vec![], 1));
}

#[test]
fn connections_that_are_ended_or_reset_leave_no_expected_one() {
    for end in [Request::EndConnections, Request::ResetConnections] {
        let mut session = Session::open(LONG_VIP);
        session.ask("PASV\r\n");
        session.tell(&passive(session.server, 2000));
        let Ok(Reply::Ended(ended)) = session.cluster.lab().director.call(end(Filter::default())) else {
            panic!("both are told what they ended");
        };
        assert_eq!(ended.ended + ended.marked, 2, "a control connection and its data connection");
        assert_eq!(session.connect((CLIENT.into(), 1500), 2000), "pass");
    }
}

#[test]
fn a_reply_is_followed_only_while_the_last_command_asks_for_it() {
    for (command, reply) in [
        ("LIST", passive(server(1).into(), 2000)),
        ("EPSV", passive(server(1).into(), 2000)),
        ("PASV", extended(2000)),
        ("PASV\r\nNOOP\r\nCWD PASV", extended(2000)),
    ] {
        let mut session = Session::open(LONG_VIP);
        session.ask(&format!("{command}\r\n"));
        assert_eq!(session.tell(&reply), reply);
        assert_eq!((session.data(), session.not_followed()), (vec![], 0), "{command}");
    }
    let mut session = Session::open(LONG_VIP);
    session.ask("PASV\r\n");
    session.tell("150 wait\r\n");
    session.ask("ABOR\r\n");
    assert_eq!(session.tell(&passive(session.server, 2000)), passive(session.server, 2000));
    assert_eq!(session.data(), [""; 0]);
}

#[test]
fn a_reply_or_command_counts_only_behind_a_line_end_and_one_reply_for_each_command() {
    let mut session = Session::open(LONG_VIP);
    // A server repeats what the client has sent, and the client's MSS divides the reply there.
    session.ask("EPSV\r\n");
    for text in ["504 Unsupported type ", "229 (|||6379|)", "\r\n"] {
        assert_eq!(session.tell(text), text);
    }
    assert_eq!(session.data(), [""; 0]);
    session.tell(&extended(2000));
    session.tell(&extended(3000));
    assert_eq!(session.data().len(), 1);
    assert_eq!(session.connect((CLIENT.into(), 1500), 2000), "transmit");
    for text in ["SITE ", "PORT 192,0,2,200,24,131\r\n"] {
        session.ask(text);
    }
    assert_eq!(session.data().len(), 1, "it is the argument of SITE");
}

#[test]
fn a_reply_that_is_divided_or_damaged_passes_as_it_is() {
    let mut session = Session::open(LONG_VIP);
    session.ask("PASV\r\n");
    let text = passive(session.server, 2000);
    let (one, other) = text.split_at(35);
    assert_eq!([session.tell(one), session.tell(other)], [one, other]);
    assert_eq!(session.data(), [""; 0]);

    let reply = session.answer(&text);
    let [client, _, server] = session.control();
    let mut frame = reply.frame(server, client, (server_mac(1), LAN_MAC));
    let sum = frame.len() - reply.data.len() - 4;
    frame[sum] ^= 1;
    let sent = session.sent("lan", &frame);
    assert_eq!(sent.len(), frame.len());
    assert_eq!((session.data(), session.not_followed()), (vec![], 1));
}

#[test]
fn a_server_that_knows_the_virtual_address_may_name_it() {
    let mut session = Session::open(LONG_VIP);
    session.ask("PASV\r\n");
    let text = passive(LONG_VIP.into(), 2000);
    assert_eq!(session.tell(&text), text);
    assert_eq!(session.connect((CLIENT.into(), 1500), 2000), "transmit");
}

#[test]
fn a_control_connection_lives_while_its_data_connection_does() {
    let mut session = Session::open(LONG_VIP);
    session.ask("EPSV\r\n");
    session.tell(&extended(2000));
    let server = SocketAddr::new(session.server, 21);
    assert_eq!(session.cluster.load(server), (1, 1), "one is established, one is expected");
    let (client, vip, server) = ((session.client, 1500), (session.vip, 2000), (session.server, 2000));
    let syn = Segment { syn: true, sequence: 8, ..Segment::default() };
    session.client_sends(&syn, client, vip, server);
    session.server_sends(&Segment { ack: Some(9), sequence: 70, ..syn }, server, client, vip);
    let data = Segment { ack: Some(71), sequence: 9, ..Segment::default() };
    // Longer than the timeout of an idle connection, 15 minutes.
    for _ in 0..10 {
        session.client_sends(&data, client, vip, server);
        session.cluster.advance(300.0);
    }
    assert_eq!(session.cluster.connections().len(), 2);
    session.tell("226 done\r\n");
    session.cluster.advance(1000.0);
    assert_eq!(session.cluster.connections(), [""; 0], "neither is used any more");
    assert_eq!(session.cluster.load(SocketAddr::new(session.server, 21)), (0, 0));
}

#[test]
fn an_expected_connection_that_does_not_come_ends_after_two_minutes() {
    let mut session = Session::open(LONG_VIP);
    session.ask("PASV\r\n");
    session.tell(&passive(session.server, 2000));
    session.cluster.advance(119.0);
    assert_eq!(session.data().len(), 1);
    session.cluster.advance(2.0);
    assert_eq!(session.data(), [""; 0]);
    assert_eq!(session.connect((CLIENT.into(), 1500), 2000), "pass");
}

#[test]
fn a_removed_server_gets_no_data_connection() {
    let mut session = Session::open(LONG_VIP);
    session.ask("PASV\r\n");
    session.tell(&passive(session.server, 2000));
    session.cluster.adm(&format!("-d -t {LONG_VIP}:21 -r {}:21", session.server));
    assert_eq!(session.connect((CLIENT.into(), 1500), 2000), "pass");
    session.cluster.advance(1000.0);
    assert_eq!(session.cluster.connections(), [""; 0]);
}

#[test]
fn a_connection_by_direct_routing_is_not_read() {
    let mut session = Session::begin(LONG_VIP.into(), "-g");
    let [client, vip, _] = session.control();
    let syn = Segment { syn: true, sequence: CLIENT_FIRST - 1, ..Segment::default() };
    let command = Segment { data: b"PORT 192,0,2,200,200,20\r\n".to_vec(), ..session.acknowledgement() };
    for segment in [syn, command] {
        session.sent("wan", &segment.frame(client, vip, (GATEWAY_MAC, WAN_MAC)));
    }
    assert_eq!((session.data(), session.not_followed()), (vec![], 0));
}

#[test]
fn after_a_failover_both_ends_still_count_the_same_bytes() {
    let mut session = Session::open(LONG_VIP);
    let mut backup = Session::begin(LONG_VIP.into(), "-m").cluster;
    for (cluster, role) in [(&mut session.cluster, "master"), (&mut backup, "backup")] {
        cluster.adm(&format!("--start-daemon {role} --mcast-interface lan --syncid 7"));
    }
    for port in [2000, 3000] {
        session.ask("PASV\r\n");
        session.tell(&passive(session.server, port));
        // Announced are established connections, by their packets.
        for _ in 0..50 {
            let empty = session.acknowledgement();
            session.request(&empty);
        }
    }
    let sent = session.cluster.ask(json!({ "advance": 4.0 }));
    for message in sent["sync"].as_array().expect("a master daemon runs") {
        backup.ok(json!({ "sync": message["payload"], "link": "lan" }));
    }
    session.cluster = backup;
    session.tell("150 as before\r\n");
    session.ask("PASV\r\n");
    assert_eq!(session.tell(&passive(session.server, 4000)), passive(LONG_VIP.into(), 4000));
    session.ask("QUIT\r\n");
    assert_eq!(session.connect((CLIENT.into(), 1500), 4000), "transmit");
}

#[test]
fn explain_says_where_an_expected_data_connection_goes() {
    let mut session = Session::open(LONG_VIP);
    session.ask("PASV\r\n");
    session.tell(&passive(session.server, 2000));
    let (from, to) = (format!("{CLIENT}:1500"), format!("{LONG_VIP}:2000"));
    let explain = json!({ "xvs": ["explain", "--proto", "tcp", "--from", from, "--to", to] });
    let answer = session.cluster.ask(explain.clone());
    let shown = answer["stdout"].as_str().expect("text");
    assert!(shown.contains(&format!("{}:2000", session.server)), "{answer}");
    assert_eq!(session.data().len(), 1, "nothing has changed");
    assert_eq!(session.connect((CLIENT.into(), 1500), 2000), "transmit");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Both ends agree on the stream, whatever is sent again.
    #[test]
    fn both_ends_count_the_same_bytes_after_any_number_of_transfers(
        vip in prop_oneof![Just(LONG_VIP), Just(SHORT_VIP), Just(Ipv4Addr::new(203, 0, 113, 99))],
        steps in prop::collection::vec((0..4_usize, 1024..u16::MAX, any::<bool>()), 1..20),
    ) {
        let mut session = Session::open(vip);
        for (step, port, again) in steps {
            let asked = ["PASV\r\n", "EPSV\r\n", "NOOP\r\n", "PASV\r\n"][step];
            session.ask(asked);
            let text = [passive(session.server, port), extended(port), "200 so\r\n".to_owned(), "500 no\r\n".to_owned()];
            let expected = if step == 0 { passive(vip.into(), port) } else { text[step].clone() };
            if again {
                // The client receives the second one only.
                let (next, lost) = (session.server_next, session.answer(&text[step]));
                session.reply(&lost);
                session.server_next = next;
            }
            prop_assert_eq!(session.tell(&text[step]), expected);
        }
        prop_assert_eq!(session.not_followed(), 0);
    }
}
