//! The messages of a master daemon: the entries that share a message, and the time when it is sent.
//!
//! An entry goes into the current message. A message is complete when the next entry does not fit or has the other
//! version; complete messages are sent after a short time, or at once if there are many. An incomplete message is sent
//! when it is two seconds old, which is checked once a second. A backup that reads slowly is therefore not flooded, and
//! few entries cause few packets. The caller passes the time.
//!
//! Source: ipvs-behaviour, section 12.4.

use std::collections::VecDeque;
use std::time::Duration;

use xvs_proto::sync::{Entry, Version};

use crate::clock::Millis;

/// The messages of one thread and port.
#[derive(Debug)]
pub struct Outbox {
    sync_id: u8,
    max_len: usize,
    current: Option<Message>,
    complete: VecDeque<Vec<u8>>,
    /// When complete messages are sent, unless the check comes first.
    due: Option<Millis>,
    next_check: Millis,
}

#[derive(Debug)]
struct Message {
    version: Version,
    begun: Millis,
    entries: u8,
    /// Room for the header, and the entries.
    bytes: Vec<u8>,
}

impl Outbox {
    /// An outbox for messages of at most this many bytes of UDP payload.
    pub fn new(sync_id: u8, max_len: usize, now: Millis) -> Self {
        Self {
            sync_id,
            max_len,
            current: None,
            complete: VecDeque::new(),
            due: None,
            next_check: now + CHECK,
        }
    }

    /// Adds an entry. Up to `queue_max` complete messages wait; a further one is discarded. An entry that the version
    /// cannot carry is discarded, too. Returns the number of discarded entries.
    pub fn add(&mut self, entry: &Entry<'_>, version: Version, queue_max: usize, now: Millis) -> u64 {
        let Some(encoded) = entry.encode(version) else { return 1 };
        let bytes = encoded.bytes();
        let discarded = match &self.current {
            Some(message) if !message.has_room(bytes, version, self.max_len) => self.complete(queue_max, now),
            _ => 0,
        };
        let message = self.current.get_or_insert_with(|| Message {
            version,
            begun: now,
            entries: 0,
            bytes: vec![0; version.header_len()],
        });
        message.bytes.resize(message.bytes.len() + version.padding(message.bytes.len()), 0);
        message.bytes.extend_from_slice(bytes);
        message.entries += 1;
        discarded
    }

    fn complete(&mut self, queue_max: usize, now: Millis) -> u64 {
        let Some(message) = self.current.take() else { return 0 };
        if self.complete.len() >= queue_max {
            return message.entries.into();
        }
        self.complete.push_back(message.finish(self.sync_id));
        match self.complete.len() {
            1 => self.due = Some(now + DELAY),
            MANY => self.due = Some(now),
            _ => {}
        }
        0
    }

    /// Takes the messages that were due until now. A late caller gets those of each missed moment.
    pub fn take_due(&mut self, now: Millis) -> VecDeque<Vec<u8>> {
        let mut taken = VecDeque::new();
        while let at = self.due.map_or(self.next_check, |due| due.min(self.next_check))
            && at <= now
        {
            taken.append(&mut self.complete);
            self.due = None;
            self.next_check = at + CHECK;
            if let Some(message) = self.current.take_if(|message| at >= message.begun + AGE) {
                taken.push_back(message.finish(self.sync_id));
            }
        }
        taken
    }

    /// Takes all messages, including an incomplete one.
    pub fn take_all(&mut self) -> VecDeque<Vec<u8>> {
        let mut taken = std::mem::take(&mut self.complete);
        taken.extend(self.current.take().map(|message| message.finish(self.sync_id)));
        taken
    }

    /// Takes back messages that could not be sent yet. They are due again at once.
    pub fn put_back(&mut self, mut unsent: VecDeque<Vec<u8>>, now: Millis) {
        unsent.append(&mut self.complete);
        self.complete = unsent;
        self.due = Some(now);
    }
}

impl Message {
    /// Whether an entry fits. Any fits into an empty message.
    fn has_room(&self, entry: &[u8], version: Version, max_len: usize) -> bool {
        let len = self.bytes.len();
        version == self.version
            && self.entries < u8::MAX
            && len + version.padding(len) + entry.len() <= max_len
    }

    fn finish(mut self, sync_id: u8) -> Vec<u8> {
        let (header, len) = self.version.header(sync_id, self.entries, self.bytes.len() as u16);
        self.bytes[..len].copy_from_slice(&header[..len]);
        self.bytes
    }
}

/// The time between two checks.
const CHECK: Duration = Duration::from_secs(1);
/// The age of an incomplete message that is sent.
const AGE: Duration = Duration::from_secs(2);
/// The time that complete messages wait for more of them. Source: a kernel with ticks of 4 ms sends them 24 to 28 ms
/// later.
const DELAY: Duration = Duration::from_millis(25);
/// This number of complete messages is sent at once.
const MANY: usize = 8;

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use xvs_proto::{Endpoint, Protocol};

    use super::*;

    fn entry(port: u16) -> Entry<'static> {
        let endpoint = |last, port| Endpoint::new(Ipv4Addr::new(192, 0, 2, last), port);
        Entry {
            protocol: Protocol::TCP,
            flags: 0,
            state: 1,
            client: endpoint(1, port),
            virtual_endpoint: endpoint(2, 80),
            dest: endpoint(3, 80),
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

    fn sent(outbox: &mut Outbox, now: u64) -> Vec<(usize, u8)> {
        outbox.take_due(Millis(now)).iter().map(|message| (message.len(), message[4])).collect()
    }

    #[test]
    fn an_incomplete_message_is_sent_at_the_first_check_after_two_seconds() {
        let mut outbox = Outbox::new(7, 1472, Millis(0));
        outbox.add(&entry(1), Version::V1, 8, Millis(4));
        assert_eq!(sent(&mut outbox, 1000), []);
        outbox.add(&entry(2), Version::V1, 8, Millis(1500));
        assert_eq!(sent(&mut outbox, 2000), []);
        assert_eq!(sent(&mut outbox, 2999), []);
        // The caller is late; the check is not.
        let messages = outbox.take_due(Millis(3999));
        assert_eq!(messages.len(), 1);
        assert_eq!(messages[0][..8], [0, 7, 0, 80, 2, 1, 0, 0]);
        assert_eq!(sent(&mut outbox, 9000), []);
    }

    #[test]
    fn a_full_message_is_sent_a_moment_later_and_eight_of_them_at_once() {
        let mut outbox = Outbox::new(7, 200, Millis(0));
        let add = |outbox: &mut Outbox, count: u16, now| {
            (0..count).for_each(|port| _ = outbox.add(&entry(port), Version::V1, 100, Millis(now)));
        };
        add(&mut outbox, 6, 100);
        assert_eq!(sent(&mut outbox, 124), []);
        assert_eq!(sent(&mut outbox, 125), [(188, 5)]);
        add(&mut outbox, 39, 200);
        assert_eq!(sent(&mut outbox, 200), []);
        add(&mut outbox, 1, 201);
        assert_eq!(sent(&mut outbox, 201).len(), 8);
    }

    #[test]
    fn a_message_has_room_for_one_entry_and_not_for_those_of_another_version_or_more_than_255() {
        let mut outbox = Outbox::new(0, 1, Millis(0));
        outbox.add(&entry(1), Version::V1, 8, Millis(0));
        outbox.add(&entry(2), Version::V1, 8, Millis(0));
        assert_eq!(sent(&mut outbox, 25), [(44, 1)]);
        let mut outbox = Outbox::new(0, 60_000, Millis(0));
        outbox.add(&entry(1), Version::V1, 8, Millis(0));
        outbox.add(&entry(2), Version::V0, 8, Millis(0));
        assert_eq!(sent(&mut outbox, 25), [(44, 1)]);
        (0..255).for_each(|port| _ = outbox.add(&entry(port), Version::V0, 8, Millis(30)));
        let messages = outbox.take_due(Millis(55));
        assert_eq!((messages.len(), &messages[0][..4]), (1, &[255, 0, 0x17, 0xec][..]));
    }

    #[test]
    fn messages_that_could_not_be_sent_are_sent_before_later_ones() {
        let mut outbox = Outbox::new(0, 1, Millis(0));
        (1..4).for_each(|port| _ = outbox.add(&entry(port), Version::V1, 8, Millis(0)));
        let mut unsent = outbox.take_due(Millis(25));
        assert_eq!(unsent.len(), 2);
        unsent.pop_front();
        outbox.put_back(unsent, Millis(25));
        outbox.add(&entry(4), Version::V1, 8, Millis(30));
        let ports = |messages: VecDeque<Vec<u8>>| messages.iter().map(|bytes| bytes[19]).collect::<Vec<_>>();
        assert_eq!(ports(outbox.take_due(Millis(30))), [2, 3]);
        assert_eq!(ports(outbox.take_all()), [4]);
    }

    #[test]
    fn beyond_the_longest_queue_the_entries_are_discarded_and_counted() {
        let mut outbox = Outbox::new(0, 200, Millis(0));
        let discarded: u64 = (0..21).map(|port| outbox.add(&entry(port), Version::V1, 3, Millis(0))).sum();
        assert_eq!((discarded, sent(&mut outbox, 25).len()), (5, 3));
    }
}
