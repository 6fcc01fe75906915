//! The suite `scripts/soak first-hour`: the first hour on bare machines, packages replaced in the middle of failovers,
//! and a pair of directors from user-data.
//!
//! ```text
//! first_hour_soak ROOT
//! ```
//!
//! ROOT is the directory that `tests/first_hour/debian` has made. Prints each command line with its time, and fails if
//! one fails, prints something else than the page, or if a connection is lost. Needs root.

use std::env;
use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use xvs::document::blocks;
use xvs::first_hour::{Machines, SECTIONS, has, page, play, run, section, succeeds};
use xvs::machine::Machine;
use xvs::wait;

fn main() {
    play(SECTIONS[0], boot);
    replace_packages_in_failovers();
    start_from_user_data();
}

/// A machine that is booted from that directory.
fn boot(name: &str) -> Machine {
    Machine::boot(name, &root(""), "")
}

/// That directory, or one with more in its name.
fn root(more: &str) -> PathBuf {
    PathBuf::from(env::args().nth(1).expect("run this by scripts/soak first-hour") + more)
}

/// Goes on with the two directors of the second section: their packages are replaced in the middle of failovers, and
/// no connection may be lost.
fn replace_packages_in_failovers() {
    let machines = play(SECTIONS[1], boot);
    let directors = [&machines.by_name["director1"], &machines.by_name["director2"]];
    let connections = Connections::begin(&machines.by_name["client"]);
    let (ended, asked) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        // Also when this thread panics, else the scope would not end.
        let ending = Ending(&ended);
        let client = scope.spawn(|| connections.ask_until(&ended, &asked));
        // The page ends with the addresses on the second one.
        let mut master = 1;
        for round in 0..8 {
            // Twice each: to the former package and back; that of the director which gets the addresses, or loses them.
            let replaced = round / 2 % 2;
            let (old, new, changed) = (directors[master], directors[1 - master], directors[replaced]);
            let package = ["/former.deb", "/new.deb"][round % 2];
            wait::until("the connections are known to the other director", || {
                let listed = new.shell("xvsadm -Lnc | grep -c ESTABLISHED").stdout;
                (String::from_utf8_lossy(&listed).trim().parse::<usize>().ok()? >= COUNT).then_some(())
            });
            let mut dpkg = changed.command("dpkg");
            dpkg.args(["--install", package]).env("DEBIAN_FRONTEND", "noninteractive");
            let dpkg =
                dpkg.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("nsenter can be started");
            thread::sleep(Duration::from_millis(100) * u32::try_from(round).expect("it is small"));
            let began = Instant::now();
            succeeds(old, "systemctl stop --no-block keepalived");
            wait::until("the other director has the address", || {
                has(&String::from_utf8_lossy(&new.shell("ip -br address").stdout), VIP).then_some(())
            });
            let moved = began.elapsed();
            let dpkg = dpkg.wait_with_output().expect("it is a child of this process");
            assert!(dpkg.status.success(), "{package} on director{}: {dpkg:?}", replaced + 1);
            println!(
                "round {round}: {package} on director{}, {}; addresses moved in {moved:?}, dpkg ended {:?} later",
                replaced + 1,
                if changed.netns.name == new.netns.name {
                    "which gets the addresses"
                } else {
                    "which loses them"
                },
                began.elapsed() - moved
            );
            succeeds(
                changed,
                &format!(
                    "dpkg-deb --field {package} Version | grep -qFx $(dpkg-query -Wf '${{Version}}' xvs)"
                ),
            );
            wait::until("xvsd serves", || changed.shell("xvs healthy").status.success().then_some(()));
            let before = asked.load(Ordering::Relaxed);
            wait::until("each connection has had a page since", || {
                (asked.load(Ordering::Relaxed) >= before + 2 * COUNT || client.is_finished()).then_some(())
            });
            succeeds(old, "systemctl start keepalived");
            master = 1 - master;
        }
        drop(ending);
        let longest = client.join().expect("it has not panicked");
        println!(
            "{} pages by {COUNT} connections, the slowest in {longest:?}",
            asked.load(Ordering::Relaxed)
        );
    });
}

/// A pair of directors starts from the user-data of docs/unattended.md, serves and fails over.
fn start_from_user_data() {
    let page = page("unattended.md");
    let yaml = blocks(&page).into_iter().find(|block| block.language == "yaml").expect("user-data");
    let url = format!("https://packages.example/xvs_{}_amd64.deb", env!("CARGO_PKG_VERSION"));
    let user_data = yaml.lines.join("\n");
    assert!(user_data.contains(&url));
    // The machines have no network beside their own, and addresses already.
    let user_data =
        user_data.replace(&url, "file:///new.deb").replace(" KEY\n", &format!(" {}\n", "5e".repeat(32)));
    let make = |name: &str| {
        if !name.starts_with("director") {
            return boot(name);
        }
        let preparation = format!(
            "echo 'datasource_list: [NoCloud]' >/etc/cloud/cloud.cfg.d/90_source.cfg
            echo 'network: {{config: disabled}}' >/etc/cloud/cloud.cfg.d/90_network.cfg
            echo 'locale: false' >/etc/cloud/cloud.cfg.d/90_locale.cfg
            mkdir -p /var/lib/cloud/seed/nocloud
            cd /var/lib/cloud/seed/nocloud
            printf 'instance-id: {name}\nlocal-hostname: {name}\n' >meta-data
            cat >user-data <<'END'\n{user_data}\nEND\n"
        );
        Machine::boot(name, &root("-cloud"), &preparation)
    };
    let section = section(SECTIONS[1]);
    let mut machines = Machines::of(&section, make);
    machines.play(&section, |host| host.starts_with("web"));
    for name in ["director1", "director2"] {
        let director = &machines.by_name[name];
        run(director, "cloud-init status --long                # → done");
        run(director, "xvs health                              # → 2 of 2 real servers up");
        run(director, "xvsadm -L --daemon                      # → master sync ... backup sync");
    }
    let get =
        "for i in 1 2 3 4; do curl -sS --max-time 1 http://198.51.100.100/; done      # → web1 ... web2";
    run(&machines.by_name["client"], get);
    let has_it =
        |machine: &Machine| has(&String::from_utf8_lossy(&machine.shell("ip -br address").stdout), VIP);
    let master = machines.by_name.values().find(|machine| has_it(machine)).expect("one has the VIP");
    succeeds(master, "systemctl stop keepalived");
    run(&machines.by_name["client"], get);
    assert!(!has_it(master));
}

/// The virtual address of both sections.
const VIP: &str = "198.51.100.100";

/// Connections of the client in that test.
const COUNT: usize = 20;

/// Connections to the VIP's web servers, which serve one page after the other.
struct Connections(Vec<TcpStream>);

impl Connections {
    fn begin(client: &Machine) -> Self {
        let connect = || TcpStream::connect((VIP, 80)).expect("the VIP is served");
        Self(client.netns.run(|| (0..COUNT).map(|_| connect()).collect()))
    }

    /// Asks for a page by each connection in turn. Returns the longest time until one came.
    ///
    /// # Panics
    ///
    /// If none comes within the time limit, or one of another server than the connection's first.
    fn ask_until(&self, ended: &AtomicBool, asked: &AtomicUsize) -> Duration {
        let mut servers = vec![String::new(); self.0.len()];
        let mut longest = Duration::ZERO;
        while !ended.load(Ordering::Relaxed) {
            for (stream, server) in self.0.iter().zip(&mut servers) {
                let began = Instant::now();
                let page = ask(stream).unwrap_or_else(|error| panic!("{stream:?}: {error}"));
                longest = longest.max(began.elapsed());
                if server.is_empty() {
                    server.clone_from(&page);
                }
                assert_eq!(*server, page, "{stream:?}");
                asked.fetch_add(1, Ordering::Relaxed);
            }
            // nginx ends a connection after 1,000 pages.
            thread::sleep(Duration::from_millis(200));
        }
        longest
    }
}

/// The page of a server, which is a line, by a connection that stays.
fn ask(mut stream: &TcpStream) -> io::Result<String> {
    stream.set_read_timeout(Some(wait::DEADLINE))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n")?;
    let mut answer = Vec::new();
    loop {
        let mut part = [0; 2048];
        match stream.read(&mut part)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => answer.extend_from_slice(&part[..count]),
        }
        let text = String::from_utf8_lossy(&answer);
        if let Some(page) = text.split_once("\r\n\r\n").and_then(|(_, page)| page.strip_suffix('\n')) {
            return Ok(page.to_owned());
        }
    }
}

/// Sets a flag when it is dropped.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
