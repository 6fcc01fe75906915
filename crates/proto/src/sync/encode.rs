//! Encoding of entries in sync messages.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::entry::{ClientAddress, Entry, ReplyShift, SIP, Version, flag, method, option};
use crate::addr::{Endpoint, Protocol};

impl Entry<'_> {
    /// The bytes of the entry in a message of this version; `None` if the version cannot carry the entry.
    pub fn encode(&self, version: Version) -> Option<Encoded> {
        let mut out = Encoded { bytes: [0; ENTRY_MAX], len: 0 };
        match version {
            Version::V0 => self.write_v0(&mut out)?,
            Version::V1 => self.write_v1(&mut out)?,
        }
        Some(out)
    }

    fn endpoints(&self) -> [Endpoint; 3] {
        [self.client, self.virtual_endpoint, self.dest]
    }

    fn write_v0(&self, out: &mut Encoded) -> Option<()> {
        let has_options = self.call_id.is_some()
            || self.local.is_some()
            || self.client_address.is_some()
            || self.numbers.is_some();
        if has_options || self.endpoints().iter().any(|endpoint| endpoint.addr.is_ipv6()) {
            return None;
        }
        out.put(&[0, self.protocol.0]);
        self.endpoints().iter().for_each(|endpoint| out.put(&endpoint.port.to_be_bytes()));
        self.endpoints().iter().for_each(|endpoint| out.put_addr(endpoint.addr));
        out.put(&((self.flags & !flag::SEQUENCES) as u16).to_be_bytes());
        out.put(&u16::from(self.state).to_be_bytes());
        Some(())
    }

    fn write_v1(&self, out: &mut Encoded) -> Option<()> {
        let is_ipv6 = self.client.addr.is_ipv6();
        if self.virtual_endpoint.addr.is_ipv6() != is_ipv6 {
            return None;
        }
        let is_translated = self.dest.addr.is_ipv6() != is_ipv6;
        // A tunnel destination in the other family is not announced, as in IPVS.
        if is_translated && self.flags & flag::METHOD != method::MASQUERADING {
            return None;
        }
        // The length of the entry follows at the end.
        out.put(&[is_ipv6.into(), self.protocol.0, 0, 0]);
        out.put(&self.flags.to_be_bytes());
        out.put(&u16::from(self.state).to_be_bytes());
        self.endpoints().iter().for_each(|endpoint| out.put(&endpoint.port.to_be_bytes()));
        out.put(&self.mark.to_be_bytes());
        out.put(&self.timeout_seconds.to_be_bytes());
        let dest = match is_translated {
            true if is_ipv6 => Ipv6Addr::UNSPECIFIED.into(),
            true => Ipv4Addr::UNSPECIFIED.into(),
            false => self.dest.addr,
        };
        [self.client.addr, self.virtual_endpoint.addr, dest].iter().for_each(|addr| out.put_addr(*addr));
        if is_translated {
            out.put(&[option::DEST, if is_ipv6 { 4 } else { 16 }]);
            out.put_addr(self.dest.addr);
        }
        if let Some(ReplyShift { place, after, before }) = self.reply_shift {
            out.put(&[option::SEQUENCES, 24]);
            out.put(&[0; 12]);
            [place, after as u32, before as u32].iter().for_each(|number| out.put(&number.to_be_bytes()));
        }
        if let Some(call_id) = self.call_id {
            out.put(&[option::ENGINE_DATA, u8::try_from(call_id.len()).ok()?]);
            out.put(call_id);
            out.put(&[option::ENGINE, SIP.len() as u8]);
            out.put(SIP);
        }
        if let Some(Endpoint { addr, port }) = self.local {
            out.put(&[option::LOCAL, if addr.is_ipv6() { 18 } else { 6 }]);
            out.put(&port.to_be_bytes());
            out.put_addr(addr);
        }
        if self.protocol == Protocol::UDP && self.client_address.is_some() {
            out.put(&[option::DATAGRAMS, 1, 1]);
        } else if let Some(ClientAddress { in_header, is_acknowledged, first_sequence }) = self.client_address
        {
            out.put(&[option::CLIENT_ADDRESS, 6, in_header.into(), is_acknowledged.into()]);
            out.put(&first_sequence.to_be_bytes());
        }
        if let Some(millis) = self.remaining_millis {
            out.put(&[option::REMAINING, 4]);
            out.put(&millis.to_be_bytes());
        }
        if let Some(words) = self.numbers {
            out.put(&[option::NUMBERS, 12]);
            words.iter().for_each(|word| out.put(&word.to_be_bytes()));
        }
        out.bytes[2..4].copy_from_slice(&(out.len as u16).to_be_bytes());
        Some(())
    }
}

/// The bytes of an entry.
pub struct Encoded {
    bytes: [u8; ENTRY_MAX],
    len: usize,
}

impl Encoded {
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    fn put(&mut self, bytes: &[u8]) {
        self.bytes[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }

    fn put_addr(&mut self, addr: IpAddr) {
        match addr {
            IpAddr::V4(addr) => self.put(&addr.octets()),
            IpAddr::V6(addr) => self.put(&addr.octets()),
        }
    }
}

/// The longest entry: IPv6, with all options.
const ENTRY_MAX: usize = 72 + 2 + 24 + 2 + 255 + 2 + SIP.len() + 2 + 18 + 2 + 6 + 2 + 4 + 2 + 12;

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;
    use crate::sync::method;

    fn entry() -> Entry<'static> {
        Entry {
            protocol: Protocol::TCP,
            flags: method::ROUTE | flag::NO_OUTPUT,
            state: 1,
            client: Endpoint::new(Ipv4Addr::new(192, 0, 2, 10), 1000),
            virtual_endpoint: Endpoint::new(Ipv4Addr::new(10, 1, 0, 100), 80),
            dest: Endpoint::new(Ipv4Addr::new(10, 2, 0, 12), 80),
            mark: 0,
            timeout_seconds: 900,
            remaining_millis: None,
            call_id: None,
            local: None,
            client_address: None,
            reply_shift: None,
            numbers: None,
        }
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn encoded(entry: &Entry<'_>, version: Version) -> String {
        hex(entry.encode(version).unwrap().bytes())
    }

    /// The bytes are those that kernel 6.1 sends.
    #[test]
    fn a_connection_has_the_bytes_of_the_kernel_in_both_versions() {
        let v1 = "0006002400000083000103e8005000500000000000000384c000020a0a0100640a02000c";
        assert_eq!(encoded(&entry(), Version::V1), v1);
        let v0 = "000603e800500050c000020a0a0100640a02000c00830001";
        assert_eq!(encoded(&entry(), Version::V0), v0);
    }

    /// The bytes of a kernel 6.1.
    #[test]
    fn a_template_of_a_mark_has_protocol_0_and_the_mark_in_the_virtual_address() {
        let template = Entry {
            protocol: Protocol::IP,
            flags: method::ROUTE | flag::NO_OUTPUT | flag::INACTIVE | flag::TEMPLATE,
            client: Endpoint { port: 0, ..entry().client },
            virtual_endpoint: Endpoint::new(Ipv4Addr::new(0, 0, 0, 5), 0),
            dest: Endpoint { port: 0, ..entry().dest },
            mark: 5,
            timeout_seconds: 60,
            ..entry()
        };
        let v1 = "00000024000011830001000000000000000000050000003cc000020a000000050a02000c";
        assert_eq!(encoded(&template, Version::V1), v1);
    }

    /// The bytes were written by hand from the table in section 12.2; kernel 6.1 accepts them from a peer.
    #[test]
    fn ipv6_makes_an_entry_of_72_bytes_that_version_0_cannot_carry() {
        let six =
            |net: u16, last: u16, port| Endpoint::new(Ipv6Addr::new(0xfd00, net, 0, 0, 0, 0, 0, last), port);
        let ipv6 = Entry {
            flags: method::MASQUERADING,
            client: Endpoint::new(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10), 1005),
            virtual_endpoint: six(1, 0x100, 80),
            dest: six(2, 0x11, 80),
            ..entry()
        };
        let expected = "0106004800000000000103ed0050005000000000000003842001\
                        0db8000000000000000000000010fd000001000000000000000000000100fd000002000000000000000000000011";
        assert_eq!(encoded(&ipv6, Version::V1), expected);
        assert!(ipv6.encode(Version::V0).is_none());
        let mixed = Entry { dest: entry().dest, ..ipv6 };
        let bytes = encoded(&mixed, Version::V1);
        // The real server's field is 0; the address follows as an option.
        assert_eq!(
            (&bytes[..8], &bytes[112..]),
            ("0106004e", &format!("{}08040a02000c", "00".repeat(16))[..])
        );
        let mixed = Entry { dest: ipv6.dest, flags: method::MASQUERADING, ..entry() };
        let bytes = encoded(&mixed, Version::V1);
        assert_eq!(&bytes[64..], "00000000 0810fd000002000000000000000000000011".replace(' ', ""));
        let tunnel = Entry { flags: method::TUNNEL, ..mixed };
        assert!(tunnel.encode(Version::V1).is_none() && mixed.encode(Version::V0).is_none());
    }

    #[test]
    fn options_follow_the_addresses_and_count_in_the_length_of_the_entry() {
        let sip = Entry { call_id: Some(b"a@b"), ..entry() };
        let bytes = encoded(&sip, Version::V1);
        assert_eq!((&bytes[4..8], &bytes[72..]), ("002e", "02036140620303736970"));
        let local = Entry { local: Some(Endpoint::new(Ipv4Addr::new(10, 2, 0, 1), 5000)), ..entry() };
        let bytes = encoded(&local, Version::V1);
        assert_eq!((&bytes[4..8], &bytes[72..]), ("002c", "040613880a020001"));
        assert!(local.encode(Version::V0).is_none() && sip.encode(Version::V0).is_none());
        let six = |port| Endpoint::new(Ipv6Addr::LOCALHOST, port);
        let (client, virtual_endpoint, dest, local) = (six(1), six(2), six(3), Some(six(4)));
        let client_address =
            Some(ClientAddress { in_header: true, is_acknowledged: false, first_sequence: 0x0102_0304 });
        let all = Entry { client, virtual_endpoint, dest, local, client_address, ..entry() };
        let bytes = encoded(&Entry { local: None, ..all }, Version::V1);
        assert_eq!(&bytes[144..], "0506010001020304");
        let datagrams = Entry { protocol: Protocol::UDP, local: None, ..all };
        assert_eq!(&encoded(&datagrams, Version::V1)[144..], "090101");
        let bytes = encoded(&Entry { remaining_millis: Some(0x0102), ..entry() }, Version::V1);
        assert_eq!((&bytes[4..8], &bytes[72..]), ("002a", "460400000102"));
        let reply_shift = Some(ReplyShift { place: 0x0102_0304, after: 2, before: -1 });
        let bytes = encoded(&Entry { reply_shift, ..entry() }, Version::V1);
        assert_eq!((&bytes[4..8], &bytes[72..76]), ("003e", "0118"));
        assert_eq!(&bytes[76..], format!("{}0102030400000002ffffffff", "00".repeat(12)));
        let numbers = Some([0x0102_0304, 5, 0xf902]);
        let bytes = encoded(&Entry { numbers, ..entry() }, Version::V1);
        assert_eq!((&bytes[4..8], &bytes[72..]), ("0032", "070c01020304000000050000f902"));
        assert!(Entry { numbers, ..entry() }.encode(Version::V0).is_none());
        let longest =
            Entry { call_id: Some(&[7; 255]), remaining_millis: Some(1), reply_shift, numbers, ..all };
        assert_eq!(longest.encode(Version::V1).unwrap().bytes().len(), ENTRY_MAX);
        let too_long = Entry { call_id: Some(&[7; 256]), ..entry() };
        assert!(too_long.encode(Version::V1).is_none());
    }
}
