//! The suite `scripts/soak anycast`: connections while the directors of a fleet leave, die and come back.
//!
//! ```text
//! anycast_soak [CONNECTIONS]
//! ```
//!
//! Four directors behind a router that spreads flows by BGP and ECMP, as `docs/examples/anycast` has it, with lasting
//! connections to each of four services (100) and 50 new ones a second. One director leaves in order and comes back,
//! one dies and comes back; first with `mh` and synchronization, then with `wlc` and no synchronization. Prints a row
//! for each phase. Fails if in the first run a lasting connection is lost while a director leaves or comes back, or 1 %
//! of them when one dies. Needs root and `cargo build --workspace --bins` of the same profile.

#[path = "../restart/connections.rs"]
mod connections;
mod rules;

use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use xvs::cluster::REAL_SERVERS;
use xvs::fleet::{Fleet, Member};
use xvs::{Cluster, Layout, Method};

use connections::{Client, METHODS, Servers};
use rules::{SERVICES, of_example, services};

/// How long connections may take to open or to recover: longer than their own patience.
const PATIENCE: Duration = Duration::from_secs(60);
/// A message about a connection leaves within three seconds.
const TOLD: Duration = Duration::from_secs(4);

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let count = match &words[..] {
        [] => Some(100),
        [count] => count.parse().ok(),
        _ => None,
    };
    let Some(count) = count else {
        eprintln!("usage: anycast_soak [CONNECTIONS], a number for each service");
        return ExitCode::from(2);
    };
    let is_good = run("mh, synchronized", "mh", true, count);
    run("wlc, not synchronized", "wlc", false, count);
    if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The rules of a director: the example's local addresses, and the services of the suite.
fn rules(scheduler: &str, is_synchronized: bool) -> String {
    let daemon = if is_synchronized { of_example("--start-daemon") } else { String::new() };
    [of_example("#xvs laddr"), services(scheduler, 2, || 1), daemon].concat()
}

fn run(name: &str, scheduler: &str, is_synchronized: bool, count: usize) -> bool {
    let cluster = Cluster::up(Layout::default());
    Method::Tunnel.prepare(&cluster);
    let servers = REAL_SERVERS.map(|host| Servers::start(&cluster, host));
    let fleet = Fleet::start(&cluster, 4, 3);
    let rules = rules(scheduler, is_synchronized);
    let mut members: Vec<Option<Member<'_>>> =
        (1..=4).map(|number| Some(fleet.member(number, &rules))).collect();
    fleet.await_next_hops(&[1, 2, 3, 4]);

    let client = Client::start(&cluster, count, None);
    let start = Instant::now();
    while client.tally().open != [count; METHODS.len()] && start.elapsed() < PATIENCE {
        thread::sleep(Duration::from_millis(50));
    }
    thread::sleep(TOLD);
    println!("\n{name}: {:?} connections are open", client.tally().open);
    println!("{:<28} {:>5} {:>7} {:>6} {:>8}", "phase", "lost", "refused", "new", "slowest");
    let mut lost = Vec::new();
    let mut phase = |name: &str, act: &mut dyn FnMut()| lost.push(measured(&client, name, act));
    phase("one leaves in order", &mut || {
        let mut member = members[0].take().expect("it runs");
        member.begin_drain();
        while !member.is_drained() {
            thread::sleep(Duration::from_millis(50));
        }
        member.director.stop();
    });
    phase("and is there again", &mut || {
        members[0] = Some(fleet.member(1, &rules));
        fleet.await_next_hops(&[1, 2, 3, 4]);
        thread::sleep(TOLD);
    });
    phase("one dies", &mut || {
        members[1].take().expect("it runs").die();
        fleet.await_next_hops(&[1, 3, 4]);
        thread::sleep(TOLD);
    });
    phase("and is there again", &mut || {
        Member::connect(&fleet, 2);
        members[1] = Some(fleet.member(2, &rules));
        fleet.await_next_hops(&[1, 2, 3, 4]);
        thread::sleep(TOLD);
    });

    let tally = client.tally();
    tally.print(SERVICES.map(|(_, name, _)| name), &servers);
    let all = count * METHODS.len();
    let [left, came, died, came_again] = lost[..] else { unreachable!("there are four phases") };
    tally.open == [count; METHODS.len()] && left + came + came_again == 0 && died * 100 < all
}

/// Does something, waits until every connection was answered after it, prints what it has cost, and returns the number
/// of lasting connections that were lost.
fn measured(client: &Client, name: &str, act: &mut dyn FnMut()) -> usize {
    let before = client.tally();
    client.take_longest_answer();
    act();
    let start = Instant::now();
    while client.tally().answered < start && start.elapsed() < PATIENCE {
        thread::sleep(Duration::from_millis(50));
    }
    let after = client.tally();
    let lost = after.lost.len() - before.lost.len();
    let handshakes = after.handshakes[before.handshakes.len()..].iter().map(|(_, took)| *took);
    let slowest = handshakes.max().unwrap_or_default().max(client.take_longest_answer());
    println!(
        "{name:<28} {lost:>5} {:>7} {:>6} {:>6.1} s",
        after.failed.len() - before.failed.len(),
        after.served.iter().sum::<usize>() - before.served.iter().sum::<usize>(),
        slowest.as_secs_f64(),
    );
    lost
}
