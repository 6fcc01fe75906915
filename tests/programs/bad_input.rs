//! Bad input from the command line, from files and from the other end of the socket: what the programs print and how
//! they exit, with nothing changed.
//!
//! Lines that reach a director go to the lab; sockets of the test stand for daemons of other releases.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::{fs, thread};

use serde_json::{Value, json};
use xvs::cluster::complete;
use xvs::director::program;
use xvs_cli::lab::Lab;
use xvs_model::protocol::framing::VERSION;

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("xvs-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).expect("a new folder");
        Self(path)
    }

    fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, content).expect("a new file");
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left is in the folder for temporary files.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn ask(lab: &mut Lab, line: &Value) -> (i64, String) {
    let answer: Value = serde_json::from_str(&lab.answer(&line.to_string())).expect("the lab answers JSON");
    let said =
        format!("{}{}", answer["stdout"].as_str().unwrap_or(""), answer["stderr"].as_str().unwrap_or(""));
    (answer["exit"].as_i64().unwrap_or_else(|| panic!("{line}: {answer}")), said)
}

fn adm(lab: &mut Lab, words: &[&str]) -> (i64, String) {
    ask(lab, &json!({ "adm": words }))
}

fn xvs(lab: &mut Lab, words: &[&str]) -> (i64, String) {
    ask(lab, &json!({ "xvs": words }))
}

#[test]
fn addresses_are_read_as_by_ipvsadm_and_other_text_is_refused() {
    let mut lab = Lab::new();
    let illegal = "illegal virtual server address[:port] specified\n";
    let long = "x".repeat(300);
    for address in [
        "192.0.2.1:65536",
        "192.0.2.1:-1",
        "192.0.2.1:８０",
        "192.0.2.1:80 ",
        " 192.0.2.1:80",
        "192.0.2.1:",
        "[::1]:65536",
        "[::1]",
        "[::1]80",
        "[::1",
        "::1]:80",
        "[192.0.2.1:80",
        "",
        ":",
        "\u{feff}192.0.2.1:80",
        "ünïcode.invalid:80",
        "192.0.2.1:99999999999999999999",
        &long,
    ] {
        assert_eq!(adm(&mut lab, &["-A", "-t", address]), (2, illegal.to_owned()), "{address:?}");
    }
    // All of it is an address of IPv6, and it has no port.
    let no_port = (2, "Zero port specified for non-persistent service\n".to_owned());
    assert_eq!(adm(&mut lab, &["-A", "-t", "::1:80"]), no_port);
    assert_eq!(adm(&mut lab, &["-A", "-t", "[::1]:80"]), (0, String::new()));
    assert_eq!(adm(&mut lab, &["-Sn"]).1, "-A -t [::1]:80 -s wlc\n");
}

#[test]
fn names_and_numbers_of_any_length_are_refused_as_ipvsadm_refuses_them() {
    let mut lab = Lab::new();
    let service = ["-A", "-t", "192.0.2.1:80"];
    let unknown = (255, "Scheduler or persistence engine not found\n".to_owned());
    for name in ["wlc".repeat(100).as_str(), "ünïcödeünïcödeünïcöde", "w lc", "wlc\n", "\u{202e}clw"]
    {
        assert_eq!(adm(&mut lab, &[&service[..], &["-s", name]].concat()), unknown, "{name:?}");
        assert_eq!(adm(&mut lab, &[&service[..], &["-p", "--pe", name]].concat()), unknown, "{name:?}");
        assert_eq!(adm(&mut lab, &[&service[..], &["-b", name]].concat()).0, 2, "{name:?}");
    }
    for number in ["9".repeat(300).as_str(), "-1", "1e3", "0x10", "１", " ", "1 "] {
        assert_eq!(adm(&mut lab, &["-A", "-f", number]).0, 2, "-f {number:?}");
        assert_ne!(adm(&mut lab, &[&service[..], &["-p", number]].concat()).0, 0, "-p {number:?}");
        assert_ne!(adm(&mut lab, &["--set", "1", "2", number]).0, 0, "--set {number:?}");
    }
    assert_eq!(adm(&mut lab, &["-Sn"]), (0, String::new()));
}

#[test]
fn accepted_input_can_be_saved_and_restored_and_other_input_is_refused_with_the_next_step() {
    let mut lab = Lab::new();
    for name in [
        "x".repeat(300).as_str(),
        "sixteen-letters!",
        "ü ü",
        "a\tb",
        "eth0\n",
        "a/b",
        "eth0:1",
        "-x",
        ".",
        "",
    ] {
        let interface = format!("--interface={name}");
        let (exit, said) = xvs(&mut lab, &["mark", "add", &interface, "--set-mark", "1"]);
        assert_eq!(exit, 3, "{name:?}: {said}");
        assert!(said.contains("up to 15 bytes"), "{name:?}: {said}");
    }
    for name in ["eth0", "eth+", "fifteen-letters", "ünïcode"] {
        assert_eq!(
            xvs(&mut lab, &["mark", "add", "-i", name, "--set-mark", "1"]),
            (0, String::new()),
            "{name}"
        );
    }
    for (words, next) in [
        (&["laddr", "add", "192.0.2.9", "--ports", "9-5"][..], "from 1 on"),
        (&["laddr", "add", "192.0.2.9", "--ports", "0-5"], "from 1 on"),
        (&["laddr", "add", "192.0.2.9", "--ports", "1-65536"], "LOW-HIGH"),
        (&["laddr", "add", "192.0.2.9:80"], "--help"),
        (&["set", "am_droprate", "-1"], "0 to 4294967295"),
        (&["set", "am_droprate", "4294967296"], "0 to 4294967295"),
        (&["set", "drop_packet", "９"], "0 to 3"),
        (&["set", "", ""], "known: am_droprate"),
        (&["feedback", "::1:80:", "5"], "ADDRESS:PORT"),
        (&["feedback", "192.0.2.1", "1e999"], "a number is needed"),
        (&["mark", "add", "-p", "tcp", "--dport", "65536", "--set-mark", "1"], "to 65535"),
    ] {
        let (exit, said) = xvs(&mut lab, words);
        assert!(matches!(exit, 2 | 3) && said.contains(next), "{words:?}: {exit} {said}");
    }
    let (_, saved) = adm(&mut lab, &["-Sn"]);
    let restored = ask(&mut Lab::new(), &json!({ "adm": ["-R"], "stdin": saved }));
    assert_eq!(restored, (0, String::new()), "{saved}");
}

/// What a program prints, and how it exits.
fn run(words: &[&str], socket: &Path) -> (Option<i32>, String) {
    let output = complete(Command::new(program(words[0])).args(&words[1..]).env("XVS_SOCKET", socket));
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&said).into_owned())
}

#[test]
fn a_file_of_rules_is_refused_by_its_line_before_anything_is_touched() {
    let folder = Folder::new("bad-rules");
    let socket = folder.0.join("xvsd.sock");
    let named = socket.display().to_string();
    let begin = |content: &[u8]| {
        let rules = folder.file("rules", content).display().to_string();
        let words = ["xvsd", "--interface", "no-such-nic", "--socket", &named, "--rules", &rules];
        let (exit, said) = run(&words, &socket);
        assert!(!said.contains("panicked") && said.lines().count() == 1, "{said}");
        (exit, said)
    };
    for (content, told) in [
        (&b"-A -t 192.0.2.1:80\n\xff\xfe\n"[..], "line 2: it does not begin with a command"),
        (b"\xef\xbb\xbf-A -t 192.0.2.1:80\n", "line 1: it does not begin with a command"),
        (b"\n#xvs nonsense\n", "line 2: behind `#xvs` stands mark"),
        (b"-A -t 192.0.2.1:80\0\n", "line 1: illegal virtual server address"),
        (b"-A -t 192.0.2.1:65536\n", "line 1: illegal virtual server address"),
        (b"-A -t [::1]:80\n-A -t ::1:80\n", "line 2: Zero port"),
        (b"-L -n\n", "line 1: only what changes services"),
        ("-A -t 192.0.2.1:80 -s \"w lc\"\n".as_bytes(), "line 1: unexpected argument lc\""),
        (&[b'x'; 1 << 20], "line 1: it does not begin with a command"),
    ] {
        let (exit, said) = begin(content);
        assert!(
            exit == Some(2) && said.contains(told),
            "{told}: {exit:?} {}",
            said.chars().take(300).collect::<String>()
        );
    }
    // These are right, so xvsd gets as far as the interface, which does not exist.
    for content in [&b"-A -t 192.0.2.1:80\r\n \t\r\n"[..], b"# caf\xe9\n-A -t 192.0.2.1:80\n", b""] {
        let (exit, said) = begin(content);
        assert!(exit == Some(1) && said.contains("no interface no-such-nic"), "{exit:?} {said}");
    }
    let (exit, said) = run(&["xvsd", "--interface", "no-such-nic", "--rules", "/"], &socket);
    assert!(exit == Some(2) && said.starts_with("xvsd: rules /: Is a directory"), "{said}");
}

#[test]
fn a_repeated_rule_is_reported_with_its_line_and_the_rest_is_restored() {
    let mut lab = Lab::new();
    let rules = "-A -t 192.0.2.1:80\n-A -t 192.0.2.1:80\n-a -t 192.0.2.1:80 -r 192.0.2.2 -m\n\
                 -a -t 192.0.2.1:80 -r 192.0.2.2 -m\n-A -u 192.0.2.1:53\n";
    let told = ask(&mut lab, &json!({ "adm": ["-R"], "stdin": rules }));
    assert_eq!(told, (0, "Service already exists\nDestination already exists\n".to_owned()));
    let saved =
        "-A -t 192.0.2.1:80 -s wlc\n-a -t 192.0.2.1:80 -r 192.0.2.2:80 -m -w 1\n-A -u 192.0.2.1:53 -s wlc\n";
    assert_eq!(adm(&mut lab, &["-Sn"]).1, saved);
}

/// Answers each request on a socket by `answer`, or closes if it is empty; until the test ends.
fn serve(socket: &Path, answer: String) {
    let listener = UnixListener::bind(socket).expect("a new socket");
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            let mut length = [0; 4];
            while stream.read_exact(&mut length).is_ok() {
                let mut request = vec![0; u32::from_be_bytes(length) as usize];
                let heard = stream.read_exact(&mut request);
                if heard.is_err() || answer.is_empty() {
                    break;
                }
                let told = [&(answer.len() as u32).to_be_bytes()[..], answer.as_bytes()].concat();
                if stream.write_all(&told).is_err() {
                    break;
                }
            }
        }
    });
}

/// A command line of each program, its exit code when the daemon refuses, and when no daemon listens.
const ASKING: [(&[&str], i32, i32); 5] = [
    (&["xvs", "status"], 3, 4),
    (&["xvs", "set", "drop_packet", "1"], 3, 4),
    (&["xvsadm", "-Ln"], 1, 2),
    (&["xvsadm", "-Lnc"], 1, 2),
    (&["xvsadm", "-A", "-t", "192.0.2.1:80"], 255, 2),
];

#[test]
fn a_daemon_of_another_protocol_version_is_refused_with_both_versions_and_the_next_step() {
    let folder = Folder::new("bad-version");
    let refusal = |ours| json!({ "Err": { "wrong_version": { "ours": ours, "theirs": VERSION } } });
    let answer = |ours| json!({ "version": ours, "answer": refusal(ours), "more": false });
    let of_a_new_shape = json!({ "version": VERSION + 1, "replies": ["in a shape", { "of": "its own" }] });
    for (name, ours, reply) in [
        ("older", VERSION - 1, answer(VERSION - 1)),
        ("newer", VERSION + 1, answer(VERSION + 1)),
        ("novel", VERSION + 1, of_a_new_shape),
    ] {
        let socket = folder.0.join(name);
        serve(&socket, reply.to_string());
        let versions = format!("version {ours} of the control protocol and this program version {VERSION}; ");
        for (words, refused, _) in ASKING {
            let (exit, said) = run(words, &socket);
            assert!(said.contains(&format!("xvsd speaks {versions}")), "{words:?}: {said}");
            assert!(said.contains("install both from one release, then restart xvsd"), "{words:?}: {said}");
            assert_eq!(exit, Some(refused), "{words:?}");
        }
    }
}

#[test]
fn an_unreadable_reply_and_a_closed_connection_are_reported_with_the_sockets_path() {
    let folder = Folder::new("bad-answer");
    let shape = format!("{{\"version\":{VERSION}}}");
    for (name, answer) in [("web", "HTTP/1.0 400 Bad Request"), ("closed", ""), ("shape", &shape)] {
        let socket = folder.0.join(name);
        serve(&socket, answer.to_owned());
        for (words, _, none) in ASKING {
            let (exit, said) = run(words, &socket);
            assert!(said.contains(&format!("{}: ", socket.display())), "{name} {words:?}: {said}");
            assert_eq!((exit, said.lines().count()), (Some(none), 1), "{name} {words:?}: {said}");
        }
    }
    // A socket without a name is the usual one.
    let (exit, said) = run(&["xvsadm", "-Ln"], Path::new(""));
    assert!(exit != Some(2) || said.contains("/run/xvs/xvsd.sock"), "{said}");
}

#[test]
fn a_full_disk_is_reported_and_a_closed_pipe_is_silent() {
    for words in [
        "xvs completion bash",
        "xvs doctor --interface lo",
        "xvs realserver status",
        "xvsadm -h",
        "xvs lab",
        "xvs --help",
        "xvsd --help",
    ] {
        let programs = program("xvs").parent().expect("it stands in a folder").display().to_string();
        let shell = |line: &str| -> Output {
            let mut command = Command::new("bash");
            command.args(["-c", line]).current_dir(&programs).stdin(Stdio::null());
            complete(&mut command)
        };
        let full = shell(&format!("echo '{{\"counters\":true}}' | ./{words} >/dev/full"));
        let said = String::from_utf8_lossy(&full.stderr).into_owned();
        assert!(
            full.status.code() == Some(1) && said.contains("standard output: No space left"),
            "{words}: {said}"
        );
        let gone = shell(&format!("yes '{{\"counters\":true}}' 2>&- | ./{words} | true"));
        assert!(gone.stderr.is_empty(), "{words}: {}", String::from_utf8_lossy(&gone.stderr));
    }
}

#[test]
fn a_line_that_is_not_utf8_gets_an_error_and_the_lab_goes_on() {
    let folder = Folder::new("bad-lab");
    let lines = folder.file("lines", b"\xff\xfe\n{\"counters\":true}\n{\"nosuch\":1}\n");
    let input = fs::File::open(lines).expect("it was written");
    let output = complete(Command::new(program("xvs")).arg("lab").stdin(input));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let answers: Vec<_> = said.lines().collect();
    assert_eq!((answers.len(), answers[1]), (3, "{}"), "{said}");
    assert!(answers[0].starts_with("{\"error\":") && answers[2].contains("`inject`"), "{said}");
}
