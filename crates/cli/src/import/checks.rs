//! The checks of real servers in ldirectord.cf, as checkers for keepalived.conf.
//!
//! Pure. `failurecount` failures in a row, `checkinterval` apart, take a server down; one success brings it up. A check
//! that xvs does not have is replaced by the closest one, and the line is named: TCP_CHECK, or PING_CHECK for UDP and
//! without a port. Source: the manual ldirectord(8) 4.12.

use std::net::IpAddr;

use xvs_health::prepare::url_fault;
use xvs_model::health_checks::check::{Pattern, Url};
use xvs_proto::Protocol;
use xvs_sched::ServiceKey;

use crate::import::printer::{Page, host, quoted_command, quoted_path, quoted_pattern};
use crate::import::real_server::RealServer;
use crate::import::values::{HostAndPort, unquoted};
use crate::import::virtual_server::VirtualServer;

/// The type of the checks of a virtual server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum CheckType {
    /// None: real servers are always up.
    On,
    /// Real servers are always down.
    Off,
    Connect,
    Ping,
    External,
    /// A negotiate check after this number of connect checks.
    Negotiate(Service, u32),
}

/// The service that a negotiate check talks to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Service {
    Http,
    Https,
    HttpProxy,
    Smtp,
    Dns,
    /// One for which xvs has no check.
    Other,
}

impl CheckType {
    pub(super) fn of(server: &VirtualServer<'_>, page: &mut Page) -> Self {
        let setting = server.own("checktype");
        let connects = match setting.map_or("negotiate", |setting| &setting.value) {
            "on" => return Self::On,
            "off" => return Self::Off,
            "connect" => return Self::Connect,
            "ping" => return Self::Ping,
            "external" | "external-perl" => return Self::External,
            "negotiate" => 0,
            _ => match server.number(setting, 0..=u32::MAX, page) {
                Some(connects) => connects,
                None => return Self::Connect,
            },
        };
        match (Service::of(server, page), connects) {
            (None, 0) => Self::On,
            (None, _) => Self::Connect,
            (Some(service), _) => Self::Negotiate(service, connects),
        }
    }
}

impl Service {
    /// The service; `None` if it is not monitored.
    fn of(server: &VirtualServer<'_>, page: &mut Page) -> Option<Self> {
        let setting = server.own("service");
        Some(match setting.map_or(default_service(server.virtual_port()), |setting| &setting.value) {
            "none" => return None,
            "http" => Self::Http,
            "https" => Self::Https,
            "http_proxy" => Self::HttpProxy,
            "smtp" | "submission" => Self::Smtp,
            "dns" => Self::Dns,
            name => {
                let line = setting.map_or(server.section.head.line, |setting| setting.line);
                let closest = if server.protocol == Protocol::UDP { "PING_CHECK" } else { "TCP_CHECK" };
                page.leave_out(
                    line,
                    format!(
                        "xvs cannot check the service `{name}`, {closest} stands in its place; \
                    to check more, write a script for MISC_CHECK"
                    ),
                );
                Self::Other
            }
        })
    }

    /// The port of the service if the file names none.
    fn well_known_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
            Self::HttpProxy => 3128,
            Self::Smtp => 25,
            Self::Dns => 53,
            Self::Other => 0,
        }
    }
}

/// The service that ldirectord checks at a port.
fn default_service(port: u16) -> &'static str {
    match port {
        21 => "ftp",
        25 => "smtp",
        53 => "dns",
        80 => "http",
        110 => "pop",
        119 => "nntp",
        143 => "imap",
        389 => "ldap",
        443 => "https",
        587 => "submission",
        636 => "ldaps",
        993 => "imaps",
        995 => "pops",
        1521 => "oracle",
        1812 => "radius",
        3128 => "http_proxy",
        3306 => "mysql",
        5432 => "pgsql",
        5060 => "sip",
        _ => "none",
    }
}

/// Prints the checks of a real server.
pub(super) fn print_checks(
    check_type: &CheckType,
    server: &VirtualServer<'_>,
    real_server: &RealServer,
    page: &mut Page,
) {
    let mut checker = Checker { server, real_server, interval: server.interval(page), rounds: 1, page };
    match check_type {
        CheckType::On => {}
        CheckType::Off => {
            checker.page.open("MISC_CHECK");
            checker.page.line("misc_path \"/bin/false\"");
            checker.page.close();
        }
        CheckType::Connect => checker.connect(),
        CheckType::Ping => checker.ping(),
        CheckType::External => checker.external(),
        CheckType::Negotiate(service, connects) => {
            if *connects > 0 {
                checker.connect();
            }
            checker.rounds = connects.saturating_add(1);
            checker.negotiate(*service);
        }
    }
}

/// The printer of one checker.
struct Checker<'a, 'p> {
    server: &'a VirtualServer<'a>,
    real_server: &'a RealServer,
    /// Seconds between two rounds of checks.
    interval: u32,
    /// The check runs once in this number of rounds.
    rounds: u32,
    page: &'p mut Page,
}

impl Checker<'_, '_> {
    /// A TCP connection. UDP has no connections, so ldirectord sends a ping.
    fn connect(&mut self) {
        let port = self.port(Service::Other);
        if self.server.protocol == Protocol::UDP {
            return self.ping();
        }
        if port == 0 {
            self.page.leave_out(
                self.real_server.line,
                "its check has no port, PING_CHECK stands in its place; add `checkport`",
            );
            return self.ping();
        }
        self.open("TCP_CHECK", Some(port));
        self.close(Timeout::Check, 1);
    }

    /// The check that replaces a negotiate check. With `checktype = N` it is printed already.
    fn connect_instead(&mut self) {
        if self.rounds == 1 {
            self.connect();
        }
    }

    fn ping(&mut self) {
        self.open("PING_CHECK", None);
        let attempts = self.server.number(self.server.setting("checkcount"), 1..=u32::MAX, self.page);
        self.close(Timeout::Check, attempts.unwrap_or(1));
    }

    fn external(&mut self) {
        let setting = self.server.own("checkcommand");
        let command = setting.map_or_else(|| "/bin/true".to_owned(), |setting| unquoted(&setting.value));
        let (virtual_addr, virtual_port) = match self.server.key {
            ServiceKey::Address { endpoint, .. } => (endpoint.addr.to_string(), endpoint.port),
            ServiceKey::Mark { mark, .. } => (mark.to_string(), 0),
        };
        let command = quoted_command(&format!(
            "{command} {virtual_addr} {virtual_port} {} {}",
            self.real_server.endpoint.addr,
            self.port(Service::Other)
        ));
        let line = setting.map_or(self.server.section.head.line, |setting| setting.line);
        match self.page.accept(line, command) {
            Some(command) => {
                self.open("MISC_CHECK", None);
                self.page.line(format!("misc_path {command}"));
                self.close(Timeout::Script, 1);
            }
            None => self.connect(),
        }
    }

    fn negotiate(&mut self, service: Service) {
        match service {
            Service::Http | Service::Https | Service::HttpProxy => self.http(service),
            Service::Smtp => {
                let port = self.port(service);
                self.open("SMTP_CHECK", Some(port));
                self.close(Timeout::Negotiate, 1);
            }
            Service::Dns => self.dns(),
            Service::Other => self.connect_instead(),
        }
    }

    fn http(&mut self, service: Service) {
        let text = self.text(self.real_server.request.as_ref(), "request");
        let receive = self.text(self.real_server.receive.as_ref(), "receive");
        let line = text.as_ref().or(receive.as_ref()).map_or(self.real_server.line, |text| text.line);
        let request = match self
            .request(service, text.as_ref().map_or("", |text| &text.text))
            .and_then(|request| request.with_url(receive.as_ref()))
        {
            Ok(request) => request,
            Err(why) => {
                self.page.leave_out(line, format!("{why}, until then TCP_CHECK stands in its place"));
                return self.connect_instead();
            }
        };
        if let Some(setting) = self.server.own("httpmethod").filter(|setting| setting.value != "GET") {
            self.page.leave_out(setting.line, "xvs requests with GET only; remove it");
        }
        let port = request.port.unwrap_or_else(|| self.port(service));
        self.open(if service == Service::Https { "SSL_GET" } else { "HTTP_GET" }, Some(port));
        if let Some(addr) = request.addr {
            self.page.line(format!("connect_ip {addr}"));
        }
        let name = match self.server.own("virtualhost") {
            Some(setting) => Some((setting.line, unquoted(&setting.value))),
            None => request.host.map(|host| (line, host)),
        };
        if let Some((line, name)) = name
            && let Some(name) = self.page.accept(line, host(&name))
        {
            self.page.line(format!("virtualhost {name}"));
            if service == Service::Https && is_domain(name) {
                self.page.line("enable_sni");
            }
        }
        self.page.open("url");
        for line in request.url {
            self.page.line(line);
        }
        self.page.close();
        self.close(Timeout::Negotiate, 1);
    }

    /// Reads the text of a request by HTTP.
    fn request(&self, service: Service, text: &str) -> Result<Request, String> {
        let (scheme, other) =
            if service == Service::Https { ("https://", "http://") } else { ("http://", "https://") };
        let Some(rest) = text.strip_prefix(scheme) else {
            if text.starts_with(other) || service == Service::HttpProxy {
                return Err(format!("this service needs a request that begins with {scheme}; correct it"));
            }
            let slash = if text.starts_with('/') { "" } else { "/" };
            return Ok(Request { path: format!("{slash}{text}"), ..Request::default() });
        };
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let host = Some(authority.to_owned());
        if service == Service::HttpProxy {
            return Ok(Request { path: text.to_owned(), host, ..Request::default() });
        }
        let HostAndPort { host: name, port } = HostAndPort::of(authority);
        Ok(Request {
            port: Some(port.map_or(Ok(service.well_known_port()), |port| self.server.port(port))?),
            addr: Some(self.server.address(name)?),
            path: if path.is_empty() { "/" } else { path }.to_owned(),
            host,
            ..Request::default()
        })
    }

    fn dns(&mut self) {
        let (line, name) = match self.text(self.real_server.request.as_ref(), "request") {
            Some(Text { line, text }) => (line, text),
            None => (self.server.section.head.line, String::new()),
        };
        if !is_domain(&name) || name.parse::<IpAddr>().is_ok() {
            self.page.leave_out(
                line,
                "DNS_CHECK needs a domain name, PING_CHECK stands in its place; name one in `request`",
            );
            return self.ping();
        }
        if let Some(receive) = self.text(self.real_server.receive.as_ref(), "receive") {
            self.page.leave_out(
                receive.line,
                "DNS_CHECK accepts any answer without an error; to compare it, write a script for MISC_CHECK",
            );
        }
        let port = self.port(Service::Dns);
        self.open("DNS_CHECK", Some(port));
        self.page.line("type A");
        self.page.line(format!("name {name}"));
        self.close(Timeout::Negotiate, 1);
    }

    /// A text of the real server, otherwise of the virtual server.
    fn text(&self, own: Option<&String>, key: &str) -> Option<Text> {
        if let Some(text) = own {
            return Some(Text { line: self.real_server.line, text: text.clone() });
        }
        self.server.own(key).map(|setting| Text { line: setting.line, text: unquoted(&setting.value) })
    }

    /// The port of a check; 0 if there is none.
    fn port(&mut self, service: Service) -> u16 {
        match self.server.number(self.server.own("checkport"), 1..=u16::MAX.into(), self.page) {
            Some(port) => port as u16,
            None if self.real_server.check_port != 0 => self.real_server.check_port,
            None => service.well_known_port(),
        }
    }

    fn open(&mut self, keyword: &str, port: Option<u16>) {
        self.page.open(keyword);
        if let Some(port) = port.filter(|port| *port != self.real_server.endpoint.port) {
            self.page.line(format!("connect_port {port}"));
        }
    }

    /// Prints the timing and ends the checker. `attempts` is the number of attempts that make up one failure.
    fn close(&mut self, timeout: Timeout, attempts: u32) {
        let keyword = if timeout == Timeout::Script { "misc_timeout" } else { "connect_timeout" };
        let seconds = self.timeout(timeout);
        self.page.line(format!("{keyword} {seconds}"));
        let failures =
            self.server.number(self.server.setting("failurecount"), 1..=u32::MAX, self.page).unwrap_or(1);
        self.page.line(format!("retry {}", failures.saturating_mul(attempts) - 1));
        // The attempts of one ping check follow each other.
        let delay = if attempts > 1 && failures == 1 { 0 } else { self.interval };
        self.page.line(format!("delay_before_retry {delay}"));
        if self.rounds > 1 {
            self.page.line(format!("delay_loop {}", self.interval.saturating_mul(self.rounds)));
        }
        self.page.close();
    }

    /// The timeout of a check. Each of the two settings is the default of the other.
    fn timeout(&mut self, timeout: Timeout) -> u32 {
        let (keys, default) = match timeout {
            Timeout::Negotiate => (["negotiatetimeout", "checktimeout"], 30),
            Timeout::Check | Timeout::Script => (["checktimeout", "negotiatetimeout"], 5),
        };
        let setting = self.server.setting(keys[0]).or_else(|| self.server.setting(keys[1]));
        self.server.number(setting, 1..=u32::MAX, self.page).unwrap_or(default)
    }
}

/// The setting that limits the time of a check.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Timeout {
    Check,
    Negotiate,
    /// Like `Check`, with keepalived's keyword for scripts.
    Script,
}

/// A text with the line that it is in.
struct Text {
    line: usize,
    text: String,
}

/// A request by HTTP. A whole URL names another address and port than those of the real server.
#[derive(Default)]
struct Request {
    path: String,
    addr: Option<IpAddr>,
    port: Option<u16>,
    host: Option<String>,
    /// The lines of its `url` block.
    url: Vec<String>,
}

impl Request {
    fn with_url(mut self, receive: Option<&Text>) -> Result<Self, String> {
        self.url.push(format!("path {}", quoted_path(&self.path)?));
        let mut url = Url { path: self.path.clone(), ..Url::default() };
        if let Some(receive) = receive {
            self.url.push(format!("regex {}", quoted_pattern(&receive.text)?));
            url.pattern = Some(Pattern { text: receive.text.clone(), ..Pattern::default() });
        }
        url_fault(&url).map_or(Ok(self), |why| Err(format!("{why}; correct it")))
    }
}

/// Whether this is a domain name, as DNS and TLS can carry it.
fn is_domain(name: &str) -> bool {
    name.len() <= 253 && name.trim_end_matches('.').split('.').all(is_label)
}

fn is_label(label: &str) -> bool {
    (1..=63).contains(&label.len())
        && !label.starts_with('-')
        && !label.ends_with('-')
        && label.chars().all(|char| char.is_ascii_alphanumeric() || "-_".contains(char))
}
