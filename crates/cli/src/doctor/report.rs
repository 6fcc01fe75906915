//! `xvs doctor --report`: a file about a network card and its driver, for other people: facts, settings, and a trial of
//! each mode with test frames (`trial.rs`).
//!
//! For real cards, which the authors of docs/bare-metal.md do not have. The file has no addresses and no host name. A
//! card may renegotiate its link before and after each mode. Needs root, and interfaces without an XDP program.

use std::collections::BTreeSet;
use std::error::Error;
use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::Args;
use serde::Serialize;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use xvs_proto::network::{Link, LinkKind, Network};
use xvs_xdp::WantedMode;
use xvs_xdp::card::{self, CardSettings};
use xvs_xdp::device::{Owner, Program};

use crate::doctor::facts::Facts;
use crate::doctor::finding::{Finding, Level};
use crate::doctor::gather::{Asked, gather_interfaces};
use crate::doctor::interfaces;
use crate::doctor::trial::{self, Direction, End, Trial};
use crate::doctor::tune::{self, Apply};

/// The arguments of the report.
#[derive(Debug, Args)]
pub(super) struct Wanted {
    /// Instead of these checks, try each mode of one interface and write this file for others; links may go down
    #[arg(
        long,
        value_name = "FILE",
        requires = "interfaces",
        conflicts_with_all = ["fleet", "addresses", "directors", "tune"]
    )]
    pub report: Option<PathBuf>,
    /// Another interface on the same wire or switch, to send frames to the report's interface
    #[arg(long, value_name = "IFACE", requires = "report")]
    source: Option<String>,
}

/// The file.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Document {
    /// The version of xvs.
    xvs: &'static str,
    /// The kernel's version.
    kernel: String,
    /// The model of the processors.
    processor: String,
    /// The cores that this process may use.
    cores: usize,
    /// The interface of the report, and the one that sends to it.
    cards: Vec<Card>,
    /// The findings of `--tune` for the cards and the machine.
    tune: Vec<Finding>,
    /// How the frames of the interface that sends reach its sockets; absent: there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<String>,
    /// The modes that were tried.
    modes: Vec<Tried>,
}

/// A network card.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Card {
    /// The interface's name.
    interface: String,
    /// The driver.
    driver: String,
    /// The version of its firmware; empty: the driver does not say.
    firmware: String,
    /// The vendor and device, hexadecimal, as in `lspci -n`; empty: it is no PCI device.
    pci: String,
    /// The MTU, in bytes.
    mtu: u32,
    /// The receive queues.
    receive_queues: u32,
    /// The most that it can have; 0: the driver does not say.
    most_receive_queues: u32,
    /// The descriptors of each receive ring; 0: the driver does not say.
    receive_ring: u32,
    /// Whether the driver says that it has native mode. Kernels before 6.3 do not say.
    native: bool,
    /// Whether the driver says that it has zero-copy. As for `native`.
    zero_copy: bool,
    /// The features that are on, by the names of `ethtool -k`.
    features: BTreeSet<String>,
}

/// A mode that was tried.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Tried {
    /// The value for `mode` in xvs.toml.
    mode: &'static str,
    /// Whether busy polling was requested. The interrupts show whether the driver supports it.
    busy: bool,
    /// Why it cannot be had; absent: it can, and the trial is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    failed: Option<String>,
    /// The measurements.
    #[serde(flatten)]
    trial: Option<Trial>,
}

/// Tries each mode and writes the file. The findings say what was seen.
///
/// # Errors
/// An interface cannot be tried, the file cannot be written, or the operator has ended it. An earlier file is as it
/// was.
pub(super) fn run(asked: &Asked, wanted: &Wanted, file: &Path) -> Result<Vec<Finding>, Box<dyn Error>> {
    let [interface] = &asked.interfaces[..] else {
        return Err("--report is about one interface; name it with --interface, and no other".into());
    };
    if wanted.source.as_ref() == Some(interface) {
        return Err(format!("{interface} cannot send to itself; name another interface with --source").into());
    }
    let mut of_both = asked.clone();
    of_both.interfaces.extend(wanted.source.clone());
    let facts = gather_interfaces(&of_both)?;
    let cards = of_both.interfaces.iter().map(|name| card(&facts, name)).collect::<Result<_, _>>()?;
    let tune = tune::run(&of_both, Apply::No)?;
    // No link goes down for a file that cannot be written.
    let is_new = !file.exists();
    OpenOptions::new()
        .append(true)
        .create(true)
        .open(file)
        .map_err(|error| format!("{}: {error}", file.display()))?;
    let tried = try_modes(interface, wanted.source.as_ref());
    if tried.is_err() && is_new {
        let _ = fs::remove_file(file);
    }
    let (source, modes) = tried?;
    let mut findings: Vec<_> =
        modes.iter().map(|tried| tried.finding(interface, wanted.source.as_deref())).collect();
    let document = Document {
        xvs: env!("CARGO_PKG_VERSION"),
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        processor: processor(),
        cores: facts.cores,
        cards,
        tune,
        source,
        modes,
    };
    fs::write(file, serde_json::to_string_pretty(&document)? + "\n")
        .map_err(|error| format!("{}: {error}", file.display()))?;
    findings.push(
        Finding::of("report", "")
            .ok(format!("written to {}; it has no addresses and no host name", file.display())),
    );
    Ok(findings)
}

/// Tries each mode; returns how the frames of the source reach its sockets, and what was seen of each mode.
///
/// # Errors
/// The source cannot be used, or the operator has ended it.
fn try_modes(
    interface: &str,
    source: Option<&String>,
) -> Result<(Option<String>, Vec<Tried>), Box<dyn Error>> {
    let ended = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        flag::register(signal, ended.clone()).map_err(|error| error.to_string())?;
    }
    let steering = trial::steering()?;
    let mut source = source.map(|name| End::open(&steering, name, WantedMode::Auto)).transpose()?;
    let mut modes = Vec::new();
    for (wanted, mode, busy) in MODES {
        let tried = trial::run(&steering, interface, source.as_mut(), (wanted, busy), &ended);
        trial::go_on(&ended)?;
        modes.push(match tried {
            Ok(trial) => Tried { mode, busy, failed: None, trial: Some(trial) },
            Err(why) => Tried { mode, busy, failed: Some(why.to_string()), trial: None },
        });
    }
    Ok((source.map(|source| source.sockets()), modes))
}

/// The facts of a card that can be tried.
fn card(facts: &Facts, name: &str) -> Result<Card, Box<dyn Error>> {
    refuse_bonds(&facts.network, name)?;
    for Finding { level, object, found, mend, .. } in interfaces::reachable(facts) {
        if object == name && level == Level::Fail {
            let mend = mend.map(|mend| format!("; `{}` fixes it", mend.command)).unwrap_or_default();
            return Err(format!("{name}: {found}{mend}").into());
        }
    }
    let Some((_, device)) = facts.devices().find(|(one, _)| *one == name) else {
        return Err(format!("{name} is gone").into());
    };
    match &device.program {
        Some(Program { owner: Some(Owner::Director), .. }) => {
            return Err(
                format!("{name} has the program of an xvsd; `xvs stop --release` takes it away").into()
            );
        }
        Some(program) => return Err(format!("{name} has an XDP program, {program}").into()),
        None => {}
    }
    let directory = Path::new("/sys/class/net").join(name).join("device");
    let pci = ["vendor", "device"].map(|file| fs::read_to_string(directory.join(file)).unwrap_or_default());
    Ok(Card {
        interface: name.to_owned(),
        driver: device.driver.clone(),
        firmware: card::firmware(name).unwrap_or_default(),
        pci: match pci.each_ref().map(|id| id.trim().trim_start_matches("0x")) {
            ["", _] | [_, ""] => String::new(),
            [vendor, product] => format!("{vendor}:{product}"),
        },
        mtu: device.mtu,
        receive_queues: device.receive_queues,
        most_receive_queues: device.most_receive_queues,
        receive_ring: CardSettings::read(name).unwrap_or_default().rings.map_or(0, |rings| rings.receive),
        native: device.native,
        zero_copy: device.zero_copy,
        features: device.features.clone(),
    })
}

/// Refuses bonds and their members.
fn refuse_bonds(network: &Network, name: &str) -> Result<(), Box<dyn Error>> {
    let Some(link) = network.link_named(name) else { return Ok(()) };
    if let Some(bond) = network.links.iter().find(|bond| is_bond(bond) && link.master == Some(bond.ifindex)) {
        return Err(format!(
            "{name} is a member of {}; `ip link set dev {name} nomaster` takes it out",
            bond.name
        )
        .into());
    }
    if is_bond(link) {
        let member = network
            .links
            .iter()
            .find(|member| member.master == Some(link.ifindex))
            .map_or("…", |member| &member.name);
        return Err(format!(
            "{name} is a bond, and a report is about a card; take one out (`ip link set dev {member} \
             nomaster`) and name it"
        )
        .into());
    }
    Ok(())
}

fn is_bond(link: &Link) -> bool {
    matches!(link.kind, LinkKind::Bond | LinkKind::OtherBond(_))
}

/// The model of the first processor; empty: the kernel does not say.
fn processor() -> String {
    fs::read_to_string("/proc/cpuinfo")
        .unwrap_or_default()
        .lines()
        .find(|line| line.starts_with("model name"))
        .and_then(|line| line.split_once(": "))
        .map(|(_, model)| model.to_owned())
        .unwrap_or_default()
}

impl Tried {
    fn finding(&self, interface: &str, source: Option<&str>) -> Finding {
        let busy = if self.busy { " with busy polling" } else { "" };
        let subject = Finding::of("mode", format!("{}{busy} of {interface}", self.mode));
        let Some(Trial { sockets, pause_ms, directions }) = &self.trial else {
            return subject.warn(self.failed.as_deref().unwrap_or_default());
        };
        let Some(source) = source else {
            return subject.ok(format!("{sockets}; without --source no frames were sent"));
        };
        let Some(pause_ms) = pause_ms else {
            return subject.fail(format!(
                "{sockets}, but no frame of {source} arrives; if none does in any mode, check that both are \
                 on one wire or switch"
            ));
        };
        let lost: Vec<_> = directions.iter().filter_map(Direction::losses).collect();
        if !lost.is_empty() {
            return subject.fail(lost.join("; "));
        }
        let rates: Vec<_> = directions.iter().map(Direction::rates).collect();
        subject.ok(format!("{sockets}; the first frame after {pause_ms} ms; {}", rates.join("; ")))
    }
}

impl Direction {
    /// The sizes of frames that did not come through, as a clause; `None`: all did.
    fn losses(&self) -> Option<String> {
        let mut all = Vec::new();
        for (sizes, what) in [(&self.lost_sizes, "lost"), (&self.unsent_sizes, "not sent")] {
            if !sizes.is_empty() {
                let sizes: Vec<_> = sizes.iter().map(usize::to_string).collect();
                all.push(format!("{what}: frames of {} bytes", sizes.join(", ")));
            }
        }
        (!all.is_empty()).then(|| format!("from {} to {} {}", self.from, self.to, all.join("; ")))
    }

    /// The rates, as a clause.
    fn rates(&self) -> String {
        let mut rates = Vec::new();
        for trial::Rate { received_per_second, sent_per_second, frame_bytes, .. } in &self.rates {
            rates.push(format!(
                "{received_per_second} of {sent_per_second} frames of {frame_bytes} bytes a second"
            ));
        }
        format!("{} receives {}", self.to, rates.join(", "))
    }
}

/// The modes that are tried, with their names in xvs.toml and whether by busy polling.
const MODES: [(WantedMode, &str, bool); 4] = [
    (WantedMode::Generic, "generic", false),
    (WantedMode::Copy, "copy", false),
    (WantedMode::ZeroCopy, "zero-copy", false),
    (WantedMode::ZeroCopy, "zero-copy", true),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::trial::Rate;

    fn tried(lost_sizes: Vec<usize>, unsent_sizes: Vec<usize>) -> Tried {
        let rate = |frame_bytes| Rate {
            frame_bytes,
            sent_per_second: 1000,
            received_per_second: 900,
            interrupts: 7,
            counted: Default::default(),
        };
        let rates = vec![rate(60), rate(1514)];
        let direction = Direction { from: "eth1".into(), to: "eth0".into(), lost_sizes, unsent_sizes, rates };
        let (sockets, pause_ms) = ("native, zero-copy".to_owned(), Some(2100));
        let trial = Some(Trial { sockets, pause_ms, directions: vec![direction] });
        Tried { mode: "zero-copy", busy: false, failed: None, trial }
    }

    #[test]
    fn a_bond_and_its_members_are_refused_with_the_command_that_takes_a_member_out() {
        let mut network = Network::default();
        for name in ["bond0", "eth1", "eth2"] {
            network.add_link(name, "02:00:00:00:00:01".parse().unwrap(), &[], 1500).unwrap();
        }
        network.links[0].kind = LinkKind::Bond;
        network.links[1].master = Some(network.links[0].ifindex);
        let taken_out = "`ip link set dev eth1 nomaster`";
        let refused = |name| refuse_bonds(&network, name).unwrap_err().to_string();
        assert_eq!(refused("eth1"), format!("eth1 is a member of bond0; {taken_out} takes it out"));
        assert!(refused("bond0").starts_with("bond0 is a bond") && refused("bond0").contains(taken_out));
        assert!(refuse_bonds(&network, "eth2").is_ok());
    }

    #[test]
    fn a_mode_that_loses_frames_fails_and_one_that_cannot_be_had_is_a_warning() {
        let found = |tried: &Tried| {
            let finding = tried.finding("eth0", Some("eth1"));
            (finding.level, finding.found)
        };
        let mut well = tried(vec![], vec![]);
        let text = "native, zero-copy; the first frame after 2100 ms; eth0 receives 900 of 1000 frames of 60 bytes a \
                    second, 900 of 1000 frames of 1514 bytes a second";
        assert_eq!(found(&well), (Level::Ok, text.to_owned()));
        let text = "from eth1 to eth0 lost: frames of 60, 1514 bytes; not sent: frames of 124 bytes";
        assert_eq!(found(&tried(vec![60, 1514], vec![124])), (Level::Fail, text.to_owned()));
        let trial = well.trial.as_mut().unwrap();
        (trial.pause_ms, trial.directions) = (None, Vec::new());
        let (level, text) = found(&well);
        assert!(level == Level::Fail && text.starts_with("native, zero-copy, but no frame of eth1 arrives"));
        assert_eq!(well.finding("eth0", None).level, Level::Ok, "it was to send none");
        let refused = Tried { failed: Some("no zero-copy".into()), trial: None, ..well };
        assert_eq!(found(&refused), (Level::Warn, "no zero-copy".to_owned()));
    }
}
