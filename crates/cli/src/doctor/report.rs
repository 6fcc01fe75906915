//! `xvs doctor --report`: a file about a network card and its driver, for others: facts, settings, and what each mode
//! does with frames of our own (`trial.rs`).
//!
//! For cards of real machines, which the authors of docs/bare-metal.md do not have. The file has no addresses and no
//! host name. A card may negotiate its link anew for each mode. Needs root, and an interface without an XDP program.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;
use xvs_xdp::WantedMode;
use xvs_xdp::card::{self, CardSettings};
use xvs_xdp::device::Device;

use crate::doctor::facts::Facts;
use crate::doctor::finding::Finding;
use crate::doctor::gather::{Asked, gather_interfaces};
use crate::doctor::trial::{self, Direction, Trial};
use crate::doctor::tune::{self, Apply};

/// The arguments of the report.
#[derive(Debug, Args)]
pub(super) struct Wanted {
    /// Instead of these checks, try each mode of one interface and write this file for others; its link may go down
    #[arg(
        long,
        value_name = "FILE",
        requires = "interfaces",
        conflicts_with_all = ["fleet", "addresses", "directors", "tune"]
    )]
    pub report: Option<PathBuf>,
    /// Another interface on the same wire or switch, to send frames to the one of the report
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
    /// What `--tune` finds of them and of the machine.
    tune: Vec<Finding>,
    /// The modes that were tried.
    modes: Vec<Tried>,
}

/// A network card.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Card {
    /// The interface's name.
    interface: String,
    /// Its driver.
    driver: String,
    /// The version of its firmware; empty: the driver does not say.
    firmware: String,
    /// Its vendor and device, hexadecimal, as in `lspci -n`; empty: it is no PCI device.
    pci: String,
    /// Its MTU, in bytes.
    mtu: u32,
    /// Its receive queues.
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
    /// Of `mode` in xvs.toml.
    mode: &'static str,
    /// Whether the receiver drove the driver (busy polling); else its interrupts did.
    busy: bool,
    /// Why nothing was seen; absent: the trial is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    failed: Option<String>,
    /// What was seen.
    #[serde(flatten)]
    trial: Option<Trial>,
}

/// Tries each mode and writes the file. The findings say what was seen.
///
/// # Errors
/// More than one interface was named, one is absent, down or has a program, or the file cannot be written; as a clause.
pub(super) fn run(asked: &Asked, wanted: &Wanted, file: &Path) -> Result<Vec<Finding>, String> {
    let [interface] = &asked.interfaces[..] else {
        return Err("--report is about one interface; name it with --interface, and no other".to_owned());
    };
    let names: Vec<&str> = [interface.as_str()].into_iter().chain(wanted.source.as_deref()).collect();
    let of_both = Asked { interfaces: names.iter().map(|&name| name.to_owned()).collect(), ..asked.clone() };
    let facts = gather_interfaces(&of_both)
        .map_err(|error| format!("the kernel's network cannot be read: {error}"))?;
    let cards = names.iter().map(|name| look(&facts, name)).collect::<Result<_, _>>()?;
    // Nothing is attached for a file that cannot be written.
    let mut written = File::create(file).map_err(|error| format!("{}: {error}", file.display()))?;
    let modes = MODES.map(|(mode, name, busy)| {
        let tried = trial::run(interface, wanted.source.as_deref(), mode, busy);
        let (trial, failed) = match tried {
            Ok(trial) => (Some(trial), None),
            Err(why) => (None, Some(why)),
        };
        Tried { mode: name, busy, failed, trial }
    });
    let mut findings: Vec<_> = modes.iter().map(|tried| tried.finding(interface)).collect();
    let document = Document {
        xvs: env!("CARGO_PKG_VERSION"),
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        processor: processor(),
        cores: facts.cores,
        cards,
        tune: tune::run(&of_both, Apply::No)?,
        modes: modes.into(),
    };
    serde_json::to_writer_pretty(&mut written, &document)
        .map_err(|error| format!("{}: {error}", file.display()))?;
    let found = format!("written to {}; it has no addresses and no host name", file.display());
    findings.push(Finding::ok("report", "", found));
    Ok(findings)
}

/// The facts of a card that can be tried.
fn look(facts: &Facts, name: &str) -> Result<Card, String> {
    let device =
        Device::look(name).map_err(|error| format!("{name}: {error}; `ip link` shows interfaces"))?;
    if let Some(program) = &device.program {
        return Err(format!("{name} has an XDP program, {program}; {}", program.remedy(name)));
    }
    if !facts.network.links.iter().any(|link| link.name == name && link.up) {
        return Err(format!("{name} is down; `ip link set dev {name} up` sets it up"));
    }
    let folder = Path::new("/sys/class/net").join(name).join("device");
    let number = |file: &str| {
        fs::read_to_string(folder.join(file)).ok().map(|text| text.trim().trim_start_matches("0x").to_owned())
    };
    let pci = number("vendor").zip(number("device")).map(|(vendor, device)| format!("{vendor}:{device}"));
    let settings = CardSettings::read(name).unwrap_or_default();
    Ok(Card {
        interface: name.to_owned(),
        driver: device.driver,
        firmware: card::firmware(name).unwrap_or_default(),
        pci: pci.unwrap_or_default(),
        mtu: device.mtu,
        receive_queues: device.receive_queues,
        most_receive_queues: device.most_receive_queues,
        receive_ring: settings.rings.map_or(0, |rings| rings.receive),
        native: device.native,
        zero_copy: device.zero_copy,
        features: device.features,
    })
}

/// The model of the first processor; empty: the kernel does not say.
fn processor() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        text.lines().find(|line| line.starts_with("model name")).and_then(|line| line.split_once(": "));
    model.map(|(_, model)| model.to_owned()).unwrap_or_default()
}

impl Tried {
    fn finding(&self, interface: &str) -> Finding {
        let check = "mode";
        let object =
            format!("{}{} of {interface}", self.mode, if self.busy { " with busy polling" } else { "" });
        let Some(trial) = &self.trial else {
            let why = self.failed.as_deref().unwrap_or_default();
            return Finding::warn(check, object, why);
        };
        let lost: Vec<_> = trial.directions.iter().filter_map(Direction::losses).collect();
        if !lost.is_empty() {
            return Finding::fail(check, object, lost.join("; "));
        }
        let Some(pause_ms) = trial.pause_ms else {
            return Finding::ok(check, object, "the driver takes it; no frames were sent without --source");
        };
        let rates: Vec<_> = trial.directions.iter().map(Direction::told).collect();
        let found = format!("the first frame after {pause_ms} ms; {}", rates.join("; "));
        Finding::ok(check, object, found)
    }
}

impl Direction {
    /// The sizes that were lost, as a clause; `None`: none were.
    fn losses(&self) -> Option<String> {
        let (least, most) = (self.lost_sizes.first()?, self.lost_sizes.last()?);
        Some(format!("from {} to {} frames of {least} to {most} bytes are lost", self.from, self.to))
    }

    /// Its rates, as a clause.
    fn told(&self) -> String {
        let rate = |rate: &trial::Rate| {
            let (received, sent) = (rate.received_per_second, rate.sent_per_second);
            format!("{received} of {sent} frames of {} bytes a second", rate.frame_bytes)
        };
        let rates: Vec<_> = self.rates.iter().map(rate).collect();
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
    use crate::doctor::finding::Level;
    use crate::doctor::trial::Rate;

    fn tried(lost_sizes: Vec<usize>) -> Tried {
        let rate = |frame_bytes| Rate {
            frame_bytes,
            sent_per_second: 1000,
            received_per_second: 900,
            counted: Default::default(),
        };
        let rates = vec![rate(60), rate(1514)];
        let direction = Direction { from: "eth1".into(), to: "eth0".into(), lost_sizes, rates };
        let trial = Some(Trial { pause_ms: Some(2100), directions: vec![direction] });
        Tried { mode: "zero-copy", busy: false, failed: None, trial }
    }

    #[test]
    fn a_mode_that_loses_frames_of_some_sizes_fails_and_one_that_cannot_be_had_is_a_warning() {
        let well = tried(vec![]).finding("eth0");
        assert_eq!(well.level, Level::Ok);
        assert_eq!(
            well.found,
            "the first frame after 2100 ms; eth0 receives 900 of 1000 frames of 60 bytes a second, 900 of 1000 frames \
             of 1514 bytes a second"
        );
        let lossy = tried(vec![1084, 1148, 1514]).finding("eth0");
        assert_eq!(lossy.level, Level::Fail);
        assert_eq!(lossy.found, "from eth1 to eth0 frames of 1084 to 1514 bytes are lost");
        let refused = Tried { failed: Some("no zero-copy".into()), trial: None, ..tried(vec![]) };
        assert_eq!(refused.finding("eth0"), Finding::warn("mode", "zero-copy of eth0", "no zero-copy"));
    }
}
