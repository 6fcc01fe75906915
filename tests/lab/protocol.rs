//! The lab's protocol: the answer to each request and to a wrong line, and that equal input gives equal output, in this
//! process and from the program.

use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use xvs::frames::{ACK, SYN, hex};
use xvs::lab_cluster::{CLIENT, GATEWAY_MAC, LAN_MAC, VIP, WAN_MAC, at, server, server_mac};
use xvs::{Datagram, LabCluster, Transport};
use xvs_cli::lab::Lab;

fn ask(lab: &mut Lab, line: &str) -> Value {
    let answer = lab.answer(line);
    assert!(!answer.contains('\n'), "one line: {answer:?}");
    serde_json::from_str(&answer).expect("JSON")
}

fn syn(port: u16) -> String {
    hex(&Datagram::new(Transport::Tcp(SYN), at(CLIENT, port), at(VIP, 80)).frame(GATEWAY_MAC, WAN_MAC))
}

/// A long mixture of all requests, wrong ones among them.
fn script() -> Vec<String> {
    let mut lines = vec![
        json!({ "link": "wan", "mac": "02:00:00:00:01:01", "addresses": ["192.0.2.1/25"] }),
        json!({ "link": "lan", "mac": "02:00:00:00:02:01", "addresses": ["203.0.113.1/24"], "mtu": 1400 }),
        json!({ "route": "default", "via": "192.0.2.126", "link": "wan" }),
        json!({ "neighbor": "192.0.2.126", "mac": "02:00:00:00:01:fe", "link": "wan" }),
        json!({ "neighbor": "203.0.113.11", "mac": "02:00:00:00:02:0b", "link": "lan" }),
        json!({ "neighbor": "203.0.113.12", "mac": "02:00:00:00:02:0c", "link": "lan" }),
        json!({ "adm": ["-A", "-t", "198.51.100.1:80", "-s", "wrr"] }),
        json!({ "adm": ["-A", "-u", "198.51.100.1:80", "-s", "wlc"] }),
        json!({ "adm": ["-a", "-t", "198.51.100.1:80", "-r", "203.0.113.11:8080", "-m", "-w", "3"] }),
        json!({ "adm": ["-a", "-t", "198.51.100.1:80", "-r", "203.0.113.12", "-i", "-w", "2"] }),
        json!({ "adm": ["-a", "-u", "198.51.100.1:80", "-r", "203.0.113.12", "-g"] }),
    ];
    for turn in 0..300u16 {
        let from = at(CLIENT, 1000 + turn % 37);
        let flags = [SYN, ACK, SYN, 0x11, ACK, 0x04][usize::from(turn) % 6];
        let transport = if turn % 5 == 0 { Transport::Udp } else { Transport::Tcp(flags) };
        let packet = Datagram::new(transport, from, at(VIP, 80)).carrying(usize::from(turn % 199) * 7);
        lines.push(json!({ "inject": "wan", "frame": hex(&packet.frame(GATEWAY_MAC, WAN_MAC)) }));
        let reply = Datagram::new(transport, at(server(1), 8080), from);
        lines.push(json!({ "inject": "lan", "frame": hex(&reply.frame(server_mac(1), LAN_MAC)) }));
        match turn % 7 {
            0 => lines.push(json!({ "advance": f64::from(turn) / 3.0 })),
            1 => lines.push(json!({ "counters": true })),
            2 => lines.push(json!({ "adm": ["-L", "-n", "-c"] })),
            3 => lines.push(json!({ "adm": ["-L", "-n", "--stats"] })),
            4 => lines.push(json!({ "adm": ["-L", "-n", "--rate"] })),
            5 => lines.push(json!({
                "adm": ["-e", "-t", "198.51.100.1:80", "-r", "203.0.113.11:8080", "-m", "-w", (turn % 4).to_string()]
            })),
            _ => lines.push(json!({ "inject": "nowhere", "frame": "" })),
        }
    }
    lines.iter().map(Value::to_string).collect()
}

fn answers(script: &[String]) -> Vec<String> {
    let mut lab = Lab::new();
    script.iter().map(|line| lab.answer(line)).collect()
}

/// Standard output, standard error and the exit code of `xvs lab` with these words.
fn run(words: &[&str], input: &str) -> (String, String, Option<i32>) {
    let mut child = Command::new(xvs::director::program("xvs"))
        .arg("lab")
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("xvs starts");
    let mut stdin = child.stdin.take().expect("it was piped");
    let input = input.to_owned();
    let writing = std::thread::spawn(move || {
        // If the program ends early, its output shows it.
        let _ = stdin.write_all(input.as_bytes());
    });
    let output = child.wait_with_output().expect("xvs ends");
    writing.join().expect("the writer ends");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    (text(output.stdout), text(output.stderr), output.status.code())
}

#[test]
fn every_request_answers_in_its_shape() {
    let mut lab = Lab::new();
    let ok = json!({ "ok": true });
    for line in [
        json!({ "link": "wan", "mac": "02:00:00:00:01:01", "addresses": ["192.0.2.1/25"], "mtu": 1500 }),
        json!({ "link": "bare", "mac": "02:00:00:00:03:01" }),
        json!({ "link": "six", "mac": "02:00:00:00:04:01", "addresses": ["2001:db8::1/64"] }),
        json!({ "route": "192.0.2.128/25", "via": "192.0.2.126", "link": "wan" }),
        json!({ "route": "default", "via": "192.0.2.126", "link": "wan" }),
        json!({ "route": "::/0", "via": "2001:db8::fe", "link": "six" }),
        json!({ "neighbor": "192.0.2.126", "mac": "02:00:00:00:01:fe", "link": "wan" }),
        json!({ "set": { "icmp_msgs_per_sec": 0 } }),
        json!({ "set": {} }),
    ] {
        assert_eq!(ask(&mut lab, &line.to_string()), ok, "{line}");
    }
    assert_eq!(ask(&mut lab, r#"{"counters":true}"#), json!({}));
    assert_eq!(ask(&mut lab, r#"{"advance":2.5}"#), json!({ "ok": true, "tx": [] }));
    assert_eq!(ask(&mut lab, r#"{"advance":0}"#), json!({ "ok": true, "tx": [] }));
    let nothing = json!({ "exit": 0, "stdout": "", "stderr": "" });
    assert_eq!(ask(&mut lab, r#"{"adm":["-A","-t","198.51.100.1:80","-s","rr"]}"#), nothing);
    assert_eq!(
        ask(&mut lab, r#"{"adm":["-A","-t","198.51.100.1:80","-s","rr"]}"#),
        json!({ "exit": 255, "stdout": "", "stderr": "Service already exists\n" })
    );
    let rules = "-A -u 198.51.100.1:53 -s wrr\n-a -u 198.51.100.1:53 -r 192.0.2.9:53 -m -w 4\n";
    assert_eq!(ask(&mut lab, &json!({ "adm": ["-R"], "stdin": rules }).to_string()), nothing);
    let saved = ask(&mut lab, r#"{"adm":["-S","-n"]}"#);
    assert!(saved["stdout"].as_str().is_some_and(|saved| saved.ends_with(rules)), "{saved}");
    let listing = ask(&mut lab, r#"{"adm":["-L","-n","-t","198.51.100.1:80"]}"#);
    assert_eq!(
        listing["stdout"],
        "Prot LocalAddress:Port Scheduler Flags\n  -> RemoteAddress:Port           Forward Weight ActiveConn \
         InActConn\nTCP  198.51.100.1:80 rr\n"
    );
    assert_eq!(ask(&mut lab, r#"{"xvs":["set","icmp_msgs_per_sec","0"]}"#), nothing);
    let judged = ask(&mut lab, &json!({ "inject": "wan", "frame": syn(4000) }).to_string());
    assert_eq!((&judged["verdict"], &judged["reason"]), (&json!("drop"), &json!("no_destination")));
    assert_eq!(judged["tx"][0]["link"], "wan");
    let passed = ask(&mut lab, &json!({ "inject": "bare", "frame": syn(4000) }).to_string());
    assert_eq!(passed, json!({ "verdict": "pass", "tx": [], "reason": null }));
    assert_eq!(
        ask(&mut lab, r#"{"counters":true}"#),
        json!({
            "rx_packets": 2, "tx_packets": 1, "originated": 1, "drop_no_destination": 1, "passed_to_kernel": 1
        })
    );
}

#[test]
fn a_wrong_line_answers_an_error_changes_nothing_and_the_lab_goes_on() {
    let mut cluster = LabCluster::new();
    cluster.adm(&format!("-A -t {VIP}:80 -s rr"));
    cluster.adm(&format!("-a -t {VIP}:80 -r {}:80 -m", server(1)));
    cluster.from_client(&Datagram::new(Transport::Tcp(SYN), at(CLIENT, 4000), at(VIP, 80)));
    let state = |cluster: &mut LabCluster| {
        (
            cluster.counters(),
            cluster.connections(),
            cluster.adm("-L -n"),
            cluster.lab().director.publications(),
        )
    };
    let before = state(&mut cluster);
    let deep = "[".repeat(100_000);
    for line in [
        "",
        " ",
        "{",
        "}",
        "null",
        "1",
        "true",
        "[]",
        "{}",
        "\"link\"",
        "{\"link\":",
        "nonsense",
        deep.as_str(),
        "\u{0}",
        r#"{"link":1}"#,
        r#"{"link":"new"}"#,
        r#"{"link":"new","mac":"02:00:00:00:01"}"#,
        r#"{"link":"new","mac":"02:00:00:00:01:zz"}"#,
        r#"{"link":"new","mac":"02:00:00:00:01:05","addresses":["192.0.2.1"]}"#,
        r#"{"link":"new","mac":"02:00:00:00:01:05","addresses":["192.0.2.1/33"]}"#,
        r#"{"link":"new","mac":"02:00:00:00:01:05","addresses":["192.0.2.256/24"]}"#,
        r#"{"link":"new","mac":"02:00:00:00:01:05","addresses":["2001:db8::1/129"]}"#,
        r#"{"link":"new","mac":"02:00:00:00:01:05","mtu":-1}"#,
        r#"{"link":"new","mac":"02:00:00:00:01:05","mtu":5000000000}"#,
        r#"{"link":"new","mac":"02:00:00:00:01:05","colour":"red"}"#,
        r#"{"link":"wan","mac":"02:00:00:00:01:05"}"#,
        r#"{"route":"10.0.0.0/8","via":"192.0.2.126","link":"none"}"#,
        r#"{"route":"10.0.0.0/33","via":"192.0.2.126","link":"wan"}"#,
        r#"{"route":"10.0.0.0/8","link":"wan"}"#,
        r#"{"neighbor":"192.0.2.5","mac":"02:00:00:00:01:05","link":"none"}"#,
        r#"{"neighbor":"192.0.2","mac":"02:00:00:00:01:05","link":"wan"}"#,
        r#"{"set":{"no_such_setting":1}}"#,
        r#"{"set":{"icmp_msgs_per_sec":-1}}"#,
        r#"{"set":{"icmp_msgs_per_sec":"many"}}"#,
        r#"{"set":{"icmp_msgs_per_sec":7,"no_such_setting":1}}"#,
        r#"{"set":["icmp_msgs_per_sec"]}"#,
        r#"{"adm":"-L"}"#,
        r#"{"adm":[1]}"#,
        r#"{"adm":["-L"],"stdin":1}"#,
        r#"{"inject":"none","frame":"00"}"#,
        r#"{"inject":"wan"}"#,
        r#"{"inject":"wan","frame":"0"}"#,
        r#"{"inject":"wan","frame":"zz"}"#,
        r#"{"inject":"wan","frame":"0x00"}"#,
        r#"{"inject":"wan","frame":"ä"}"#,
        r#"{"inject":"wan","frame":5}"#,
        r#"{"advance":-1}"#,
        r#"{"advance":"1"}"#,
        r#"{"advance":1e300}"#,
        r#"{"advance":null}"#,
        r#"{"counters":false}"#,
        r#"{"counters":1}"#,
        r#"{"advance":1,"counters":true}"#,
    ] {
        let answer = ask(cluster.lab(), line);
        let error = answer["error"].as_str().unwrap_or_else(|| panic!("{line:.60}: {answer}"));
        assert!(!error.is_empty() && answer.as_object().is_some_and(|answer| answer.len() == 1), "{answer}");
        assert_eq!(state(&mut cluster), before, "{line:.60}");
    }
    let next = Datagram::new(Transport::Tcp(ACK), at(CLIENT, 4000), at(VIP, 80));
    assert_eq!(cluster.from_client(&next).verdict, "transmit");
}

#[test]
fn a_command_that_acts_on_the_machine_itself_is_not_run_from_the_lab() {
    let mut lab = Lab::new();
    // 2: the lab has no such subcommand; 3: the director refused it.
    for (words, exit) in [
        (json!(["realserver", "up", "--vip", "198.51.100.1"]), 2),
        (json!(["lab"]), 2),
        (json!(["completion", "bash"]), 2),
        (json!(["status"]), 3),
    ] {
        let answer = ask(&mut lab, &json!({ "xvs": words }).to_string());
        assert_eq!((&answer["exit"], &answer["stdout"]), (&json!(exit), &json!("")), "{words}");
        assert!(answer["stderr"].as_str().is_some_and(|text| text.starts_with("xvs: ")), "{answer}");
    }
    let answer = ask(&mut lab, r#"{"xvs":["no-such-command"]}"#);
    assert_eq!(answer["exit"], 2);
    let answer = ask(&mut lab, r#"{"xvs":["set","no_such_setting","1"]}"#);
    assert_eq!(answer["exit"], 3);
}

#[test]
fn time_moves_only_by_advance_and_adds_up() {
    let mut cluster = LabCluster::new();
    cluster.adm(&format!("-A -u {VIP}:80"));
    cluster.adm(&format!("-a -u {VIP}:80 -r {}", server(1)));
    let first = Datagram::new(Transport::Udp, at(CLIENT, 4000), at(VIP, 80));
    cluster.from_client(&first);
    let row = |left: &str| format!("UDP {left} UDP {CLIENT}:4000 {VIP}:80 {}:80", server(1));
    for _ in 0..50 {
        cluster.counters();
        assert_eq!(cluster.connections(), [row("05:00")]);
    }
    for _ in 0..1000 {
        cluster.advance(0.01);
    }
    assert_eq!(cluster.connections(), [row("04:50")]);
    cluster.advance(289.5);
    assert_eq!(cluster.connections(), [row("00:00")]);
    cluster.advance(0.5);
    assert_eq!(cluster.connections(), [] as [String; 0]);
}

#[test]
fn the_same_script_gives_the_same_bytes_twice_and_from_the_program() {
    let script = script();
    let once = answers(&script);
    assert!(once.iter().filter(|answer| answer.contains("\"transmit\"")).count() > 100);
    assert_eq!(answers(&script), once);
    let (printed, _, code) = run(&[], &(script.join("\n") + "\n"));
    assert_eq!(code, Some(1), "some lines name a link that there is not");
    for (number, (printed, here)) in printed.lines().zip(&once).enumerate() {
        assert_eq!(printed, here, "line {number}: {}", script[number]);
    }
    assert_eq!(printed.lines().count(), once.len());
}

#[test]
fn the_program_takes_its_settings_from_the_section_of_a_file_and_names_what_it_does_not_know() {
    let folder = std::env::temp_dir().join(format!("xvs-lab-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder for the test");
    let file = folder.join("xvs.toml");
    let path = file.to_str().expect("a path of text");
    let lines = [
        json!({ "link": "wan", "mac": "02:00:00:00:01:01", "addresses": ["192.0.2.1/24"] }),
        json!({ "neighbor": CLIENT, "mac": "02:00:00:00:01:fe", "link": "wan" }),
        json!({ "adm": ["-A", "-t", "198.51.100.1:80"] }),
        json!({ "inject": "wan", "frame": syn(4000) }),
        json!({ "inject": "wan", "frame": syn(4001) }),
        json!({ "counters": true }),
    ];
    let input = lines.iter().map(|line| format!("{line}\n")).collect::<String>();
    std::fs::write(&file, "[ipvs]\nicmp_msgs_per_sec = 1\n").expect("the file is written");
    let (printed, _, code) = run(&["--config", path], &input);
    let counters: Value = serde_json::from_str(printed.lines().last().expect("answers")).expect("JSON");
    assert_eq!(
        (code, &counters["originated"], &counters["answers_withheld"]),
        (Some(0), &json!(1), &json!(1))
    );
    std::fs::write(&file, "[ipvs]\nno_such_key = 1\n").expect("the file is written");
    let (printed, _, code) = run(&["--config", path], &input);
    assert_eq!((printed, code), (String::new(), Some(1)));
    std::fs::remove_dir_all(&folder).expect("the folder goes");
}

#[test]
fn an_empty_line_is_skipped_and_a_last_line_without_end_is_answered() {
    let (printed, said, code) = run(&[], "\n\n{\"counters\":true}\n\nnonsense\n{\"advance\":1}");
    let answers: Vec<_> = printed.lines().collect();
    assert_eq!((code, answers.len()), (Some(1), 3), "{printed}");
    assert_eq!((said.lines().count(), said.starts_with("xvs: line 5 is refused: ")), (1, true), "{said}");
    assert_eq!((answers[0], answers[2]), ("{}", r#"{"ok":true,"tx":[]}"#));
    assert!(answers[1].starts_with(r#"{"error":"#), "{printed}");
}

#[test]
fn a_refused_line_or_command_makes_the_exit_code_1_and_is_named_on_standard_error() {
    let add = r#"{"adm":["-A","-t","198.51.100.1:80"]}"#;
    assert_eq!(run(&[], &format!("{add}\n")).1.as_str(), "");
    for (line, why) in [
        (add, "Service already exists"),
        (r#"{"xvs":["set","no_such_setting","1"]}"#, "no_such_setting"),
        (r#"{"inject":"nowhere","frame":""}"#, "nowhere"),
    ] {
        let (printed, said, code) = run(&[], &format!("{add}\n{line}\n{{\"counters\":true}}\n"));
        assert_eq!((printed.lines().count(), code), (3, Some(1)), "{line}: {printed}");
        assert!(said.starts_with("xvs: line 2 is refused: ") && said.contains(why), "{line}: {said}");
    }
}
