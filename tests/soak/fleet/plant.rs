//! Planted bugs of the suite `fleet`: each breaks one rule of the checker, in the world and not in xvsd.
//!
//! Not recorded, unless an entry says otherwise. Not here: the rules (`checker.rs`).

use std::process::Command;
use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use xvs::Host;
use xvs::cluster::{VIP, succeed};
use xvs::director::program;

use crate::faults::{World, host};

/// The director that has the bug.
const DIRECTOR: u8 = 2;
/// Longer than a director may announce addresses that it cannot serve.
const LONG: Duration = Duration::from_secs(6);
/// In which all directors follow new rules.
const FOLLOWED: Duration = Duration::from_secs(3);

/// Plants the bug of a rule.
pub(crate) fn plant(world: &mut World<'_>, rule: char) {
    let cluster = world.cluster;
    let name = host(DIRECTOR).name();
    let no_etcd = [format!("iifname {name:?} ether type ip tcp dport 2379 drop")];
    match rule {
        // A service that nobody applied.
        'a' => {
            let words = ["-A", "-t", &format!("{VIP}:29999"), "-s", "rr"];
            succeed(cluster.command(host(DIRECTOR), program("xvsadm")).args(words));
        }
        // The state of before the last rules, and no etcd that knows better.
        'b' => {
            let (state, kept) = (cluster.state().join(&name).join("shm"), cluster.state().join("kept"));
            succeed(Command::new("cp").arg("-a").arg(&state).arg(&kept));
            world.apply_at_once(&[1]);
            thread::sleep(FOLLOWED);
            world.drop_frames("plant", &no_etcd);
            world.kill(DIRECTOR);
            let script = "rm -rf \"$2\"/* && cp -a \"$1\"/* \"$2\"";
            succeed(Command::new("sh").args(["-c", script, "sh"]).arg(&kept).arg(&state));
            world.start_again(DIRECTOR);
            thread::sleep(FOLLOWED);
            world.let_frames_pass("plant");
        }
        // A director that etcd's rules do not reach.
        'c' => {
            world.drop_frames("plant", &no_etcd);
            world.apply_at_once(&[1]);
        }
        // Connections that end although their directors serve them.
        'd' => {
            let text = "table ip plant { chain resets { type filter hook forward priority 0\n\
                        tcp dport 9001-9004 numgen random mod 20 == 0 reject with tcp reset\n}\n}";
            succeed(cluster.command(Host::Router, "nft").arg(text));
            thread::sleep(LONG);
            succeed(cluster.command(Host::Router, "nft").args(["delete", "table", "ip", "plant"]));
        }
        // Addresses that stay announced.
        'e' => {
            world.member(DIRECTOR).signal_announce(Signal::STOP);
            world.kill(DIRECTOR);
            thread::sleep(LONG);
            world.start_again(DIRECTOR);
            world.member(DIRECTOR).signal_announce(Signal::CONT);
        }
        // Counters that do not balance.
        _ => *world.recorder.forged.lock().expect("no thread panics") = Some(DIRECTOR),
    }
}
