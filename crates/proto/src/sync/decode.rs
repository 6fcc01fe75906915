//! Decoding of sync messages, which arrive unauthenticated from the network.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::entry::{ClientAddress, Entry, ReplyShift, SIP, Version, flag, method, option};
use crate::addr::{Endpoint, Protocol};
use crate::sip::is_call_id;

/// A message with a valid header.
#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    /// The version.
    pub version: Version,
    /// The sender's id.
    pub sync_id: u8,
    count: u8,
    bytes: &'a [u8],
}

/// Why a message is refused as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageError {
    /// It is shorter than a header.
    TooShort,
    /// The header gives another length.
    Length,
}

/// Why an entry is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Skipped {
    /// The entry's version or length is invalid, an option has no data, or one of the kernel's options has a wrong
    /// length or occurs twice. The rest of the message is skipped, too.
    Malformed,
    /// The entry has an unknown mandatory option, or inconsistent options of xvs.
    UnknownOption,
    /// The entry has persistence engine data without the engine's name, for an engine other than SIP, or that are not a
    /// Call-ID.
    UnknownEngine,
}

impl<'a> Message<'a> {
    /// Reads the header.
    ///
    /// # Errors
    ///
    /// See [`MessageError`].
    pub fn read(bytes: &'a [u8]) -> Result<Self, MessageError> {
        let (&[first, sync_id, high, low], _) = bytes.split_first_chunk().ok_or(MessageError::TooShort)?;
        if usize::from(u16::from_be_bytes([high, low])) != bytes.len() {
            return Err(MessageError::Length);
        }
        let (version, count) = match bytes.get(4..8) {
            Some(&[count, 1, 0, 0]) if first == 0 => (Version::V1, count),
            _ => (Version::V0, first),
        };
        Ok(Self { version, sync_id, count, bytes })
    }

    /// The entries in the message, even if the header announces more.
    pub fn entries(self) -> Entries<'a> {
        Entries { version: self.version, left: self.count, at: self.version.header_len(), bytes: self.bytes }
    }
}

/// The entries of a message, in their order.
#[derive(Debug, Clone)]
pub struct Entries<'a> {
    version: Version,
    left: u8,
    at: usize,
    bytes: &'a [u8],
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<Entry<'a>, Skipped>;

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let entry = match self.version {
            Version::V0 => self.take_v0(),
            Version::V1 => self.take_v1(),
        };
        if entry == Err(Skipped::Malformed) {
            self.left = 0;
        }
        Some(entry)
    }
}

/// An entry with the fields that both versions contain; the other fields have the values that version 0 implies.
fn entry(protocol: Protocol, flags: u32, state: u16, endpoints: [Endpoint; 3]) -> Entry<'static> {
    let [client, virtual_endpoint, dest] = endpoints;
    Entry {
        protocol,
        flags,
        state: u8::try_from(state).unwrap_or(u8::MAX),
        client,
        virtual_endpoint,
        dest,
        mark: 0,
        timeout_seconds: 0,
        remaining_millis: None,
        call_id: None,
        local: None,
        client_address: None,
        reply_shift: None,
        numbers: None,
    }
}

impl<'a> Entries<'a> {
    fn take_v0(&mut self) -> Result<Entry<'a>, Skipped> {
        let mut fields = Fields(self.bytes.get(self.at..).ok_or(Skipped::Malformed)?);
        let _ = fields.byte()?;
        let protocol = Protocol(fields.byte()?);
        let ports = [fields.half()?, fields.half()?, fields.half()?];
        let endpoints = fields.endpoints(ports, false)?;
        let flags = u32::from(fields.half()?);
        let state = fields.half()?;
        if flags & SEQUENCES != 0 {
            fields.take(SEQUENCES_LEN)?;
        }
        self.at = self.bytes.len() - fields.0.len();
        Ok(entry(protocol, flags, state, endpoints))
    }

    fn take_v1(&mut self) -> Result<Entry<'a>, Skipped> {
        let start = self.at.next_multiple_of(4);
        let mut fields = Fields(self.bytes.get(start..).ok_or(Skipped::Malformed)?);
        let is_ipv6 = fields.byte()? & 1 != 0;
        let protocol = Protocol(fields.byte()?);
        let about = fields.half()?;
        let len = usize::from(about & 0x0fff);
        let bytes = self.bytes.get(start + 4..start + len).filter(|_| about >> 12 == 0);
        let mut fields = Fields(bytes.ok_or(Skipped::Malformed)?);
        self.at = start + len;
        let flags = fields.word()?;
        let state = fields.half()?;
        let ports = [fields.half()?, fields.half()?, fields.half()?];
        let mark = fields.word()?;
        let timeout_seconds = fields.word()?;
        let endpoints = fields.endpoints(ports, is_ipv6)?;
        let mut entry = Entry { mark, timeout_seconds, ..entry(protocol, flags, state, endpoints) };
        match fields.options(&mut entry) {
            // A kernel stops at a mandatory option that it does not know.
            Err(Skipped::Malformed) if entry.has_own_options() => Err(Skipped::UnknownOption),
            Ok(()) if !entry.is_consistent() => Err(Skipped::UnknownOption),
            read => read.map(|()| entry),
        }
    }
}

/// The bytes that are still to be read.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], Skipped> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(Skipped::Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Skipped> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(Skipped::Malformed)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn byte(&mut self) -> Result<u8, Skipped> {
        self.array().map(u8::from_be_bytes)
    }

    fn half(&mut self) -> Result<u16, Skipped> {
        self.array().map(u16::from_be_bytes)
    }

    fn word(&mut self) -> Result<u32, Skipped> {
        self.array().map(u32::from_be_bytes)
    }

    fn addr(&mut self, is_ipv6: bool) -> Result<IpAddr, Skipped> {
        match is_ipv6 {
            true => self.array::<16>().map(|octets| Ipv6Addr::from(octets).into()),
            false => self.array::<4>().map(|octets| Ipv4Addr::from(octets).into()),
        }
    }

    /// The addresses of endpoints with these ports.
    fn endpoints(&mut self, ports: [u16; 3], is_ipv6: bool) -> Result<[Endpoint; 3], Skipped> {
        let [client, service, dest] = ports;
        Ok([
            Endpoint { addr: self.addr(is_ipv6)?, port: client },
            Endpoint { addr: self.addr(is_ipv6)?, port: service },
            Endpoint { addr: self.addr(is_ipv6)?, port: dest },
        ])
    }

    /// Reads the options into an entry, in any order.
    ///
    /// The kernel knows three types, each of which may occur once. An option with another type is an xvs option if it
    /// has the form in which xvs writes it. Otherwise it is unknown: an optional one is ignored, a mandatory one makes
    /// the decoder skip the entry. Source: ipvs-behaviour, section 12.2.
    fn options(&mut self, entry: &mut Entry<'a>) -> Result<(), Skipped> {
        let mut has_sequences = false;
        let mut engine = None;
        while !self.0.is_empty() {
            let [kind, len] = self.array()?;
            let data = self.take(len.into())?;
            match kind & !option::OPTIONAL {
                _ if data.is_empty() => return Err(Skipped::Malformed),
                option::SEQUENCES if data.len() == SEQUENCES_LEN && !has_sequences => {
                    has_sequences = true;
                    if entry.flags & flag::REPLY_SEQUENCES != 0 {
                        entry.reply_shift = Some(reply_shift(data)?);
                    }
                }
                option::ENGINE_DATA if entry.call_id.is_none() => entry.call_id = Some(data),
                option::ENGINE if data.len() <= ENGINE_MAX && engine.is_none() => engine = Some(data),
                option::SEQUENCES | option::ENGINE_DATA | option::ENGINE => return Err(Skipped::Malformed),
                _ if entry.set_own_option(kind, data) => {}
                _ if kind & option::OPTIONAL != 0 => {}
                _ => return Err(Skipped::UnknownOption),
            }
        }
        match entry.call_id {
            Some(data) if engine != Some(SIP) || !is_call_id(data) => Err(Skipped::UnknownEngine),
            _ => Ok(()),
        }
    }
}

/// The shift of the server's sequence numbers, which follow the client's.
fn reply_shift(data: &[u8]) -> Result<ReplyShift, Skipped> {
    let mut data = Fields(&data[SEQUENCES_LEN / 2..]);
    let [place, after, before] = [data.word()?, data.word()?, data.word()?];
    Ok(ReplyShift { place, after: after as i32, before: before as i32 })
}

impl Entry<'_> {
    /// Reads an option that only xvs writes. Returns whether it is valid and occurs for the first time.
    fn set_own_option(&mut self, kind: u8, data: &[u8]) -> bool {
        match (kind, data) {
            (option::LOCAL, &[a, b, ref addr @ ..]) if self.local.is_none() => {
                let port = u16::from_be_bytes([a, b]);
                self.local = addr_of(addr).map(|addr| Endpoint { addr, port });
                self.local.is_some()
            }
            (option::CLIENT_ADDRESS, &[kind @ (0 | 1), acknowledged, a, b, c, d])
                if self.protocol == Protocol::TCP && self.client_address.is_none() =>
            {
                self.client_address = Some(ClientAddress {
                    in_header: kind == 1,
                    is_acknowledged: acknowledged != 0,
                    first_sequence: u32::from_be_bytes([a, b, c, d]),
                });
                true
            }
            (option::DATAGRAMS, [1]) if self.protocol == Protocol::UDP && self.client_address.is_none() => {
                self.client_address =
                    Some(ClientAddress { in_header: true, is_acknowledged: false, first_sequence: 0 });
                true
            }
            (option::REMAINING, &[a, b, c, d]) if self.remaining_millis.is_none() => {
                self.remaining_millis = Some(u32::from_be_bytes([a, b, c, d]));
                true
            }
            (option::NUMBERS, &[a, b, c, d, e, f, g, h, i, j, k, l])
                if self.protocol == Protocol::TCP && self.numbers.is_none() =>
            {
                self.numbers = Some([[a, b, c, d], [e, f, g, h], [i, j, k, l]].map(u32::from_be_bytes));
                true
            }
            (option::DEST, addr) if self.dest.addr.is_unspecified() => {
                let other = addr_of(addr).filter(|addr| addr.is_ipv6() != self.client.addr.is_ipv6());
                other.into_iter().for_each(|addr| self.dest.addr = addr);
                other.is_some()
            }
            _ => false,
        }
    }

    /// Whether the entry has a mandatory option that only xvs writes.
    fn has_own_options(&self) -> bool {
        self.local.is_some()
            || self.client_address.is_some()
            || self.numbers.is_some()
            || self.is_translated()
    }

    fn is_translated(&self) -> bool {
        self.dest.addr.is_ipv6() != self.client.addr.is_ipv6()
    }

    /// Whether the options are consistent: the local endpoint sends to the destination, only FULLNAT passes the
    /// client's address, and only NAT and FULLNAT have a destination of another family.
    fn is_consistent(&self) -> bool {
        let translates = self.flags & flag::METHOD == method::MASQUERADING
            && (self.local.is_some() || self.flags & flag::TEMPLATE != 0);
        self.local.is_none_or(|local| local.addr.is_ipv6() == self.dest.addr.is_ipv6())
            && (self.client_address.is_none() || self.local.is_some())
            && (!self.is_translated() || translates)
    }
}

/// The address of either family that these bytes represent.
fn addr_of(bytes: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(bytes)
        .map(IpAddr::from)
        .or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
}

/// Bits of flags: sequence numbers follow.
const SEQUENCES: u32 = flag::SEQUENCES;
/// The bytes of sequence numbers.
const SEQUENCES_LEN: usize = 24;
/// The longest name of an engine.
const ENGINE_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sync::method;

    fn bytes(hex: &str) -> Vec<u8> {
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
    }

    fn entries(hex: &str) -> Vec<Result<String, Skipped>> {
        let bytes = bytes(hex);
        let entries = Message::read(&bytes).unwrap().entries();
        entries.map(|entry| entry.map(|entry| format!("{} {}", entry.client, entry.state))).collect()
    }

    const CONNECTION: &str = "0006002400000083000103e8005000500000000000000384c000020a0a0100640a02000c";

    /// A message of version 1 with these entries.
    fn message(entries: &[&str]) -> String {
        let body = entries.concat();
        format!("0007{:04x}{:02x}010000{body}", 8 + body.len() / 2, entries.len())
    }

    #[test]
    fn the_kernels_messages_are_read_in_both_versions() {
        let v1 = bytes(&message(&[CONNECTION]));
        let read = Message::read(&v1).unwrap();
        assert_eq!((read.version, read.sync_id), (Version::V1, 7));
        let entry = read.entries().next().unwrap().unwrap();
        assert_eq!(entry.encode(Version::V1).unwrap().bytes(), &v1[8..]);
        assert_eq!(entry.flags, method::ROUTE | flag::NO_OUTPUT);
        // A kernel's message with two entries; the first has sequence numbers, in the sender's byte order.
        let v0 = "02070050000603eb00500050c000020a0a0100640a02000b06000001000000010000000200000003000000040000000500000006\
                  000603e900500050c000020a0a0100640a02000b01030001";
        let expected = ["192.0.2.10:1003 1", "192.0.2.10:1001 1"].map(|entry| Ok(entry.to_owned()));
        assert_eq!(entries(&v0.replace("02070050", "0207004c")), expected);
    }

    #[test]
    fn a_message_of_another_length_is_refused_and_one_with_fewer_entries_than_it_says_has_those() {
        assert_eq!(Message::read(&[0, 7, 0]).unwrap_err(), MessageError::TooShort);
        assert_eq!(Message::read(&bytes("0107001c00")).unwrap_err(), MessageError::Length);
        let cut = message(&[CONNECTION]).replace("0007002c01", "0007002c02");
        assert_eq!(entries(&cut), [Ok("192.0.2.10:1000 1".to_owned()), Err(Skipped::Malformed)]);
    }

    #[test]
    fn an_unknown_mandatory_option_skips_its_entry_alone_and_a_malformed_one_the_rest_of_the_message() {
        let with = |len: &str, options: &str| CONNECTION.replacen("0024", len, 1) + options;
        let by_nat = CONNECTION.replacen("0024", "0036", 1).replacen("00000083", "00000080", 1);
        let good = Ok("192.0.2.10:1000 1".to_owned());
        let (taken, skipped) = (vec![good.clone(), good.clone()], |reason| vec![Err(reason), good.clone()]);
        let ended = vec![Err(Skipped::Malformed)];
        let sequences = format!("0118{}", "00".repeat(24));
        for (option, expected) in [
            // Unknown optional options, also the same one twice, and an unknown mandatory one.
            (with("0028", "4a020000"), taken.clone()),
            (with("002c", "4a0200004a020000"), taken.clone()),
            (with("0028", "0a020000"), skipped(Skipped::UnknownOption)),
            // The bytes after an unknown mandatory option do not matter.
            (with("0028", "0a01004a"), skipped(Skipped::UnknownOption)),
            // The kernel's types, with and without the bit for optional options.
            (with("003e", &format!("{sequences}0000")), taken.clone()),
            (with("003e", &format!("{}0000", sequences.replacen("01", "41", 1))), taken.clone()),
            // Data without an engine name, data with the name of another engine, and a name without data.
            (with("0028", "02026162"), skipped(Skipped::UnknownEngine)),
            (with("002c", "0202616203026162"), skipped(Skipped::UnknownEngine)),
            (with("0028", "03026162"), taken.clone()),
            // Data that are not a Call-ID: an escape sequence, a second line, a trailing `@`.
            (with("002d", "02021b5b0303736970000000"), skipped(Skipped::UnknownEngine)),
            (with("002d", "02020a610303736970000000"), skipped(Skipped::UnknownEngine)),
            (with("002d", "020261400303736970000000"), skipped(Skipped::UnknownEngine)),
            // An option without data, one beyond the entry, a type without a length; another version of the entry.
            (with("0028", "4a004a01"), ended.clone()),
            (with("0028", "4a030000"), ended.clone()),
            (with("0025", "4a000000"), ended.clone()),
            (with("1028", "4a020000"), ended.clone()),
            // The kernel's types, twice and with a wrong length.
            (with("0058", &sequences.repeat(2)), ended.clone()),
            (with("002a", "0201610201620000"), ended.clone()),
            (with("002a", "0301610301620000"), ended.clone()),
            (with("0028", "01020000"), ended.clone()),
            (with("0028", "41020000"), ended.clone()),
            (with("0037", &format!("0311{}00", "61".repeat(17))), ended),
            // Types of xvs in a form that it does not write.
            (with("0028", "04020000"), skipped(Skipped::UnknownOption)),
            (with("002c", "4406000000000000"), taken.clone()),
            (with("0028", "46020000"), taken.clone()),
            (with("0028", "06020000"), skipped(Skipped::UnknownOption)),
            (with("0030", &"460400000001".repeat(2)), taken.clone()),
            (with("0028", "07020000"), skipped(Skipped::UnknownOption)),
            (with("002a", "4804787878780000"), taken.clone()),
            (with("002a", "4904787878780000"), taken),
            (with("002a", "0904787878780000"), skipped(Skipped::UnknownOption)),
            // A header in each datagram of TCP.
            (with("0027", "09010100"), skipped(Skipped::UnknownOption)),
            // A real server in the client's own family, and one in the other family with direct routing.
            (with("002a", "08040a02000b0000"), skipped(Skipped::UnknownOption)),
            (with("0036", &format!("0810{}0000", "20".repeat(16))), skipped(Skipped::UnknownOption)),
            // One by NAT, which has no local endpoint.
            (by_nat.clone() + "0810" + &"20".repeat(16) + "0000", skipped(Skipped::UnknownOption)),
            // A local endpoint in the other family, and a client's address without a local endpoint.
            (with("0038", &format!("04121000{}", "00".repeat(16))), skipped(Skipped::UnknownOption)),
            (with("002c", "0506010000000001"), skipped(Skipped::UnknownOption)),
        ] {
            assert_eq!(entries(&message(&[&option, CONNECTION])), expected, "{option}");
        }
    }

    /// A captured message with an optional option that neither a kernel nor xvs knows.
    #[test]
    fn a_connection_with_an_unknown_optional_option_is_taken() {
        let message = "00070034010100000006002a0000000000010459005000500000000000000384c000020a0a0100640a02000b4904787878780000";
        assert_eq!(entries(message), [Ok("192.0.2.10:1113 1".to_owned())]);
    }

    fn endpoint(is_ipv6: bool) -> impl Strategy<Value = Endpoint> {
        (any::<[u8; 16]>(), any::<u16>()).prop_map(move |(octets, port)| match is_ipv6 {
            true => Endpoint { addr: Ipv6Addr::from(octets).into(), port },
            false => {
                Endpoint { addr: Ipv4Addr::new(octets[0], octets[1], octets[2], octets[3]).into(), port }
            }
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            (client, virtual_endpoint, dest, local) in any::<[bool; 2]>().prop_flat_map(|[outside, inside]| {
                let [outside, inside] = [outside, inside].map(|is_ipv6| move || endpoint(is_ipv6));
                (outside(), outside(), inside(), proptest::option::of(inside()))
            }),
            numbers in any::<(u8, u32, u8, u32, u32, Option<u32>)>(),
            call_id in proptest::option::of("[-a-z0-9.!%*_+`'~()<>:\\\\\"/?{}\\[\\]]{1,127}(@[A-Z0-9]{1,127})?"),
            client_address in proptest::option::of(any::<(bool, bool, u32)>()),
            reply_shift in proptest::option::of(any::<(u32, i32, i32)>()),
            translated: Option<[u32; 3]>,
        ) {
            let (protocol, flags, state, mark, timeout_seconds, remaining_millis) = numbers;
            let is_tcp = client_address.is_some() && local.is_some() || translated.is_some();
            let protocol = if is_tcp { 6 } else { protocol };
            let client_address = client_address.filter(|_| local.is_some());
            let is_mixed = client.family() != dest.family();
            let is_template = if local.is_none() { flag::TEMPLATE } else { 0 };
            let flags =
                if is_mixed { flags & !flag::METHOD | method::MASQUERADING | is_template } else { flags };
            let entry = Entry {
                protocol: Protocol(protocol),
                flags: flags & !SEQUENCES | if reply_shift.is_some() { flag::REPLY_SEQUENCES } else { 0 },
                state,
                client,
                virtual_endpoint,
                dest,
                mark,
                timeout_seconds,
                remaining_millis,
                call_id: call_id.as_deref().map(str::as_bytes),
                numbers: translated,
                local,
                reply_shift: reply_shift
                    .map(|(place, after, before)| ReplyShift { place, after, before }),
                client_address: client_address.map(|(in_header, is_acknowledged, first_sequence)| {
                    ClientAddress { in_header, is_acknowledged, first_sequence }
                }),
            };
            let encoded = entry.encode(Version::V1).unwrap();
            let len = 8 + encoded.bytes().len();
            let mut message = Version::V1.header(9, 1, len as u16).0.to_vec();
            message.extend_from_slice(encoded.bytes());
            let read: Vec<_> = Message::read(&message).unwrap().entries().collect();
            prop_assert_eq!(read, [Ok(entry)]);
        }

        #[test]
        fn no_message_is_read_beyond_its_end(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut bytes = bytes;
            let len = (bytes.len() as u16).to_be_bytes();
            if bytes.len() >= 4 {
                bytes[2..4].copy_from_slice(&len);
            }
            if let Ok(message) = Message::read(&bytes) {
                prop_assert!(message.entries().count() <= 255);
            }
        }
    }
}
