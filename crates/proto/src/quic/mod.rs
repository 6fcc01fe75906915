//! The destination connection ID of a QUIC packet, and the server ID in it.
//!
//! Runs for each UDP datagram without a connection to a service with QUIC configurations. Reads only the fields that
//! all versions of QUIC share, and no byte beyond the datagram.
//!
//! Source: RFC 8999 §5.
//!
//! ```
//! use xvs_proto::quic::{Decoder, Header};
//!
//! // A short header. The connection ID has a server ID of 3 bytes and a nonce of 4, not encrypted.
//! let datagram = [0x40, 0x07, 0xc4, 0x60, 0x5e, 0x45, 0x04, 0xcc, 0x4f, 0xff];
//! let Some(Header::Short(id)) = Header::of(&datagram) else { panic!("not a short header") };
//! assert_eq!(Decoder::configuration(id), Some(0));
//! let server_id = Decoder::new(3, 4, None).and_then(|decoder| decoder.server_id(id)).unwrap();
//! assert_eq!(server_id.to_string(), "c4605e");
//! ```

mod server_id;

pub use self::server_id::{CONFIGURATIONS, Decoder, SERVER_ID_MAX, ServerId};

/// The header of a datagram's first packet, with its destination connection ID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Header<'d> {
    /// A long header, which contains the length of the connection ID. The packet may begin a QUIC connection, with an
    /// ID that the client chose at random, or continue one.
    Long(&'d [u8]),
    /// A short header, which does not contain the length: the slice begins with the ID, and only the ID's server knows
    /// where it ends. The packet continues a QUIC connection, so the server chose the ID.
    Short(&'d [u8]),
}

impl<'d> Header<'d> {
    /// Reads the header from the data of a UDP datagram. `None` if the header is truncated.
    pub fn of(datagram: &'d [u8]) -> Option<Self> {
        let (&first, rest) = datagram.split_first()?;
        if first & LONG == 0 {
            return Some(Self::Short(rest));
        }
        let (&length, rest) = rest.get(VERSION_LEN..)?.split_first()?;
        rest.get(..length.into()).map(Self::Long)
    }
}

/// The first-byte bit that indicates a long header.
const LONG: u8 = 0x80;
/// Length of the version field in a long header, in bytes.
const VERSION_LEN: usize = 4;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_id_of_a_long_header_has_its_length_and_that_of_a_short_one_the_rest() {
        // The client's Initial of RFC 9001, appendix A.2.
        let initial = [0xc0, 0, 0, 0, 1, 8, 0x83, 0x94, 0xc8, 0xf0, 0x3e, 0x51, 0x57, 0x08, 0, 0];
        let id = &[0x83, 0x94, 0xc8, 0xf0, 0x3e, 0x51, 0x57, 0x08];
        assert_eq!(Header::of(&initial), Some(Header::Long(id)));
        assert_eq!(Header::of(&initial[..13]), None, "cut off in the ID");
        assert_eq!(Header::of(&initial[..5]), None, "cut off before its length");
        assert_eq!(Header::of(&[0x40, 1, 2, 3]), Some(Header::Short(&[1, 2, 3])));
        assert_eq!(Header::of(&[0x40]), Some(Header::Short(&[])));
        assert_eq!(Header::of(&[]), None);
    }

    proptest! {
        #[test]
        fn no_datagram_makes_it_fail(datagram in proptest::collection::vec(any::<u8>(), 0..64)) {
            let (Some(Header::Long(id)) | Some(Header::Short(id))) = Header::of(&datagram) else {
                return Ok(());
            };
            for server_id in 0..=SERVER_ID_MAX as u8 + 1 {
                for nonce in 0..20 {
                    for key in [None, Some([7; 16])] {
                        let decoder = Decoder::new(server_id, nonce, key);
                        let found = decoder.and_then(|decoder| decoder.server_id(id));
                        prop_assert!(found.is_none_or(|found| found.as_bytes().len() == usize::from(server_id)));
                    }
                }
            }
        }
    }
}
