//! The checkers of a real server: what is asked of it, how often, and when it counts as down.
//!
//! Pure. Source: keepalived's behaviour as it is written down (section 4). Not here: how they are read (`checkers.rs`), and
//! asking.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

use super::blocks::Block;
use super::files::TrackFile;
use super::reader::Place;
use super::values::{Faults, Script};

/// Something that is asked of a real server again and again. It is up while all its checks pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// Where it stands.
    pub place: Place,
    /// What is asked.
    pub probe: Probe,
    /// How often, and what an answer means.
    pub timing: Timing,
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Probe {
    /// Whether the port takes a TCP connection.
    Tcp(Target),
    /// Objects by HTTP; one `Url` a round.
    Http(Target, Http),
    /// A name of a DNS server.
    Dns(Target, Dns),
    /// Whether a mail server greets and takes a greeting with this name.
    Smtp(Target, String),
    /// A datagram and its answer.
    Udp(Target, Udp),
    /// An ICMP echo.
    Ping(Target),
    /// A command by its exit code.
    Script(Script, Weighing),
    /// The number that a file begins with.
    File(TrackFile),
}

impl Probe {
    /// What makes it the same probe in another reading of the file: a check that asks what one did before goes on where
    /// that stood. How an object or a datagram is worded, and as whom a command runs, is not part of it.
    #[must_use]
    pub fn identity(&self) -> Self {
        match self.clone() {
            Self::Http(target, http) => {
                let tls = http.tls.map(|tls| Box::new(Tls { trust: tls.trust, ..Tls::default() }));
                let urls = http.urls.into_iter().map(|url| Url { place: Place::default(), ..url });
                Self::Http(target, Http { tls, host: http.host, urls: urls.collect(), ..Http::default() })
            }
            Self::Udp(target, _) => Self::Udp(target, Udp { payload: None, reply: None }),
            Self::Script(script, weighing) => {
                Self::Script(Script { user: None, group: None, ..script }, weighing)
            }
            whole => whole,
        }
    }
}

/// Whom a probe asks, and from where.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Target {
    /// The endpoint.
    pub endpoint: SocketAddr,
    /// The address that it is asked from.
    pub source: Option<IpAddr>,
    /// The port that it is asked from.
    pub source_port: Option<u16>,
    /// The interface that packets go by.
    pub interface: Option<String>,
    /// The firewall mark of the packets; 0: none.
    pub mark: u32,
}

/// What is asked by HTTP.
#[derive(Debug, Clone, PartialEq, Eq, Default, Hash)]
pub struct Http {
    /// By TLS, if it is.
    pub tls: Option<Box<Tls>>,
    /// HTTP 1.1 instead of 1.0.
    pub is_1_1: bool,
    /// Says that the connection ends with the answer.
    pub closes: bool,
    /// The host that is asked for where the object names none.
    pub host: Option<String>,
    /// Whether it is up again with the first object that is well, not the last.
    pub fast_recovery: bool,
    /// The objects, never none.
    pub urls: Vec<Url>,
}

/// An object and what it has to be.
#[derive(Debug, Clone, PartialEq, Eq, Default, Hash)]
pub struct Url {
    /// The path with what follows it.
    pub path: String,
    /// The host that is asked for.
    pub host: Option<String>,
    /// The name in the handshake of TLS, if there is one.
    pub server_name: Option<String>,
    /// Status codes that are well; none: 200 to 299.
    pub statuses: Vec<RangeInclusive<u16>>,
    /// The MD5 sum of the body.
    pub digest: Option<[u8; 16]>,
    /// A pattern in the body, and what it has to do.
    pub pattern: Option<Pattern>,
    /// Where it stands.
    pub place: Place,
}

/// How a check speaks TLS: whose certificates are accepted, and the files of the `SSL` block.
#[derive(Debug, Clone, PartialEq, Eq, Default, Hash)]
pub struct Tls {
    /// Whose certificates are accepted.
    pub trust: Trust,
    /// The file of the authorities; `None`: those of the system.
    pub ca: Option<Setting>,
    /// The file of the certificate that the director shows.
    pub certificate: Option<Setting>,
    /// The file of its private key.
    pub key: Option<Setting>,
    /// The password of that key.
    pub password: Option<Setting>,
}

/// Whose certificates are accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum Trust {
    /// Any certificate.
    #[default]
    Anyone,
    /// Those that an authority has signed, valid now and for the name.
    Authorities,
}

/// A statement with one value, kept with its place for messages.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Setting {
    /// Where it stands.
    pub place: Place,
    /// The whole statement.
    pub text: String,
    /// Its value.
    pub value: String,
}

/// A regular expression over a body.
#[derive(Debug, Clone, PartialEq, Eq, Default, Hash)]
pub struct Pattern {
    /// The expression.
    pub text: String,
    /// Whether the body must not match.
    pub is_unwanted: bool,
    /// PCRE2's options by name.
    pub options: Vec<String>,
    /// The first byte at which a match may begin.
    pub least_offset: usize,
    /// The last one.
    pub most_offset: Option<usize>,
}

/// A question to a DNS server.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Dns {
    /// The type, in upper case.
    pub kind: String,
    /// The name; empty: the root.
    pub name: String,
}

/// A datagram and its answer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Udp {
    /// What is sent; `None`: random bytes.
    pub payload: Option<Vec<u8>>,
    /// What has to come back; `None`: nothing.
    pub reply: Option<Reply>,
}

/// An answer, as far as it is looked at.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reply {
    /// Its first bytes with the bits that count; none: anything.
    pub pattern: Vec<(u8, u8)>,
    /// How long it may be, in bytes.
    pub length: RangeInclusive<u16>,
}

/// Whether a script's exit code is a weight too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Weighing {
    /// 0 is well, anything else is not.
    Plain,
    /// 0 is well, 1 is not, others are the weight and 2.
    Dynamic,
}

/// How often a check is made and what an answer means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// From one to the next.
    pub interval: Duration,
    /// The same after a failure that does not count yet.
    pub retry_interval: Duration,
    /// How long an attempt may take, all of it.
    pub timeout: Duration,
    /// Failures in a row that take the server down.
    pub fall: u32,
    /// Passes in a row that bring it up again.
    pub rise: u32,
    /// At most so long is waited before the first.
    pub warmup: Duration,
    /// Whether the server is down until it has passed.
    pub begins_down: bool,
}

/// Settings of [`Timing`] as far as they are given; what is not is taken from around.
#[derive(Debug, Clone, Copy, Default)]
pub struct TimingOptions {
    interval: Option<Duration>,
    retry_interval: Option<Duration>,
    timeout: Option<Duration>,
    retry: Option<u32>,
    rise: Option<u32>,
    warmup: Option<Duration>,
    begins_down: Option<bool>,
}

impl TimingOptions {
    /// Takes a statement that is one of them. `least_retry` is what `retry` may be at least here.
    pub fn take(&mut self, block: &Block, least_retry: u32, faults: &mut Faults) -> bool {
        let above_zero = Duration::from_micros(1);
        match block.keyword() {
            "delay_loop" => set(&mut self.interval, faults.time(block, above_zero)),
            "delay_before_retry" => set(&mut self.retry_interval, faults.time(block, Duration::ZERO)),
            "connect_timeout" => set(&mut self.timeout, faults.time(block, above_zero)),
            "retry" => set(&mut self.retry, faults.number_u32(block, least_retry..=u32::MAX)),
            // keepalived has no such word and takes 1.
            "rise" => set(&mut self.rise, faults.number_u32(block, 1..=u32::MAX)),
            "warmup" => set(&mut self.warmup, faults.time(block, Duration::ZERO)),
            "alpha" => set(&mut self.begins_down, faults.switch(block)),
            _ => return false,
        }
        true
    }

    /// These, and what they leave open from around.
    #[must_use]
    pub fn or(self, around: Self) -> Self {
        Self {
            interval: self.interval.or(around.interval),
            retry_interval: self.retry_interval.or(around.retry_interval),
            timeout: self.timeout.or(around.timeout),
            retry: self.retry.or(around.retry),
            rise: self.rise.or(around.rise),
            warmup: self.warmup.or(around.warmup),
            begins_down: self.begins_down.or(around.begins_down),
        }
    }

    /// From one check to the next, if it is said.
    pub fn interval(self) -> Option<Duration> {
        self.interval
    }

    /// With what each kind of check has if nothing is said.
    pub(super) fn timing(self, probe: &Probe) -> Timing {
        let interval = self.interval.unwrap_or(INTERVAL);
        let (retry, retry_interval) = match probe {
            Probe::Http(..) => (1, Duration::from_secs(3)),
            Probe::Dns(..) => (3, interval),
            Probe::Script(..) | Probe::File(..) => (0, Duration::from_secs(1)),
            Probe::Tcp(_) | Probe::Smtp(..) | Probe::Udp(..) | Probe::Ping(_) => (1, Duration::from_secs(1)),
        };
        let (retry, rise) = (self.retry.unwrap_or(retry), self.rise.unwrap_or(1));
        // A file tells once what it says, when it changes.
        let (retry, rise) = if matches!(probe, Probe::File(..)) { (0, 1) } else { (retry, rise) };
        Timing {
            interval,
            retry_interval: self.retry_interval.unwrap_or(retry_interval),
            timeout: self.timeout.unwrap_or(TIMEOUT),
            fall: retry.saturating_add(1),
            rise,
            warmup: self.warmup.unwrap_or(interval),
            // What a file says is known from the start.
            begins_down: self.begins_down.unwrap_or(false) && !matches!(probe, Probe::File(..)),
        }
    }
}

/// From one check to the next, if nothing is said.
pub(super) const INTERVAL: Duration = Duration::from_secs(60);
const TIMEOUT: Duration = Duration::from_secs(5);

/// Sets what was understood.
pub(super) fn set<T>(place: &mut Option<T>, value: Option<T>) {
    if value.is_some() {
        *place = value;
    }
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(target) => write!(f, "TCP {}", target.endpoint),
            Self::Http(target, http) => {
                let name = if http.tls.is_some() { "HTTPS" } else { "HTTP" };
                let paths: Vec<_> = http.urls.iter().map(|url| url.path.as_str()).collect();
                write!(f, "{name} {} {}", target.endpoint, paths.join(" "))
            }
            Self::Dns(target, dns) => write!(f, "DNS {} {} {}.", target.endpoint, dns.kind, dns.name),
            Self::Smtp(target, _) => write!(f, "SMTP {}", target.endpoint),
            Self::Udp(target, _) => write!(f, "UDP {}", target.endpoint),
            Self::Ping(target) => write!(f, "ping {}", target.endpoint.ip()),
            Self::Script(script, _) => write!(f, "script {script}"),
            Self::File(file) => write!(f, "file {}", file.name),
        }
    }
}
