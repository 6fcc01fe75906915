//! Splits a command line into options, as the library popt does it for ipvsadm.
//!
//! Long names cannot be abbreviated. One-letter options combine (`-Ln`). The argument of an option follows `=`, or its
//! letter directly, or is the next word, even a word that begins with `-`; an optional argument is the next word only
//! if the word does not begin with `-`. `--` ends the options. Words that are neither options nor arguments are
//! collected in [`Words::extra`].

use crate::error::LineError;
use crate::options::{self, Argument, OptionEntry};

/// A command line that is being read.
pub(super) struct Words<'a> {
    words: &'a [&'a str],
    /// Index of the first word not yet consumed.
    next: usize,
    /// The rest of a word of combined one-letter options.
    cluster: &'a str,
    options_ended: bool,
    /// Words that are neither options nor their arguments.
    pub(super) extra: Vec<&'a str>,
}

impl<'a> Words<'a> {
    pub(super) fn new(words: &'a [&'a str]) -> Self {
        Self { words, next: 0, cluster: "", options_ended: false, extra: Vec::new() }
    }

    /// The next option with its argument; `None` at the end of the line.
    pub(super) fn next(&mut self) -> Result<Option<Given<'a>>, LineError> {
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

    fn long(&mut self, text: &'a str) -> Result<Given<'a>, LineError> {
        let (name, attached) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (text, None),
        };
        let Some(entry) = options::all().find(|entry| entry.name == name) else {
            return Err(LineError::popt(self.last(), UNKNOWN));
        };
        if entry.argument == Argument::Absent && attached.is_some() {
            return Err(LineError::popt(self.last(), "option does not take an argument"));
        }
        Ok((entry, self.argument(entry.argument, attached)?))
    }

    fn short(&mut self) -> Result<Given<'a>, LineError> {
        let mut rest = self.cluster.chars();
        let letter = rest.next().unwrap_or_default();
        self.cluster = rest.as_str();
        let Some(entry) = options::all().find(|entry| entry.letters.contains(letter)) else {
            return Err(LineError::popt(self.last(), UNKNOWN));
        };
        let mut attached = None;
        if entry.argument != Argument::Absent && !self.cluster.is_empty() {
            attached = Some(self.cluster.strip_prefix('=').unwrap_or(self.cluster));
            self.cluster = "";
        }
        Ok((entry, self.argument(entry.argument, attached)?))
    }

    /// The argument of an option, if it takes one; `attached` was found in the same word as the option.
    fn argument(
        &mut self,
        argument: Argument,
        attached: Option<&'a str>,
    ) -> Result<Option<&'a str>, LineError> {
        if argument == Argument::Absent || attached.is_some() {
            return Ok(attached);
        }
        let next = self.words.get(self.next).copied();
        match (argument, next) {
            (Argument::Required(_), None) => Err(LineError::popt(self.last(), "missing argument")),
            (Argument::Optional(_), Some(word)) if word.starts_with('-') => Ok(None),
            (_, Some(word)) => {
                self.next += 1;
                Ok(Some(word))
            }
            (_, None) => Ok(None),
        }
    }
}

/// An option with its argument.
pub(super) type Given<'a> = (&'static OptionEntry, Option<&'a str>);

const UNKNOWN: &str = "unknown option";
