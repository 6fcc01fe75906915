//! `xvs check --keepalived`: the services, checks and faults in keepalived.conf, without a daemon.
//!
//! Prints the services with which a director would start, as `xvsadm -Sn` would; the checks; and the faults, as xvsd
//! reports them. Reads the file and its included files, looks up its scripts and their users on this machine, and
//! changes nothing. No check runs, so `up` and `down` are the states before the first run.

use std::io;
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;
use xvs_health::initial_state::initial_state;
use xvs_health::prepare::{Prepared, examine_scripts};
use xvs_health::sources::examine_sources;
use xvs_ipvsadm::{rule_lines, saved_rules};
use xvs_keepalived::{host, read};
use xvs_model::health_checks::check::{Check, Probe, Timing};
use xvs_model::health_checks::fault::{Fault, Severity};
use xvs_model::health_checks::virtual_server::VirtualServer;
use xvs_proto::Endpoint;

use crate::output::exit::{DONE, Done, FAILED, MISUSED};
use crate::output::text::{aligned, counted, print_json, widths};

/// The options of `xvs check` for keepalived.conf.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Check keepalived.conf: print its services, checks and faults; exits with 0 without faults, 1 for warnings, 2
    /// for errors (xvsd would refuse the file)
    #[arg(long, value_name = "FILE", conflicts_with = "file")]
    pub(crate) keepalived: Option<PathBuf>,
    /// The machine whose lines with @ apply [default: the first label of this host's name]
    #[arg(long, value_name = "ID", conflicts_with = "file")]
    pub(crate) config_id: Option<String>,
    /// Treat warnings as errors
    #[arg(long, conflicts_with = "file")]
    pub(crate) strict: bool,
}

/// The form of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Text,
    Json,
}

pub(crate) fn run(file: &Path, options: &Options, form: Form, out: &mut dyn Write) -> Done {
    let config_id = options.config_id.clone().unwrap_or_else(host);
    let mut configuration = match read(file, &config_id).map(Prepared::of) {
        Ok(prepared) => prepared.map_or_else(|refused| *refused, |prepared| prepared.configuration),
        Err(error) => {
            let _ = writeln!(io::stderr(), "xvs: {}: {error}", file.display());
            return Ok(MISUSED);
        }
    };
    examine_scripts(&mut configuration);
    // The file of another machine has that machine's addresses.
    if config_id == host() {
        examine_sources(&mut configuration);
    }
    let (state, _) = initial_state(&configuration);
    let faults = &configuration.faults;
    let worst = if options.strict { Severity::Warning } else { Severity::Error };
    let printed = Printed {
        file,
        is_refused: faults.iter().any(|fault| fault.severity >= worst),
        rules: configuration.timeouts().iter().flat_map(rule_lines).chain(saved_rules(&state)).collect(),
        servers: &configuration.virtual_servers,
        faults,
    };
    match form {
        Form::Json => print_json(&printed.document(), out)?,
        Form::Text => printed.text(out)?,
    }
    Ok(match faults.is_empty() {
        true => DONE,
        false if printed.is_refused => MISUSED,
        false => FAILED,
    })
}

/// The output. A refused file prints its faults alone: the rest of it could mean something else.
struct Printed<'a> {
    file: &'a Path,
    is_refused: bool,
    rules: Vec<String>,
    servers: &'a [VirtualServer],
    faults: &'a [Fault],
}

impl Printed<'_> {
    fn text(&self, out: &mut dyn Write) -> io::Result<()> {
        if !self.is_refused {
            for rule in &self.rules {
                writeln!(out, "{rule}")?;
            }
            if !self.servers.is_empty() {
                write!(out, "\nChecks:\n\n{}\n", table(self.servers))?;
            }
        }
        for fault in self.faults {
            writeln!(out, "{fault}")?;
        }
        if self.faults.is_empty() {
            return writeln!(out, "{}: no fault", self.file.display());
        }
        let errors = self.faults.iter().filter(|fault| fault.severity == Severity::Error).count();
        writeln!(
            out,
            "{}: {}{}, {}",
            self.file.display(),
            if self.is_refused { "refused: " } else { "" },
            counted(errors as u64, "error", "errors"),
            counted((self.faults.len() - errors) as u64, "warning", "warnings")
        )
    }

    fn document(&self) -> Document<'_> {
        let (rules, servers) =
            if self.is_refused { (&[][..], &[][..]) } else { (&self.rules[..], self.servers) };
        Document {
            refused: self.is_refused,
            rules,
            virtual_servers: servers.iter().map(VirtualServerRow::from).collect(),
            faults: self.faults.iter().map(FaultRow::from).collect(),
        }
    }
}

/// The document that `--json` prints.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Document<'a> {
    /// Whether xvsd would refuse the file (with `--strict` also for warnings); then `rules` and `virtual_servers` are
    /// empty.
    refused: bool,
    /// The rules with which a director would start, as lines of `xvsadm -Sn`.
    rules: &'a [String],
    /// The virtual servers, in the file's order.
    virtual_servers: Vec<VirtualServerRow<'a>>,
    /// The faults of the file.
    faults: Vec<FaultRow<'a>>,
}

/// A virtual server in it.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct VirtualServerRow<'a> {
    /// The arguments of `virtual_server` in the file.
    virtual_server: &'a str,
    /// The weight that it needs.
    quorum: u32,
    /// The real servers, in the file's order.
    real_servers: Vec<RealServerRow>,
}

/// A real server in it.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct RealServerRow {
    /// The endpoint of the real server; port 0: the port of each service.
    real_server: Endpoint,
    /// The checks, in the file's order.
    checks: Vec<CheckRow>,
}

/// A check in it.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct CheckRow {
    /// The kind and the target of the check, such as `TCP 192.0.2.11:80`.
    probe: String,
    /// Time between two runs.
    interval_seconds: f64,
    /// Time between two runs after a failure that has not taken it down yet.
    retry_interval_seconds: f64,
    /// The longest duration of a run.
    timeout_seconds: f64,
    /// The longest delay of the first run.
    warmup_seconds: f64,
    /// Failures in a row that take it down.
    fall: u32,
    /// Successes in a row that bring it up.
    rise: u32,
    /// What it counts as before its first run: `up` or `down`.
    begins: &'static str,
}

/// A fault in it.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct FaultRow<'a> {
    /// The file that has the fault.
    file: String,
    /// The number of its line, from 1.
    line: usize,
    /// Whether the file can be used: `warning` (it can) or `error` (xvsd would refuse it).
    severity: &'static str,
    /// What is wrong, and what is done about it.
    why: &'a str,
}

impl<'a> From<&'a VirtualServer> for VirtualServerRow<'a> {
    fn from(VirtualServer { name, quorum, real_servers, .. }: &'a VirtualServer) -> Self {
        let real_servers = real_servers
            .iter()
            .map(|server| RealServerRow {
                real_server: server.endpoint,
                checks: server.checks.iter().map(CheckRow::from).collect(),
            })
            .collect();
        Self { virtual_server: name, quorum: *quorum, real_servers }
    }
}

impl From<&Check> for CheckRow {
    fn from(Check { probe, timing, .. }: &Check) -> Self {
        Self {
            probe: probe.to_string(),
            interval_seconds: timing.interval.as_secs_f64(),
            retry_interval_seconds: timing.retry_interval.as_secs_f64(),
            timeout_seconds: timing.timeout.as_secs_f64(),
            warmup_seconds: timing.warmup.as_secs_f64(),
            fall: timing.fall,
            rise: timing.rise,
            begins: begins(timing),
        }
    }
}

impl<'a> From<&'a Fault> for FaultRow<'a> {
    fn from(Fault { place, severity, text }: &'a Fault) -> Self {
        let severity = match severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        Self { file: place.file.display().to_string(), line: place.line, severity, why: text }
    }
}

/// Whether a check counts as passed before it was made.
fn begins(timing: &Timing) -> &'static str {
    if timing.begins_down { "down" } else { "up" }
}

/// Each check of each real server, a line each.
fn table(servers: &[VirtualServer]) -> String {
    let mut rows = vec![["", "check", "interval", "timeout", "fall", "rise", "begins"].map(str::to_owned)];
    for server in servers {
        rows.push([&format!("virtual_server {}", server.name), "", "", "", "", "", ""].map(str::to_owned));
        for server in &server.real_servers {
            let name = format!("  {}", server.endpoint);
            if server.checks.is_empty() {
                rows.push([&name, "none", "-", "-", "-", "-", "up"].map(str::to_owned));
            }
            rows.extend(server.checks.iter().map(|check| columns(name.clone(), check)));
        }
    }
    // A virtual server's name stands alone on its line.
    let widths = widths(rows.iter().filter(|row| row[0].is_empty() || !row[1].is_empty()));
    rows.iter().map(|row| aligned(row, widths)).collect()
}

fn columns(server: String, check: &Check) -> [String; 7] {
    let Timing { interval, timeout, fall, rise, .. } = check.timing;
    let [interval, timeout, fall, rise] = match check.probe {
        // A weight file has no interval: it is read when it changes.
        Probe::File(..) => ["-"; 4].map(str::to_owned),
        _ => {
            let [interval, timeout] = [interval, timeout].map(|time| format!("{}s", time.as_secs_f64()));
            [interval, timeout, fall.to_string(), rise.to_string()]
        }
    };
    [server, check.probe.to_string(), interval, timeout, fall, rise, begins(&check.timing).to_owned()]
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::atomic::{AtomicU32, Ordering};

    use clap::Parser;
    use serde_json::{Value, json};

    use crate::Cli;
    use crate::check::keepalived::*;

    /// The output for a file, and the exit code.
    fn check(text: &str, strict: bool, form: Form) -> (String, u8) {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("xvs-check-{}-{number}.conf", std::process::id()));
        fs::write(&path, text).unwrap();
        let options = Options { keepalived: None, config_id: Some("lb1".to_owned()), strict };
        let mut out = Vec::new();
        let code = run(&path, &options, form, &mut out).unwrap();
        fs::remove_file(&path).unwrap();
        let name = path.display().to_string();
        (String::from_utf8(out).unwrap().replace(&name, "k.conf"), code)
    }

    const CLEAN: &str = "\
global_defs { lvs_timeouts tcp 600 }
virtual_server 192.0.2.1 80 {
lb_algo wrr
lb_kind NAT
protocol TCP
delay_loop 2.5
real_server 192.0.2.11 8080 { weight 3
HTTP_GET { url { path /health
} } }
real_server 192.0.2.12 8080 { weight 1
}
}
";

    #[test]
    fn rules_checks_and_faults_are_printed_and_the_exit_code_is_that_of_the_worst_fault() {
        let want = "\
--set 600 0 0
-A -t 192.0.2.1:80 -s wrr
-a -t 192.0.2.1:80 -r 192.0.2.11:8080 -m -w 3
-a -t 192.0.2.1:80 -r 192.0.2.12:8080 -m -w 1

Checks:

                   check                         interval  timeout  fall  rise  begins
virtual_server 192.0.2.1 80
  192.0.2.11:8080  HTTP 192.0.2.11:8080 /health  2.5s      5s       2     1     up
  192.0.2.12:8080  none                          -         -        -     -     up

k.conf: no fault
";
        assert_eq!(check(CLEAN, false, Form::Text), (want.to_owned(), DONE));
        let (told, code) = check(&CLEAN.replace("lb_algo wrr\n", ""), false, Form::Text);
        let warning = "k.conf:2: warning: `virtual_server 192.0.2.1 80` names no scheduler; wlc is used\n";
        assert!(
            told.starts_with("--set 600")
                && told.ends_with(&format!("{warning}k.conf: 0 errors, 1 warning\n"))
        );
        assert_eq!(code, FAILED);
        let (told, code) = check(&CLEAN.replace("lb_algo wrr\n", ""), true, Form::Text);
        assert_eq!((told, code), (format!("{warning}k.conf: refused: 0 errors, 1 warning\n"), MISUSED));
        let (told, code) = check("}", false, Form::Text);
        let error = "k.conf:1: error: a `}` without a `{` before it\nk.conf: refused: 1 error, 0 warnings\n";
        assert_eq!((told.as_str(), code), (error, MISUSED));
    }

    #[test]
    fn scripts_that_cannot_run_on_this_machine_are_faults_as_in_xvsd() {
        let scripts = "\
quorum_up /nosuch/up.sh
quorum_down \"/etc/passwd a\"
real_server 192.0.2.11 8080 {
notify_up /bin/true nosuchuser
notify_down /bin/true root nosuchgroup
MISC_CHECK {
misc_path \"/nosuch/check.sh 1\"
}
";
        let text = CLEAN.replace("real_server 192.0.2.11 8080 { weight 3\n", scripts);
        let (told, code) = check(&text, false, Form::Text);
        let want = "\
k.conf:7: warning: `/nosuch/up.sh` cannot be run: there is no file /nosuch/up.sh
k.conf:8: warning: `/etc/passwd a` cannot be run: /etc/passwd is not executable; `chmod +x` it
k.conf:10: warning: `/bin/true` cannot be run: there is no user `nosuchuser`
k.conf:11: warning: `/bin/true` cannot be run: there is no group `nosuchgroup`
k.conf:13: warning: `/nosuch/check.sh 1` cannot be run: there is no file /nosuch/check.sh
k.conf: 0 errors, 5 warnings
";
        assert!(told.ends_with(want), "{told}");
        assert_eq!(code, FAILED);
        let (told, _) =
            check(&format!("global_defs {{ enable_script_security }}\n{text}"), false, Form::Text);
        assert!(told.contains("k.conf:8: warning: `/nosuch/up.sh` cannot be run: "), "{told}");
        let (told, _) = check(&format!("{text}}}\n"), false, Form::Text);
        assert!(told.contains("refused: 1 error, 5 warnings"), "also in a refused file: {told}");
    }

    #[test]
    fn options_for_keepalived_conf_are_refused_with_a_rules_file() {
        let parse = |words: &str| Cli::try_parse_from(words.split(' '));
        for words in ["--keepalived k r", "--strict r", "--config-id lb1 r", "--strict", ""] {
            assert!(parse(&format!("xvs check {words}")).is_err(), "{words}");
        }
        for words in ["r", "--json r", "--keepalived k --strict --config-id lb1 --json"] {
            assert!(parse(&format!("xvs check {words}")).is_ok(), "{words}");
        }
    }

    #[test]
    fn json_has_the_same_content_as_text() {
        let (told, _) = check(CLEAN, false, Form::Json);
        let told: Value = serde_json::from_str(&told).unwrap();
        assert_eq!((&told["refused"], told["rules"].as_array().unwrap().len()), (&json!(false), 4));
        let checks = &told["virtual_servers"][0]["real_servers"][0]["checks"];
        let want = json!([{
            "probe": "HTTP 192.0.2.11:8080 /health",
            "interval_seconds": 2.5,
            "retry_interval_seconds": 3.0,
            "timeout_seconds": 5.0,
            "warmup_seconds": 2.5,
            "fall": 2,
            "rise": 1,
            "begins": "up",
        }]);
        assert_eq!(*checks, want);
        let (told, code) = check("nonsense\n}\n", false, Form::Json);
        let told: Value = serde_json::from_str(&told).unwrap();
        assert_eq!((code, &told["refused"], &told["rules"]), (MISUSED, &json!(true), &json!([])));
        assert_eq!(told["faults"][1]["line"], 2);
        assert_eq!(
            (&told["faults"][0]["severity"], &told["faults"][1]["severity"]),
            (&json!("warning"), &json!("error"))
        );
    }
}
