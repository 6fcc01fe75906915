//! Recordings of the real kernel's IPVS, played through the lab.
//!
//! Each `conformance/NAME.json` holds commands and frames with what the kernel and ipvsadm made of them. A
//! recording passes when frames, messages, exit codes and listings are the same under the rules in `compare`.
//! Those that do not pass yet are listed in `conformance/pending.txt` with the first step that differs and the reason.
//! A listed recording fails the test if it passes or if another step is the first that differs: the list only
//! shrinks, and no earlier fault hides behind a known one.

mod compare;
mod pending;

use std::fmt::{self, Display, Formatter};
use std::path::{Path, PathBuf};
use std::{fs, panic};

use compare::sync::Messages;
use pending::Pending;
use serde_json::{Value, json};
use xvs::recording::{self, strings};
use xvs::setup::{self, Action};
use xvs::{BothPaths, offload};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance")
}

/// Steps at which xvs sends a client at once the path MTU that the kernel sends one packet later (docs/limits.md): the
/// recording, its step, and that path MTU.
const AT_ONCE: [(&str, usize, u16); 2] = [("icmp-tun", 21, 1280 - 20), ("icmp-tun-gre", 21, 1280 - 24)];

/// A director in the lab, with the recording's network around it.
struct Player {
    topology: Value,
    lab: BothPaths,
    now: f64,
    vips: Vec<String>,
    /// The messages of the master daemon.
    messages: Messages,
    /// The number of the present step.
    at: usize,
}

impl Player {
    fn new(topology: &Value) -> Self {
        let vips = strings(&topology["vips"]);
        let (lab, messages) = (BothPaths::new(), Messages::default());
        let mut player = Self { topology: topology.clone(), lab, now: 0.0, vips, messages, at: 0 };
        for request in recording::network(topology) {
            player.ok(request);
        }
        player
    }

    fn ask(&mut self, request: Value) -> Value {
        self.lab.ask(&request)
    }

    fn ok(&mut self, request: Value) {
        let answer = self.ask(request.clone());
        assert_eq!(answer, json!({ "ok": true }), "{request}");
    }

    /// Moves the clock to a moment of the recording; what timers sent meanwhile.
    fn advance_to(&mut self, to: f64) -> Result<Value, String> {
        let by = to - self.now;
        if by <= 0.0 {
            return Ok(json!([]));
        }
        self.now = to;
        let answer = self.ask(json!({ "advance": by }));
        self.messages.note_ours(self.at, &answer);
        Ok(answer["tx"].clone())
    }

    /// Plays one step; what differs, in words.
    fn step(&mut self, step: &Value) -> Result<(), String> {
        let sent = self.advance_to(step["t"].as_f64().unwrap_or(self.now))?;
        match step["op"].as_str().unwrap_or_default() {
            "cmd" | "dump" => self.command(step),
            "frame" => self.frame(step),
            "burst" => self.burst(step),
            "wait" => compare::frames(&step["out"], &sent),
            "sysctl" => {
                let name = step["name"].as_str().unwrap_or_default();
                // The kernel's FTP helper needs it; that of xvs does not, and xvs does not have it.
                if name == "net.ipv4.vs.conntrack" {
                    return Ok(());
                }
                let answer = self.ask(recording::setting(name, &step["value"])?);
                if answer["ok"] == true { Ok(()) } else { Err(format!("set {name}: {answer}")) }
            }
            "mark" => {
                let answer = self.ask(recording::mark(step));
                if answer["exit"] == 0 { Ok(()) } else { Err(format!("mark: {answer}")) }
            }
            "setup" => self.setup(step),
            other => Err(format!("unknown step {other}")),
        }
    }

    fn command(&mut self, step: &Value) -> Result<(), String> {
        let argv = strings(&step["argv"]);
        if argv[0] != "ipvsadm" {
            return Err(format!("runs {}", argv[0]));
        }
        let stdin = step["stdin"].as_str().unwrap_or_default();
        let answer = self.ask(json!({ "adm": &argv[1..], "stdin": stdin }));
        compare::output(&argv, step, &answer)
    }

    /// Runs a shell command as far as the lab can, and compares its output.
    fn setup(&mut self, step: &Value) -> Result<(), String> {
        let argv = strings(&step["argv"]);
        let (mut exit, mut stdout, mut stderr) = (json!(0), String::new(), String::new());
        for action in setup::actions(&argv, &self.topology)? {
            match action {
                Action::Request(request) => {
                    let answer = self.ask(request);
                    if let Some(error) = answer.get("error") {
                        return Err(error.to_string());
                    }
                    exit = answer.get("exit").cloned().unwrap_or(json!(0));
                    stdout += answer["stdout"].as_str().unwrap_or_default();
                    stderr += answer["stderr"].as_str().unwrap_or_default();
                }
                Action::NameHost(addr, name) => self.lab.name_host(addr, &name),
                Action::PrintExit => stdout += &format!("{}\n", std::mem::replace(&mut exit, json!(0))),
            }
        }
        compare::output(&argv, step, &json!({ "exit": exit, "stdout": stdout, "stderr": stderr }))
    }

    fn frame(&mut self, step: &Value) -> Result<(), String> {
        if let Some((group, message)) = recording::sync_message(step) {
            // The lab has no sockets: a message to another group or port does not reach the daemon.
            let daemons = self.ask(json!({ "adm": ["-L", "--daemon"] }));
            let address = format!("group={}, port={},", group.ip(), group.port());
            if !daemons["stdout"].as_str().unwrap_or_default().contains(&address) {
                return Ok(());
            }
            let answer = self.ask(message);
            return if answer["ok"] == true { Ok(()) } else { Err(format!("sync: {answer}")) };
        }
        let answer = self.ask(json!({ "inject": step["port"], "frame": step["in"] }));
        if let Some(error) = answer.get("error") {
            return Err(format!("inject: {error}"));
        }
        self.messages.note_ours(self.at, &answer);
        let want = match answer["verdict"] == "pass" {
            true => compare::without_the_kernels_own(
                &step["out"],
                step["in"].as_str().unwrap_or_default(),
                &self.vips,
            ),
            false => step["out"].clone(),
        };
        compare::frames(&want, &answer["tx"]).map_err(|difference| {
            format!("verdict {} ({}): {difference}", answer["verdict"], answer["reason"])
        })
    }

    fn burst(&mut self, step: &Value) -> Result<(), String> {
        let mut sent = 0;
        for _ in 0..step["count"].as_u64().unwrap_or(0) {
            let answer = self.ask(json!({ "inject": step["port"], "frame": step["in"] }));
            sent += answer["tx"].as_array().map_or(0, Vec::len) as u64;
        }
        let want = step["out_count"].as_u64().unwrap_or(0);
        if sent == want { Ok(()) } else { Err(format!("{sent} frames left instead of {want}")) }
    }
}

/// A step that does not play the same.
struct Difference {
    step: usize,
    /// What differs, in words.
    what: String,
}

/// How a recording played.
struct Played {
    /// Steps that were carried out.
    steps: usize,
    /// In the order of steps.
    differences: Vec<Difference>,
}

impl Display for Played {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} steps play the same", self.steps - self.differences.len(), self.steps)
    }
}

/// Whether the director has to do anything at a step: comments are for people, other directors are not played.
fn is_carried_out(step: &Value) -> bool {
    let elsewhere = step["ns"].as_str().is_some_and(|ns| ns != "dir");
    !elsewhere && !matches!(step["op"].as_str(), Some("read" | "comment"))
}

/// Plays a recording to its end. A step that differs does not end it: time and frames come from the recording, so the
/// steps that follow can still be the same, and their number shows how far xvs is from the kernel.
fn play(path: &Path) -> Played {
    let text = fs::read_to_string(path).expect("a recording is readable");
    let recording: Value = serde_json::from_str(&text).expect("recordings are JSON");
    let truth = &recording["truth"];
    let mut player = Player::new(&truth["topology"]);
    let name = path.file_stem().unwrap_or_default();
    let mut played = Played { steps: 0, differences: Vec::new() };
    let steps = truth["steps"].as_array().expect("steps").iter().enumerate();
    for (number, step) in steps.filter(|(_, step)| is_carried_out(step)) {
        let mut step = step.clone();
        player.at = number;
        let seconds = step["t"].as_f64().unwrap_or(player.now);
        player.messages.advance_to(seconds);
        step["out"] = player.messages.note_kernel(number, &step["out"]);
        if let Some((.., mtu)) = AT_ONCE.iter().find(|(of, at, _)| name == *of && number == *at) {
            compare::set_path_mtu(&mut step["out"], *mtu);
        }
        played.steps += 1;
        if let Err(difference) = player.step(&step) {
            let note = step["note"].as_str().map_or_else(|| strings(&step["argv"]).join(" "), str::to_owned);
            let what = format!("at {:.3} s, {} {note}: {difference}", player.now, step["op"]);
            played.differences.push(Difference { step: number, what });
        }
        let difference = player.messages.difference();
        played.differences.extend(difference.map(|(step, what)| Difference { step, what }));
    }
    played.differences.sort_by_key(|difference| difference.step);
    played
}

/// What is wrong with how a recording played, in words; nothing if it plays the same or first differs where it is
/// listed.
fn judge(played: &Played, listed: Option<&Pending>) -> Result<(), String> {
    match (played.differences.first(), listed) {
        (None, None) => Ok(()),
        (None, Some(_)) => Err("passes; remove it from pending.txt".to_owned()),
        (Some(first), Some(listed)) if first.step == listed.step => Ok(()),
        (Some(Difference { step, what }), None) => Err(format!("{played}; step {step} {what}")),
        (Some(Difference { step, what }), Some(listed)) => {
            let line = format!("{} {}", listed.step, listed.reason);
            Err(format!("step {step} is the first that differs, pending.txt says {line}: {what}"))
        }
    }
}

/// `XVS_CONFORMANCE=NAME` plays only the recordings whose name contains it, ignores the list and prints every step that
/// differs.
#[test]
fn every_recording_of_the_kernel_plays_the_same_here_unless_it_is_listed_as_pending() {
    let only = std::env::var("XVS_CONFORMANCE").ok();
    let list = fs::read_to_string(folder().join("pending.txt")).expect("conformance/pending.txt");
    let pending = pending::parse(&list).unwrap_or_else(|error| panic!("{error}"));
    let mut wrong = Vec::new();
    let (mut passed, mut waiting) = (0, Vec::new());
    let mut paths: Vec<_> = fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    paths.sort();
    for path in &paths {
        let name = path.file_stem().unwrap().to_str().unwrap();
        if only.as_ref().is_some_and(|only| !name.contains(only.as_str())) {
            continue;
        }
        let Ok(played) = panic::catch_unwind(|| play(path)) else {
            wrong.push(format!("{name}: the player panicked"));
            continue;
        };
        if only.is_some() {
            played
                .differences
                .iter()
                .for_each(|Difference { step, what }| println!("{name}: step {step} {what}"));
        }
        let listed = if only.is_none() { pending.get(name) } else { None };
        match (judge(&played, listed), listed) {
            (Ok(()), None) => passed += 1,
            (Ok(()), Some(Pending { step, reason })) => {
                waiting.push(format!("{name}: {played}, step {step} is the first that differs: {reason}"));
            }
            (Err(what), _) => wrong.push(format!("{name}: {what}")),
        }
    }
    let names: Vec<_> = paths.iter().map(|path| path.file_stem().unwrap().to_str().unwrap()).collect();
    wrong.extend(
        pending
            .keys()
            .filter(|name| !names.contains(&name.as_str()))
            .map(|name| format!("{name}: no such recording")),
    );
    if offload::is_wanted() && only.is_none() {
        println!("{} packets were forwarded by the XDP program", offload::forwarded());
        assert!(offload::forwarded() > 200, "the recordings have that many packets of offloaded connections");
    }
    println!("{passed} recordings play the same, {} are pending\n{}", waiting.len(), waiting.join("\n"));
    assert!(wrong.is_empty(), "{} recordings differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn a_recording_is_pending_only_at_its_step() {
    let listed = Pending { step: 7, reason: "no NAT".to_owned() };
    let differs = |steps: &[usize]| {
        let difference = |step: &usize| Difference { step: *step, what: "at 0.100 s, frame".to_owned() };
        Played { steps: 10, differences: steps.iter().map(difference).collect() }
    };
    let rows = [
        (differs(&[]), None, Ok(())),
        (differs(&[]), Some(&listed), Err("passes; remove it from pending.txt")),
        (differs(&[7]), Some(&listed), Ok(())),
        (differs(&[7, 9]), Some(&listed), Ok(())),
        (differs(&[7, 9]), None, Err("8 of 10 steps play the same; step 7 at 0.100 s, frame")),
        (
            differs(&[6, 7]),
            Some(&listed),
            Err("step 6 is the first that differs, pending.txt says 7 no NAT: at 0.100 s, frame"),
        ),
        (
            differs(&[8]),
            Some(&listed),
            Err("step 8 is the first that differs, pending.txt says 7 no NAT: at 0.100 s, frame"),
        ),
    ];
    for (played, listed, expected) in rows {
        assert_eq!(judge(&played, listed), expected.map_err(str::to_owned));
    }
}
