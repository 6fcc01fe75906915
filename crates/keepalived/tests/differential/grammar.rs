//! Random files of the grammar that keepalived and xvs both know.
//!
//! One number gives one file. Most values are right, some are wrong; words, comments, blanks, parameters, loops,
//! conditions and includes are written in each of their forms. Left out: what docs/limits-all.md lists.

use std::fmt::Display;
use std::ops::Range;

/// A generator of numbers: SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ value >> 31
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    /// Whether one of so many chances occurs.
    fn one_in(&mut self, chances: usize) -> bool {
        self.below(chances) == 0
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.below(from.len())]
    }

    fn number(&mut self, range: Range<usize>) -> String {
        (range.start + self.below(range.len())).to_string()
    }
}

/// A file, and a file that it includes.
pub(crate) struct Files {
    pub(crate) main: String,
    pub(crate) included: String,
}

/// The files of this number. `included` is the name of the second one.
pub(crate) fn files(number: u64, included: &str) -> Files {
    let mut random = Random(number);
    for _ in 0..4 {
        random.next();
    }
    let mut writer = Writer { random, lines: Vec::new(), parameters: 0, hosts: 0, depth: 0 };
    writer.file();
    let Writer { mut random, lines, .. } = writer;
    let ends = if random.one_in(8) { "\r\n" } else { "\n" };
    let (mut main, mut inner) = (lines, Vec::new());
    if random.one_in(3) {
        let at = random.below(main.len());
        let count = 1 + random.below(12).min(main.len() - at - 1);
        // A definition of several lines stays in one file.
        if !main[at.saturating_sub(1)..(at + count).min(main.len())].iter().any(|line| line.ends_with('\\')) {
            let word = random.pick(&["include", "include", "includer", "includea"]);
            inner = main.splice(at..(at + count).min(main.len()), [format!("{word} {included}")]).collect();
        }
    }
    let text = |lines: Vec<String>| lines.into_iter().map(|line| line + ends).collect::<String>();
    Files { main: text(main), included: text(inner) }
}

struct Writer {
    random: Random,
    lines: Vec<String>,
    parameters: usize,
    hosts: usize,
    depth: usize,
}

impl Writer {
    fn file(&mut self) {
        let parts = 1 + self.random.below(3);
        self.globals();
        for part in 0..parts {
            match self.random.below(4) {
                0 => self.group(part),
                1 if self.random.one_in(2) => self.template(part),
                _ => self.virtual_server(&format!("10.0.{part}.1 80"), false),
            }
        }
    }

    /// Writes a line, with blanks and perhaps a comment, and perhaps a condition.
    fn line(&mut self, text: impl Display) {
        let mut line = text.to_string();
        if self.random.one_in(25) {
            line = line.replacen(' ', "\t ", 1);
        }
        match self.random.below(40) {
            0 => line = format!("@lb1 {line}"),
            1 => line = format!("@^other {line}"),
            2 => line += " # note",
            3 => line += " ! it's \"quoted\"",
            4 => line += "\t ",
            5 => self
                .lines
                .push(self.random.pick(&["", "# all", "  ! {", "@other weight 7", "@^lb1 }"]).to_owned()),
            _ => {}
        }
        let indent = if self.random.one_in(10) { "\t".to_owned() } else { " ".repeat(self.depth * 2) };
        self.lines.push(indent + &line);
    }

    /// Writes a block.
    fn block(&mut self, head: impl Display, body: impl FnOnce(&mut Self)) {
        match self.random.below(12) {
            0 => {
                self.line(head);
                self.lines.push("{".to_owned());
            }
            1 => self.line(format!("{head}{{")),
            _ => self.line(format!("{head} {{")),
        }
        self.depth += 1;
        body(self);
        self.depth -= 1;
        self.line("}");
    }

    /// A value as it is, in quotes, or as a parameter that is defined now.
    fn value(&mut self, value: String) -> String {
        match self.random.below(20) {
            0 if !value.contains(['"', ' ']) => format!("\"{value}\""),
            1 | 2 => {
                self.parameters += 1;
                let name = format!("P_{}", self.parameters);
                self.line(format!("${name}={value}"));
                if self.random.one_in(2) { format!("${{{name}}}") } else { format!("${name}") }
            }
            _ => value,
        }
    }

    fn statement(&mut self, keyword: &str, value: String) {
        let value = self.value(value);
        self.line(format!("{keyword} {value}"));
    }

    /// A number in a range, now and then another one, or no number.
    fn number(&mut self, range: Range<usize>) -> String {
        match self.random.below(25) {
            0 => self.random.pick(&["0", "-1", "99999999999", "+3", "\" 4\""]).to_owned(),
            _ => self.random.number(range),
        }
    }

    fn time(&mut self) -> String {
        match self.random.below(6) {
            0 => self.random.pick(&["0.25", "1.5", ".5", "1.2345678", "3.", "+2", "4 5"]).to_owned(),
            _ => self.random.number(1..20),
        }
    }

    fn switch(&mut self) -> String {
        self.random.pick(&["", "", " on", " off", " true", " no", " maybe"]).to_owned()
    }

    fn address(&mut self, v6: bool) -> String {
        match self.random.below(40) {
            0 => "10.1.0.1.5".to_owned(),
            1 => "rs1.example".to_owned(),
            _ => self.valid_address(v6),
        }
    }

    fn valid_address(&mut self, v6: bool) -> String {
        // Each once, because of two equal real servers xvs takes the first.
        self.hosts += 1;
        let (high, low) = (self.hosts / 200, 1 + self.hosts % 200);
        let addr = if v6 { format!("2001:db8:1:{high}::{low}") } else { format!("10.1.{high}.{low}") };
        if self.random.one_in(30) { addr + "/24" } else { addr }
    }

    fn globals(&mut self) {
        self.block("global_defs", |this| {
            this.line("script_user root");
            for _ in 0..this.random.below(4) {
                let line = this.random.pick(&[
                    "router_id LB",
                    "script_user root",
                    "smtp_alert",
                    "lvs_timeouts tcp 900 udp 30",
                    "checker_log_all_failures",
                    "notification_email_from a@example.org",
                    "smtp_connect_timeout 5",
                ]);
                this.line(line);
            }
        });
    }

    fn group(&mut self, part: usize) {
        let name = format!("G{part}");
        let v6 = self.random.one_in(6);
        self.block(format!("virtual_server_group {name}"), |this| {
            for entry in 0..=this.random.below(3) {
                let line = match (v6, this.random.below(10)) {
                    (false, 0) => format!("10.2.{part}.{entry}0-{entry}3 80"),
                    (false, 1) => format!("10.3.{part}.{entry}0-10.3.{part}.{entry}2 81"),
                    (false, 2) => format!("10.4.{part}.{}/31 443", entry * 2),
                    (false, 3) => format!("10.5.{part}.{entry}"),
                    (true, 0) => format!("2001:db8:a{part}::{entry}0-{entry}f 80"),
                    (true, 1) => format!("2001:db8:a{part}::{entry}a/127 80"),
                    (_, 4) => format!("fwmark {}", part * 10 + entry + 1),
                    (_, 5) if this.random.one_in(3) => "10.6.0.9-8 80".to_owned(),
                    (_, 6) if this.random.one_in(3) => "10.6.0.1/31 80".to_owned(),
                    (false, _) => format!("10.6.{part}.{entry} 80"),
                    (true, _) => format!("2001:db8:a{part}::{entry} 80"),
                };
                this.line(line);
            }
        });
        self.virtual_server(&format!("group {name}"), v6);
    }

    /// A virtual server that is made of parameters of several lines, and loops.
    fn template(&mut self, part: usize) {
        let comment = |random: &mut Random| random.pick(&["", "", "", " # note", " ! a \"b\""]).to_owned();
        let name = format!("RS{part}");
        let mut lines = vec![format!("${name}= "), format!("real_server 10.8.{part}.$H 80 {{")];
        for _ in 0..self.random.below(3) {
            let number = self.random.number(1..9);
            lines.push(format!(
                "{} {number}",
                self.random.pick(&["weight", "uthreshold", "#weight", "retry"])
            ));
        }
        if self.random.one_in(2) {
            lines.extend(["TCP_CHECK {", "connect_timeout $T", "}"].map(str::to_owned));
        }
        for line in &mut lines {
            let comment = comment(&mut self.random);
            *line += &format!("{comment} \\");
        }
        lines.push("}".to_owned());
        self.line("$T=3");
        self.lines.append(&mut lines);
        let first = 10 + self.random.below(5);
        let last = first + self.random.below(4);
        self.line(format!("$FIRST={first}"));
        self.line(format!("$LAST={last}"));
        let head = format!("virtual_server 10.0.{part}.1 80");
        let head = self.value(head.rsplit(' ').nth(1).unwrap_or_default().to_owned());
        let head = format!("virtual_server {head} 80");
        self.block(head, |this| {
            this.line("lvs_sched rr");
            this.line("lvs_method NAT");
            this.line("protocol TCP");
            let head = match this.random.below(12) {
                0 => format!("~SEQ(H,{first},{last})"),
                1 => "~SEQ(H, $FIRST, $LAST)".to_owned(),
                2 => "~SEQ(H,$FIRST,$LAST)".to_owned(),
                3 => "~SEQ(H, ${FIRST}, ${LAST})".to_owned(),
                4 => format!("~SEQ(H, {first}, 2, {last})"),
                5 => format!("~SEQ(H, {last}, {first})"),
                6 => format!("~SEQ(H, {last}, -1, {first})"),
                7 => format!("~LST(H, {first}, {last}, 99)"),
                8 => "~LST(H, $FIRST, $LAST)".to_owned(),
                9 => format!("~SEQ(H, {})", 1 + last - first),
                10 => format!("~LST({{H,W}}, {{{first},1}},{{{last},2}})"),
                _ => format!("~SEQ(H, 0x{first:x}, 0x{last:x})"),
            };
            this.line(format!("{head} ${name}"));
        });
    }

    fn virtual_server(&mut self, head: &str, v6: bool) {
        let (head, v6) = match self.random.below(14) {
            _ if head.starts_with("group") => (head.to_owned(), v6),
            // Each service once.
            0 => {
                self.hosts += 1;
                (format!("fwmark {}", 100 + self.hosts), self.random.one_in(2))
            }
            1 => (head.replacen(" 80", "/32 80", 1), false),
            2 => (head.replacen("10.0.", "2001:db8::", 1).replacen(".1 ", " ", 1), true),
            3 => (head.replacen(" 80", "", 1), false),
            4 if self.random.one_in(2) => (head.replacen(" 80", " http", 1), false),
            _ => (head.to_owned(), v6),
        };
        self.block(format!("virtual_server {head}"), |this| {
            let mut before = this.random.below(10);
            if !this.random.one_in(8) {
                let name = this.random.pick(&["rr", "wrr", "wlc", "sh", "mh", "sed", "lc", "bad"]);
                this.statement("lvs_sched", name.to_owned());
            }
            if !this.random.one_in(8) {
                let method = this.method();
                let keyword = this.random.pick(&["lvs_method", "lb_kind"]);
                this.line(format!("{keyword} {method}"));
            }
            if !this.random.one_in(8) {
                let name = this.random.pick(&["TCP", "TCP", "UDP", "SCTP", "tcp", "ICMP"]);
                this.statement("protocol", name.to_owned());
            }
            while before > 0 {
                before -= 1;
                this.setting(v6);
            }
            for number in 0..=this.random.below(3) {
                this.real_server(number, v6);
            }
            // keepalived gives an SMTP_CHECK before it no `connect_timeout`.
            if this.random.one_in(6) {
                let number = this.number(1..9);
                let keyword = this.random.pick(&["weight", "quorum", "retry"]);
                this.statement(keyword, number);
            }
        });
    }

    fn method(&mut self) -> String {
        match self.random.below(12) {
            0..4 => "NAT".to_owned(),
            4..8 => "DR".to_owned(),
            8 => "TUN".to_owned(),
            9 => format!(
                "TUN type gue port {} {}",
                self.random.number(1000..9000),
                self.random.pick(&["", "csum", "nocsum", "remcsum"])
            ),
            10 => format!("TUN type gre {}", self.random.pick(&["", "csum", "nocsum"])),
            _ => "TUN type ipip".to_owned(),
        }
    }

    fn setting(&mut self, v6: bool) {
        let number = self.number(1..9);
        let time = self.time();
        match self.random.below(22) {
            0 => self.statement("delay_loop", time),
            1 => self.statement("connect_timeout", time),
            2 => self.statement("retry", number),
            3 => self.statement("delay_before_retry", time),
            4 => self.statement("warmup", time),
            5 => self.line("alpha"),
            6 => self.line("omega"),
            7 => self.line("inhibit_on_failure"),
            8 => self.statement("quorum", number),
            9 => self.statement("hysteresis", number),
            10 => self.line("quorum_up \"/bin/true up\""),
            11 => self.line("quorum_down /bin/true"),
            12 => self.statement("weight", number),
            13 => self.statement("virtualhost", "vs.example".to_owned()),
            14 => self.statement("persistence_timeout", number),
            15 => {
                let mask = if v6 { "64" } else { "255.255.255.0" };
                let mask = if self.random.one_in(8) { "x" } else { mask };
                self.statement("persistence_granularity", mask.to_owned());
            }
            16 => self.line("ops"),
            17 => {
                let flag = self.random.pick(&[
                    "sh-port",
                    "mh-port",
                    "sh-fallback",
                    "mh-fallback",
                    "flag-1",
                    "flag-2",
                ]);
                self.line(flag);
            }
            18 => {
                let addr = self.address(v6);
                self.line(format!("sorry_server {addr} 8080"));
            }
            19 => self.line("sorry_server_inhibit"),
            20 => self.line("persistence_timeout"),
            _ => self.line("ha_suspend"),
        }
    }

    fn real_server(&mut self, number: usize, v6: bool) {
        let v6 = v6 != self.random.one_in(30);
        let addr = if self.random.one_in(2) {
            self.address(v6)
        } else if v6 {
            format!("2001:db8:9::{number}")
        } else {
            format!("10.9.0.{}", number + 1)
        };
        let addr = self.value(addr);
        // A check probes the port in the service; keepalived's the written one.
        let has_checks = !self.random.one_in(4);
        let port = if has_checks { "80" } else { self.random.pick(&["80", "8080", ""]) };
        self.block(format!("real_server {addr} {port}"), |this| {
            for _ in 0..this.random.below(4) {
                let number = this.number(0..9);
                let time = this.time();
                let switch = this.switch();
                match this.random.below(14) {
                    0 | 1 => this.statement("weight", number),
                    2 => this.statement("uthreshold", number),
                    3 => this.statement("lthreshold", number),
                    4 => this.line(format!("inhibit_on_failure{switch}")),
                    5 => {
                        let method = this.method();
                        this.line(format!("lvs_method {method}"));
                    }
                    6 => this.line("notify_up \"/bin/true 'a b'\""),
                    7 => this.line("notify_down /bin/true"),
                    8 => this.line(format!("alpha{switch}")),
                    9 => this.statement("retry", number),
                    10 => this.statement("delay_loop", time),
                    11 => this.statement("warmup", time),
                    12 => this.statement("delay_before_retry", time),
                    _ => this.statement("connect_timeout", time),
                }
            }
            for _ in 0..if has_checks { this.random.below(3) } else { 0 } {
                this.check(v6);
            }
        });
    }

    fn check(&mut self, v6: bool) {
        let kinds = [
            "TCP_CHECK",
            "TCP_CHECK",
            "HTTP_GET",
            "HTTP_GET",
            "SSL_GET",
            "SMTP_CHECK",
            "DNS_CHECK",
            "UDP_CHECK",
            "PING_CHECK",
            "MISC_CHECK",
        ];
        let kind = self.random.pick(&kinds);
        if kind == "TCP_CHECK" && self.random.one_in(4) {
            let number = self.random.number(1..9);
            return self.line(format!("TCP_CHECK {{ connect_timeout {number} }}"));
        }
        self.block(kind, |this| {
            if kind == "MISC_CHECK" {
                this.line("misc_path \"/bin/true 'a b' c\"");
                if this.random.one_in(2) {
                    let number = this.number(1..9);
                    this.statement("misc_timeout", number);
                }
                if this.random.one_in(3) {
                    this.line("misc_dynamic");
                }
            }
            for _ in 0..this.random.below(5) {
                this.check_setting(kind, v6);
            }
            if kind.ends_with("_GET") {
                // Without a url keepalived ends with a fault of its memory.
                this.url(true);
                for _ in 0..this.random.below(2) {
                    this.url(false);
                }
            }
        });
    }

    fn check_setting(&mut self, kind: &str, v6: bool) {
        let number = self.number(1..9);
        let time = self.time();
        let switch = self.switch();
        match self.random.below(19) {
            0 => self.statement("retry", number),
            1 => self.statement("delay_before_retry", time),
            2 => self.statement("delay_loop", time),
            3 => self.statement("warmup", time),
            4 => self.line(format!("alpha{switch}")),
            _ if kind == "MISC_CHECK" => {}
            5 => self.statement("connect_timeout", time),
            6 | 7 => {
                let other = kind != "SMTP_CHECK" && self.random.one_in(5);
                let addr = self.valid_address(v6 != other);
                self.statement("connect_ip", addr);
            }
            8 => self.statement("connect_port", number),
            9 | 10 if kind != "PING_CHECK" => {
                let other = kind != "SMTP_CHECK" && self.random.one_in(5);
                let addr = self.valid_address(v6 != other);
                self.statement("bindto", addr);
            }
            11 if kind != "PING_CHECK" => self.statement("bind_port", number),
            12 if kind != "PING_CHECK" => self.statement("bind_if", "lo".to_owned()),
            13 => self.statement("fwmark", number),
            _ => match (kind, self.random.below(4)) {
                ("HTTP_GET" | "SSL_GET", 0) => self.statement("virtualhost", "check.example".to_owned()),
                ("HTTP_GET" | "SSL_GET", 1) => {
                    let version = self.random.pick(&["1.0", "1.0C", "1.1", "2"]);
                    self.statement("http_protocol", version.to_owned());
                }
                ("HTTP_GET" | "SSL_GET", 2) => self.line(format!("fast_recovery{switch}")),
                ("SMTP_CHECK", _) => self.statement("helo_name", "lb.example".to_owned()),
                ("DNS_CHECK", 0 | 1) => {
                    let name = self.random.pick(&["A", "aaaa", "MX", "txt", "ANY"]);
                    self.statement("type", name.to_owned());
                }
                ("DNS_CHECK", _) => self.statement("name", "www.example.com".to_owned()),
                ("UDP_CHECK", 0) => self.line("payload 01 02"),
                ("UDP_CHECK", 1) => {
                    let reply = self.random.pick(&["", " 01", " 0x xx 1", " zz"]);
                    self.line(format!("require_reply{reply}"));
                }
                ("UDP_CHECK", 2) => self.statement("min_reply_length", number),
                ("UDP_CHECK", _) => self.statement("max_reply_length", number),
                _ => {}
            },
        }
    }

    fn url(&mut self, has_path: bool) {
        self.block("url", |this| {
            // The pattern of one without a path keepalived gives to another.
            if !has_path && this.random.one_in(20) {
                return;
            }
            let path = this.random.pick(&["/", "/a?b=1", "\"/a b\"", "/x\\#y", "'/q'"]);
            this.line(format!("path {path}"));
            for _ in 0..this.random.below(3) {
                match this.random.below(6) {
                    0 | 1 => {
                        let statuses = ["200", "200-299", "200 301-304", "2xx 302", "600", "204-200", "0200"];
                        let statuses = this.random.pick(&statuses);
                        this.line(format!("status_code {statuses}"));
                    }
                    2 => this.line("digest 0123456789abcdef0123456789abcdef"),
                    3 => this.statement("virtualhost", "url.example".to_owned()),
                    4 => this.line("regex \"a+ b\""),
                    _ => {
                        let line = this.random.pick(&[
                            "regex_min_offset 3",
                            "regex_max_offset 90",
                            "regex_no_match",
                        ]);
                        this.line(line);
                    }
                }
            }
        });
    }
}
