//! The checkers of a real server, read.
//!
//! Pure. Source: keepalived's behaviour as it is written down (section 4). Not here: what they are then (`checks.rs`),
//! and what only HTTP has (`http.rs`).

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use xvs_model::check::{
    Check, Dns, ExitCodeMeaning, FileWeight, Http, Probe, Reply, Script, Target, TrackFile, Trust, Udp,
};

use crate::blocks::Block;
use crate::checks::{INTERVAL, TimingOptions, set};
use crate::files::Files;
use crate::http::TlsWords;
use crate::ssl::Ssl;
use crate::values::Faults;
use crate::{files, http};

/// What checks take from the server and the service around them.
pub(super) struct Around<'a> {
    /// The server.
    pub(super) endpoint: SocketAddr,
    /// Its and its service's settings.
    pub(super) timing: TimingOptions,
    /// The interval of the service: how long a script may take if nothing is said.
    pub(super) service_interval: Option<Duration>,
    /// The host that HTTP asks for.
    pub(super) host: Option<String>,
    /// The name in a TLS handshake: of the service only.
    pub(super) service_host: Option<String>,
    /// The files that may be asked.
    pub(super) files: &'a Files,
    /// The certificates of the file.
    pub(super) ssl: &'a Ssl,
}

/// Whether a block of this keyword is one.
pub(super) fn is_checker(keyword: &str) -> bool {
    keyword == "BFD_CHECK" || Reader::of(keyword).is_some()
}

/// Reads a checker; none if it can ask nothing, several if it names several hosts.
pub(super) fn read(block: &Block, around: &Around<'_>, faults: &mut Faults) -> Vec<Check> {
    faults.block(block);
    let of = |statements: Vec<Block>, faults: &mut Faults| {
        let block = Block { body: Some(statements), ..block.clone() };
        let reader = Reader::of(block.keyword());
        if reader.is_none() {
            faults.refuse(&block, "xvs has no BFD");
        }
        reader?.check(&block, around, faults)
    };
    let is_host = |one: &Block| block.keyword() == "SMTP_CHECK" && one.keyword() == "host";
    let (hosts, others): (Vec<_>, Vec<_>) = block.statements().iter().cloned().partition(is_host);
    if hosts.is_empty() {
        return of(others, faults).into_iter().collect();
    }
    // The old way: what is said around the hosts is for each of them.
    hosts.iter().filter_map(|host| of([&others, host.statements()].concat(), faults)).collect()
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
    Http {
        http: Http,
        is_tls: bool,
        tls: TlsWords,
    },
    Dns(Dns),
    Smtp(String),
    Udp {
        payload: Option<Vec<u8>>,
        pattern: Option<Vec<(u8, u8)>>,
        least: u16,
        most: u16,
    },
    Script {
        script: Option<Script>,
        timeout: Option<Duration>,
        meaning: ExitCodeMeaning,
        user: Option<Vec<String>>,
    },
    File {
        name: Option<String>,
        weight: Option<FileWeight>,
    },
}

impl Reader {
    fn of(keyword: &str) -> Option<Self> {
        let http = |is_tls| Kind::Http { http: Http::default(), is_tls, tls: TlsWords::default() };
        let kind = match keyword {
            "TCP_CHECK" => Kind::Tcp,
            "PING_CHECK" => Kind::Ping,
            "HTTP_GET" => http(false),
            "SSL_GET" => http(true),
            "DNS_CHECK" => Kind::Dns(Dns { kind: "SOA".to_owned(), name: String::new() }),
            "SMTP_CHECK" => Kind::Smtp("smtpchecker.keepalived.org".to_owned()),
            "UDP_CHECK" => Kind::Udp { payload: None, pattern: None, least: 0, most: 255 },
            "MISC_CHECK" => {
                Kind::Script { script: None, timeout: None, meaning: ExitCodeMeaning::Plain, user: None }
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

    fn check(mut self, block: &Block, around: &Around<'_>, faults: &mut Faults) -> Option<Check> {
        for statement in block.statements() {
            if let (Kind::Http { http, .. }, "url") = (&mut self.kind, statement.keyword()) {
                http.urls.extend(http::url(statement, faults));
                continue;
            }
            let known = self.take_timing(statement, faults)
                || self.connection(statement, faults)
                || self.kind.take(statement, faults);
            faults.line(statement, known);
        }
        let timing = self.timing.or(around.timing);
        let target = match self.kind {
            Kind::Script { .. } | Kind::File { .. } => None,
            _ => Some(self.target(around, block, faults)?),
        };
        let timeout = match self.kind {
            Kind::Script { timeout, .. } => timeout.or(around.service_interval).or(Some(INTERVAL)),
            _ => None,
        };
        let probe = self.kind.probe(target, around, block, faults)?;
        let mut timing = timing.timing(&probe);
        timing.timeout = timeout.unwrap_or(timing.timeout);
        Some(Check { place: block.place.clone(), probe, timing })
    }

    /// Takes a statement about times and failures.
    fn take_timing(&mut self, block: &Block, faults: &mut Faults) -> bool {
        match (&self.kind, block.keyword()) {
            (Kind::File { .. }, _) | (Kind::Script { .. }, "connect_timeout") => false,
            // It only tells more in the log.
            (_, "log_all_failures") => true,
            (Kind::Http { .. }, "nb_get_retry") => {
                faults.warn(&block.place, "`nb_get_retry` is `retry` by its old name");
                let words = std::iter::once("retry".to_owned()).chain(block.arguments().iter().cloned());
                self.timing.take(&Block { words: words.collect(), ..block.clone() }, 0, faults)
            }
            _ => self.timing.take(block, 0, faults),
        }
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

    /// Whom it asks; `None` if that cannot be.
    fn target(&mut self, around: &Around<'_>, block: &Block, faults: &mut Faults) -> Option<Target> {
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
        let port = self.connect_port.unwrap_or(around.endpoint.port());
        if port == 0 && !matches!(self.kind, Kind::Ping) {
            let why = "it asks port 0, where nobody answers; give it a connect_port";
            faults.warn(&block.place, format!("`{}`: {why}", block.keyword()));
        }
        let is_local = matches!(addr, IpAddr::V6(addr) if addr.is_unicast_link_local());
        if is_local && self.interface.is_none() {
            faults.refuse(block, "a link-local address needs `bind_if`");
            return None;
        }
        Some(Target {
            endpoint: SocketAddr::new(addr, port),
            source: self.source,
            source_port: self.source_port,
            interface: self.interface.take(),
            mark: self.mark,
        })
    }
}

impl Kind {
    /// Takes a statement that only this kind has.
    fn take(&mut self, block: &Block, faults: &mut Faults) -> bool {
        match self {
            Self::Tcp | Self::Ping => false,
            Self::Http { http, tls, .. } => http::take(http, tls, block, faults),
            Self::Dns(dns) => match block.keyword() {
                "type" => {
                    match faults.argument(block).map(str::to_ascii_uppercase) {
                        Some(kind) if DNS_TYPES.contains(&kind.as_str()) => dns.kind = kind,
                        Some(_) => faults.refuse(block, "not a type of DNS record that is known"),
                        None => {}
                    }
                    true
                }
                "name" => {
                    let name = faults.argument(block).unwrap_or_default().trim_end_matches('.');
                    let fits = |label: &str| (1..=63).contains(&label.len());
                    match name.is_empty() || name.len() <= 253 && name.split('.').all(fits) {
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
                    faults.argument(block).into_iter().for_each(|new| new.clone_into(name));
                }
                is_name
            }
            Self::Udp { payload, pattern, least, most } => {
                match block.keyword() {
                    "payload" => set(payload, bytes(block, faults)),
                    "require_reply" => set(pattern, masked(block, faults)),
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
            Self::Script { script, timeout, meaning, user } => {
                match block.keyword() {
                    "misc_path" => set(script, faults.command(block)),
                    "misc_timeout" => {
                        let seconds = faults.number(block, 0..=u64::from(u32::MAX));
                        *timeout = seconds.filter(|seconds| *seconds > 0).map(Duration::from_secs);
                    }
                    "misc_dynamic" => *meaning = ExitCodeMeaning::Dynamic,
                    "user" => set(user, faults.argument(block).map(|_| block.arguments().to_vec())),
                    _ => return false,
                }
                true
            }
            Self::File { name, weight } => {
                match block.keyword() {
                    "track_file" => set(name, faults.argument(block).map(str::to_owned)),
                    "weight" => set(weight, files::file_weight(block, faults)),
                    _ => return false,
                }
                true
            }
        }
    }

    /// What is asked, if it is complete.
    fn probe(
        self,
        target: Option<Target>,
        around: &Around<'_>,
        block: &Block,
        faults: &mut Faults,
    ) -> Option<Probe> {
        let mut incomplete = |what: &str| {
            faults
                .warn(&block.place, format!("`{}` has no `{what}`; the check is left out", block.keyword()));
            None
        };
        Some(match self {
            Self::Tcp => Probe::Tcp(target?),
            Self::Ping => Probe::Ping(target?),
            Self::Http { mut http, is_tls, tls } => {
                if http.urls.is_empty() {
                    return incomplete("url");
                }
                if is_tls {
                    for at in 0..http.urls.len() {
                        let host = around.service_host.as_ref();
                        http.urls[at].server_name = tls.name(&http.urls[at], &http, host);
                    }
                    http.tls = Some(Box::new(around.ssl.tls(tls.trust)));
                } else if tls.trust == Trust::Authorities {
                    faults.warn(&block.place, "`tls_verify` without TLS has no effect");
                }
                http.host = http.host.or_else(|| around.host.clone());
                Probe::Http(target?, http)
            }
            Self::Dns(dns) => Probe::Dns(target?, dns),
            Self::Smtp(name) => Probe::Smtp(target?, name),
            Self::Udp { payload, pattern, least, most } => {
                let reply = pattern.map(|pattern| Reply { pattern, length: least..=most });
                Probe::Udp(target?, Udp { payload, reply })
            }
            Self::Script { script, meaning, user, .. } => {
                let Some(mut script) = script else { return incomplete("misc_path") };
                let mut user = user.unwrap_or_default().into_iter();
                (script.user, script.group) = (user.next(), user.next());
                Probe::Script(script, meaning)
            }
            Self::File { name, weight } => {
                let Some(name) = name else { return incomplete("track_file") };
                let Some(file) = around.files.find(&name) else {
                    faults.warn(&block.place, format!("no `track_file {name}`; the check is left out"));
                    return None;
                };
                Probe::File(TrackFile { weight: weight.unwrap_or(file.weight), ..file.clone() })
            }
        })
    }
}

const DNS_TYPES: [&str; 9] = ["A", "NS", "CNAME", "SOA", "MX", "TXT", "AAAA", "RRSIG", "DNSKEY"];

/// Hexadecimal bytes: digits in pairs, one that stands alone is a byte.
fn bytes(block: &Block, faults: &mut Faults) -> Option<Vec<u8>> {
    faults.argument(block)?;
    let all = masked(block, faults)?;
    let whole = all.iter().all(|(_, mask)| *mask == 0xff);
    if !whole {
        faults.refuse(block, "what is sent has no wildcards");
    }
    whole.then(|| all.into_iter().map(|(byte, _)| byte).collect())
}

/// The same with the bits that count; `x` stands for any digit. None at all is any answer.
fn masked(block: &Block, faults: &mut Faults) -> Option<Vec<(u8, u8)>> {
    let digit = |char: char| match char {
        'x' | 'X' => Some((0, 0)),
        _ => char.to_digit(16).map(|digit| (digit as u8, 0xf)),
    };
    let byte = |pair: &[(u8, u8)]| match *pair {
        [(high, high_mask), (low, low_mask)] => (high << 4 | low, high_mask << 4 | low_mask),
        // The low half of a byte whose high half is 0.
        _ => (pair[0].0, 0xf0 | pair[0].1),
    };
    let digits: Option<Vec<Vec<_>>> =
        block.arguments().iter().map(|word| word.chars().map(digit).collect()).collect();
    if digits.is_none() {
        faults.refuse(block, "not hexadecimal digits");
    }
    Some(digits?.iter().flat_map(|word| word.chunks(2).map(byte)).collect())
}
