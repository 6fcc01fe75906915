//! A command line taken apart into options, as popt does it.
//!
//! Long names are never abbreviated; short ones combine; a value follows after `=`, glued on, or as the next word
//! whatever it looks like; an optional one only if it does not begin with `-`. Words that are no options are kept
//! aside; `--` ends the options.

use xvs_model::destination::TunnelChecksum;
use xvs_sched::ForwardingMethod;

use crate::ended::Ended;
use crate::table::CommandName;

/// What an option asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Word {
    Command(CommandName),
    Help,
    Version,
    Tcp,
    Udp,
    Sctp,
    Mark,
    V6,
    Scheduler,
    Engine,
    Persistent,
    Netmask,
    Flags,
    OnePacket,
    ClientAddress,
    RealServer,
    Method(ForwardingMethod),
    TunnelType,
    TunnelPort,
    Checksum(TunnelChecksum),
    Weight,
    Upper,
    Lower,
    Connection,
    Timeout,
    Daemon,
    Stats,
    Rate,
    Thresholds,
    PersistentConn,
    TunInfo,
    Exact,
    NoSort,
    Sort,
    Numeric,
    SyncId,
    MaxLen,
    Interface,
    Group,
    Port,
    Ttl,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Takes {
    Nothing,
    Value,
    /// The next word if it does not begin with `-`.
    MaybeValue,
}

/// A line being read.
pub(super) struct Words<'a> {
    words: &'a [&'a str],
    /// Index of the first word not yet consumed.
    next: usize,
    /// What is left of a cluster of short options.
    cluster: &'a str,
    options_ended: bool,
    /// Words that are neither options nor their values.
    pub(super) extra: Vec<&'a str>,
}

impl<'a> Words<'a> {
    pub(super) fn new(words: &'a [&'a str]) -> Self {
        Self { words, next: 0, cluster: "", options_ended: false, extra: Vec::new() }
    }

    /// The next option with its value; `None` at the end of the line.
    pub(super) fn next(&mut self) -> Result<Option<(Word, Option<&'a str>)>, Ended> {
        loop {
            if !self.cluster.is_empty() {
                return self.short().map(Some);
            }
            let Some(word) = self.words.get(self.next).copied() else { return Ok(None) };
            self.next += 1;
            if self.options_ended || word == "-" || !word.starts_with('-') {
                self.extra.push(word);
            } else if word == "--" {
                self.options_ended = true;
            } else if let Some(long) = word.strip_prefix("--") {
                return self.long(long).map(Some);
            } else {
                self.cluster = &word[1..];
            }
        }
    }

    /// The last word consumed, as given.
    pub(super) fn last(&self) -> &'a str {
        self.next.checked_sub(1).and_then(|index| self.words.get(index)).copied().unwrap_or("")
    }

    fn long(&mut self, text: &'a str) -> Result<(Word, Option<&'a str>), Ended> {
        let (name, glued) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (text, None),
        };
        let option = OPTIONS.iter().find(|(_, long, ..)| *long == name && !name.is_empty());
        let Some((_, _, takes, word)) = option else { return Err(Ended::popt(self.last(), UNKNOWN)) };
        if *takes == Takes::Nothing && glued.is_some() {
            return Err(Ended::popt(self.last(), "option does not take an argument"));
        }
        Ok((*word, self.value(*takes, glued)?))
    }

    fn short(&mut self) -> Result<(Word, Option<&'a str>), Ended> {
        let mut rest = self.cluster.chars();
        let letter = rest.next().unwrap_or_default();
        self.cluster = rest.as_str();
        let Some((_, _, takes, word)) = OPTIONS.iter().find(|(short, ..)| *short == letter) else {
            return Err(Ended::popt(self.last(), UNKNOWN));
        };
        let mut glued = None;
        if *takes != Takes::Nothing && !self.cluster.is_empty() {
            glued = Some(self.cluster.strip_prefix('=').unwrap_or(self.cluster));
            self.cluster = "";
        }
        Ok((*word, self.value(*takes, glued)?))
    }

    fn value(&mut self, takes: Takes, glued: Option<&'a str>) -> Result<Option<&'a str>, Ended> {
        if takes == Takes::Nothing || glued.is_some() {
            return Ok(glued);
        }
        let next = self.words.get(self.next).copied();
        match (takes, next) {
            (Takes::Value, None) => Err(Ended::popt(self.last(), "missing argument")),
            (Takes::MaybeValue, Some(word)) if word.starts_with('-') => Ok(None),
            (_, Some(word)) => {
                self.next += 1;
                Ok(Some(word))
            }
            (_, None) => Ok(None),
        }
    }
}

const UNKNOWN: &str = "unknown option";

/// No short letter.
pub(super) const LONG: char = '\0';

/// Every option: letter, name, what it takes, what it asks for.
pub(super) const OPTIONS: &[(char, &str, Takes, Word)] = {
    use CommandName as C;
    use Takes::{MaybeValue, Nothing, Value};
    &[
        ('A', "add-service", Nothing, Word::Command(C::AddService)),
        ('E', "edit-service", Nothing, Word::Command(C::EditService)),
        ('D', "delete-service", Nothing, Word::Command(C::DeleteService)),
        ('C', "clear", Nothing, Word::Command(C::Flush)),
        ('L', "list", Nothing, Word::Command(C::List)),
        ('l', "list", Nothing, Word::Command(C::List)),
        ('a', "add-server", Nothing, Word::Command(C::AddServer)),
        ('e', "edit-server", Nothing, Word::Command(C::EditServer)),
        ('d', "delete-server", Nothing, Word::Command(C::DeleteServer)),
        (LONG, "set", Nothing, Word::Command(C::Set)),
        (LONG, "start-daemon", Value, Word::Command(C::StartDaemon)),
        (LONG, "stop-daemon", Value, Word::Command(C::StopDaemon)),
        ('R', "restore", Nothing, Word::Command(C::Restore)),
        ('S', "save", Nothing, Word::Command(C::Save)),
        ('Z', "zero", Nothing, Word::Command(C::Zero)),
        ('h', "help", Nothing, Word::Help),
        ('v', "version", Nothing, Word::Version),
        ('t', "tcp-service", Value, Word::Tcp),
        ('u', "udp-service", Value, Word::Udp),
        (LONG, "sctp-service", Value, Word::Sctp),
        ('f', "fwmark-service", Value, Word::Mark),
        ('6', "ipv6", Nothing, Word::V6),
        ('s', "scheduler", Value, Word::Scheduler),
        (LONG, "pe", Value, Word::Engine),
        ('p', "persistent", MaybeValue, Word::Persistent),
        ('M', "netmask", Value, Word::Netmask),
        ('b', "sched-flags", Value, Word::Flags),
        ('o', "ops", Nothing, Word::OnePacket),
        // Not one of ipvsadm's.
        (LONG, "client-address", Value, Word::ClientAddress),
        ('r', "real-server", Value, Word::RealServer),
        ('g', "gatewaying", Nothing, Word::Method(ForwardingMethod::DirectRouting)),
        ('i', "ipip", Nothing, Word::Method(ForwardingMethod::Tunnel)),
        ('m', "masquerading", Nothing, Word::Method(ForwardingMethod::Nat)),
        // Not one of ipvsadm's.
        (LONG, "fullnat", Nothing, Word::Method(ForwardingMethod::FullNat)),
        (LONG, "tun-type", Value, Word::TunnelType),
        (LONG, "tun-port", Value, Word::TunnelPort),
        (LONG, "tun-nocsum", Nothing, Word::Checksum(TunnelChecksum::Without)),
        (LONG, "tun-csum", Nothing, Word::Checksum(TunnelChecksum::Full)),
        (LONG, "tun-remcsum", Nothing, Word::Checksum(TunnelChecksum::Remote)),
        ('w', "weight", Value, Word::Weight),
        ('x', "u-threshold", Value, Word::Upper),
        ('y', "l-threshold", Value, Word::Lower),
        ('c', "connection", Nothing, Word::Connection),
        (LONG, "timeout", Nothing, Word::Timeout),
        (LONG, "daemon", Nothing, Word::Daemon),
        (LONG, "stats", Nothing, Word::Stats),
        (LONG, "rate", Nothing, Word::Rate),
        (LONG, "thresholds", Nothing, Word::Thresholds),
        (LONG, "persistent-conn", Nothing, Word::PersistentConn),
        (LONG, "tun-info", Nothing, Word::TunInfo),
        ('X', "exact", Nothing, Word::Exact),
        (LONG, "nosort", Nothing, Word::NoSort),
        (LONG, "sort", Nothing, Word::Sort),
        ('n', "numeric", Nothing, Word::Numeric),
        (LONG, "syncid", Value, Word::SyncId),
        (LONG, "sync-maxlen", Value, Word::MaxLen),
        (LONG, "mcast-interface", Value, Word::Interface),
        (LONG, "mcast-group", Value, Word::Group),
        (LONG, "mcast-port", Value, Word::Port),
        (LONG, "mcast-ttl", Value, Word::Ttl),
    ]
};

#[cfg(test)]
mod tests {
    use crate::words::*;

    #[test]
    fn the_help_text_names_every_option() {
        let help = include_str!("help.txt");
        let words: Vec<_> = help.split(|c: char| !(c.is_alphanumeric() || c == '-')).collect();
        for (short, long, ..) in OPTIONS {
            assert!(words.contains(&format!("--{long}").as_str()), "--{long}");
            assert!(*short == LONG || words.contains(&format!("-{short}").as_str()), "-{short}");
        }
    }
}
