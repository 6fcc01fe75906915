//! The checkers of a real server: what is asked of it, how often, and when it counts as down.
//!
//! Pure. Source: keepalived's behaviour as it is written down (section 4). Not here: asking.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

use super::blocks::Block;
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
#[derive(Debug, Clone, PartialEq, Eq)]
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
    /// The number in the file of this `track_file`, and the weight that it is multiplied with if not the file's own.
    File(String, Option<i32>),
}

/// Whom a probe asks, and from where.
#[derive(Debug, Clone, PartialEq, Eq)]
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
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Http {
    /// By TLS, with this name in the handshake if there is one.
    pub tls: Option<Option<String>>,
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
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Url {
    /// The path with what follows it.
    pub path: String,
    /// The host that is asked for.
    pub host: Option<String>,
    /// Status codes that are well; none: 200 to 299.
    pub statuses: Vec<RangeInclusive<u16>>,
    /// The MD5 sum of the body.
    pub digest: Option<[u8; 16]>,
    /// A pattern in the body, and what it has to do.
    pub pattern: Option<Pattern>,
}

/// A regular expression over a body.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dns {
    /// The type, in upper case.
    pub kind: String,
    /// The name; empty: the root.
    pub name: String,
}

/// A datagram and its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Udp {
    /// What is sent; `None`: random bytes.
    pub payload: Option<Vec<u8>>,
    /// What has to come back; `None`: nothing.
    pub reply: Option<Reply>,
}

/// An answer, as far as it is looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// Its first bytes with the bits that count; none: anything.
    pub pattern: Vec<(u8, u8)>,
    /// How long it may be, in bytes.
    pub length: RangeInclusive<u16>,
}

/// Whether a script's exit code is a weight too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
            warmup: self.warmup.or(around.warmup),
            begins_down: self.begins_down.or(around.begins_down),
        }
    }

    /// From one check to the next, if it is said.
    pub fn interval(self) -> Option<Duration> {
        self.interval
    }

    /// With what each kind of check has if nothing is said.
    fn timing(self, probe: &Probe) -> Timing {
        let interval = self.interval.unwrap_or(INTERVAL);
        let (retry, retry_interval) = match probe {
            Probe::Http(..) => (1, Duration::from_secs(3)),
            Probe::Dns(..) => (3, interval),
            Probe::Script(..) | Probe::File(..) => (0, Duration::from_secs(1)),
            Probe::Tcp(_) | Probe::Smtp(..) | Probe::Udp(..) | Probe::Ping(_) => (1, Duration::from_secs(1)),
        };
        Timing {
            interval,
            retry_interval: self.retry_interval.unwrap_or(retry_interval),
            timeout: self.timeout.unwrap_or(TIMEOUT),
            fall: self.retry.unwrap_or(retry).saturating_add(1),
            warmup: self.warmup.unwrap_or(interval),
            begins_down: self.begins_down.unwrap_or(false),
        }
    }
}

const INTERVAL: Duration = Duration::from_secs(60);
const TIMEOUT: Duration = Duration::from_secs(5);

/// Sets what was understood.
pub(super) fn set<T>(place: &mut Option<T>, value: Option<T>) {
    if value.is_some() {
        *place = value;
    }
}

/// What checks take from the server and the service around them.
pub struct Around {
    /// The server.
    pub endpoint: SocketAddr,
    /// Its and its service's settings.
    pub timing: TimingOptions,
    /// The interval of the service: how long a script may take if nothing is said.
    pub service_interval: Option<Duration>,
    /// The host that HTTP asks for.
    pub host: Option<String>,
    /// The name in a TLS handshake: of the service only.
    pub service_host: Option<String>,
}

/// Reads a checker; `None` if it can ask nothing. The outer `None`: the block is not one.
pub fn read(block: &Block, around: &Around, faults: &mut Faults) -> Option<Option<Check>> {
    let reader = Reader::of(block.keyword())?;
    Some(reader.check(block, around, faults))
}

/// A checker that is being read.
struct Reader {
    kind: Kind,
    timing: TimingOptions,
    connect_ip: Option<IpAddr>,
    connect_port: Option<u16>,
    source: Option<IpAddr>,
    source_port: Option<u16>,
    interface: Option<String>,
    mark: u32,
}

/// What it asks, as far as it is known.
enum Kind {
    Tcp,
    Ping,
    Http { http: Http, sni: Sni },
    Dns(Dns),
    Smtp(String),
    Udp { payload: Option<Vec<u8>>, pattern: Option<Vec<(u8, u8)>>, least: u16, most: u16 },
    Script { script: Option<Script>, timeout: Option<Duration>, weighing: Weighing, user: Option<String> },
    File { name: Option<String>, weight: Option<i32> },
}

/// What is said of the name in a TLS handshake.
#[derive(Default)]
struct Sni {
    is_enabled: bool,
    name: Option<String>,
}

impl Reader {
    fn of(keyword: &str) -> Option<Self> {
        let http = |tls| Kind::Http { http: Http { tls, ..Http::default() }, sni: Sni::default() };
        let kind = match keyword {
            "TCP_CHECK" => Kind::Tcp,
            "PING_CHECK" => Kind::Ping,
            "HTTP_GET" => http(None),
            "SSL_GET" => http(Some(None)),
            "DNS_CHECK" => Kind::Dns(Dns { kind: "SOA".to_owned(), name: String::new() }),
            "SMTP_CHECK" => Kind::Smtp("smtpchecker.keepalived.org".to_owned()),
            "UDP_CHECK" => Kind::Udp { payload: None, pattern: None, least: 0, most: 255 },
            "MISC_CHECK" => {
                Kind::Script { script: None, timeout: None, weighing: Weighing::Plain, user: None }
            }
            "FILE_CHECK" => Kind::File { name: None, weight: None },
            _ => return None,
        };
        Some(Self {
            kind,
            timing: TimingOptions::default(),
            connect_ip: None,
            connect_port: None,
            source: None,
            source_port: None,
            interface: None,
            mark: 0,
        })
    }

    fn check(mut self, block: &Block, around: &Around, faults: &mut Faults) -> Option<Check> {
        for statement in block.statements() {
            let taken = self.timing.take(statement, 0, faults)
                || self.connection(statement, faults)
                || self.kind.take(statement, faults)
                // What only tells more in the log.
                || statement.keyword() == "log_all_failures";
            if !taken {
                faults.unknown(statement);
            }
        }
        let timing = self.timing.or(around.timing);
        let target = self.target(around, block, faults);
        let timeout = match self.kind {
            Kind::Script { timeout, .. } => timeout.or(around.service_interval).or(Some(INTERVAL)),
            _ => None,
        };
        let probe = self.kind.probe(target, around, block, faults)?;
        let mut timing = timing.timing(&probe);
        timing.timeout = timeout.unwrap_or(timing.timeout);
        Some(Check { place: block.place.clone(), probe, timing })
    }

    /// Takes a statement about the connection.
    fn connection(&mut self, block: &Block, faults: &mut Faults) -> bool {
        if matches!(self.kind, Kind::Script { .. } | Kind::File { .. }) {
            return false;
        }
        match block.keyword() {
            "connect_ip" => set(&mut self.connect_ip, faults.address(block)),
            "connect_port" => set(&mut self.connect_port, faults.port(block)),
            "bindto" => set(&mut self.source, faults.address(block)),
            "bind_port" => set(&mut self.source_port, faults.port(block)),
            "bind_if" => set(&mut self.interface, faults.argument(block).map(str::to_owned)),
            "fwmark" => self.mark = faults.number_u32(block, 0..=u32::MAX).unwrap_or(self.mark),
            _ => return false,
        }
        true
    }

    fn target(&mut self, around: &Around, block: &Block, faults: &mut Faults) -> Target {
        let family = |addr: &IpAddr| addr.is_ipv4() == around.endpoint.is_ipv4();
        for (word, addr) in [("connect_ip", &mut self.connect_ip), ("bindto", &mut self.source)] {
            if addr.take_if(|addr| !family(addr)).is_some() {
                faults.warn(
                    &block.place,
                    format!("`{word}` is of another family than the server; it is left out"),
                );
            }
        }
        let addr = self.connect_ip.unwrap_or(around.endpoint.ip());
        Target {
            endpoint: SocketAddr::new(addr, self.connect_port.unwrap_or(around.endpoint.port())),
            source: self.source,
            source_port: self.source_port,
            interface: self.interface.take(),
            mark: self.mark,
        }
    }
}

impl Kind {
    /// Takes a statement that only this kind has.
    fn take(&mut self, block: &Block, faults: &mut Faults) -> bool {
        match self {
            Self::Tcp | Self::Ping => false,
            Self::Http { http, sni } => take_http(http, sni, block, faults),
            Self::Dns(dns) => match block.keyword() {
                "type" => {
                    let kind = faults.argument(block).map(str::to_ascii_uppercase);
                    match kind.filter(|kind| DNS_TYPES.contains(&kind.as_str())) {
                        Some(kind) => dns.kind = kind,
                        None => faults.refuse(block, "not a type of DNS record that is known"),
                    }
                    true
                }
                "name" => {
                    let name = faults.argument(block).unwrap_or_default().trim_end_matches('.');
                    let labels = || name.split('.');
                    match name.is_empty() || labels().all(|label| (1..=63).contains(&label.len())) {
                        true => name.clone_into(&mut dns.name),
                        false => faults.refuse(block, "not a domain name"),
                    }
                    true
                }
                _ => false,
            },
            Self::Smtp(name) => {
                let is_name = block.keyword() == "helo_name";
                if is_name {
                    faults.argument(block).unwrap_or(name).to_owned().clone_into(name);
                }
                is_name
            }
            Self::Udp { payload, pattern, least, most } => {
                match block.keyword() {
                    "payload" => set(payload, bytes(block, faults)),
                    "require_reply" => *pattern = Some(masked(block, faults)),
                    "min_reply_length" => {
                        *least = faults.number(block, 0..=65_535).map_or(*least, |length| length as u16);
                    }
                    "max_reply_length" => {
                        *most = faults.number(block, 0..=65_535).map_or(*most, |length| length as u16);
                    }
                    _ => return false,
                }
                true
            }
            Self::Script { script, timeout, weighing, user } => {
                match block.keyword() {
                    "misc_path" => set(script, faults.script(block)),
                    "misc_timeout" => {
                        let seconds = faults.number(block, 0..=u64::from(u32::MAX));
                        *timeout = seconds.filter(|seconds| *seconds > 0).map(Duration::from_secs);
                    }
                    "misc_dynamic" => *weighing = Weighing::Dynamic,
                    "user" => set(user, faults.argument(block).map(|_| block.arguments().join(" "))),
                    _ => return false,
                }
                true
            }
            Self::File { name, weight } => {
                match block.keyword() {
                    "track_file" => set(name, faults.argument(block).map(str::to_owned)),
                    "weight" => {
                        let text = faults.argument(block).unwrap_or_default();
                        match text.parse() {
                            Ok(number) => *weight = Some(number),
                            Err(_) => faults.refuse(block, "not a number"),
                        }
                    }
                    _ => return false,
                }
                true
            }
        }
    }

    /// What is asked, if it is complete.
    fn probe(self, target: Target, around: &Around, block: &Block, faults: &mut Faults) -> Option<Probe> {
        let mut incomplete = |what: &str| {
            faults.warn(
                &block.place,
                format!("`{}` has no `{what}`; the check is left out", block.keyword()),
            );
            None
        };
        Some(match self {
            Self::Tcp => Probe::Tcp(target),
            Self::Ping => Probe::Ping(target),
            Self::Http { mut http, sni } => {
                if http.urls.is_empty() {
                    return incomplete("url");
                }
                if let Some(name) = &mut http.tls {
                    // Neither the server's own host nor the address is sent as a name.
                    let host = http.urls[0].host.clone().or(http.host.clone()).or(around.service_host.clone());
                    *name = sni.name.or(host).filter(|_| sni.is_enabled);
                }
                http.host = http.host.or_else(|| around.host.clone());
                Probe::Http(target, http)
            }
            Self::Dns(dns) => Probe::Dns(target, dns),
            Self::Smtp(name) => Probe::Smtp(target, name),
            Self::Udp { payload, pattern, least, most } => {
                let reply = pattern.map(|pattern| Reply { pattern, length: least..=most });
                Probe::Udp(target, Udp { payload, reply })
            }
            Self::Script { script, weighing, user, .. } => {
                let Some(mut script) = script else { return incomplete("misc_path") };
                if let Some(user) = user {
                    let (user, group) = user.split_once(' ').map_or((user.as_str(), None), |(u, g)| (u, Some(g)));
                    script.user = Some(user.to_owned());
                    script.group = group.map(str::to_owned);
                }
                Probe::Script(script, weighing)
            }
            Self::File { name, weight } => match name {
                Some(name) => Probe::File(name, weight),
                None => return incomplete("track_file"),
            },
        })
    }
}

const DNS_TYPES: [&str; 9] = ["A", "NS", "CNAME", "SOA", "MX", "TXT", "AAAA", "RRSIG", "DNSKEY"];

fn take_http(http: &mut Http, sni: &mut Sni, block: &Block, faults: &mut Faults) -> bool {
    match block.keyword() {
        "http_protocol" => match faults.argument(block) {
            Some("1.0") => (http.is_1_1, http.closes) = (false, false),
            Some("1.0C" | "1.0c") => (http.is_1_1, http.closes) = (false, true),
            Some("1.1") => (http.is_1_1, http.closes) = (true, true),
            Some(_) => faults.refuse(block, "a version is 1.0, 1.0C or 1.1"),
            None => {}
        },
        "virtualhost" => set(&mut http.host, faults.argument(block).map(str::to_owned)),
        "fast_recovery" => http.fast_recovery = faults.switch(block).unwrap_or(http.fast_recovery),
        "url" => http.urls.extend(url(block, faults)),
        "enable_sni" if http.tls.is_some() => {
            sni.is_enabled = faults.switch(block).unwrap_or(sni.is_enabled);
        }
        "sni_name" if http.tls.is_some() => {
            sni.is_enabled = true;
            sni.name = block.arguments().first().cloned();
        }
        // How a connection is closed does not change what is asked.
        "tls_compliant" if http.tls.is_some() => {}
        _ => return false,
    }
    true
}

fn url(block: &Block, faults: &mut Faults) -> Option<Url> {
    let mut url = Url::default();
    let mut pattern = None::<Pattern>;
    let mut options = Pattern::default();
    for statement in block.statements() {
        match statement.keyword() {
            "path" => faults.argument(statement).unwrap_or_default().clone_into(&mut url.path),
            "virtualhost" => set(&mut url.host, faults.argument(statement).map(str::to_owned)),
            "status_code" => url.statuses.extend(statuses(statement, faults)),
            "digest" => set(&mut url.digest, digest(statement, faults)),
            "regex" => {
                let text = statement.shell_arguments().into_iter().next();
                faults.argument(statement);
                pattern = text.map(|text| Pattern { text, ..Pattern::default() });
            }
            "regex_no_match" => options.is_unwanted = true,
            "regex_options" => options.options.extend(statement.arguments().iter().cloned()),
            "regex_min_offset" => {
                let offset = faults.number_u32(statement, 0..=u32::MAX);
                options.least_offset = offset.map_or(options.least_offset, |offset| offset as usize);
            }
            "regex_max_offset" => {
                let offset = faults.number_u32(statement, 0..=u32::MAX);
                set(&mut options.most_offset, offset.map(|offset| offset as usize));
            }
            // How much memory another library takes.
            "regex_stack" | "tls_compliant" => {}
            _ => faults.unknown(statement),
        }
    }
    if url.path.is_empty() {
        faults.warn(&block.place, "`url` has no `path`; it is left out");
        return None;
    }
    url.pattern = pattern.map(|pattern| Pattern { text: pattern.text, ..options });
    Some(url)
}

fn statuses(block: &Block, faults: &mut Faults) -> Vec<RangeInclusive<u16>> {
    let mut all = Vec::new();
    faults.argument(block);
    for text in block.arguments() {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let code = |text: &str| text.parse().ok().filter(|code| (100..=599).contains(code));
        match code(first).zip(code(last)).filter(|(first, last)| first <= last) {
            Some((first, last)) => all.push(first..=last),
            None => faults.refuse(block, "a status is a number from 100 to 599, or two with - between"),
        }
    }
    all
}

fn digest(block: &Block, faults: &mut Faults) -> Option<[u8; 16]> {
    let text = faults.argument(block)?;
    let byte = |at: usize| text.get(2 * at..2 * at + 2).and_then(|hex| u8::from_str_radix(hex, 16).ok());
    let bytes: Option<Vec<u8>> = (0..16).map(byte).collect();
    let digest = bytes.filter(|_| text.len() == 32).and_then(|bytes| bytes.try_into().ok());
    if digest.is_none() {
        faults.refuse(block, "a digest is 32 hexadecimal digits");
    }
    digest
}

/// Hexadecimal bytes: digits in pairs, one that stands alone is a byte.
fn bytes(block: &Block, faults: &mut Faults) -> Option<Vec<u8>> {
    let all = masked(block, faults);
    let whole = all.iter().all(|(_, mask)| *mask == 0xff);
    if !whole {
        faults.refuse(block, "what is sent has no wildcards");
    }
    whole.then(|| all.into_iter().map(|(byte, _)| byte).collect())
}

/// The same with the bits that count; `x` stands for any digit.
fn masked(block: &Block, faults: &mut Faults) -> Vec<(u8, u8)> {
    let mut all = Vec::new();
    for word in block.arguments() {
        let digits: Option<Vec<(u8, u8)>> = word
            .chars()
            .map(|char| match char {
                'x' | 'X' => Some((0, 0)),
                _ => char.to_digit(16).map(|digit| (digit as u8, 0xf)),
            })
            .collect();
        let Some(digits) = digits else {
            faults.refuse(block, "not hexadecimal digits");
            return Vec::new();
        };
        all.extend(digits.chunks(2).map(|pair| match *pair {
            [(high, high_mask), (low, low_mask)] => (high << 4 | low, high_mask << 4 | low_mask),
            [(low, mask)] => (low, 0xf0 | mask),
            _ => unreachable!("chunks of two"),
        }));
    }
    all
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
            Self::Script(script, _) => write!(f, "script {}", script.argv.join(" ")),
            Self::File(name, _) => write!(f, "file {name}"),
        }
    }
}
