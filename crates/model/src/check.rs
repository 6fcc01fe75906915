//! Health checks: what is asked of a real server, how often, and when it counts as down.
//!
//! Plain data: a pattern is its text, a certificate the name of its file. Source: keepalived's behaviour as it is
//! written down (section 4).

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use crate::fault::Place;

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
    Script(Script, ExitCodeMeaning),
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
            Self::Script(script, meaning) => {
                Self::Script(Script { user: None, group: None, ..script }, meaning)
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
    AnyCertificate,
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
pub enum ExitCodeMeaning {
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

/// A command that is run when something happens, with what it runs as.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Script {
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// The same as it is written: for a shell, if it is no program.
    pub text: String,
    /// The user, if one is named.
    pub user: Option<String>,
    /// The group, if one is named.
    pub group: Option<String>,
}

impl fmt::Display for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.argv.join(" "))?;
        let who: Vec<_> = self.user.iter().chain(&self.group).map(String::as_str).collect();
        if who.is_empty() { Ok(()) } else { write!(f, " (as {})", who.join(":")) }
    }
}

/// A file whose number counts.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TrackFile {
    /// What follows `track_file`.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// What its number means.
    pub weight: FileWeight,
    /// What is written to it at first, if that is said.
    pub init: Option<Init>,
}

/// What the number of a file means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileWeight {
    /// With what it is multiplied to be added to a server's weight; 0: any number but 0 is not well.
    pub factor: i32,
    /// The other way round: subtracted, or only 0 is not well.
    pub is_reversed: bool,
}

/// What is written to a file when it is watched for the first time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Init {
    /// The number.
    pub value: i32,
    /// Also if there is a file already.
    pub overwrites: bool,
}
