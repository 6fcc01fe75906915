//! The arguments of keywords: numbers, times, addresses, methods, scripts.
//!
//! Each function reads a statement and adds its problems to [`Faults`]; for a refused value it returns `None`, and the
//! caller keeps the old value. Pure. Source: keepalived-behaviour, sections 1.3 and 2.2.

use std::fmt::Display;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use xvs_model::config::destination::{Tunnel, TunnelChecksum};
use xvs_model::health_checks::check::Script;
use xvs_model::health_checks::fault::{Fault, LeftOut, Place, Severity};
use xvs_sched::{ForwardingMethod, ServiceKey};

use crate::blocks::Block;
use crate::lexer::shell_words;

/// The forwarding method to a server, with its tunnel type.
pub type Method = (ForwardingMethod, Tunnel);

/// The faults of a file, in the order in which they are found.
#[derive(Debug, Default)]
pub struct Faults {
    /// All of them.
    pub all: Vec<Fault>,
    /// The faults because of which services are lost.
    pub left_out: Vec<LeftOut>,
}

impl Faults {
    /// Adds a warning: something is left out or assumed; the rest of the file is used.
    pub fn warn(&mut self, place: &Place, text: impl Into<String>) {
        self.all.push(Fault { place: place.clone(), severity: Severity::Warning, text: text.into() });
    }

    /// Adds an error: the meaning of the file is uncertain, so it is not used.
    pub fn error(&mut self, place: &Place, text: impl Into<String>) {
        self.all.push(Fault { place: place.clone(), severity: Severity::Error, text: text.into() });
    }

    /// Adds a warning about a statement that is left out.
    pub fn refuse(&mut self, block: &Block, why: &str) {
        self.warn_of(block, format!("{why}; it is left out"));
    }

    /// Adds a warning about a statement, which begins with the statement.
    pub fn warn_of(&mut self, block: &Block, text: impl Display) {
        self.warn(&block.place, format!("`{}`: {text}", block.text));
    }

    /// Adds a warning about a statement without a necessary setting, for which a default is used.
    pub fn assume(&mut self, block: &Block, missing: &str, default: &str) {
        self.warn(&block.place, format!("`{}` names no {missing}; {default} is used", block.text));
    }

    /// Records that these services are lost because of the last fault; if empty, they are unknown.
    pub fn costs(&mut self, services: Vec<ServiceKey>) {
        let fault = self.all.last().cloned();
        self.left_out.extend(fault.map(|fault| LeftOut { fault, services }));
    }

    /// Adds a warning about a keyword that is unknown in its block.
    pub fn unknown(&mut self, block: &Block) {
        let what = if block.body.is_some() { "block" } else { "keyword" };
        self.warn(&block.place, format!("unknown {what} `{}`; it is left out", block.keyword()));
        // A misspelt or misplaced virtual server.
        if block.statements().iter().any(|statement| statement.keyword() == "real_server") {
            self.costs(Vec::new());
        }
    }

    /// Checks a statement of one line. `known` tells whether its keyword is known in its block.
    pub fn line(&mut self, block: &Block, known: bool) {
        match (known, &block.body) {
            (false, _) => self.unknown(block),
            (true, Some(_)) => {
                let why = "starts no block; put each keyword on a line of its own";
                self.error(&block.place, format!("`{}`: `{}` {why}", block.text, block.keyword()));
            }
            (true, None) => {}
        }
    }

    /// Checks a statement that must start a block.
    pub fn block(&mut self, block: &Block) {
        if block.body.is_none() {
            self.error(&block.place, format!("`{}` has no `{{`", block.text));
        }
    }

    /// The first argument. Its absence is an error, because keepalived then exits.
    pub fn argument<'a>(&mut self, block: &'a Block) -> Option<&'a str> {
        let argument = block.arguments().first();
        if argument.is_none() {
            self.error(&block.place, format!("`{}` needs a value", block.keyword()));
        }
        argument.map(String::as_str)
    }

    /// The value of a keyword that takes one. Words after it are left out, with a warning.
    pub fn value<'a>(&mut self, block: &'a Block) -> Option<&'a str> {
        let value = self.argument(block);
        // A line that starts a block has an error (`line`).
        if let [_, more @ ..] = block.arguments()
            && !more.is_empty()
            && block.body.is_none()
        {
            let why = "is left out; put each keyword on a line of its own";
            self.warn_of(block, format!("`{}` {why}", more.join(" ")));
        }
        value
    }

    /// Reads a number. Text after its digits is ignored, with a warning.
    pub fn number<T: FromStr + PartialOrd + Display>(
        &mut self,
        block: &Block,
        range: RangeInclusive<T>,
    ) -> Option<T> {
        let text = unsigned(self.value(block)?);
        let digits = &text[..text.find(|char: char| !char.is_ascii_digit()).unwrap_or(text.len())];
        let number = digits.parse().ok().filter(|number| range.contains(number));
        match &number {
            None => self.refuse(block, &format!("not a number from {} to {}", range.start(), range.end())),
            Some(number) if digits != text => {
                self.warn_of(block, format!("read as {number}"));
            }
            Some(_) => {}
        }
        number
    }

    /// Reads a time in seconds, with up to six decimal places.
    pub fn time(&mut self, block: &Block, least: Duration) -> Option<Duration> {
        let text = self.value(block)?;
        let time = seconds(text).filter(|time| *time >= least);
        match time {
            None => self.refuse(block, "not a time in seconds"),
            Some(_) if text.split_once('.').is_some_and(|(_, digits)| digits.len() > 6) => {
                self.warn_of(block, "rounded to a microsecond");
            }
            Some(_) => {}
        }
        time
    }

    /// Reads a switch; on if it has no argument.
    pub fn switch(&mut self, block: &Block) -> Option<bool> {
        if block.arguments().is_empty() {
            return Some(true);
        }
        match self.value(block)? {
            "on" | "true" | "yes" => Some(true),
            "off" | "false" | "no" => Some(false),
            _ => {
                self.refuse(block, "neither on nor off");
                None
            }
        }
    }

    /// Reads an address of either family, without brackets.
    pub fn address(&mut self, block: &Block) -> Option<IpAddr> {
        let text = self.argument(block)?;
        let addr = self.address_of(block, text);
        if addr.is_none() {
            self.refuse(block, "not an address");
        }
        addr
    }

    /// The address in a word, without the prefix length that may follow it: it has no meaning for one address, and
    /// keepalived drops it.
    pub fn address_of(&mut self, block: &Block, text: &str) -> Option<IpAddr> {
        let (addr, length) = text.split_once('/').map_or((text, None), |(addr, length)| (addr, Some(length)));
        let addr = addr.parse().ok()?;
        if let Some(length) = length {
            self.warn_of(block, format!("`/{length}` has no effect here; remove it"));
        }
        Some(addr)
    }

    /// Reads a command with an optional user and group.
    pub fn script(&mut self, block: &Block) -> Option<Script> {
        self.command_with(block, 3)
    }

    /// Reads a command with an optional user and group into `place`, unless that is already set.
    pub fn script_once(&mut self, block: &Block, place: &mut Option<Script>) {
        match place {
            None => *place = self.script(block),
            Some(_) => self.refuse(block, "already defined"),
        }
    }

    /// Reads a command without user and group.
    pub fn command(&mut self, block: &Block) -> Option<Script> {
        self.command_with(block, 1)
    }

    /// Reads a command; `most` is the maximum number of words in the statement.
    fn command_with(&mut self, block: &Block, most: usize) -> Option<Script> {
        self.argument(block)?;
        let words = block.shell_arguments();
        let text = words.first().cloned().unwrap_or_default();
        let argv = shell_words(&text);
        if argv.is_empty() {
            self.refuse(block, "no command");
            return None;
        }
        if words.len() > most {
            let why = match most {
                1 => "the command is its first word only",
                _ => "the command is its first word only, then come user and group",
            };
            self.warn_of(block, format!("{why}; put it in quotes"));
        }
        let mut account = words.into_iter().take(most).skip(1);
        Some(Script { place: block.place.clone(), argv, text, user: account.next(), group: account.next() })
    }

    /// Reads a method: `NAT`, `DR`, `TUN` with its options, or `FULLNAT`, which keepalived does not have.
    pub fn method(&mut self, block: &Block) -> Option<Method> {
        let method = match self.argument(block)? {
            "NAT" => ForwardingMethod::Nat,
            "DR" => ForwardingMethod::DirectRouting,
            "FULLNAT" | "FNAT" => ForwardingMethod::FullNat,
            "TUN" => {
                let tunnel = tunnel(&block.arguments()[1..]).unwrap_or_else(|why| {
                    self.warn_of(block, format!("{why}; TUN type ipip is used"));
                    Tunnel::Ipip
                });
                return Some((ForwardingMethod::Tunnel, tunnel));
            }
            _ => {
                self.refuse(block, "a method is NAT, DR, TUN or FULLNAT");
                return None;
            }
        };
        if block.arguments().len() > 1 {
            self.warn_of(block, "this method has no options");
        }
        Some((method, Tunnel::Ipip))
    }
}

/// Parses a number of decimal digits, which blanks and a sign may precede.
pub fn decimal<T: FromStr>(text: &str) -> Option<T> {
    let digits = unsigned(text);
    is_digits(digits).then(|| digits.parse().ok())?
}

/// The text without blanks and `+` before it.
fn unsigned(text: &str) -> &str {
    let text = text.trim_start();
    text.strip_prefix('+').unwrap_or(text)
}

fn is_digits(text: &str) -> bool {
    text.chars().all(|char| char.is_ascii_digit())
}

/// Parses the port after an address; 0 if there is none.
///
/// # Errors
///
/// The port is not a number from 0 to 65535.
pub fn port(text: Option<&str>) -> Result<u16, &'static str> {
    text.map_or(Some(0), decimal).ok_or("a port is a number from 1 to 65535")
}

/// Parses the options of `TUN`.
fn tunnel(words: &[String]) -> Result<Tunnel, &'static str> {
    let mut words = words.iter().map(String::as_str);
    let mut kind = "ipip";
    let mut port = None;
    let mut checksum = None;
    while let Some(word) = words.next() {
        match word {
            "type" => kind = words.next().ok_or("`type` needs ipip, gue or gre")?,
            "port" => {
                let number = words.next().and_then(decimal).filter(|port| *port > 0);
                port = Some(number.ok_or("`port` needs a number from 1 to 65535")?);
            }
            "nocsum" => checksum = Some(TunnelChecksum::Without),
            "csum" => checksum = Some(TunnelChecksum::Full),
            "remcsum" => checksum = Some(TunnelChecksum::Remote),
            _ => return Err("the options of TUN are type, port and a checksum"),
        }
    }
    match (kind, port, checksum) {
        ("ipip", None, None) => Ok(Tunnel::Ipip),
        ("ipip", ..) => Err("ipip has neither port nor checksum"),
        ("gue", Some(port), checksum) => {
            Ok(Tunnel::Gue { port, checksum: checksum.unwrap_or(TunnelChecksum::Without) })
        }
        ("gue", None, _) => Err("gue needs a port"),
        ("gre", None, Some(TunnelChecksum::Remote)) => Err("gre has no remcsum"),
        ("gre", None, checksum) => Ok(Tunnel::Gre { checksum: checksum.unwrap_or(TunnelChecksum::Without) }),
        ("gre", Some(_), _) => Err("gre has no port"),
        _ => Err("a type is ipip, gue or gre"),
    }
}

/// Parses decimal seconds, rounded to a microsecond.
fn seconds(text: &str) -> Option<Duration> {
    let text = unsigned(text);
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let fits =
        whole.len() + fraction.len() > 0 && whole.len() <= 10 && is_digits(whole) && is_digits(fraction);
    let value: f64 = fits.then(|| format!("0{whole}.{fraction}0").parse().ok())??;
    Some(Duration::from_micros((value * 1e6).round() as u64))
}

#[cfg(test)]
mod tests {
    use crate::testing::statement;
    use crate::values::*;

    /// The value that `read` returns for a statement, and the number of faults.
    fn read<T>(text: &str, read: impl Fn(&mut Faults, &Block) -> Option<T>) -> (Option<T>, usize) {
        let mut faults = Faults::default();
        let value = read(&mut faults, &statement(text));
        (value, faults.all.len())
    }

    #[test]
    fn numbers_must_be_in_range_and_text_after_them_causes_a_warning() {
        let number = |text| read(text, |faults, block| faults.number(block, 1..=100));
        assert_eq!(number("weight 7"), (Some(7), 0));
        assert_eq!(number("weight \" 7\""), (Some(7), 0));
        assert_eq!(number("weight +7"), (Some(7), 0));
        assert_eq!(number("weight 12abc"), (Some(12), 1));
        assert_eq!(number("weight 7 inhibit_on_failure"), (Some(7), 1));
        for refused in
            ["weight 0", "weight 101", "weight -1", "weight x", "weight 99999999999999999999", "weight"]
        {
            assert_eq!(number(refused), (None, 1), "{refused}");
        }
    }

    #[test]
    fn times_have_up_to_six_decimal_places() {
        let time = |text| read(text, |faults, block| faults.time(block, Duration::from_micros(1)));
        assert_eq!(time("delay_loop 6"), (Some(Duration::from_secs(6)), 0));
        assert_eq!(time("delay_loop +1.5"), (Some(Duration::from_millis(1500)), 0));
        assert_eq!(time("delay_loop .000001"), (Some(Duration::from_micros(1)), 0));
        for refused in ["delay_loop 0", "delay_loop -1", "delay_loop 1e3", "delay_loop .", "delay_loop x"] {
            assert_eq!(time(refused), (None, 1), "{refused}");
        }
    }

    #[test]
    fn the_options_of_a_tunnel_depend_on_its_type() {
        use ForwardingMethod::{DirectRouting, FullNat, Nat, Tunnel as Tun};
        let method = |text: &str| read(&format!("lvs_method {text}"), |faults, block| faults.method(block));
        assert_eq!(method("NAT"), (Some((Nat, Tunnel::Ipip)), 0));
        assert_eq!(method("DR foo"), (Some((DirectRouting, Tunnel::Ipip)), 1));
        assert_eq!(method("FNAT"), (Some((FullNat, Tunnel::Ipip)), 0));
        let gue = Tunnel::Gue { port: 6080, checksum: TunnelChecksum::Full };
        assert_eq!(method("TUN type gue port 6080 csum"), (Some((Tun, gue)), 0));
        let gre = Tunnel::Gre { checksum: TunnelChecksum::Without };
        assert_eq!(method("TUN type gre nocsum"), (Some((Tun, gre)), 0));
        for half in ["type gue", "type ipip csum", "type gre remcsum", "type gre port 1", "type vxlan", "x"] {
            assert_eq!(method(&format!("TUN {half}")), (Some((Tun, Tunnel::Ipip)), 1), "{half}");
        }
        assert_eq!(method("dr"), (None, 1));
    }

    #[test]
    fn the_first_word_of_a_script_is_its_command_with_arguments() {
        let script = |text: &str| read(&format!("quorum_up {text}"), |faults, block| faults.script(block));
        let want = |argv: &[&str], text: &str, user: Option<&str>| Script {
            place: Place::default(),
            argv: argv.iter().map(|&word| word.to_owned()).collect(),
            text: text.to_owned(),
            user: user.map(str::to_owned),
            group: None,
        };
        assert_eq!(
            script("\"/x/s.sh a b\" root"),
            (Some(want(&["/x/s.sh", "a", "b"], "/x/s.sh a b", Some("root"))), 0)
        );
        assert_eq!(
            script("\"/bin/true 'a b'\""),
            (Some(want(&["/bin/true", "a b"], "/bin/true 'a b'", None)), 0)
        );
        assert_eq!(script("/x/s.sh a b c").1, 1);
        assert_eq!(script(""), (None, 1));
    }
}
