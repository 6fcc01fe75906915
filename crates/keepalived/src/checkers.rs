//! The checkers of a real server.
//!
//! Pure. Source: keepalived-behaviour, section 4. Not here: their timing (`timing.rs`), and the statements of HTTP
//! (`http.rs`).

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use xvs_model::health_checks::check::{
    Check, Dns, ExitCodeMeaning, FileWeight, Http, Probe, Reply, Script, Target, ThroughVip, TrackFile,
    Trust, Udp,
};
use xvs_model::health_checks::fault::Place;
use xvs_proto::Endpoint;
use xvs_sched::ForwardingMethod;

use crate::blocks::Block;
use crate::definitions::Definitions;
use crate::http::TlsStatements;
use crate::timing::{INTERVAL, TimingOptions, set};
use crate::values::Faults;
use crate::{files, http};

/// The settings that checks inherit from their real server and virtual server.
pub(super) struct CheckerContext<'a> {
    /// The server.
    pub(super) endpoint: SocketAddr,
    /// The forwarding method.
    pub(super) method: ForwardingMethod,
    /// The endpoints of the virtual server's services; none for firewall marks.
    pub(super) virtual_endpoints: Vec<Endpoint>,
    /// The timing of the real server and the virtual server.
    pub(super) timing: TimingOptions,
    /// The interval of the virtual server: the default timeout of a script.
    pub(super) service_interval: Option<Duration>,
    /// The host that HTTP requests.
    pub(super) host: Option<String>,
    /// The host of the virtual server, for the server name of TLS.
    pub(super) service_host: Option<String>,
    /// The files for `FILE_CHECK`, and the `SSL` block.
    pub(super) definitions: &'a Definitions,
}

/// Whether this keyword starts a checker.
pub(super) fn is_checker(keyword: &str) -> bool {
    keyword == "BFD_CHECK" || Draft::of(keyword).is_some()
}

/// Reads a checker: no check if it is incomplete, several checks if it names several hosts.
pub(super) fn read(block: &Block, context: &CheckerContext<'_>, faults: &mut Faults) -> Vec<Check> {
    faults.block(block);
    let (hosts, others): (Vec<_>, Vec<_>) = block
        .statements()
        .iter()
        .cloned()
        .partition(|one| block.keyword() == "SMTP_CHECK" && one.keyword() == "host");
    let bodies = match hosts.is_empty() {
        true => vec![others],
        // Old syntax: the statements outside the `host` blocks apply to each host.
        false => hosts.iter().map(|host| [&others, host.statements()].concat()).collect(),
    };
    let mut checks = Vec::new();
    for body in bodies {
        let block = Block { body: Some(body), ..block.clone() };
        match Draft::of(block.keyword()) {
            Some(draft) => checks.extend(draft.check(&block, context, faults)),
            None => faults.refuse(&block, "xvs has no BFD"),
        }
    }
    checks
}

/// The statements of a checker.
struct Draft {
    kind: Kind,
    timing: TimingOptions,
    connection: Connection,
}

/// The statements that configure the connection of a checker.
#[derive(Default)]
struct Connection {
    connect_ip: Option<IpAddr>,
    connect_port: Option<u16>,
    source: Option<IpAddr>,
    source_port: Option<u16>,
    interface: Option<String>,
    mark: u32,
}

/// The kind of a checker, with its own statements.
enum Kind {
    /// A connection to the server. `through_vip` and `agent_check` are the positions of these statements if they are
    /// on; each selects another probe.
    Tcp {
        through_vip: Option<Place>,
        agent_check: Option<Place>,
        agent_send: Option<String>,
    },
    Ping,
    Http {
        http: Http,
        is_tls: bool,
        tls: TlsStatements,
    },
    Dns(Dns),
    Smtp(String),
    Udp {
        payload: Option<Vec<u8>>,
        pattern: Option<Vec<(u8, u8)>>,
        min_length: u16,
        max_length: u16,
    },
    Script {
        script: Option<Script>,
        meaning: ExitCodeMeaning,
        user: Option<Vec<String>>,
    },
    File {
        name: Option<String>,
        weight: Option<FileWeight>,
    },
}

impl Draft {
    fn of(keyword: &str) -> Option<Self> {
        let kind = match keyword {
            "TCP_CHECK" => Kind::Tcp { through_vip: None, agent_check: None, agent_send: None },
            "PING_CHECK" => Kind::Ping,
            "HTTP_GET" | "SSL_GET" => Kind::Http {
                http: Http::default(),
                is_tls: keyword == "SSL_GET",
                tls: TlsStatements::default(),
            },
            "DNS_CHECK" => Kind::Dns(Dns { kind: "SOA".to_owned(), name: String::new() }),
            "SMTP_CHECK" => Kind::Smtp("smtpchecker.keepalived.org".to_owned()),
            "UDP_CHECK" => Kind::Udp { payload: None, pattern: None, min_length: 0, max_length: 255 },
            "MISC_CHECK" => Kind::Script { script: None, meaning: ExitCodeMeaning::Plain, user: None },
            "FILE_CHECK" => Kind::File { name: None, weight: None },
            _ => return None,
        };
        Some(Self { kind, timing: TimingOptions::default(), connection: Connection::default() })
    }

    fn check(mut self, block: &Block, context: &CheckerContext<'_>, faults: &mut Faults) -> Option<Check> {
        let server = (!self.goes_through_vip(block, context.method)).then_some(context.endpoint.ip());
        for statement in block.statements() {
            if statement.keyword() == "url"
                && let Kind::Http { http, .. } = &mut self.kind
            {
                http.urls.extend(http::url(statement, faults));
                continue;
            }
            let known = self.apply_timing(statement, faults)
                || self.kind.connects() && self.connection.apply(statement, server, faults)
                || self.kind.apply(statement, faults);
            faults.line(statement, known);
        }
        if let Kind::Script { .. } = self.kind {
            self.timing.timeout = self.timing.timeout.or(context.service_interval).or(Some(INTERVAL));
        }
        let probe = self.kind.probe(self.connection, context, block, faults)?;
        let timing = self.timing.or(context.timing).timing(&probe);
        Some(Check { place: block.place.clone(), probe, timing })
    }

    /// Whether the check connects to the virtual address. Statements before `through_vip` depend on it too.
    fn goes_through_vip(&self, block: &Block, method: ForwardingMethod) -> bool {
        let last_switch = block
            .statements()
            .iter()
            .filter(|statement| statement.keyword() == "through_vip")
            // The faults of the statement are reported when it is applied.
            .filter_map(|statement| Faults::default().switch(statement))
            .next_back();
        matches!(self.kind, Kind::Tcp { .. }) && sends_to_vip(method) && last_switch == Some(true)
    }

    /// Applies a statement that sets timing or retries. Returns whether the keyword is known.
    fn apply_timing(&mut self, block: &Block, faults: &mut Faults) -> bool {
        match (&self.kind, block.keyword()) {
            (Kind::File { .. }, _) | (Kind::Script { .. }, "connect_timeout") => false,
            (Kind::Script { .. }, "misc_timeout") => {
                let seconds = faults.number(block, 0..=u32::MAX).filter(|seconds| *seconds > 0);
                self.timing.timeout = seconds.map(|seconds| Duration::from_secs(seconds.into()));
                true
            }
            // This statement only adds log messages.
            (_, "log_all_failures") => true,
            (Kind::Http { .. }, "nb_get_retry") => {
                faults.warn(&block.place, "`nb_get_retry` is the old name of `retry`");
                let words = std::iter::once("retry".to_owned()).chain(block.arguments().iter().cloned());
                self.timing.apply(&Block { words: words.collect(), ..block.clone() }, 0, faults)
            }
            _ => self.timing.apply(block, 0, faults),
        }
    }
}

impl Connection {
    /// Applies a statement. Returns whether the keyword is known.
    ///
    /// If `bindto` and the address to connect to are of different families, the second statement is left out. `server`
    /// is the address to connect to without `connect_ip`; `None` for a check through the virtual address.
    fn apply(&mut self, block: &Block, server: Option<IpAddr>, faults: &mut Faults) -> bool {
        match block.keyword() {
            // An invalid address also removes an earlier one.
            "connect_ip" => {
                let before = self.source.filter(|_| server.is_some());
                self.connect_ip = address_like(before, "the address of `bindto`", block, faults);
            }
            "connect_port" => set(&mut self.connect_port, faults.number(block, 1..=u16::MAX)),
            "bindto" => {
                let before = server.and(self.connect_ip).or(server);
                self.source = address_like(before, "the address it connects to", block, faults);
            }
            "bind_port" => set(&mut self.source_port, faults.number(block, 1..=u16::MAX)),
            "bind_if" => set(&mut self.interface, faults.value(block).map(str::to_owned)),
            "fwmark" => self.mark = faults.number(block, 0..=u32::MAX).unwrap_or(self.mark),
            _ => return false,
        }
        true
    }

    /// The probe through the virtual address; `None` if the check connects to the server instead, or has an error.
    fn through_vip(
        &self,
        place: &Place,
        context: &CheckerContext<'_>,
        faults: &mut Faults,
    ) -> Option<ThroughVip> {
        if !sends_to_vip(context.method) {
            let why = "only methods DR and TUN send packets to the virtual address to a server";
            faults.warn(place, format!("`through_vip`: {why}; it is left out"));
            return None;
        }
        for (word, is_set) in [
            ("bind_port", self.source_port.is_some()),
            ("bind_if", self.interface.is_some()),
            ("fwmark", self.mark != 0),
        ] {
            if is_set {
                faults.warn(place, format!("`{word}` has no effect with `through_vip`"));
            }
        }
        let mut endpoints = match self.connect_ip {
            Some(addr) => vec![Endpoint { addr, port: context.endpoint.port() }],
            None => context.virtual_endpoints.clone(),
        };
        if let Some(port) = self.connect_port {
            endpoints.iter_mut().for_each(|at| at.port = port);
        }
        endpoints.sort_unstable();
        endpoints.dedup();
        let crosses = context.method == ForwardingMethod::DirectRouting
            && has_other_family(&endpoints, context.endpoint.ip());
        let error = match endpoints.len() {
            0 => "a firewall mark has no virtual address; name one with `connect_ip`".to_owned(),
            number if number > ENDPOINTS_MAX => format!(
                "a check connects to at most {ENDPOINTS_MAX} virtual addresses, and the group has {number}; name one \
                 with `connect_ip`"
            ),
            _ if endpoints.iter().any(|at| at.port == 0) => {
                "the virtual server has no port; name one with `connect_port`".to_owned()
            }
            _ if crosses => "`connect_ip` is of another family than the server".to_owned(),
            _ if self.source.is_some_and(|addr| has_other_family(&endpoints, addr)) => {
                "`bindto` is of another family than the virtual address".to_owned()
            }
            _ => return Some(ThroughVip { endpoints, source: self.source }),
        };
        faults.error(place, format!("`through_vip`: {error}"));
        None
    }

    /// The target of the probes; `None` if it cannot be probed.
    fn target(self, context: &CheckerContext<'_>, block: &Block, faults: &mut Faults) -> Option<Target> {
        let addr = self.connect_ip.unwrap_or(context.endpoint.ip());
        let port = self.connect_port.unwrap_or(context.endpoint.port());
        if port == 0 && block.keyword() != "PING_CHECK" {
            faults.warn(
                &block.place,
                format!("`{}`: it probes port 0, which is never open; set `connect_port`", block.keyword()),
            );
        }
        if matches!(addr, IpAddr::V6(addr) if addr.is_unicast_link_local()) && self.interface.is_none() {
            faults.refuse(block, "a link-local address needs `bind_if`");
            return None;
        }
        Some(Target {
            endpoint: SocketAddr::new(addr, port),
            source: self.source,
            source_port: self.source_port,
            interface: self.interface,
            mark: self.mark,
        })
    }
}

impl Kind {
    /// Whether the checker connects to an address, and so has the statements of a [`Connection`].
    fn connects(&self) -> bool {
        !matches!(self, Self::Script { .. } | Self::File { .. })
    }

    /// Applies a statement that only this kind has. Returns whether the keyword is known.
    fn apply(&mut self, block: &Block, faults: &mut Faults) -> bool {
        match (self, block.keyword()) {
            // keepalived has no such keywords.
            (Self::Tcp { through_vip: place, .. }, "through_vip")
            | (Self::Tcp { agent_check: place, .. }, "agent_check") => {
                if let Some(is_on) = faults.switch(block) {
                    *place = is_on.then(|| block.place.clone());
                }
            }
            (Self::Tcp { agent_send, .. }, "agent_send") => {
                let text = block.shell_arguments().into_iter().next();
                set(agent_send, faults.argument(block).and(text));
            }
            (Self::Http { http, tls, .. }, _) => return http::apply(http, tls, block, faults),
            (Self::Dns(dns), "type") => match faults.value(block).map(str::to_ascii_uppercase) {
                Some(kind) if DNS_TYPES.contains(&kind.as_str()) => dns.kind = kind,
                Some(_) => faults.refuse(block, "not a known DNS record type"),
                None => {}
            },
            (Self::Dns(dns), "name") if !dns.name.is_empty() => faults.refuse(block, "already defined"),
            (Self::Dns(dns), "name") => {
                let name = faults.value(block).unwrap_or_default().trim_end_matches('.');
                let has_labels = name.split('.').all(|label| (1..=63).contains(&label.len()));
                match name.is_empty() || name.len() <= 253 && has_labels {
                    true => name.clone_into(&mut dns.name),
                    false => faults.refuse(block, "not a domain name"),
                }
            }
            (Self::Smtp(name), "helo_name") => {
                faults.argument(block).into_iter().for_each(|new| new.clone_into(name));
            }
            (Self::Udp { payload, .. }, "payload") => set(payload, bytes(block, faults)),
            (Self::Udp { pattern, .. }, "require_reply") => {
                // With an invalid pattern any reply suffices; without a pattern an earlier one remains.
                match block.arguments() {
                    [] => _ = pattern.get_or_insert_default(),
                    _ => *pattern = Some(masked(block, faults).unwrap_or_default()),
                }
            }
            (Self::Udp { min_length: length, .. }, "min_reply_length")
            | (Self::Udp { max_length: length, .. }, "max_reply_length") => {
                *length = faults.number(block, 0..=u16::MAX).unwrap_or(*length);
            }
            (Self::Script { script, .. }, "misc_path") => set(script, faults.command(block)),
            (Self::Script { meaning, .. }, "misc_dynamic") => *meaning = ExitCodeMeaning::Dynamic,
            (Self::Script { user, .. }, "user") => {
                set(user, faults.argument(block).map(|_| block.arguments().to_vec()));
            }
            (Self::File { name, .. }, "track_file") => set(name, faults.value(block).map(str::to_owned)),
            (Self::File { weight, .. }, "weight") => set(weight, files::file_weight(block, faults)),
            _ => return false,
        }
        true
    }

    /// The probe; `None` if the checker is incomplete.
    fn probe(
        self,
        connection: Connection,
        context: &CheckerContext<'_>,
        block: &Block,
        faults: &mut Faults,
    ) -> Option<Probe> {
        Some(match self {
            Self::Tcp { through_vip, agent_check: Some(place), agent_send } => {
                let error = match (through_vip, connection.connect_port) {
                    (Some(_), _) => "an agent is not asked through the virtual address; remove `through_vip`",
                    (None, None) => "name the port of the agent with `connect_port`",
                    (None, Some(_)) => {
                        let target = connection.target(context, block, faults)?;
                        return Some(Probe::Agent(target, agent_send.unwrap_or_default()));
                    }
                };
                faults.error(&place, format!("`agent_check`: {error}"));
                return None;
            }
            Self::Tcp { through_vip, agent_check: None, agent_send } => {
                if let Some(place) = through_vip
                    && let Some(through) = connection.through_vip(&place, context, faults)
                {
                    return Some(Probe::ThroughVip(through));
                }
                let target = connection.target(context, block, faults)?;
                if agent_send.is_some() {
                    faults.warn(&block.place, "`agent_send` without `agent_check` has no effect");
                }
                Probe::Tcp(target)
            }
            Self::Ping => Probe::Ping(connection.target(context, block, faults)?),
            Self::Http { mut http, is_tls, tls } => {
                let target = connection.target(context, block, faults)?;
                if http.urls.is_empty() {
                    return incomplete(block, "url", faults);
                }
                if is_tls {
                    for at in 0..http.urls.len() {
                        http.urls[at].server_name =
                            tls.name(&http.urls[at], &http, context.service_host.as_ref());
                    }
                    http.tls = Some(Box::new(context.definitions.ssl.tls(tls.trust)));
                } else if tls.trust == Trust::Authorities {
                    faults.warn(&block.place, "`tls_verify` without TLS has no effect");
                }
                http.host = http.host.or_else(|| context.host.clone());
                Probe::Http(target, http)
            }
            Self::Dns(dns) => Probe::Dns(connection.target(context, block, faults)?, dns),
            Self::Smtp(name) => Probe::Smtp(connection.target(context, block, faults)?, name),
            Self::Udp { payload, pattern, min_length, max_length } => {
                let target = connection.target(context, block, faults)?;
                if min_length > max_length {
                    faults.warn(
                        &block.place,
                        format!(
                            "`min_reply_length` {min_length} is above `max_reply_length` {max_length}, so no reply \
                             passes"
                        ),
                    );
                }
                let reply = pattern.map(|pattern| Reply { pattern, length: min_length..=max_length });
                Probe::Udp(target, Udp { payload, reply })
            }
            Self::Script { script, meaning, user, .. } => {
                let Some(mut script) = script else { return incomplete(block, "misc_path", faults) };
                let mut user = user.unwrap_or_default().into_iter();
                (script.user, script.group) = (user.next(), user.next());
                Probe::Script(script, meaning)
            }
            Self::File { name, weight } => {
                let Some(name) = name else { return incomplete(block, "track_file", faults) };
                let Some(file) = context.definitions.files.find(&name) else {
                    faults.warn(&block.place, format!("no `track_file {name}`; the check is left out"));
                    return None;
                };
                Probe::File(TrackFile { weight: weight.unwrap_or(file.weight), ..file.clone() })
            }
        })
    }
}

/// Whether this method sends packets to the virtual address to a server.
fn sends_to_vip(method: ForwardingMethod) -> bool {
    matches!(method, ForwardingMethod::DirectRouting | ForwardingMethod::Tunnel)
}

/// Reads an address. It is left out if its family is not that of the address `before`, which `what` names.
fn address_like(before: Option<IpAddr>, what: &str, block: &Block, faults: &mut Faults) -> Option<IpAddr> {
    let addr = faults.address(block)?;
    let fits = before.is_none_or(|before| before.is_ipv4() == addr.is_ipv4());
    if !fits {
        faults.refuse(block, &format!("of another family than {what}"));
    }
    fits.then_some(addr)
}

/// Whether one of these endpoints is of another family than the address.
fn has_other_family(endpoints: &[Endpoint], addr: IpAddr) -> bool {
    endpoints.iter().any(|at| at.addr.is_ipv4() != addr.is_ipv4())
}

fn incomplete(block: &Block, what: &str, faults: &mut Faults) -> Option<Probe> {
    faults.warn(&block.place, format!("`{}` has no `{what}`; the check is left out", block.keyword()));
    None
}

/// Maximum number of virtual endpoints to which one check connects.
const ENDPOINTS_MAX: usize = 64;

const DNS_TYPES: [&str; 9] = ["A", "NS", "CNAME", "SOA", "MX", "TXT", "AAAA", "RRSIG", "DNSKEY"];

/// Reads hexadecimal bytes: pairs of digits; a single digit is a byte, too.
fn bytes(block: &Block, faults: &mut Faults) -> Option<Vec<u8>> {
    faults.argument(block)?;
    let all = masked(block, faults)?;
    let whole = all.iter().all(|(_, mask)| *mask == 0xff);
    if !whole {
        faults.refuse(block, "a payload has no wildcards");
    }
    whole.then(|| all.into_iter().map(|(byte, _)| byte).collect())
}

/// Reads hexadecimal bytes, each with a mask; `x` stands for any digit. An empty pattern matches any reply.
fn masked(block: &Block, faults: &mut Faults) -> Option<Vec<(u8, u8)>> {
    let digits: Option<Vec<Vec<_>>> =
        block.arguments().iter().map(|word| word.chars().map(digit).collect()).collect();
    if digits.is_none() {
        faults.refuse(block, "not hexadecimal digits");
    }
    Some(digits?.iter().flat_map(|word| word.chunks(2).map(byte)).collect())
}

/// A hexadecimal digit or `x`, with its mask.
fn digit(char: char) -> Option<(u8, u8)> {
    match char {
        'x' | 'X' => Some((0, 0)),
        _ => char.to_digit(16).map(|digit| (digit as u8, 0xf)),
    }
}

/// The byte of one or two digits, with its mask. A single digit is the low half; the high half is 0.
fn byte(digits: &[(u8, u8)]) -> (u8, u8) {
    match *digits {
        [(high, high_mask), (low, low_mask)] => (high << 4 | low, high_mask << 4 | low_mask),
        _ => (digits[0].0, 0xf0 | digits[0].1),
    }
}
