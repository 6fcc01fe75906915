//! Reader of the facts for `--tune`: settings of network cards from ethtool requests; interrupts, cores and NUMA nodes
//! from `/sys` and `/proc`.
//!
//! Needs neither root nor the program ethtool. A fact that the kernel or the driver does not provide is left empty. The
//! recommended values are in `tune.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use xvs_ctl::placement;
use xvs_host::cores::parse_cores;
use xvs_model::protocol::client::default_socket;
use xvs_model::protocol::question;
use xvs_xdp::card::CardSettings;
use xvs_xdp::device::Device;

use crate::doctor::facts::Facts;
use crate::output::late_reply;

/// The tunable settings, and the facts that they depend on.
#[derive(Debug, Default)]
pub(super) struct Tunables {
    /// The interfaces backed by a device.
    pub cards: Vec<Card>,
    /// The number of workers: those that run, otherwise as configured, otherwise as xvsd would start with the most
    /// queues.
    pub wanted_workers: usize,
    /// The core of each worker that runs or would run; `None` if it is not pinned.
    pub worker_cores: Vec<Option<usize>>,
    /// The cores that are on.
    pub cores: BTreeSet<usize>,
    /// The cores on which the scheduler puts no other programs.
    pub isolated: BTreeSet<usize>,
    /// The frequency governor of each core that has one.
    pub governors: BTreeMap<usize, String>,
    /// The greatest exit latency of the enabled idle states of each core that has any, in microseconds.
    pub idle_exit_micros: BTreeMap<usize, u32>,
    /// The cores of each NUMA node, in the kernel's notation.
    pub nodes: BTreeMap<u32, String>,
    /// Whether irqbalance runs.
    pub irqbalance: bool,
}

/// A network card.
#[derive(Debug)]
pub(super) struct Card {
    /// The interface's name.
    pub name: String,
    /// The driver, queues and offloads.
    pub device: Device,
    /// The other settings.
    pub settings: CardSettings,
    /// Whether the interface is up.
    pub up: bool,
    /// Whether an xvsd has sockets on it, while which the kernel does not change its queues.
    pub attached: bool,
    /// The NUMA node; `None` if the machine does not report it.
    pub node: Option<u32>,
    /// The interrupts of the queues.
    pub interrupts: Vec<Interrupt>,
}

/// An interrupt of a queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Interrupt {
    /// The kernel's number.
    pub irq: u32,
    /// The name in `/proc/interrupts`.
    pub name: String,
    /// The number of the receive or transmit queue.
    pub queue: u32,
    /// The cores that may handle it, in the kernel's notation.
    pub cores: String,
}

impl Tunables {
    /// Reads them for the examined interfaces.
    pub(super) fn read(facts: &Facts) -> Self {
        let running = cores_of_running_workers(facts);
        // xvsd starts no more workers than each interface has queues, or can have.
        let possible = facts.devices().map(|(_, device)| most_queues(device) as usize).min().unwrap_or(1);
        let by_default = possible.min(facts.cores.saturating_sub(1)).max(1);
        let configured = facts.config.workers.unwrap_or(by_default);
        let wanted_workers = running.as_ref().map_or(configured, Vec::len);
        let worker_cores =
            running.unwrap_or_else(|| placement::cores(wanted_workers.min(possible), &cores_allowed()));
        Self {
            cards: facts
                .devices()
                .filter(|(name, _)| Path::new(NETWORK).join(name).join("device").exists())
                .map(|(name, device)| Card::read(facts, name, device))
                .collect(),
            wanted_workers,
            cores: cores_listed(ONLINE),
            isolated: [ISOLATED_AT_BOOT, ISOLATED_BY_CPUSETS].into_iter().flat_map(cores_listed).collect(),
            governors: of_each(&worker_cores, |core| text(format!("{core}/cpufreq/scaling_governor"))),
            idle_exit_micros: of_each(&worker_cores, |core| idle_exit_micros(&format!("{core}/cpuidle"))),
            nodes: nodes(),
            irqbalance: runs("irqbalance"),
            worker_cores,
        }
    }
}

impl Card {
    fn read(facts: &Facts, name: &str, device: &Device) -> Self {
        let directory = Path::new(NETWORK).join(name).join("device");
        Self {
            name: name.to_owned(),
            device: device.clone(),
            // Empty for an interface that has disappeared.
            settings: CardSettings::read(name).unwrap_or_default(),
            up: facts.network.links.iter().any(|link| link.ifindex == device.ifindex && link.up),
            attached: facts.daemon.as_ref().is_some_and(|daemon| daemon.interface(name).is_some()),
            // -1: unknown.
            node: text(directory.join("numa_node")).and_then(|node| node.parse().ok()),
            interrupts: interrupts(&text("/proc/interrupts").unwrap_or_default(), &vectors(&directory)),
        }
    }
}

/// Maximum number of RX queues of a device; the current number if the driver does not report a maximum.
pub(super) fn most_queues(device: &Device) -> u32 {
    device.most_receive_queues.max(device.receive_queues)
}

/// `None` if no xvsd runs, or if it does not report them.
fn cores_of_running_workers(facts: &Facts) -> Option<Vec<Option<usize>>> {
    facts.daemon.as_ref()?;
    let status = question::status().ask(&mut late_reply::connect(&default_socket()).ok()?).ok()?;
    Some(status.workers.iter().map(|worker| worker.core).collect())
}

/// The cores that this process may use, and therefore an xvsd started from here.
fn cores_allowed() -> Vec<usize> {
    let status = text("/proc/self/status").unwrap_or_default();
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap_or_default();
    parse_cores(list).into_iter().collect()
}

/// The cores of a file that lists them.
fn cores_listed(path: &str) -> BTreeSet<usize> {
    text(path).map(|list| parse_cores(&list)).unwrap_or_default()
}

/// Reads a value from the directory of each worker's core.
fn of_each<T>(workers: &[Option<usize>], read: impl Fn(String) -> Option<T>) -> BTreeMap<usize, T> {
    workers.iter().flatten().filter_map(|core| Some((*core, read(format!("{CORES}/cpu{core}"))?))).collect()
}

/// The numbers of the interrupts of a device, or of its parent: virtio is a device of a PCI device.
fn vectors(device: &Path) -> BTreeSet<u32> {
    for directory in ["msi_irqs", "../msi_irqs"] {
        let numbers: BTreeSet<_> =
            names(&device.join(directory)).filter_map(|name| name.parse().ok()).collect();
        if !numbers.is_empty() {
            return numbers;
        }
    }
    BTreeSet::new()
}

/// The interrupts of `irqs` that `/proc/interrupts` has, and that belong to queues.
fn interrupts(listing: &str, irqs: &BTreeSet<u32>) -> Vec<Interrupt> {
    listing
        .lines()
        .filter_map(|line| {
            let irq = line.split_once(':')?.0.trim().parse().ok().filter(|irq| irqs.contains(irq))?;
            let name = line.split_whitespace().last()?;
            let cores = text(affinity_path(irq)).unwrap_or_default();
            Some(Interrupt { irq, name: name.to_owned(), queue: queue_of(name)?, cores })
        })
        .collect()
}

/// The interrupts of the device of an interface since boot; 0 without a device.
pub(super) fn interrupts_handled(name: &str) -> u64 {
    let irqs = vectors(&Path::new(NETWORK).join(name).join("device"));
    handled(&text("/proc/interrupts").unwrap_or_default(), &irqs)
}

/// The sum of these interrupts over all cores, of a listing like `/proc/interrupts`.
fn handled(listing: &str, irqs: &BTreeSet<u32>) -> u64 {
    listing
        .lines()
        .filter_map(|line| {
            let (irq, counts) = line.split_once(':')?;
            let counts = counts.split_whitespace().map_while(|count| count.parse::<u64>().ok());
            irqs.contains(&irq.trim().parse().ok()?).then(|| counts.sum::<u64>())
        })
        .sum()
}

/// The queue of an interrupt with this name; `None` for other interrupts, such as link events or filters.
///
/// The names are chosen by drivers: `eth0-TxRx-0` (igb, ixgbe, igc), `ice-eth0-TxRx-0`, `eth0-rx-0` (e1000e),
/// `virtio0-input.0`, `mlx5_comp0@pci:0000:01:00.0`.
fn queue_of(name: &str) -> Option<u32> {
    let name = name.split('@').next()?.to_ascii_lowercase();
    let word = name.trim_end_matches(|c: char| c.is_ascii_digit());
    let of_queue = QUEUES.iter().any(|queues| word.trim_end_matches(['-', '.']).ends_with(queues));
    // Flow director of i40e: `i40e-eth0:fdir-TxRx-0`.
    if of_queue && !word.contains("fdir") { name[word.len()..].parse().ok() } else { None }
}

/// The file with the cores that handle an interrupt.
pub(super) fn affinity_path(irq: u32) -> String {
    format!("/proc/irq/{irq}/smp_affinity_list")
}

/// The greatest exit latency of the enabled idle states in a core's directory.
fn idle_exit_micros(directory: &str) -> Option<u32> {
    names(Path::new(directory))
        .filter_map(|state| {
            let [latency, disable] = ["latency", "disable"]
                .map(|file| text(format!("{directory}/{state}/{file}"))?.parse::<u32>().ok());
            latency.filter(|_| disable == Some(0))
        })
        .max()
}

fn nodes() -> BTreeMap<u32, String> {
    names(Path::new(NODES))
        .filter_map(|name| {
            Some((name.strip_prefix("node")?.parse().ok()?, text(format!("{NODES}/{name}/cpulist"))?))
        })
        .collect()
}

/// Whether a process with this name runs.
fn runs(program: &str) -> bool {
    names(Path::new("/proc"))
        .filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
        .any(|name| text(format!("/proc/{name}/comm")).is_some_and(|comm| comm == program))
}

/// The names of the files in a directory; none if it is absent.
fn names(directory: &Path) -> impl Iterator<Item = String> {
    fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
}

/// The trimmed text of a file; `None` if it cannot be read.
fn text(path: impl AsRef<Path>) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

const NETWORK: &str = "/sys/class/net";
const CORES: &str = "/sys/devices/system/cpu";
const NODES: &str = "/sys/devices/system/node";
const ONLINE: &str = "/sys/devices/system/cpu/online";
const ISOLATED_AT_BOOT: &str = "/sys/devices/system/cpu/isolated";
/// Since Linux 6.8.
const ISOLATED_BY_CPUSETS: &str = "/sys/fs/cgroup/cpuset.cpus.isolated";
/// The endings of the names of queue interrupts, before the number.
const QUEUES: [&str; 6] = ["rx", "tx", "input", "output", "comp", "fp"];

#[cfg(test)]
mod tests {
    use crate::doctor::tunables::*;

    #[test]
    fn the_queue_of_an_interrupt_is_the_number_behind_the_words_that_drivers_use_for_queues() {
        for name in [
            "eth0-TxRx-3",
            "i40e-eth0-TxRx-3",
            "ice-eth0-TxRx-3",
            "ens1f0-rx-3",
            "eth0-Tx-Rx-3",
            "eth0-rxtx-3",
            "eth0-fp-3",
            "virtio0-input.3",
            "virtio0-output.3",
            "mlx5_comp3@pci:0000:01:00.0",
        ] {
            assert_eq!(queue_of(name), Some(3), "{name}");
        }
    }

    #[test]
    fn interrupts_of_link_events_filters_and_commands_are_of_no_queue() {
        for name in [
            "eth0",
            "eth0-event-2",
            "i40e-eth0:fdir-TxRx-0",
            "i40e-0000:01:00.0:misc",
            "mlx5_async0@pci:0000:01:00.0",
            "virtio0-config",
            "eth0-TxRx",
            "",
        ] {
            assert_eq!(queue_of(name), None, "{name}");
        }
    }

    #[test]
    fn the_interrupts_of_a_card_are_those_of_its_device_that_are_named_after_a_queue() {
        let listing = "\
           CPU0       CPU1
 24:          1          0  IO-APIC   5-edge      ACPI:Ged
4027:          9          0 PCI-MSIX-0000:00:05.0   1-edge      eth0-TxRx-0
4028:          0          9 PCI-MSIX-0000:00:05.0   0-edge      eth0
4029:          0          9 PCI-MSIX-0000:00:06.0   1-edge      eth1-TxRx-0
NMI:          0          0   Non-maskable interrupts
";
        let found = interrupts(listing, &BTreeSet::from([4027, 4028]));
        let name = "eth0-TxRx-0".to_owned();
        assert_eq!(found, [Interrupt { irq: 4027, name, queue: 0, cores: String::new() }]);
        assert_eq!(handled(listing, &BTreeSet::from([4027, 4028])), 18, "on all cores");
    }
}
