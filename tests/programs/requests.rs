//! Damaged requests: whatever a client writes to the socket, the director answers, and a refused request has changed
//! nothing.
//!
//! Valid requests, as `ipvsadm` and `xvs` send them, are changed at random: bytes of the message, or values of its
//! JSON, which may come from other requests. `scripts/fuzz requests` repeats it with many cases. Not here: the framing,
//! clients that stop within a message (`socket.rs`).

use std::io;

use serde_json::{Value, json};
use xvs::LabCluster;
use xvs::fuzz::Random;
use xvs_ipvsadm::SystemResolver;
use xvs_model::config::refusal::CommandError;
use xvs_model::protocol::client::{Director, Failure};
use xvs_model::protocol::framing::{RequestMessage, VERSION, decode};
use xvs_model::protocol::question::{ControlRequest, Reply, Request};
use xvs_model::report::connection::ConnectionRow;

/// Keeps requests instead of answering them.
#[derive(Default)]
struct Recorder(Vec<Request>);

impl Director for Recorder {
    fn call(&mut self, request: Request) -> Result<Reply, Failure> {
        self.0.push(request);
        Err(Failure::Refused(CommandError::Failed { why: "recorded".to_owned() }))
    }

    fn connections(&mut self, _: &mut dyn FnMut(ConnectionRow) -> io::Result<()>) -> Result<(), Failure> {
        Ok(())
    }
}

/// Requests of command lines of all kinds, as JSON.
fn requests() -> Vec<Value> {
    let mut recorder = Recorder::default();
    for line in [
        "-A -t 198.51.100.100:80 -s mh -b mh-fallback -p 60 -M 255.255.255.0 --syn-proxy auto",
        "-A -u [2001:db8:1::100]:53 -s rr -o",
        "-A -f 7 -6 -s wlc -p 300 --pe sip",
        "-E -t 198.51.100.100:80 -s sh -b sh-port --client-address proxy",
        "-a -t 198.51.100.100:80 -r 192.0.2.11:8080 -m -w 3 -x 10 -y 5",
        "-a -t 198.51.100.100:80 -r 192.0.2.12 -i --tun-type gue --tun-port 6080 --tun-csum",
        "-e -t 198.51.100.100:80 -r 192.0.2.11:8080 --fullnat -w 0",
        "-d -t 198.51.100.100:80 -r 192.0.2.11:8080",
        "-D -f 7 -6",
        "-C",
        "-Z -t 198.51.100.100:80",
        "--set 100 20 3",
        "--start-daemon master --mcast-interface wan --syncid 3 --sync-maxlen 1400",
        "--stop-daemon backup",
        "-L -n",
        "-L -t 198.51.100.100:80",
        "-L --timeout",
        "-L --daemon",
        "-S -n",
    ] {
        let words: Vec<String> =
            std::iter::once("ipvsadm").chain(line.split(' ')).map(str::to_owned).collect();
        xvs_ipvsadm::output(&words, "", &mut recorder, &SystemResolver::default());
    }
    for line in [
        "laddr add 192.0.2.50 --ports 1024-2047",
        "laddr delete 192.0.2.50",
        "laddr list",
        "limit set -t 198.51.100.100:80 --connections 5 --rate 3 --burst 9",
        "limit list",
        "deny 192.0.2.0/24 for 10m",
        "allow -t 198.51.100.100:80 2001:db8::/32",
        "deny list",
        "mark add --set-mark 7 -d 198.51.100.100 -p tcp --dports 80,443:450",
        "mark list",
        "disable 192.0.2.11:8080",
        "enable 192.0.2.11",
        "set schedule_icmp 1",
        "set feedback.services TCP",
        "get",
        "feedback 192.0.2.11 50",
        "explain -t 192.0.2.10:1024 198.51.100.100:80",
        "explain 192.0.2.10:1024 198.51.100.100:80 --tcp --flags SA --mark 7",
        "connections --count",
        "counters",
        "health",
        "status",
    ] {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        xvs_cli::output(&words, &mut recorder);
    }
    assert!(recorder.0.len() > 30, "the lines are requests: {}", recorder.0.len());
    recorder.0.iter().map(|request| serde_json::to_value(request).expect("requests are JSON")).collect()
}

/// Replaces a random value within `value`, or removes or repeats it.
fn damage(value: &mut Value, all: &[Value], random: &mut Random) {
    let inner: Vec<&mut Value> = match value {
        Value::Object(fields) => fields.values_mut().collect(),
        Value::Array(items) => items.iter_mut().collect(),
        _ => vec![],
    };
    let count = inner.len() as u64;
    if count > 0 && random.below(4) > 0 {
        let at = random.below(count) as usize;
        return damage(inner.into_iter().nth(at).expect("it is one of them"), all, random);
    }
    let strings =
        ["", "0.0.0.0:0", "[::]:0", "::ffff:192.0.2.1", "TCP 198.51.100.100:80", "FWM 0", "\u{0}", "rr"];
    let numbers = [0, 1, -1, 127, 65_535, 65_536, i64::from(u32::MAX), i64::MAX, i64::MIN];
    match random.below(8) {
        0 => *value = Value::Null,
        1 => *value = json!(random.of(&numbers)),
        2 => *value = json!(random.of(&strings)),
        3 => *value = json!(1e308),
        4 => *value = random.of(all).clone(),
        5 => *value = json!([value.clone(), value.clone()]),
        6 => {
            if let Value::Object(fields) = value
                && let Some(name) = fields.keys().next().cloned()
            {
                fields.remove(&name);
            }
        }
        _ => {
            if let Value::String(text) = value {
                *text = text.repeat(1 + random.below(40) as usize);
            }
        }
    }
}

/// A few; `scripts/fuzz requests` sets others, as `FIRST..END`.
fn seeds() -> std::ops::Range<u64> {
    let Ok(text) = std::env::var("SEEDS") else { return 0..50 };
    let range = text.split_once("..").and_then(|(first, end)| Some(first.parse().ok()?..end.parse().ok()?));
    range.expect("SEEDS is a range, such as 0..100")
}

/// The director's rules and settings.
fn state(director: &mut impl Director) -> Value {
    let ask =
        [ControlRequest::Rules, ControlRequest::Settings, ControlRequest::Timeouts, ControlRequest::Disabled];
    ask.map(|request| director.call(request.into()).expect("a director can be asked").clone())
        .iter()
        .map(|reply| serde_json::to_value(reply).expect("replies are JSON"))
        .collect()
}

#[test]
fn whatever_a_request_has_in_it_the_director_answers_and_what_it_refuses_changes_nothing() {
    let requests = requests();
    let (mut accepted, mut refused, mut unreadable) = (0, 0, 0);
    for seed in seeds() {
        let mut random = Random(seed);
        let mut lab = LabCluster::new();
        let director = &mut lab.lab().director;
        for _ in 0..40 {
            let mut request = random.of(&requests).clone();
            for _ in 0..random.below(3) {
                damage(&mut request, &requests, &mut random);
            }
            let mut message = json!({ "version": VERSION, "request": request }).to_string().into_bytes();
            if random.below(8) == 0 {
                let at = random.below(message.len() as u64) as usize;
                message[at] = random.draw() as u8;
            }
            let Ok(RequestMessage { request, .. }) = decode(&message) else {
                unreadable += 1;
                continue;
            };
            let before = state(director);
            match director.call(request) {
                Ok(_) => accepted += 1,
                Err(why) => {
                    refused += 1;
                    assert!(!why.to_string().is_empty());
                    let text = String::from_utf8_lossy(&message);
                    assert_eq!(state(director), before, "seed {seed}: {text}");
                }
            }
        }
    }
    assert!(accepted > 0 && refused > 0 && unreadable > 0, "{accepted} {refused} {unreadable}");
}
