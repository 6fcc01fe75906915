//! Health checks: the probe, its timing, and the results that count as up or down.
//!
//! Plain data: a pattern is its text, a certificate the name of its file. Source: keepalived-behaviour,
//! section 4.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use xvs_proto::Endpoint;

use crate::health_checks::fault::Place;

/// A check of a real server, which is up while all its checks pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// The position in the file.
    pub place: Place,
    /// The probe.
    pub probe: Probe,
    /// When the probe runs, and how many results change the state.
    pub timing: Timing,
}

/// The kind of a check, with its parameters.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Probe {
    /// A TCP connection to a port.
    Tcp(Target),
    /// TCP connections to virtual endpoints, forwarded to the real server as a client's packets are (`through_vip`).
    ThroughVip(ThroughVip),
    /// Objects by HTTP or HTTPS; one `Url` in each run.
    Http(Target, Http),
    /// A DNS query.
    Dns(Target, Dns),
    /// The greeting of a mail server and its reply to a `HELO` with this name.
    Smtp(Target, String),
    /// A UDP datagram and the reply to it.
    Udp(Target, Udp),
    /// An ICMP echo request.
    Ping(Target),
    /// A command and its exit code.
    Script(Script, ExitCodeMeaning),
    /// The number at the start of a file.
    File(TrackFile),
    /// The reply of an agent, HAProxy's agent-check, after this text was sent to it.
    // New kinds come last: what outlives a process names checks by hashes of these values.
    Agent(Target, String),
}

impl Probe {
    /// The fields that identify the probe when the file is read again: a check whose probe has the same identity keeps
    /// its state. The content of requests and replies, the user of a command, and the address of an agent, whose
    /// replies are about the server, are not included.
    #[must_use]
    pub fn identity(&self) -> Self {
        match self.clone() {
            Self::Http(target, http) => {
                let tls = http.tls.map(|tls| Box::new(Tls { trust: tls.trust, ..Tls::default() }));
                let urls = http.urls.into_iter().map(|url| Url { place: Place::default(), ..url });
                Self::Http(target, Http { tls, host: http.host, urls: urls.collect(), ..Http::default() })
            }
            Self::Udp(target, _) => Self::Udp(target, Udp { payload: None, reply: None }),
            Self::Agent(..) => Self::Agent(Target::NOWHERE, String::new()),
            Self::Script(script, meaning) => {
                Self::Script(Script { user: None, group: None, ..script }, meaning)
            }
            whole => whole,
        }
    }
}

/// The target of a probe and the source of its packets.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Target {
    /// The endpoint.
    pub endpoint: SocketAddr,
    /// The source address.
    pub source: Option<IpAddr>,
    /// The source port.
    pub source_port: Option<u16>,
    /// The outgoing interface.
    pub interface: Option<String>,
    /// The firewall mark of the packets; 0 if there is none.
    pub mark: u32,
}

/// The target of a probe through the virtual address.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ThroughVip {
    /// The virtual endpoints; at least one.
    pub endpoints: Vec<Endpoint>,
    /// The source address, which the director must have; `None` if the director chooses it.
    pub source: Option<IpAddr>,
}

impl Target {
    /// The target in identities that do not include it.
    const NOWHERE: Self = Self {
        endpoint: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0),
        source: None,
        source_port: None,
        interface: None,
        mark: 0,
    };
}

/// The parameters of an HTTP check.
#[derive(Debug, Clone, PartialEq, Eq, Default, Hash)]
pub struct Http {
    /// The parameters of TLS; `None` for plain HTTP.
    pub tls: Option<Box<Tls>>,
    /// HTTP 1.1 instead of 1.0.
    pub is_1_1: bool,
    /// Whether the request has `Connection: close`.
    pub closes: bool,
    /// The `Host` of objects that name none.
    pub host: Option<String>,
    /// Whether the first object that passes brings the server up again, instead of the last.
    pub fast_recovery: bool,
    /// The objects; at least one.
    pub urls: Vec<Url>,
}

/// An object and the expected response.
#[derive(Debug, Clone, PartialEq, Eq, Default, Hash)]
pub struct Url {
    /// The path with its query.
    pub path: String,
    /// The `Host` of the request.
    pub host: Option<String>,
    /// The server name in the TLS handshake (SNI), if one is sent.
    pub server_name: Option<String>,
    /// Accepted status codes; empty: 200 to 299.
    pub statuses: Vec<RangeInclusive<u16>>,
    /// The expected MD5 sum of the body.
    pub digest: Option<[u8; 16]>,
    /// A pattern that the body must or must not match.
    pub pattern: Option<Pattern>,
    /// The position in the file.
    pub place: Place,
}

/// TLS of a check: the accepted certificates, and the files of the `SSL` block.
#[derive(Debug, Clone, PartialEq, Eq, Default, Hash)]
pub struct Tls {
    /// The accepted certificates.
    pub trust: Trust,
    /// The file with the certificates of the authorities; `None` for the system's.
    pub ca: Option<Setting>,
    /// The file of the director's own certificate.
    pub certificate: Option<Setting>,
    /// The file of its private key.
    pub key: Option<Setting>,
    /// The password of that key.
    pub password: Option<Setting>,
}

/// The accepted certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum Trust {
    /// Any certificate.
    #[default]
    AnyCertificate,
    /// Certificates signed by an authority, valid now and for the server's name.
    Authorities,
}

/// A statement with one value, with its position and text for messages.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Setting {
    /// The position in the file.
    pub place: Place,
    /// The whole statement.
    pub text: String,
    /// The value.
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
    /// The smallest offset in the body at which a match may begin, in bytes.
    pub least_offset: usize,
    /// The largest such offset; `None` if unlimited.
    pub most_offset: Option<usize>,
}

/// A DNS query.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Dns {
    /// The record type, in upper case.
    pub kind: String,
    /// The name; empty: the root.
    pub name: String,
}

/// A UDP datagram and the reply to it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Udp {
    /// The payload; `None` for random bytes.
    pub payload: Option<Vec<u8>>,
    /// The required reply; `None` if none is required.
    pub reply: Option<Reply>,
}

/// The properties that a reply must have.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reply {
    /// The first bytes, each with the mask of the compared bits; empty if any bytes match.
    pub pattern: Vec<(u8, u8)>,
    /// The length, in bytes.
    pub length: RangeInclusive<u16>,
}

/// The meaning of a script's exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ExitCodeMeaning {
    /// With 0, the check passes; with any other code, it fails.
    Plain,
    /// With 0, the check passes; with 1, it fails; with a larger code, it passes and the weight is the code minus 2
    /// (`misc_dynamic`).
    Dynamic,
}

/// When a check runs, and how many results change its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// The time from one run to the next.
    pub interval: Duration,
    /// The time to the next run after a failure that has not taken the check down yet.
    pub retry_interval: Duration,
    /// The timeout of a whole run.
    pub timeout: Duration,
    /// Failures in a row that take the check down.
    pub fall: u32,
    /// Successes in a row that bring it up again.
    pub rise: u32,
    /// The longest delay before the first run.
    pub warmup: Duration,
    /// Whether it counts as down before its first run (`alpha`).
    pub begins_down: bool,
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(target) => write!(f, "TCP {}", target.endpoint),
            Self::ThroughVip(through) => {
                let all: Vec<_> = through.endpoints.iter().map(ToString::to_string).collect();
                write!(f, "TCP through {}", all.join(" "))
            }
            Self::Agent(target, _) => write!(f, "agent {}", target.endpoint),
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

/// A command, with the user and group that it runs as. The position is not compared, so a check continues when its line
/// moves.
#[derive(Debug, Clone)]
pub struct Script {
    /// The position in the file.
    pub place: Place,
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// The command as it is written; a shell runs it if it is not a program.
    pub text: String,
    /// The user, if one is named.
    pub user: Option<String>,
    /// The group, if one is named.
    pub group: Option<String>,
}

impl Script {
    /// The command, its user and its group.
    fn identity(&self) -> (&[String], &str, Option<&str>, Option<&str>) {
        (&self.argv, &self.text, self.user.as_deref(), self.group.as_deref())
    }
}

impl PartialEq for Script {
    fn eq(&self, other: &Self) -> bool {
        self.identity() == other.identity()
    }
}

impl Eq for Script {}

impl Hash for Script {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.identity().hash(state);
    }
}

impl fmt::Display for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.argv.join(" "))?;
        let who: Vec<_> = self.user.iter().chain(&self.group).map(String::as_str).collect();
        if who.is_empty() { Ok(()) } else { write!(f, " (as {})", who.join(":")) }
    }
}

/// A file that begins with a number.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TrackFile {
    /// The name in the `track_file` statement.
    pub name: String,
    /// The path.
    pub path: PathBuf,
    /// The effect of its number.
    pub weight: FileWeight,
    /// The number that is written to it at first, if any.
    pub init: Option<Init>,
}

/// The effect of a file's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileWeight {
    /// The number times this factor is added to the server's weight. With factor 0 the check passes if the number is 0.
    pub factor: i32,
    /// Reversed: the product is subtracted, or with factor 0 the check fails if the number is 0.
    pub is_reversed: bool,
}

/// The initial number of a file, written when it is first watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Init {
    /// The number.
    pub value: i32,
    /// Whether it replaces an existing file.
    pub overwrites: bool,
}
