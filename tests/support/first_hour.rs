//! The player of `docs/first-hour.md`: its files are written, its commands run, on the machines that it names.
//!
//! The tables of a section are its machines. The paragraph before a block of code says on which of them (`HOSTS`, or a
//! host name behind "on"), or it is for those of the block before. A block is a file if the paragraph has a path in a
//! code span, else command lines for sh. Each must succeed; one with a `# → ` is repeated until it prints what stands
//! there. On machines without systemd some lines are carried out otherwise: `INSTEAD`. Needs root.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::document::{Block, blocks};
use crate::machine::Machine;
use crate::netns::Netns;
use crate::wait;

/// The sections, all of which are played.
pub const SECTIONS: [&str; 2] =
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

/// A page of the documentation.
///
/// # Panics
///
/// If it cannot be read.
pub fn page(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(name);
    fs::read_to_string(path).expect("the page is in the sources")
}

/// A section of the first hour.
///
/// # Panics
///
/// If the page has other sections.
pub fn section(heading: &str) -> String {
    let page = page("first-hour.md");
    let sections: Vec<_> = page.split("\n## ").skip(1).filter_map(|text| text.split_once('\n')).collect();
    assert_eq!(sections.iter().map(|(heading, _)| *heading).collect::<Vec<_>>(), SECTIONS);
    sections.iter().find(|(found, _)| *found == heading).expect("it is one of them").1.to_owned()
}

/// The machines of a section, in networks of their own.
pub struct Machines {
    /// By their host names.
    pub by_name: BTreeMap<String, Machine>,
    _switch: Netns,
}

impl Machines {
    /// Those of its tables: a row each, with its addresses below the names of its interfaces. Addresses with the same
    /// first 24 bits are in one network. `make` makes a machine with a name.
    ///
    /// # Panics
    ///
    /// If the section has no table, or a machine cannot be made.
    pub fn of(section: &str, make: impl Fn(&str) -> Machine) -> Self {
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
    ///
    /// # Panics
    ///
    /// If a command fails, or does not print what stands there.
    pub fn play(&mut self, section: &str, plays: impl Fn(&str) -> bool) {
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
///
/// # Panics
///
/// If it does not within the time limit.
pub fn run(machine: &Machine, line: &str) {
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

/// Runs a command line, which must succeed.
///
/// # Panics
///
/// If it fails.
pub fn succeeds(machine: &Machine, line: &str) {
    let output = machine.shell(line);
    assert!(output.status.success(), "{}: `{line}`: {output:?}", machine.netns.name);
}

/// Whether a text has all parts, which `...` separates, in their order. Blanks and ends of lines are alike.
pub fn has(text: &str, parts: &str) -> bool {
    let alike = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let text = alike(text);
    let mut rest = text.as_str();
    parts.split(" ... ").all(|part| {
        let after = rest.split_once(&alike(part)).map(|(_, after)| after);
        rest = after.unwrap_or_default();
        after.is_some()
    })
}

/// Plays one of the sections on machines that `make` makes.
///
/// # Panics
///
/// As for [`Machines::play`].
pub fn play(heading: &str, make: impl Fn(&str) -> Machine) -> Machines {
    let section = section(heading);
    let mut machines = Machines::of(&section, make);
    machines.play(&section, |_| true);
    machines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_has_the_parts_of_an_output_in_their_order() {
        let output = "eth0   UP  192.0.2.1/24\neth1   UP\n";
        for (parts, is_there) in [("eth0 UP ... eth1", true), ("eth1 ... eth0", false), ("eth0 eth1", false)]
        {
            assert_eq!(has(output, parts), is_there, "{parts}");
        }
    }
}
