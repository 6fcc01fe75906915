//! The server ID that a server has encoded in its connection ID, in plaintext or encrypted (QUIC-LB).
//!
//! ```text
//! connection ID = first octet (configuration: 3 bits, length or random: 5 bits), server ID, nonce, bytes of the server
//! ```
//!
//! With a key, server ID and nonce are encrypted: as one AES-128 block if they are 16 bytes long together, otherwise
//! with a four-round Feistel network. Cost with a key: one to four blocks. The length in the first octet is for
//! servers; it is not compared. `xvs_dataplane::snapshot::quic` contains the configurations and maps IDs to servers.
//!
//! Source: draft-ietf-quic-load-balancers-21, §3 (first octet), §5 (encoding), appendix B (test vectors).

use std::fmt;
use std::str::FromStr;

use aes::Aes128;
use aes::cipher::{Block, BlockDecrypt, BlockEncrypt, KeyInit};
use serde::{Deserialize, Serialize};

/// Maximum number of configurations: 3 bits of the first octet number them, and the highest number means "none".
pub const CONFIGURATIONS: usize = 7;
/// Maximum length of a server ID, in bytes: a connection ID of 20 bytes (RFC 9000 §17.2) less the first octet and the
/// shortest nonce.
pub const SERVER_ID_MAX: usize = 15;

/// The shortest nonce, in bytes.
const NONCE_MIN: u8 = 4;
/// Maximum length of a server ID and nonce together, in bytes.
const PLAINTEXT_MAX: usize = 19;
/// Length of an AES block and of an AES-128 key, in bytes.
const BLOCK: usize = 16;

/// A server ID: 1 to [`SERVER_ID_MAX`] bytes. Printed as two hexadecimal digits for each byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(into = "String", try_from = "String")]
pub struct ServerId {
    length: u8,
    /// Behind `length` bytes, 0.
    bytes: [u8; SERVER_ID_MAX],
}

impl ServerId {
    /// The ID with these bytes; `None` if `bytes` is empty or too long.
    pub fn new(bytes: &[u8]) -> Option<Self> {
        let mut padded = [0; SERVER_ID_MAX];
        padded.get_mut(..bytes.len())?.copy_from_slice(bytes);
        (!bytes.is_empty()).then_some(Self { length: bytes.len() as u8, bytes: padded })
    }

    /// The bytes of the ID.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length.into()]
    }
}

impl fmt::Display for ServerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_bytes().iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for ServerId {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        from_digits(text).ok_or("a server ID is 1 to 15 bytes, two hexadecimal digits each")
    }
}

fn from_digits(text: &str) -> Option<ServerId> {
    let mut bytes = [0; SERVER_ID_MAX];
    let mut length = 0;
    for pair in text.as_bytes().chunks(2) {
        let &[high, low] = pair else { return None };
        *bytes.get_mut(length)? = digit(high)? << 4 | digit(low)?;
        length += 1;
    }
    ServerId::new(&bytes[..length])
}

fn digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).map(|digit| digit as u8)
}

impl From<ServerId> for String {
    fn from(id: ServerId) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for ServerId {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

/// One configuration: how to find server IDs in connection IDs.
#[derive(Clone)]
pub struct Decoder {
    server_id_len: usize,
    /// Server ID and nonce.
    plaintext_len: usize,
    cipher: Option<Aes128>,
}

impl Decoder {
    /// A configuration with these lengths in bytes and this key; without a key nothing is encrypted. `None` if the
    /// server ID is empty, the nonce is shorter than 4 bytes, or both together are longer than 19 bytes.
    pub fn new(server_id_len: u8, nonce_len: u8, key: Option<[u8; BLOCK]>) -> Option<Self> {
        let plaintext_len = usize::from(server_id_len) + usize::from(nonce_len);
        let is_valid = server_id_len > 0 && nonce_len >= NONCE_MIN && plaintext_len <= PLAINTEXT_MAX;
        is_valid.then(|| Self {
            server_id_len: server_id_len.into(),
            plaintext_len,
            cipher: key.map(|key| Aes128::new(&key.into())),
        })
    }

    /// The number of the configuration in the first octet of a connection ID; `None` if the ID is empty.
    /// [`CONFIGURATIONS`] means that the server has no configuration.
    pub fn configuration(id: &[u8]) -> Option<usize> {
        id.first().map(|first| usize::from(first >> 5))
    }

    /// The server ID in a connection ID, which other bytes may follow. `None` if the connection ID is too short.
    pub fn server_id(&self, id: &[u8]) -> Option<ServerId> {
        let text = id.get(1..=self.plaintext_len)?;
        match &self.cipher {
            None => ServerId::new(&text[..self.server_id_len]),
            Some(cipher) if self.plaintext_len == BLOCK => {
                let mut block = Block::<Aes128>::clone_from_slice(text);
                cipher.decrypt_block(&mut block);
                ServerId::new(&block[..self.server_id_len])
            }
            Some(cipher) => self.four_pass(cipher, text),
        }
    }

    /// Reverses the rounds of encryption, the last one first. The first round changes only the right half, so it need
    /// not be reversed if the server ID is in the left half.
    fn four_pass(&self, cipher: &Aes128, text: &[u8]) -> Option<ServerId> {
        let half = text.len().div_ceil(2);
        // Halves with an odd length share the middle byte: 4 bits each.
        let (left_bits, right_bits) = if text.len().is_multiple_of(2) { (0xff, 0xff) } else { (0xf0, 0x0f) };
        let mut left = [0; BLOCK];
        left[..half].copy_from_slice(&text[..half]);
        left[half - 1] &= left_bits;
        let mut right = [0; BLOCK];
        right[..half].copy_from_slice(&text[text.len() - half..]);
        right[0] &= right_bits;
        let round = |number, from: &[u8; BLOCK], into: &mut [u8; BLOCK]| {
            let mut block = Block::<Aes128>::from(*from);
            (block[BLOCK - 2], block[BLOCK - 1]) = (text.len() as u8, number);
            cipher.encrypt_block(&mut block);
            into.iter_mut().zip(block).take(half).for_each(|(byte, other)| *byte ^= other);
        };
        round(4, &right, &mut left);
        left[half - 1] &= left_bits;
        round(3, &left, &mut right);
        right[0] &= right_bits;
        round(2, &right, &mut left);
        left[half - 1] &= left_bits;
        if self.server_id_len > text.len() - self.server_id_len {
            round(1, &left, &mut right);
            right[0] &= right_bits;
        }
        let mut plaintext = [0; PLAINTEXT_MAX + 1];
        plaintext[..half].copy_from_slice(&left[..half]);
        let overlap = text.len() - half;
        plaintext[overlap..text.len()].iter_mut().zip(right).for_each(|(byte, other)| *byte |= other);
        ServerId::new(&plaintext[..self.server_id_len])
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn bytes(digits: &str) -> Vec<u8> {
        let pair = |at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap();
        (0..digits.len()).step_by(2).map(pair).collect()
    }

    /// The server ID that is found in a connection ID with a nonce of this length.
    fn found(server_id_len: u8, nonce_len: u8, key: Option<&str>, id: &str) -> String {
        let key = key.map(|key| bytes(key).try_into().unwrap());
        Decoder::new(server_id_len, nonce_len, key).unwrap().server_id(&bytes(id)).unwrap().to_string()
    }

    #[test]
    fn server_ids_of_the_vectors_of_the_draft_are_found() {
        // Appendix B.1; digits are missing from its second line.
        assert_eq!(found(3, 4, None, "07c4605e4504cc4f"), "c4605e");
        // Appendix B.2: even and odd lengths, one block, and a server ID longer than the nonce.
        let key = Some("8f95f09245765f80256934e50c66207f");
        assert_eq!(found(3, 4, key, "0720b1d07b359d3c"), "ed793a");
        assert_eq!(found(10, 5, key, "2fcc381bc74cb4fbad2823a3d1f8fed2"), "ed793a51d49b8f5fab65");
        assert_eq!(found(8, 8, key, "504dd2d05a7b0de9b2b9907afb5ecf8cc3"), "ed793a51d49b8f5f");
        assert_eq!(found(9, 9, key, "125779c9cc86beb3a3a4a3ca96fce4bfe0cdbc"), "ed793a51d49b8f5fab");
        // The example of §5.4.2.
        let key = Some("fdf726a9893ec05c0632d3956680baf0");
        assert_eq!(found(3, 4, key, "0767947d29be054a"), "31441a");
    }

    #[test]
    fn lengths_that_the_draft_forbids_and_ids_that_are_too_short_give_nothing() {
        for (server_id, nonce) in [(0, 8), (1, 3), (15, 5), (16, 4), (255, 255)] {
            assert!(Decoder::new(server_id, nonce, None).is_none(), "{server_id} and {nonce}");
        }
        let decoder = Decoder::new(15, 4, Some([1; 16])).unwrap();
        assert_eq!(decoder.server_id(&[0; 19]), None);
        assert!(decoder.server_id(&[0; 20]).is_some());
        assert_eq!(Decoder::configuration(&[]), None);
        assert_eq!(Decoder::configuration(&[0xdf]), Some(6));
        assert_eq!(Decoder::configuration(&[0xe0]), Some(CONFIGURATIONS));
    }

    #[test]
    fn a_server_id_is_read_from_its_digits() {
        let id: ServerId = "0A0b".parse().unwrap();
        assert_eq!((id.as_bytes(), id.to_string()), (&[10, 11][..], "0a0b".to_owned()));
        for wrong in ["", "0", "0g", "+1", "é", &"00".repeat(16), "123"] {
            assert!(wrong.parse::<ServerId>().is_err(), "{wrong}");
        }
        assert_eq!(ServerId::new(&[0; 16]), None);
    }

    /// Represents the halves as four-bit digits, so that no half shares a byte: a different method from the decoder's.
    fn encode(key: [u8; 16], plaintext: &[u8]) -> Vec<u8> {
        let cipher = Aes128::new(&key.into());
        if plaintext.len() == 16 {
            let mut block = Block::<Aes128>::clone_from_slice(plaintext);
            cipher.encrypt_block(&mut block);
            return block.to_vec();
        }
        let digits: Vec<u8> = plaintext.iter().flat_map(|byte| [byte >> 4, byte & 15]).collect();
        let (left, right) = digits.split_at(plaintext.len());
        let (mut left, mut right) = (left.to_vec(), right.to_vec());
        let is_odd = plaintext.len() % 2 == 1;
        let pack = |digits: &[u8]| digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect::<Vec<_>>();
        for pass in 1..=4 {
            let of_left = pass % 2 == 1;
            let mut half = if of_left { left.clone() } else { right.clone() };
            if is_odd {
                half.insert(if of_left { half.len() } else { 0 }, 0);
            }
            let mut input = pack(&half);
            input.resize(14, 0);
            input.extend([plaintext.len() as u8, pass]);
            let mut block = Block::<Aes128>::clone_from_slice(&input);
            cipher.encrypt_block(&mut block);
            let output: Vec<u8> = block.iter().flat_map(|byte| [byte >> 4, byte & 15]).collect();
            // The first digit of an odd right half is empty.
            let skipped = usize::from(is_odd && of_left);
            let other = if of_left { &mut right } else { &mut left };
            other.iter_mut().zip(&output[skipped..]).for_each(|(digit, more)| *digit ^= more);
        }
        pack(&[left, right].concat())
    }

    proptest! {
        #[test]
        fn a_server_id_that_was_encoded_is_found(
            key in any::<Option<[u8; 16]>>(),
            (server_id, nonce) in (1usize..=15)
                .prop_flat_map(|length| (vec(any::<u8>(), length), vec(any::<u8>(), 4..=19 - length))),
            first in any::<u8>(),
            behind in vec(any::<u8>(), 0..4),
        ) {
            let plaintext = [&server_id[..], &nonce].concat();
            let text = key.map_or(plaintext.clone(), |key| encode(key, &plaintext));
            let decoder = Decoder::new(server_id.len() as u8, nonce.len() as u8, key).unwrap();
            let id = [&[first][..], &text, &behind].concat();
            prop_assert_eq!(decoder.server_id(&id), ServerId::new(&server_id));
        }
    }
}
