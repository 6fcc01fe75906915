//! Recordings of the real kernel's IPVS, played through the lab.
//!
//! Each `conformance/NAME.json` holds commands and frames with what the kernel and ipvsadm made of them. A
//! recording passes when frames, messages, exit codes and listings are the same under the rules in `compare`.
//! Those that do not pass yet stand in `conformance/pending.txt` with the reason; one that passes while it stands
//! there fails the test, so that the list only shrinks.

mod compare;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fs, panic};

use serde_json::{Value, json};
use xvs::recording::{self, strings};
use xvs_ctl::lab::Lab;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance")
}

/// Steps at which xvs tells a client at once what the kernel tells it one packet later (docs/limits.md): the recording, its
/// step, and the path MTU that xvs says there.
const AT_ONCE: [(&str, usize, u16); 2] = [("icmp-tun", 21, 1280 - 20), ("icmp-tun-gre", 21, 1280 - 24)];

/// A director in the lab, with the recording's network around it.
struct Player {
    lab: Lab,
    now: f64,
    vips: Vec<String>,
}

impl Player {
    fn new(topology: &Value) -> Self {
        let mut player = Self { lab: Lab::new(), now: 0.0, vips: strings(&topology["vips"]) };
        for request in recording::network(topology) {
            player.ok(request);
        }
        player
    }

    fn ask(&mut self, request: Value) -> Value {
        let answer = self.lab.answer(&request.to_string());
        serde_json::from_str(&answer).expect("the lab answers JSON")
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
        Ok(answer["tx"].clone())
    }

    /// Plays one step; what differs, in words.
    fn step(&mut self, step: &Value) -> Result<(), String> {
        if step["ns"].as_str().is_some_and(|ns| ns != "dir") {
            return Ok(());
        }
        let sent = self.advance_to(step["t"].as_f64().unwrap_or(self.now))?;
        match step["op"].as_str().unwrap_or_default() {
            "cmd" | "dump" => self.command(step),
            "frame" => self.frame(step),
            "burst" => self.burst(step),
            "wait" => compare::frames(&step["out"], &sent),
            "sysctl" => {
                let name = step["name"].as_str().unwrap_or_default().trim_start_matches("net.ipv4.vs.");
                let answer = self.ask(json!({ "set": { name: step["value"] } }));
                if answer["ok"] == true { Ok(()) } else { Err(format!("set {name}: {answer}")) }
            }
            "mark" => {
                let answer = self.ask(recording::mark(step));
                if answer["exit"] == 0 { Ok(()) } else { Err(format!("mark: {answer}")) }
            }
            "setup" => Err("changes the director's addresses by a shell command".to_owned()),
            "read" | "comment" => Ok(()),
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

    fn frame(&mut self, step: &Value) -> Result<(), String> {
        let answer = self.ask(json!({ "inject": step["port"], "frame": step["in"] }));
        if let Some(error) = answer.get("error") {
            return Err(format!("inject: {error}"));
        }
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

/// The first step of a recording that differs, in words.
fn play(path: &Path) -> Result<(), String> {
    let text = fs::read_to_string(path).map_err(|error| error.to_string())?;
    let recording: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
    let truth = &recording["truth"];
    let mut player = Player::new(&truth["topology"]);
    let name = path.file_stem().unwrap_or_default();
    for (number, step) in truth["steps"].as_array().expect("steps").iter().enumerate() {
        let mut step = step.clone();
        if let Some((.., mtu)) = AT_ONCE.iter().find(|(of, at, _)| name == *of && number == *at) {
            compare::set_path_mtu(&mut step["out"], *mtu);
        }
        let step = &step;
        player.step(step).map_err(|difference| {
            let what = step["note"].as_str().map_or_else(|| strings(&step["argv"]).join(" "), str::to_owned);
            format!("step {number} at {:.3} s, {} {what}: {difference}", player.now, step["op"])
        })?;
    }
    Ok(())
}

/// Recordings that are known not to pass, with the reason.
fn pending() -> BTreeMap<String, String> {
    let text = fs::read_to_string(folder().join("pending.txt")).expect("conformance/pending.txt");
    text.lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| {
            let (name, reason) = line.split_once(char::is_whitespace).expect("NAME REASON");
            (name.to_owned(), reason.trim().to_owned())
        })
        .collect()
}

/// `XVS_CONFORMANCE=NAME` plays only the recordings whose name contains it, and ignores the list.
#[test]
fn every_recording_of_the_kernel_plays_the_same_here_unless_it_is_listed_as_pending() {
    let only = std::env::var("XVS_CONFORMANCE").ok();
    let pending = pending();
    let mut wrong = Vec::new();
    let (mut passed, mut waiting) = (0, 0);
    let mut paths: Vec<_> = fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    paths.sort();
    for path in &paths {
        let name = path.file_stem().unwrap().to_str().unwrap();
        if only.as_ref().is_some_and(|only| !name.contains(only.as_str())) {
            continue;
        }
        let result =
            panic::catch_unwind(|| play(path)).unwrap_or_else(|_| Err("the player panicked".to_owned()));
        match (result, pending.contains_key(name) && only.is_none()) {
            (Ok(()), false) => passed += 1,
            (Err(_), true) => waiting += 1,
            (Ok(()), true) => wrong.push(format!("{name}: passes, so take it off pending.txt")),
            (Err(difference), false) => wrong.push(format!("{name}: {difference}")),
        }
    }
    let names: Vec<_> = paths.iter().map(|path| path.file_stem().unwrap().to_str().unwrap()).collect();
    wrong.extend(
        pending
            .keys()
            .filter(|name| !names.contains(&name.as_str()))
            .map(|name| format!("{name}: no such recording")),
    );
    println!("{passed} recordings play the same, {waiting} are pending");
    assert!(wrong.is_empty(), "{} recordings differ:\n{}", wrong.len(), wrong.join("\n"));
}
