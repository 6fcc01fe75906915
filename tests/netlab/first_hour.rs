//! `docs/first-hour.md`, played as it stands: its files are written, its commands run, on the machines that it names.
//!
//! The tables of a section are its machines. The paragraph before a block of code says on which of them (`HOSTS`, or a
//! host name behind "on"), or it is for those of the block before. A block is a file if the paragraph has a path in a
//! code span, else command lines for sh. Each must succeed; one with a `# → ` is repeated until it prints what stands
//! there. Each section has machines of its own. `scripts/test` makes them of this machine's files, and carries some
//! lines out otherwise: `INSTEAD`. `scripts/soak first-hour` boots a bare Debian for each, where every line runs as it
//! stands, and goes on with the directors of the second section: their package is replaced in the middle of failovers.
//! Needs root.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use xvs::document::{Block, blocks};
use xvs::machine::Machine;
use xvs::netns::Netns;
use xvs::wait;

/// The sections, all of which are played.
const SECTIONS: [&str; 2] =
    ["A director and two real servers, by direct routing", "Two directors with keepalived, by NAT"];

/// What the page calls several machines, and how their names begin.
const HOSTS: [(&str, &str); 4] = [
    ("each web server", "web"),
    ("both directors", "director"),
    ("the director", "director"),
    ("the client", "client"),
];

/// What is done instead of a line, with its arguments.
type Act = fn(&mut Machine, &str);

/// How lines begin that no shell of a machine without systemd can run, and what is done instead.
const INSTEAD: [(&str, Act); 3] = [
    // The machines have what is installed here. Debian starts nginx then, but keepalived only if it has its file.
    ("apt install nginx", |machine, _| succeeds(machine, "nginx")),
    ("apt install keepalived", |_, _| ()),
    // No systemd runs there; the unit files are real.
    ("systemctl ", |machine, arguments| machine.systemctl(arguments)),
];

fn page(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(name);
    fs::read_to_string(path).expect("the page is in the sources")
}

/// A section of the first hour.
fn section(heading: &str) -> String {
    let page = page("first-hour.md");
    let sections: Vec<_> = page.split("\n## ").skip(1).filter_map(|text| text.split_once('\n')).collect();
    assert_eq!(sections.iter().map(|(heading, _)| *heading).collect::<Vec<_>>(), SECTIONS);
    sections.iter().find(|(found, _)| *found == heading).expect("it is one of them").1.to_owned()
}

/// The machines of a section, in networks of their own.
struct Machines {
    by_name: BTreeMap<String, Machine>,
    _switch: Netns,
}

impl Machines {
    /// Those of its tables: a row each, with its addresses below the names of its interfaces. Addresses with the same
    /// first 24 bits are in one network. `make` makes a machine with a name.
    fn of(section: &str, make: impl Fn(&str) -> Machine) -> Self {
        let switch = Netns::new("switch");
        let mut bridges = Vec::new();
        let rows = section.lines().filter(|line| line.starts_with('|') && !line.starts_with("|--"));
        let mut rows = rows.map(|row| row.split('|').map(str::trim).skip(1).collect::<Vec<_>>());
        let devices = rows.next().expect("a table of machines");
        let machine = |row: Vec<&str>| {
            let machine = make(row[0]);
            let cells = devices.iter().zip(&row).skip(1).filter(|(_, address)| address.ends_with("/24"));
            for (device, address) in cells {
                let network = address.rsplit_once('.').expect("an address").0.to_owned();
                let known = bridges.iter().position(|bridge| *bridge == network);
                let bridge = known.unwrap_or_else(|| {
                    switch.ip(&format!("link add br{} up type bridge", bridges.len()));
                    bridges.push(network);
                    bridges.len() - 1
                });
                let port = format!("{}-{device}", row[0]);
                machine.netns.veth(device, &switch, &port);
                switch.ip(&format!("link set {port} master br{bridge}"));
                machine.netns.ip(&format!("address add {address} dev {device}"));
            }
            (row[0].to_owned(), machine)
        };
        let by_name = rows.map(machine).collect();
        Self { by_name, _switch: switch }
    }

    /// Those that a paragraph names, in its order.
    fn named(&self, paragraph: &str) -> Vec<String> {
        let names = self.by_name.keys().map(|name| (name.as_str(), name.as_str()));
        let mut found = Vec::new();
        for (call, start) in names.chain(HOSTS) {
            for (place, _) in paragraph.match_indices(call) {
                let is_whole = !paragraph[place + call.len()..].starts_with(char::is_alphanumeric);
                if is_whole && paragraph[..place].to_lowercase().ends_with("on ") {
                    let of_call = self.by_name.keys().filter(|name| name.starts_with(start));
                    found.extend(of_call.map(|name| (place, name.clone())));
                }
            }
        }
        found.sort();
        found.into_iter().map(|(_, name)| name).collect()
    }

    /// Plays the blocks of a section on those of its hosts for which `plays` is true.
    fn play(&mut self, section: &str, plays: impl Fn(&str) -> bool) {
        let mut hosts = Vec::new();
        for block in blocks(section) {
            let named = self.named(&block.before);
            if !named.is_empty() {
                hosts = named;
            }
            assert!(!hosts.is_empty(), "on which machines? {block:?}");
            for host in hosts.iter().filter(|host| plays(host)) {
                self.play_block(host, &block);
            }
        }
    }

    fn play_block(&mut self, host: &str, block: &Block<'_>) {
        let machine = self.by_name.get_mut(host).expect("it is named by the table");
        let spans = block.before.split('`').skip(1).step_by(2);
        if let Some(path) = spans.into_iter().find(|span| span.starts_with('/')) {
            let text = block.lines.join("\n") + "\n";
            return fs::write(machine.path(path), text)
                .unwrap_or_else(|error| panic!("{host}: {path}: {error}"));
        }
        for line in &block.lines {
            let started = Instant::now();
            let instead = INSTEAD.iter().find(|(start, _)| line.starts_with(start) && !machine.is_booted());
            match instead {
                Some((start, act)) => {
                    let arguments = line[start.len()..].split(" #").next().unwrap_or_default();
                    act(machine, arguments.trim());
                }
                None => run(machine, line),
            }
            println!("{:4} ms  {host}: {line}", started.elapsed().as_millis());
        }
    }
}

/// Runs a command line, which must print what its comment says.
fn run(machine: &Machine, line: &str) {
    let Some((_, wanted)) = line.split_once("# → ") else { return succeeds(machine, line) };
    let end = Instant::now() + wait::DEADLINE;
    loop {
        let output = machine.shell(line);
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        if has(&printed, wanted) {
            println!("{printed}");
            return;
        }
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(Instant::now() < end, "{}: `{line}` printed:\n{printed}{said}", machine.netns.name);
        thread::sleep(Duration::from_millis(100));
    }
}

fn succeeds(machine: &Machine, line: &str) {
    let output = machine.shell(line);
    assert!(output.status.success(), "{}: `{line}`: {output:?}", machine.netns.name);
}

/// Whether a text has all parts, which `...` separates, in their order. Blanks and ends of lines are alike.
fn has(text: &str, parts: &str) -> bool {
    let alike = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let text = alike(text);
    let mut rest = text.as_str();
    parts.split(" ... ").all(|part| {
        let after = rest.split_once(&alike(part)).map(|(_, after)| after);
        rest = after.unwrap_or_default();
        after.is_some()
    })
}

/// A machine that is booted from the root directory of `scripts/soak first-hour`.
fn boot(name: &str) -> Machine {
    Machine::boot(name, &root(""), "")
}

/// That directory, or one with more in its name.
fn root(more: &str) -> PathBuf {
    PathBuf::from(env::var("XVS_ROOT").expect("run this by scripts/soak first-hour") + more)
}

/// Plays one of the sections on machines that `make` makes.
fn play(heading: &str, make: impl Fn(&str) -> Machine) -> Machines {
    let section = section(heading);
    let mut machines = Machines::of(&section, make);
    machines.play(&section, |_| true);
    machines
}

#[test]
fn the_cluster_of_the_first_hour_by_direct_routing_serves_by_the_commands_as_they_are_printed() {
    play(SECTIONS[0], Machine::new);
}

#[test]
fn the_two_directors_of_the_first_hour_serve_and_fail_over_by_the_commands_as_they_are_printed() {
    play(SECTIONS[1], Machine::new);
}

#[test]
#[ignore = "scripts/soak first-hour"]
fn the_cluster_of_the_first_hour_by_direct_routing_serves_on_bare_machines() {
    play(SECTIONS[0], boot);
}

#[test]
#[ignore = "scripts/soak first-hour"]
fn no_connection_is_lost_when_packages_are_replaced_in_the_middle_of_failovers() {
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

#[test]
#[ignore = "scripts/soak first-hour"]
fn a_pair_of_directors_starts_from_the_user_data_of_the_page() {
    let page = page("unattended.md");
    let yaml = blocks(&page).into_iter().find(|block| block.language == "yaml").expect("user-data");
    let url = "https://packages.example/xvs_0.2.0_amd64.deb";
    let user_data = yaml.lines.join("\n");
    assert!(user_data.contains(url));
    // The machines have no network beside their own, and addresses already.
    let user_data = user_data.replace(url, "file:///new.deb");
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

#[test]
fn a_sample_has_the_parts_of_an_output_in_their_order() {
    let output = "eth0   UP  192.0.2.1/24\neth1   UP\n";
    for (parts, is_there) in [("eth0 UP ... eth1", true), ("eth1 ... eth0", false), ("eth0 eth1", false)] {
        assert_eq!(has(output, parts), is_there, "{parts}");
    }
}
