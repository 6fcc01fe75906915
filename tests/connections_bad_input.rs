//! Packets that come at the wrong time: first packets that should not be first, answers before questions, ports used
//! again too early. Each is handled as the kernel's IPVS does (ipvs-behaviour, sections 2 to 4), through the lab.
//!
//! Not here: packets that contradict themselves, and the whole table of states.

mod lab_director;

use etherparse::IpNumber;
use lab_director::{Director, SERVERS, TRANSPORT, service};

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

const CLIENT_PORT: u16 = 1000;

fn tcp(source: u16, dest: u16, flags: u8) -> Vec<u8> {
    let mut segment = [&source.to_be_bytes()[..], &dest.to_be_bytes(), &[0; 16]].concat();
    (segment[12], segment[13]) = (5 << 4, flags);
    segment
}

fn udp(source: u16, dest: u16) -> Vec<u8> {
    [&source.to_be_bytes()[..], &dest.to_be_bytes(), &[0, 8, 0x12, 0x34]].concat()
}

/// The verdict on a client's segment.
fn client(director: &mut Director, flags: u8) -> String {
    director.from_client(IpNumber::TCP, &tcp(CLIENT_PORT, 80, flags)).verdict
}

/// The verdict on a segment from the first server.
fn server(director: &mut Director, flags: u8) -> String {
    director.from_server(0, IpNumber::TCP, &tcp(80, CLIENT_PORT, flags)).verdict
}

/// A TCP service with both servers.
fn director(method: &str) -> Director {
    Director::with(&service("-t", 80, 2, &format!("80 {method}")))
}

/// Sends a first segment to a new service and says what it makes: nothing, or a connection in a state.
fn first(method: &str, sloppy: u32, flags: u8) -> Option<String> {
    let mut director = director(method);
    director.set("sloppy_tcp", sloppy);
    let verdict = client(&mut director, flags);
    let states: Vec<_> =
        director.connections().iter().map(|row| row.split(' ').nth(2).expect("a state").to_owned()).collect();
    assert_eq!(verdict, if states.is_empty() { "pass" } else { "transmit" }, "{method} {flags:#04x}");
    let (active, inactive) = director.load();
    assert_eq!((active + inactive) as usize, states.len(), "{method} {flags:#04x}");
    states.into_iter().next()
}

#[test]
fn any_segment_with_syn_and_without_rst_begins_a_connection_whatever_else_it_says() {
    for method in ["-m", "-g", "-i"] {
        for sloppy in [0, 1] {
            for flags in [SYN, SYN | FIN, SYN | ACK, SYN | FIN | ACK, SYN | 0x28] {
                assert_eq!(
                    first(method, sloppy, flags).as_deref(),
                    Some("SYN_RECV"),
                    "{method} {flags:#04x}"
                );
            }
        }
    }
}

#[test]
fn a_segment_out_of_nowhere_stays_with_the_kernel_unless_sloppy() {
    for method in ["-m", "-g"] {
        for flags in [ACK, FIN, FIN | ACK, ACK | 0x08, 0] {
            assert_eq!(first(method, 0, flags), None, "{method} {flags:#04x}");
        }
        assert_eq!(first(method, 1, ACK).as_deref(), Some("ESTABLISHED"));
        for flags in [FIN, FIN | ACK, 0] {
            assert_eq!(first(method, 1, flags).as_deref(), Some("CLOSE"), "{method} {flags:#04x}");
        }
    }
}

#[test]
fn a_reset_never_begins_a_connection() {
    for method in ["-m", "-g"] {
        for sloppy in [0, 1] {
            for flags in [RST, RST | ACK, RST | SYN, 0x3f] {
                assert_eq!(first(method, sloppy, flags), None, "{method} {flags:#04x}");
            }
        }
    }
}

#[test]
fn a_syn_or_a_syn_with_fin_into_an_established_connection_changes_nothing() {
    let mut director = director("-m");
    for flags in [SYN, ACK, SYN, SYN | FIN] {
        assert_eq!(client(&mut director, flags), "transmit");
    }
    assert_eq!(director.only_connection(), ("15:00".to_owned(), "ESTABLISHED".to_owned()));
    assert_eq!(director.load(), (1, 0));
}

#[test]
fn an_answer_before_any_question_stays_with_the_kernel_and_does_no_harm() {
    let lines = [service("-t", 80, 2, "80 -m"), service("-u", 80, 2, "80 -m")].concat();
    let mut director = Director::with(&lines);
    for sloppy in [0, 1] {
        director.set("sloppy_tcp", sloppy);
        for flags in [SYN | ACK, ACK, RST, FIN | ACK] {
            assert_eq!(server(&mut director, flags), "pass");
        }
        assert_eq!(director.from_server(0, IpNumber::UDP, &udp(80, CLIENT_PORT)).verdict, "pass");
    }
    assert_eq!((director.connections().len(), director.load()), (0, (0, 0)));
    assert_eq!(client(&mut director, SYN), "transmit");
    assert_eq!(server(&mut director, SYN | ACK), "transmit");
}

#[test]
fn a_server_that_was_not_chosen_cannot_speak_for_the_one_that_was() {
    let mut director = director("-m");
    client(&mut director, SYN);
    let stranger = director.from_server(1, IpNumber::TCP, &tcp(80, CLIENT_PORT, RST));
    assert_eq!(stranger.verdict, "pass");
    assert_eq!(director.only_connection().1, "SYN_RECV");
}

#[test]
fn a_port_used_again_in_time_wait_begins_anew_unless_conn_reuse_mode_is_0() {
    for (mode, chosen) in [(0, SERVERS[0]), (1, SERVERS[1])] {
        let mut director = director("-m");
        director.set("conn_reuse_mode", mode);
        client(&mut director, SYN);
        server(&mut director, SYN | ACK);
        client(&mut director, ACK);
        client(&mut director, FIN | ACK);
        server(&mut director, FIN | ACK);
        assert_eq!(director.only_connection().1, "TIME_WAIT");
        // What comes late for the old connection does not end its wait.
        assert_eq!(client(&mut director, ACK), "transmit");
        assert_eq!(director.only_connection().1, "TIME_WAIT");

        let fate = director.from_client(IpNumber::TCP, &tcp(CLIENT_PORT, 80, SYN));
        assert_eq!(fate.sent[0][TRANSPORT - 4..TRANSPORT], chosen.octets(), "conn_reuse_mode {mode}");
        assert_eq!(director.only_connection(), ("01:00".to_owned(), "SYN_RECV".to_owned()));
        // The old one leaves the count by the next tick.
        director.advance(0.1);
        assert_eq!(director.load(), (1, 0));
    }
}

#[test]
fn a_minute_of_nonsense_on_one_port_leaves_one_connection_and_then_none() {
    let mut director = director("-m");
    client(&mut director, SYN);
    for flags in (0..=0x3f).cycle().take(600) {
        let from_client = director.from_client(IpNumber::TCP, &tcp(CLIENT_PORT, 80, flags)).verdict;
        assert!(["transmit", "pass"].contains(&from_client.as_str()), "{from_client}");
        server(&mut director, 0x3f - flags);
        director.advance(0.1);
        let (active, inactive) = director.load();
        assert!(director.connections().len() <= 1 && active + inactive <= 1);
    }
    director.advance(901.0);
    assert_eq!((director.connections().len(), director.load()), (0, (0, 0)));
}
