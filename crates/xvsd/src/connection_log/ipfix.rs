//! IPFIX messages (RFC 7011) for flows in two directions (RFC 5103) with the elements for NAT (RFC 8158): only those
//! that the log sends, pure.
//!
//! A record's template depends on the families of its two sides, on whether the method translates addresses, and on
//! whether it describes a begin or an end; there are therefore sixteen, with fixed numbers. Client and virtual address
//! are the source and destination of the request. With NAT and FULLNAT the `postNAT` elements contain what the real
//! server receives; with other methods, which change no address, the real server is the next hop. Elements are from
//! IANA's IPFIX registry. The code is written here because the one crate that writes IPFIX, `ipfixrw`, has had a single
//! release, in 2023, and creates a hash map for each record. `collector.rs` sends the messages.

use std::net::IpAddr;

use xvs_dataplane::conn::log::{Ending, Event, LogRecord};
use xvs_proto::Endpoint;

use super::dates::Dates;
use super::line::is_closed;

/// RFC 7011 §3.1.
const VERSION: u16 = 10;
const HEADER_BYTES: usize = 16;
const LENGTH: std::ops::Range<usize> = 2..4;
/// The set of templates (RFC 7011 §3.3.2).
const TEMPLATES: u16 = 2;
/// The first number of a template (RFC 7011 §3.4.1).
const FIRST_TEMPLATE: u16 = 256;
/// Template numbers name one observation domain of a process (RFC 7011 §3.1).
const DOMAIN: u32 = 1;

/// The bit of an element's number that announces an enterprise number (RFC 7011 §3.2).
const REVERSE: u16 = 1 << 15;
/// The enterprise whose elements are those of the opposite direction (RFC 5103 §6.1).
const REVERSE_ENTERPRISE: u32 = 29305;

/// The properties that determine a template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shape {
    /// Client and virtual address are IPv6.
    client_v6: bool,
    /// The real server's side is IPv6.
    server_v6: bool,
    /// The method changes addresses.
    translates: bool,
    ends: bool,
}

/// A field: its element's number, and its value in the lowest bytes of 16.
#[derive(Debug, Clone, Copy)]
struct Field {
    element: u16,
    bytes: u16,
    value: u128,
}

impl Shape {
    fn of(record: &LogRecord) -> Self {
        Self {
            client_v6: record.client.addr.is_ipv6(),
            server_v6: record.dest.addr.is_ipv6(),
            translates: record.method.masquerades(),
            ends: record.event != Event::Begin,
        }
    }

    fn all() -> impl Iterator<Item = Self> {
        (0..16).map(|bits| Self {
            client_v6: bits & 1 != 0,
            server_v6: bits & 2 != 0,
            translates: bits & 4 != 0,
            ends: bits & 8 != 0,
        })
    }

    fn template(self) -> u16 {
        let bits = [self.client_v6, self.server_v6, self.translates, self.ends];
        FIRST_TEMPLATE + bits.iter().zip(0..).map(|(bit, place)| u16::from(*bit) << place).sum::<u16>()
    }

    /// RFC 8158 §5.2, table 2. It has no session events for IPv6 with NAT, but has those for any translation.
    fn nat_event(self) -> u8 {
        let create = match (self.client_v6, self.server_v6) {
            (false, false) => 4,
            (true, false) => 6,
            _ => 1,
        };
        create + u8::from(self.ends)
    }

    /// The fields of a record of this shape; their values do not matter for its template.
    fn fields(self, record: &LogRecord, dates: Dates) -> Fields {
        let Self { client_v6, server_v6, translates, ends } = self;
        let begun = dates.of(record.begun.unwrap_or(dates.begun));
        let mut fields = Fields::default();
        // observationTimeMilliseconds, protocolIdentifier.
        fields.add(323, 8, dates.of(record.at));
        fields.add(4, 1, record.protocol.0);
        // source: IPv4Address, IPv6Address, TransportPort; destination: the same.
        fields.endpoint([8, 27, 7], client_v6, record.client);
        fields.endpoint([12, 28, 11], client_v6, record.virtual_endpoint);
        if translates {
            // natEvent; postNATSource: IPv4Address, IPv6Address, TransportPort; postNATDestination: the same.
            fields.add(230, 1, self.nat_event());
            fields.endpoint([225, 281, 227], server_v6, record.local.unwrap_or(record.client));
            fields.endpoint([226, 282, 228], server_v6, record.dest);
        } else {
            // ipNextHopIPv4Address, ipNextHopIPv6Address.
            fields.address([15, 62], server_v6, record.dest.addr);
        }
        // flowStartMilliseconds.
        fields.add(152, 8, begun);
        if ends {
            // flowEndMilliseconds; packetTotalCount and octetTotalCount of each direction; flowEndReason.
            fields.add(153, 8, record.last_packet.map_or(begun, |last| dates.of(last)));
            fields.add(86, 8, record.packets[0]);
            fields.add(85, 8, record.bytes[0]);
            fields.add(REVERSE | 86, 8, record.packets[1]);
            fields.add(REVERSE | 85, 8, record.bytes[1]);
            fields.add(136, 1, end_reason(record));
        }
        fields
    }
}

/// `flowEndReason`: idle timeout, end of flow detected, forced end, lack of resources (RFC 5102 §5.11.3).
fn end_reason(record: &LogRecord) -> u8 {
    match record.event {
        Event::End(Ending::Expired) if !is_closed(record) => 1,
        Event::End(Ending::Expired) => 3,
        Event::End(Ending::Evicted) => 5,
        _ => 4,
    }
}

/// The fields of a record.
#[derive(Default)]
struct Fields(Vec<Field>);

impl Fields {
    fn add(&mut self, element: u16, bytes: u16, value: impl Into<u128>) {
        self.0.push(Field { element, bytes, value: value.into() });
    }

    /// An address, as the element for its family.
    fn address(&mut self, [v4, v6]: [u16; 2], is_v6: bool, addr: IpAddr) {
        let bits = match addr {
            IpAddr::V4(addr) => addr.to_bits().into(),
            IpAddr::V6(addr) => addr.to_bits(),
        };
        if is_v6 { self.add(v6, 16, bits) } else { self.add(v4, 4, bits) }
    }

    fn endpoint(&mut self, [v4, v6, port]: [u16; 3], is_v6: bool, endpoint: Endpoint) {
        self.address([v4, v6], is_v6, endpoint.addr);
        self.add(port, 2, endpoint.port);
    }
}

/// A message that is being made: sets of records, or of templates.
pub(super) struct Message {
    bytes: Vec<u8>,
    /// The number of its last set, and where that begins.
    set: Option<(u16, usize)>,
    /// The number of records.
    records: u32,
}

impl Message {
    pub(super) fn new() -> Self {
        Self { bytes: vec![0; HEADER_BYTES], set: None, records: 0 }
    }

    /// The number of records.
    pub(super) fn records(&self) -> u32 {
        self.records
    }

    /// Adds a record. Returns `false`, and adds nothing, if the message would be longer than this.
    pub(super) fn add(&mut self, record: &LogRecord, dates: Dates, max_bytes: usize) -> bool {
        let shape = Shape::of(record);
        let before = (self.bytes.len(), self.set);
        self.enter_set(shape.template());
        for Field { bytes, value, .. } in shape.fields(record, dates).0 {
            self.bytes.extend(&value.to_be_bytes()[16 - usize::from(bytes)..]);
        }
        let fits = self.bytes.len() <= max_bytes;
        if fits {
            self.records += 1;
        } else {
            self.bytes.truncate(before.0);
            self.set = before.1;
        }
        fits
    }

    /// The finished message; `sequence` is the number of records that were sent before it (RFC 7011 §3.1).
    pub(super) fn finish(mut self, sequence: u32, date_seconds: u32) -> Vec<u8> {
        self.end_set();
        let length = self.bytes.len() as u16;
        let mut header = Vec::with_capacity(HEADER_BYTES);
        header.extend(VERSION.to_be_bytes());
        header.extend(length.to_be_bytes());
        header.extend([date_seconds, sequence, DOMAIN].map(u32::to_be_bytes).as_flattened());
        self.bytes[..HEADER_BYTES].copy_from_slice(&header);
        self.bytes
    }

    /// Continues the set with this number, or begins one (RFC 7011 §3.3.2).
    fn enter_set(&mut self, number: u16) {
        if self.set.is_some_and(|(current, _)| current == number) {
            return;
        }
        self.end_set();
        self.set = Some((number, self.bytes.len()));
        self.bytes.extend(number.to_be_bytes());
        self.bytes.extend([0; 2]);
    }

    /// Writes the length of the last set.
    fn end_set(&mut self) {
        let Some((_, begin)) = self.set else { return };
        let length = (self.bytes.len() - begin) as u16;
        self.bytes[begin..][LENGTH].copy_from_slice(&length.to_be_bytes());
    }
}

/// The messages with all templates (RFC 7011 §3.4.1), each of at most about 1,000 bytes.
pub(super) fn templates(example: &LogRecord, dates: Dates) -> Vec<Message> {
    let all: Vec<_> = Shape::all().collect();
    let messages = all.chunks(8).map(|shapes| {
        let mut message = Message::new();
        message.enter_set(TEMPLATES);
        for shape in shapes {
            let fields = shape.fields(example, dates).0;
            message.bytes.extend(shape.template().to_be_bytes());
            message.bytes.extend((fields.len() as u16).to_be_bytes());
            for Field { element, bytes, .. } in fields {
                message.bytes.extend([element, bytes].map(u16::to_be_bytes).as_flattened());
                if element & REVERSE != 0 {
                    message.bytes.extend(REVERSE_ENTERPRISE.to_be_bytes());
                }
            }
        }
        message
    });
    messages.collect()
}

#[cfg(test)]
mod tests {
    use xvs_proto::Protocol;
    use xvs_sched::ForwardingMethod;

    use super::super::line::tests::{DATES, example};
    use super::*;

    fn words(hex: &str) -> Vec<u8> {
        let digits: Vec<_> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
        let pairs = digits.chunks(2).map(|pair| str::from_utf8(pair).unwrap());
        pairs.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect()
    }

    /// Written out by hand from RFC 7011 §3 and the registry of elements.
    #[test]
    fn the_end_of_a_connection_by_nat_is_these_bytes() {
        let mut message = Message::new();
        assert!(message.add(&example(), DATES, 1400));
        let bytes = message.finish(7, 0x6553_f103);
        let expected = words(
            // Version, length, export time, sequence number, observation domain.
            "000a 0067 6553f103 00000007 00000001 \
             010c 0057 \
             0000018bcfe573b8 06 c000020a 03e8 c6336401 0050 \
             05 c000020a 03e8 cb00710b 1f90 \
             0000018bcfe56be8 0000018bcfe56fd0 \
             0000000000000005 000000000000012c 0000000000000004 0000000000000fa0 03",
        );
        assert_eq!(bytes, expected);
    }

    #[test]
    fn the_template_of_a_routed_begin_lists_its_elements_with_their_lengths() {
        let [first, _] = templates(&example(), DATES).try_into().ok().unwrap();
        let bytes = first.finish(0, 0);
        let expected = words(
            "0100 0008 0143 0008 0004 0001 0008 0004 0007 0002 000c 0004 000b 0002 000f 0004 0098 0008",
        );
        assert_eq!(bytes[16..18], [0, 2]);
        assert_eq!(bytes[20..20 + expected.len()], expected);
    }

    #[test]
    fn each_record_is_as_long_as_its_template_says_and_templates_differ() {
        let v6: Endpoint = Endpoint::new("2001:db8::1".parse::<IpAddr>().unwrap(), 80);
        let mut seen = std::collections::BTreeSet::new();
        for shape in Shape::all() {
            let ends = |is_v6, v4| if is_v6 { v6 } else { v4 };
            let record = LogRecord {
                client: ends(shape.client_v6, example().client),
                virtual_endpoint: ends(shape.client_v6, example().virtual_endpoint),
                dest: ends(shape.server_v6, example().dest),
                local: Some(ends(shape.server_v6, example().dest)),
                method: if shape.translates { ForwardingMethod::FullNat } else { ForwardingMethod::Tunnel },
                event: if shape.ends { example().event } else { Event::Begin },
                protocol: Protocol::UDP,
                ..example()
            };
            assert_eq!(Shape::of(&record), shape);
            let mut message = Message::new();
            assert!(message.add(&record, DATES, 1400));
            let length: u16 = shape.fields(&example(), DATES).0.iter().map(|field| field.bytes).sum();
            assert_eq!(message.bytes.len(), HEADER_BYTES + 4 + usize::from(length));
            assert!(seen.insert(shape.template()));
        }
        let sizes: Vec<_> = templates(&example(), DATES).iter().map(|message| message.bytes.len()).collect();
        assert!(sizes.iter().all(|size| *size < 1100), "{sizes:?}");
    }

    #[test]
    fn records_of_one_template_share_a_set_and_what_does_not_fit_is_left_for_the_next_message() {
        let mut message = Message::new();
        let size = 83;
        assert!(message.add(&example(), DATES, 16 + 4 + 2 * size));
        assert!(message.add(&example(), DATES, 16 + 4 + 2 * size));
        assert!(!message.add(&LogRecord { event: Event::Begin, ..example() }, DATES, 16 + 4 + 2 * size));
        assert_eq!(message.records(), 2);
        let bytes = message.finish(0, 0);
        assert_eq!((bytes.len(), &bytes[16..20]), (16 + 4 + 2 * size, &[1, 12, 0, 170][..]));
    }

    #[test]
    fn reasons_are_those_of_ipfix_and_nat_events_those_of_the_families() {
        let reason = |event, state| end_reason(&LogRecord { event, state, ..example() });
        assert_eq!(reason(Event::End(Ending::Expired), 1), 1);
        assert_eq!(reason(Event::End(Ending::Expired), example().state), 3);
        assert_eq!(reason(Event::End(Ending::Drained), 1), 4);
        assert_eq!(reason(Event::End(Ending::Evicted), 1), 5);
        let event =
            |client_v6, server_v6, ends| Shape { client_v6, server_v6, translates: true, ends }.nat_event();
        assert_eq!([event(false, false, false), event(false, false, true)], [4, 5]);
        assert_eq!([event(true, false, false), event(true, false, true)], [6, 7]);
        assert_eq!([event(true, true, false), event(false, true, true)], [1, 2]);
    }
}
