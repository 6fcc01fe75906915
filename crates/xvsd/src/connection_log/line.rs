//! A record as a line of JSON. docs/connection-log.md explains its fields.

use serde::Serialize;
use xvs_ctl::api::connections::state_name;
use xvs_dataplane::conn::log::{Ending, Event, LogRecord};
use xvs_dataplane::conn::sctp::SctpState;
use xvs_dataplane::conn::tcp::TcpState;
use xvs_proto::Protocol;

use super::dates::Dates;

/// The fields of a line, in their order.
#[derive(Serialize)]
struct Line<'a> {
    event: &'a str,
    at_millis: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    begun_at_millis: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_packet_at_millis: Option<u64>,
    protocol: String,
    client: String,
    #[serde(rename = "virtual")]
    virtual_endpoint: String,
    real_server: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    local: Option<String>,
    method: &'a str,
    #[serde(skip_serializing_if = "is_zero")]
    mark: u32,
    state: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    in_packets: u64,
    in_bytes: u64,
    out_packets: u64,
    out_bytes: u64,
}

fn is_zero(mark: &u32) -> bool {
    *mark == 0
}

/// Adds a record's line, with its end.
pub(super) fn add(lines: &mut Vec<u8>, record: &LogRecord, dates: Dates) {
    let (event, reason) = match record.event {
        Event::Begin => ("begin", None),
        Event::End(why) => ("end", Some(reason(record, why))),
    };
    let [in_packets, out_packets] = record.packets;
    let [in_bytes, out_bytes] = record.bytes;
    let line = Line {
        event,
        at_millis: dates.of(record.at),
        begun_at_millis: record.begun.map(|begun| dates.of(begun)),
        last_packet_at_millis: record.last_packet.map(|last| dates.of(last)),
        protocol: record.protocol.to_string(),
        client: record.client.to_string(),
        virtual_endpoint: record.virtual_endpoint.to_string(),
        real_server: record.dest.to_string(),
        local: record.local.map(|local| local.to_string()),
        method: record.method.listed(),
        mark: record.mark,
        state: state_name(record.protocol, record.state),
        reason,
        in_packets,
        in_bytes,
        out_packets,
        out_bytes,
    };
    // A vector takes every byte, and the line has no map whose keys are not text.
    let _ = serde_json::to_writer(&mut *lines, &line);
    lines.push(b'\n');
}

fn reason(record: &LogRecord, why: Ending) -> &'static str {
    match why {
        Ending::Expired if is_closed(record) => "closed",
        Ending::Expired => "timeout",
        Ending::Evicted => "table-full",
        Ending::Replaced => "replaced",
        Ending::NoDestination => "server-removed",
        Ending::Dropped => "drop-entry",
        Ending::Drained => "drained",
    }
}

/// Whether the last state is one after a FIN, a reset or their like.
pub(super) fn is_closed(record: &LogRecord) -> bool {
    match record.protocol {
        Protocol::TCP => matches!(
            TcpState::of(record.state),
            TcpState::FinWait
                | TcpState::TimeWait
                | TcpState::Close
                | TcpState::CloseWait
                | TcpState::LastAck
        ),
        Protocol::SCTP => SctpState::of(record.state) == SctpState::Closed,
        _ => false,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use xvs_dataplane::clock::Millis;
    use xvs_proto::Endpoint;
    use xvs_sched::ForwardingMethod;

    use super::*;

    pub(crate) const DATES: Dates = Dates { start: 1_700_000_000_000, begun: Millis(500) };

    /// The end of a connection by NAT from 192.0.2.10:1000 to 198.51.100.1:80.
    pub(crate) fn example() -> LogRecord {
        LogRecord {
            event: Event::End(Ending::Expired),
            at: Millis(3000),
            begun: Some(Millis(1000)),
            last_packet: Some(Millis(2000)),
            protocol: Protocol::TCP,
            client: Endpoint::new([192, 0, 2, 10], 1000),
            virtual_endpoint: Endpoint::new([198, 51, 100, 1], 80),
            dest: Endpoint::new([203, 0, 113, 11], 8080),
            local: None,
            method: ForwardingMethod::Nat,
            state: TcpState::TimeWait as u8,
            mark: 0,
            packets: [5, 4],
            bytes: [300, 4000],
        }
    }

    fn line(record: &LogRecord) -> String {
        let mut lines = Vec::new();
        add(&mut lines, record, DATES);
        String::from_utf8(lines).unwrap()
    }

    #[test]
    fn an_end_is_one_line_with_times_ends_method_reason_and_counts() {
        let expected = "{\"event\":\"end\",\"at_millis\":1700000003000,\"begun_at_millis\":1700000001000,\
            \"last_packet_at_millis\":1700000002000,\"protocol\":\"TCP\",\"client\":\"192.0.2.10:1000\",\
            \"virtual\":\"198.51.100.1:80\",\"real_server\":\"203.0.113.11:8080\",\"method\":\"Masq\",\
            \"state\":\"TIME_WAIT\",\"reason\":\"closed\",\"in_packets\":5,\"in_bytes\":300,\"out_packets\":4,\
            \"out_bytes\":4000}\n";
        assert_eq!(line(&example()), expected);
    }

    #[test]
    fn unknown_times_are_left_out_and_a_local_address_and_a_mark_are_shown() {
        let local = Some(Endpoint::new([203, 0, 113, 1], 5000));
        let record = LogRecord { begun: None, last_packet: None, local, mark: 7, ..example() };
        let text = line(&record);
        assert!(!text.contains("begun_at_millis") && !text.contains("last_packet_at_millis"), "{text}");
        assert!(text.contains("\"local\":\"203.0.113.1:5000\"") && text.contains("\"mark\":7"), "{text}");
    }

    #[test]
    fn an_idle_connection_ends_by_timeout_and_each_other_end_has_its_reason() {
        let reason = |state: TcpState, why| {
            let record = LogRecord { state: state as u8, event: Event::End(why), ..example() };
            serde_json::from_str::<serde_json::Value>(&line(&record)).unwrap()["reason"].clone()
        };
        assert_eq!(reason(TcpState::Established, Ending::Expired), "timeout");
        assert_eq!(reason(TcpState::Close, Ending::Expired), "closed");
        for (why, name) in [
            (Ending::Evicted, "table-full"),
            (Ending::Replaced, "replaced"),
            (Ending::NoDestination, "server-removed"),
            (Ending::Dropped, "drop-entry"),
            (Ending::Drained, "drained"),
        ] {
            assert_eq!(reason(TcpState::Established, why), name);
        }
    }
}
