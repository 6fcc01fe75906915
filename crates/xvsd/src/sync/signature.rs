//! Signatures of messages between directors that have the same key.
//!
//! A signed message has a trailer after its last connection, where a kernel does not read. The length in the header
//! includes it. Numbers are in network byte order.
//!
//! | bytes | |
//! |---|---|
//! | 4 | [`MARK`] |
//! | 8 | the sender's session: random, and a new one after its clock was set back |
//! | 8 | the time of sending in nanoseconds since 1970; it increases within a session |
//! | 32 | HMAC-SHA-256 with a key that is derived from the directors' key |
//!
//! The code covers the sender's address (16 bytes, IPv4 as in RFC 4291 §2.5.5.2), the destination's port (2 bytes) and
//! the message up to the code. A copy of a message is refused: after [`OLDEST`] because of its age, before then because
//! the times of each session are remembered. A message sent before the receiver started is refused, because an earlier
//! receiver may have accepted it. So the clocks of two directors must agree within [`OLDEST`], and the messages of a
//! sender whose clock is behind are accepted only after that delay. Messages may arrive out of order.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use ring::hmac::{Context, HMAC_SHA256, Key, sign, verify};
use rustix::rand::{GetRandomFlags, getrandom};
use xvs_ctl::sync::receiver::Refused;

use super::key::SyncKey;

/// Signs the messages of a master daemon.
pub(super) struct Signer {
    key: Key,
    source: IpAddr,
    session: u64,
    /// The time in the last message.
    last: u64,
}

impl Signer {
    /// For messages from this address.
    ///
    /// # Errors
    /// The kernel has no random numbers.
    pub(super) fn new(key: &SyncKey, source: IpAddr) -> io::Result<Self> {
        Ok(Self { key: derived(key), source, session: session()?, last: 0 })
    }

    /// Appends the trailer to a message that goes to this port at this date, in nanoseconds since 1970.
    pub(super) fn sign(&mut self, message: &mut Vec<u8>, port: u16, now: u64) {
        if now + BACK.as_nanos() as u64 <= self.last
            && let Ok(session) = session()
        {
            (self.session, self.last) = (session, 0);
        }
        self.last = now.max(self.last + 1);
        let len = (message.len() + TRAILER_LEN) as u16;
        message[2..4].copy_from_slice(&len.to_be_bytes());
        message.extend_from_slice(MARK);
        message.extend_from_slice(&self.session.to_be_bytes());
        message.extend_from_slice(&self.last.to_be_bytes());
        let mut context = Context::with_key(&self.key);
        context.update(&about(self.source, port));
        context.update(message);
        message.extend_from_slice(context.sign().as_ref());
    }
}

/// Checks the messages that a backup daemon receives.
pub(super) struct Verifier {
    key: Key,
    /// When it began, in nanoseconds since 1970; earlier if the clock was set back since.
    begun: u64,
    /// The latest times of each session, by the port that its messages came to.
    sessions: BTreeMap<(u64, u16), BTreeSet<u64>>,
}

impl Verifier {
    /// A verifier that begins at this date, in nanoseconds since 1970.
    pub(super) fn new(key: &SyncKey, now: u64) -> Self {
        Self { key: derived(key), begun: now, sessions: BTreeMap::new() }
    }

    /// Checks a message from this address that has come to this port at this date, in nanoseconds since 1970.
    ///
    /// # Errors
    /// It is not signed, or not with this key; it is too old or from the future; or it is, or may be, a copy.
    pub(super) fn verify(
        &mut self,
        message: &[u8],
        source: IpAddr,
        port: u16,
        now: u64,
    ) -> Result<(), Refused> {
        let trailer = message
            .last_chunk::<TRAILER_LEN>()
            .filter(|trailer| trailer.starts_with(MARK))
            .ok_or(Refused::Unsigned)?;
        let (signed, tag) = message.split_at(message.len() - TAG_LEN);
        verify(&self.key, &[&about(source, port), signed].concat(), tag).map_err(|_| Refused::OtherKey)?;
        let session = u64::from_be_bytes(trailer[4..12].try_into().expect("8 bytes"));
        let sent = u64::from_be_bytes(trailer[12..20].try_into().expect("8 bytes"));
        if is_old(sent, now) {
            return Err(Refused::Clock(now.abs_diff(sent) / 1_000_000_000));
        }
        self.begun = self.begun.min(now);
        if sent < self.begun {
            return Err(Refused::Earlier);
        }
        if !self.sessions.contains_key(&(session, port)) {
            // Copies of their messages are refused by their age.
            self.sessions.retain(|_, times| times.last().is_some_and(|last| !is_old(*last, now)));
        }
        let times = self.sessions.entry((session, port)).or_default();
        let is_before_all = times.len() == WINDOW && times.first().is_some_and(|first| sent < *first);
        if is_before_all || !times.insert(sent) {
            return Err(Refused::Copy);
        }
        if times.len() > WINDOW {
            times.pop_first();
        }
        Ok(())
    }
}

/// Whether a message with this date, in nanoseconds since 1970, is too old or from the future.
fn is_old(sent: u64, now: u64) -> bool {
    now.abs_diff(sent) > OLDEST.as_nanos() as u64
}

fn derived(key: &SyncKey) -> Key {
    let derived = sign(&Key::new(HMAC_SHA256, &key.0), b"xvs: messages of connection synchronization");
    Key::new(HMAC_SHA256, derived.as_ref())
}

/// The data that a signature covers besides the message.
fn about(source: IpAddr, port: u16) -> [u8; 18] {
    let source = match source {
        IpAddr::V4(source) => source.to_ipv6_mapped(),
        IpAddr::V6(source) => source,
    };
    let mut about = [0; 18];
    about[..16].copy_from_slice(&source.octets());
    about[16..].copy_from_slice(&port.to_be_bytes());
    about
}

fn session() -> io::Result<u64> {
    let mut session = [0; 8];
    getrandom(&mut session, GetRandomFlags::empty())?;
    Ok(u64::from_be_bytes(session))
}

/// The first bytes of a trailer.
const MARK: &[u8; 4] = b"xvs1";
const TAG_LEN: usize = 32;
/// The bytes of a trailer.
pub(super) const TRAILER_LEN: usize = 52;
/// The maximum difference between the clocks of two directors, and therefore the maximum age of a message.
const OLDEST: Duration = Duration::from_secs(300);
/// A sender whose clock was set back by less goes on with its session.
const BACK: Duration = Duration::from_secs(1);
/// The times of a session that are remembered. An earlier one is a copy.
const WINDOW: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    fn at(seconds: u64) -> u64 {
        (1_800_000_000 + seconds) * 1_000_000_000
    }

    fn signer() -> Signer {
        Signer::new(&SyncKey([7; 32]), SOURCE).unwrap()
    }

    fn verifier(seconds: u64) -> Verifier {
        Verifier::new(&SyncKey([7; 32]), at(seconds))
    }

    fn signed(signer: &mut Signer, seconds: u64) -> Vec<u8> {
        let mut message = vec![0, 7, 0, 8, 0, 1, 0, 0];
        signer.sign(&mut message, 8848, at(seconds));
        message
    }

    #[test]
    fn a_message_is_taken_once_from_its_sender_at_its_port_and_unchanged() {
        let mut verifier = verifier(0);
        let message = signed(&mut signer(), 0);
        assert_eq!((message.len(), &message[..4]), (60, &[0, 7, 0, 60][..]));
        let other = "192.0.2.2".parse().unwrap();
        assert_eq!(verifier.verify(&message, other, 8848, at(0)), Err(Refused::OtherKey));
        assert_eq!(verifier.verify(&message, SOURCE, 8849, at(0)), Err(Refused::OtherKey));
        for byte in (0..message.len()).filter(|byte| !(8..12).contains(byte)) {
            let mut changed = message.clone();
            changed[byte] ^= 1;
            assert_eq!(verifier.verify(&changed, SOURCE, 8848, at(0)), Err(Refused::OtherKey), "{byte}");
        }
        for len in [0, 8, 31, 32, 51, 52, 59] {
            assert_eq!(
                verifier.verify(&message[..len], SOURCE, 8848, at(0)),
                Err(Refused::Unsigned),
                "{len}"
            );
        }
        assert_eq!(
            Verifier::new(&SyncKey([8; 32]), at(0)).verify(&message, SOURCE, 8848, at(0)),
            Err(Refused::OtherKey)
        );
        assert_eq!(verifier.verify(&message, SOURCE, 8848, at(0)), Ok(()));
        assert_eq!(verifier.verify(&message, SOURCE, 8848, at(1)), Err(Refused::Copy));
    }

    #[test]
    fn a_message_that_was_overtaken_is_taken_and_copies_are_refused_however_many_followed() {
        let (mut verifier, mut signer) = (verifier(0), signer());
        let messages: Vec<_> = (0..3000).map(|_| signed(&mut signer, 0)).collect();
        let mut verify = |number: usize| verifier.verify(&messages[number], SOURCE, 8848, at(2));
        assert!((0..3000).step_by(2).all(|number| verify(number).is_ok()));
        assert_eq!(verify(2999), Ok(()));
        assert_eq!(verify(2001), Ok(()));
        assert_eq!(verify(2999), Err(Refused::Copy));
        assert_eq!(verify(1), Err(Refused::Copy), "too many followed to know it");
        assert!((0..3000).step_by(2).all(|number| verify(number) == Err(Refused::Copy)));
    }

    #[test]
    fn a_message_from_before_the_verifier_is_refused_because_a_former_one_may_have_taken_it() {
        let mut signer = signer();
        let message = signed(&mut signer, 100);
        assert_eq!(verifier(0).verify(&message, SOURCE, 8848, at(100)), Ok(()));
        let mut anew = verifier(101);
        assert_eq!(anew.verify(&message, SOURCE, 8848, at(102)), Err(Refused::Earlier));
        let later = signed(&mut signer, 102);
        assert_eq!(anew.verify(&later, SOURCE, 8848, at(102)), Ok(()));
        // The receiver's clock was 50 s ahead and is set back.
        let mut ahead = verifier(150);
        assert_eq!(ahead.verify(&signed(&mut signer, 104), SOURCE, 8848, at(103)), Ok(()));
    }

    #[test]
    fn what_is_forgotten_is_too_old_and_a_clock_that_is_set_back_begins_a_session() {
        let (mut verifier, mut signer) = (verifier(0), signer());
        let first = signed(&mut signer, 1000);
        assert_eq!(verifier.verify(&first, SOURCE, 8848, at(1300)), Ok(()));
        assert_eq!(verifier.verify(&first, SOURCE, 8848, at(1301)), Err(Refused::Clock(301)));
        let before = signer.session;
        let back = signed(&mut signer, 900);
        assert_ne!(signer.session, before);
        assert_eq!(verifier.verify(&back, SOURCE, 8848, at(1100)), Ok(()));
        assert_eq!(verifier.sessions.len(), 2);
        // A restarted backup knows no session, and refuses old messages.
        let mut anew = self::verifier(5000);
        assert_eq!(anew.verify(&first, SOURCE, 8848, at(5000)), Err(Refused::Clock(4000)));
        let other = signed(&mut Signer::new(&SyncKey([7; 32]), SOURCE).unwrap(), 2000);
        assert_eq!(verifier.verify(&other, SOURCE, 8848, at(2000)), Ok(()));
        assert_eq!(verifier.sessions.len(), 1, "the others' messages are too old to be taken");
    }
}
