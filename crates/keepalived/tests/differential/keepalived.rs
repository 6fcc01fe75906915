//! keepalived 2.2.7 as the reference: reads a file in namespaces of its own and dumps what it has read.
//!
//! Not here: the same of xvs (`ours.rs`).

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// keepalived, with the library that stands for the kernel's IPVS.
pub(crate) struct Keepalived {
    folder: PathBuf,
}

/// What keepalived made of a file.
#[derive(Debug, Default)]
pub(crate) struct Reading {
    /// Its messages about the file.
    pub(crate) messages: Vec<String>,
    /// What it has read, in the form of `ours.rs`; `None`: it has ended.
    pub(crate) found: Option<Vec<String>>,
}

impl Keepalived {
    /// Compiles the library into this folder.
    pub(crate) fn new(folder: &Path) -> Self {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/differential/ipvs.c");
        let mut compiler = Command::new("cc");
        let library = folder.join("ipvs.so");
        compiler.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source).arg("-ldl");
        assert!(compiler.status().expect("cc is installed, by scripts/setup").success());
        Self { folder: folder.to_owned() }
    }

    /// Lets keepalived read a file as the host lb1.
    pub(crate) fn read(&self, file: &Path) -> Reading {
        let mut command = Command::new("unshare");
        // As the first process of its namespace it ends with `unshare`, and its checks with it.
        command.args(["--net", "--pid", "--fork", "--kill-child=KILL"]);
        if !rustix::process::geteuid().is_root() {
            command.arg("--map-root-user");
        }
        // One that neither dumps nor ends would be waited for.
        command.args("timeout --signal=KILL 10 keepalived -n -l -G -d -C -R -i lb1 -f".split(' ')).arg(file);
        for (option, name) in [("-p", "parent"), ("-c", "checkers"), ("-r", "vrrp"), ("-b", "bfd")] {
            let unique = file.file_stem().unwrap_or_default().to_string_lossy();
            command.arg(option).arg(self.folder.join(format!("{name}-{unique}.pid")));
        }
        command.env("LD_PRELOAD", self.folder.join("ipvs.so")).env("LC_ALL", "C");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut process = command.spawn().expect("unshare is installed");
        let out = BufReader::new(process.stderr.take().expect("it is piped"));
        let mut lines = Vec::new();
        for line in out.split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).into_owned();
            // After the time, which has always 26 bytes.
            let line = line.get(26..).unwrap_or_default().to_owned();
            if line.starts_with("Activating ") || line.contains("has no configuration to run") {
                break;
            }
            lines.push(line);
        }
        let _ = process.kill();
        let _ = process.wait();
        reading(&lines)
    }
}

/// Messages that do not concern the content of a file.
const USUAL: [&str; 21] = [
    "Removing alive servers",
    "Enabling sorry server",
    "Script /",
    "Disabling misc script",
    "Starting ",
    "Running on ",
    "Command line: ",
    "    ",
    "Configuration file ",
    "NOTICE: ",
    "Initializing ipvs",
    "Gained quorum",
    "IPVS cmd ",
    "Startup complete",
    "Script user 'keepalived_script'",
    "SECURITY VIOLATION",
    "Lost quorum",
    "Stopped",
    "Adding sorry server",
    "IPVS: ",
    "Registering ",
];

fn reading(lines: &[String]) -> Reading {
    let begin = lines.iter().position(|line| line.starts_with("------< Global definitions"));
    let messages = lines[..begin.unwrap_or(lines.len())]
        .iter()
        .filter(|line| !line.is_empty() && !USUAL.iter().any(|usual| line.starts_with(usual)))
        // Also said of a virtual server all of whose servers have their own.
        .filter(|line| !line.contains("no forwarding method set"))
        .cloned()
        .collect();
    Reading { messages, found: begin.map(|begin| Dump::of(&lines[begin..])) }
}

/// The lines of a dump while it is read.
#[derive(Default)]
struct Dump {
    groups: Vec<(String, Vec<String>)>,
    found: Vec<String>,
}

/// A part of a dump: its head, and its other lines as names with values.
struct Part<'a> {
    kind: &'a str,
    lines: Vec<&'a str>,
}

impl Part<'_> {
    fn value(&self, name: &str) -> Option<&str> {
        let begin = format!("{name} = ");
        self.lines.iter().find_map(|line| line.strip_prefix(&begin))
    }

    fn text(&self, name: &str) -> &str {
        self.value(name).unwrap_or_default()
    }

    fn has(&self, line: &str) -> bool {
        self.lines.contains(&line)
    }
}

/// What checks have of their virtual server and real server.
#[derive(Clone, Default)]
struct Service {
    name: String,
    host: String,
    protocol: String,
    /// In whole seconds.
    interval: String,
}

impl Dump {
    fn of(lines: &[String]) -> Vec<String> {
        let mut dump = Self::default();
        let mut parts: Vec<Part<'_>> = Vec::new();
        for line in lines {
            let text = line.trim();
            let is_check = line.starts_with(" [") && text.contains(" -> ")
                || line.starts_with(" FWM ") && text.contains(" -> ");
            if text.starts_with("------<")
                || is_check
                    && parts
                        .last()
                        .is_some_and(|part| part.kind.contains("checkers") || part.kind.contains("->"))
            {
                parts.push(Part { kind: text, lines: Vec::new() });
            } else if let Some(part) = parts.last_mut()
                && text != "Startup complete"
            {
                part.lines.push(text);
            }
        }
        let mut inherited = Vec::new();
        let mut service = Service::default();
        for part in &parts {
            match part.kind.trim_matches(['-', '<', '>', ' ']) {
                "Virtual server group" => dump.group(part),
                "Virtual server" => service = dump.virtual_server(part),
                "Real server" => {
                    dump.real_server(part);
                    let (addr, port) = endpoint(part.text("RIP"));
                    let name = format!("{} -> [{addr}]:{}:{port}", service.name, service.protocol);
                    let host =
                        part.value("VirtualHost").map_or(&*service.host, |host| host.trim_matches('\''));
                    inherited.push((name, Service { host: host.to_owned(), ..service.clone() }));
                }
                kind if kind.contains(" -> ") => {
                    // Without it the memory of a real server that was left out.
                    if let Some((_, of)) = inherited.iter().find(|(name, _)| name == part.kind) {
                        dump.check(part, of);
                    }
                }
                _ => {}
            }
        }
        dump.found
    }

    fn group(&mut self, part: &Part<'_>) {
        let mut services = Vec::new();
        let mut name = "";
        for line in &part.lines {
            if let Some(rest) = line.strip_prefix("Virtual Server Group = ") {
                name = rest.split(',').next().unwrap_or_default();
            } else if let Some(rest) = line.strip_prefix("VIP Range = ") {
                let (range, port) = rest.split_once(", VPORT = ").unwrap_or((rest, "0"));
                let (first, last) = range.split_once('-').unwrap_or((range, range));
                services.push(format!("{first}-{last} {port}"));
            } else if let Some(rest) = line.strip_prefix("VIP = ") {
                let (addr, port) = rest.split_once(", VPORT = ").unwrap_or((rest, "0"));
                services.push(format!("{addr}-{addr} {port}"));
            } else if let Some(mark) = line.strip_prefix("FWMARK = ") {
                services.push(format!("mark {}", mark.split(',').next().unwrap_or(mark)));
            }
        }
        self.groups.push((name.to_owned(), services));
    }

    fn virtual_server(&mut self, part: &Part<'_>) -> Service {
        let protocol = part.text("protocol").to_lowercase();
        let (name, services) = if let Some(vip) = part.value("VS VIP") {
            let (addr, port) = vip.split_once(", VPORT = ").unwrap_or((vip, "0"));
            (format!("[{addr}]:{protocol}:{port}"), vec![format!("{addr}-{addr} {port}")])
        } else if let Some(group) = part.value("VS GROUP") {
            let bare = group.trim_start_matches('[').split(']').next().unwrap_or_default();
            let known = self.groups.iter().find(|(name, _)| name == bare);
            (group.to_owned(), known.map(|(_, services)| services.clone()).unwrap_or_default())
        } else {
            let mark = part.text("VS FWMARK");
            (format!("FWM {mark}"), vec![format!("mark {mark}")])
        };
        let scheduler = part.text("lvs_sched");
        let on = |name: &str| part.value(name) == Some("enabled");
        let flags = match scheduler {
            "sh" | "mh" => [on(&format!("{scheduler}-fallback")), on(&format!("{scheduler}-port")), false],
            _ => [on("flag-1"), on("flag-2"), on("flag-3")],
        };
        // A quorum of 0 gives it the largest hysteresis.
        let quorum = part.text("quorum").replace(", hysteresis = ", " ").replace("0 4294967295", "0 0");
        let ops = part.text("One packet scheduling").starts_with("enabled");
        self.found.push(format!(
            "service {name} {} {scheduler} {flags:?} ops {ops} persistent {} {} quorum {quorum} omega {} up {} down {}",
            services.join(" "),
            part.value("persistence timeout").unwrap_or("0"),
            part.value("persistence granularity").unwrap_or("-"),
            part.has("omega is ON"),
            part.value("Quorum up notify script").is_some(),
            part.value("Quorum down notify script").is_some(),
        ));
        if let Some(sorry) = part.value("sorry server") {
            let at = part.lines.iter().position(|line| line.starts_with("sorry server")).unwrap_or(0);
            let after = Part { kind: "", lines: part.lines[at..].to_vec() };
            let mut words = sorry.trim_start_matches('[').split("]:");
            let addr = words.next().unwrap_or_default();
            let port = sorry.rsplit(':').next().unwrap_or_default();
            self.found.push(format!(
                "sorry {addr} {port} {} inhibit {}",
                method(after.text("forwarding method")),
                after.has("Inhibit on failure is ON")
            ));
        }
        let interval = part.text("delay_loop").split('.').next().unwrap_or_default().to_owned();
        Service { name, host: part.text("VirtualHost").to_owned(), protocol, interval }
    }

    fn real_server(&mut self, part: &Part<'_>) {
        let (addr, port) = endpoint(part.text("RIP"));
        let rip = part.text("RIP");
        let weight =
            rip.split("WEIGHT = ").nth(1).and_then(|text| text.split(' ').next()).unwrap_or_default();
        let (lower, upper) = part.text("connection limit range").split_once(" -> ").unwrap_or_default();
        self.found.push(format!(
            "server {addr} {port} weight {weight} {} limits {lower} {upper} inhibit {} up {} down {}",
            method(part.text("forwarding method")),
            part.has("Inhibit on failure is ON"),
            part.value("RS up notify script").is_some(),
            part.value("RS down notify script").is_some(),
        ));
    }

    fn check(&mut self, part: &Part<'_>, of: &Service) {
        let kind = part.text("Keepalive method").split(',').next().unwrap_or_default();
        let micros = |name: &str| part.value(name).and_then(|text| text.split(' ').next()).map(str::to_owned);
        let server = part.kind.split(" -> ").nth(1).unwrap_or_default();
        let mut line = format!("check {server} {kind}");
        if kind == "FILE_CHECK" {
            line += &format!(" {}", part.text("Tracked file"));
            return self.found.push(line);
        }
        let interval = micros("Delay loop").unwrap_or_default();
        let retry = part.value("Retries").unwrap_or("0");
        let pause = micros("Delay before retry").filter(|_| retry != "0").unwrap_or_default();
        line += &format!(
            " alpha {} every {interval} warmup {} retry {retry} {pause}",
            part.text("Alpha"),
            micros("Warmup").unwrap_or_default(),
        );
        if kind == "MISC_CHECK" {
            let arguments = part.text("script").split_once(' ').map_or("", |(_, rest)| rest);
            // 0: the interval of the virtual server.
            let timeout = part.value("timeout").filter(|text| *text != "0").unwrap_or(&of.interval);
            line += &format!(" {arguments} timeout {timeout} dynamic {}", part.text("dynamic"));
            return self.found.push(line);
        }
        line += &format!(
            " to {} from {} by {} mark {} within {}",
            part.text("Dest"),
            part.value("Bind to").unwrap_or("-"),
            part.value("Bind i/f").unwrap_or("-"),
            part.value("Mark").unwrap_or("0"),
            part.text("Timeout"),
        );
        match kind {
            "HTTP_GET" | "SSL_GET" => line += &http(part, &of.host, kind == "SSL_GET"),
            "SMTP_CHECK" => line += &format!(" helo {}", part.text("helo")),
            "DNS_CHECK" => {
                line += &format!(" {} {}", part.text("Type"), part.text("Name").trim_end_matches('.'))
            }
            "UDP_CHECK" => {
                let reply = part.has("Require reply = yes");
                line += &format!(" payload {} reply {reply}", part.value("Payload len").unwrap_or("no"));
                if reply {
                    let (least, most) = (part.text("Min reply length"), part.text("Max reply length"));
                    line += &format!(" {least} {most} {}", part.value("Reply data len").unwrap_or("0"));
                }
            }
            _ => {}
        }
        self.found.push(line);
    }
}

fn http(part: &Part<'_>, host: &str, is_tls: bool) -> String {
    let protocol = part.text("Keepalive method").rsplit(' ').next().unwrap_or_default();
    let host = part.value("Virtualhost").unwrap_or(host);
    let host = if host.is_empty() { "-" } else { host };
    let mut line = format!(" http {protocol} host {host} fast {}", part.has("Fast recovery set"));
    if is_tls {
        line += &format!(" sni {}", part.has("Enable SNI set"));
    }
    for text in &part.lines {
        if let Some(path) = text.strip_prefix("Checked url = ") {
            line += &format!(" url {path}");
        } else if let Some(digest) = text.strip_prefix("digest = ") {
            line += &format!(" digest {digest}");
        } else if text.chars().all(|char| char.is_ascii_digit() || char == '-') {
            line += &format!(" {text}");
        } else if let Some(host) = text.strip_prefix("Virtual host = ") {
            line += &format!(" for {host}");
        } else if let Some(regex) = text.strip_prefix("Regex = ") {
            line += &format!(" regex {regex}");
        } else if *text == "Regex no match" {
            line += " unwanted";
        } else if let Some(offset) = text.strip_prefix("Regex min offset = ") {
            line += &format!(" at {offset}");
        }
    }
    line
}

/// The address and the port of `A, RPORT = P, …`.
fn endpoint(text: &str) -> (&str, &str) {
    let (addr, rest) = text.split_once(", RPORT = ").unwrap_or((text, ""));
    (addr, rest.split(',').next().unwrap_or_default())
}

/// A forwarding method, in lower case and without commas.
fn method(text: &str) -> String {
    text.to_lowercase()
        .replace(", no checksum", "")
        .replace(',', "")
        .replace("type = ", "")
        .replace("port = ", "")
}
