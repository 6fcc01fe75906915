//! `xvs doctor --tune`: the recommended settings of network cards and workers' cores, and the commands that set them.
//!
//! Each item is evaluated by one small pure function of the facts that [`Tunables`] has. `--apply` runs the commands of
//! cards and continues after a failure; commands for the whole machine are advice, which it never runs. Settings last
//! until the machine boots.

use std::collections::BTreeSet;
use std::error::Error;
use std::process::{Command, Output};
use std::{fmt, fs};

use xvs_host::cores::parse_cores;
use xvs_xdp::card::CardSettings;

use crate::doctor::facts::Facts;
use crate::doctor::finding::{Finding, Level};
use crate::doctor::gather::{Asked, gather_interfaces};
use crate::doctor::interfaces::absent;
use crate::doctor::tunables::{Card, Interrupt, Tunables, affinity_path, most_queues};

/// Whether the commands are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Apply {
    Yes,
    No,
}

/// A finding with the command that `--apply` runs; `None` if nothing differs, or if the change is the operator's
/// decision.
#[derive(Debug)]
struct Item {
    finding: Finding,
    action: Option<Action>,
}

/// A command that `--apply` runs.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Action {
    /// The program ethtool with these arguments.
    Ethtool(String),
    /// Sends an interrupt to a core.
    Interrupt { irq: u32, core: usize },
}

/// The findings for this machine. With [`Apply::Yes`], the finding for an item whose command was run states its result.
///
/// # Errors
///
/// The kernel's network cannot be read; nothing was changed.
pub(super) fn run(asked: &Asked, apply: Apply) -> Result<Vec<Finding>, Box<dyn Error>> {
    let items = gather_items(asked)?;
    if apply == Apply::No {
        return Ok(items.into_iter().map(|item| item.finding).collect());
    }
    // Drivers reallocate interrupts when queues or rings change, so interrupts are read and placed afterwards.
    let mut findings: Vec<_> = items
        .into_iter()
        .filter(|item| matches!(item.action, Some(Action::Ethtool(_))))
        .map(|item| item.apply(Action::run))
        .collect();
    match gather_items(asked) {
        Err(error) => findings.push(Finding::of("interrupts", "").fail(error)),
        Ok(mut items) => {
            items.retain(|Item { finding, .. }| {
                findings.iter().all(|one| (one.check, &one.object) != (finding.check, &finding.object))
            });
            findings.extend(items.into_iter().map(|item| item.apply(Action::run)));
        }
    }
    Ok(findings)
}

fn gather_items(asked: &Asked) -> Result<Vec<Item>, Box<dyn Error>> {
    let facts = gather_interfaces(asked)?;
    Ok(examine(&facts, &Tunables::read(&facts)))
}

/// Evaluates the facts: each card, then the machine.
fn examine(facts: &Facts, tunables: &Tunables) -> Vec<Item> {
    let mut items: Vec<Item> = facts.faults.iter().cloned().map(Item::from).collect();
    for interface in &facts.interfaces {
        if let Err(error) = &interface.device {
            items.push(absent(facts, &interface.name, error).into());
        }
    }
    if tunables.cards.is_empty() {
        let names: Vec<_> = facts.devices().map(|(name, _)| name).collect();
        if !names.is_empty() {
            let finding = Finding::of("interface", "")
                .seen(CLASS)
                .ok(format!("no device is behind {}, so there is nothing to tune", names.join(", ")));
            items.push(finding.into());
        }
        return items;
    }
    // The commands run in this order. A change of queues or rings resets the link of some cards: igb then renegotiates
    // pause frames unless they were off before, which could undo later commands.
    for card in &tunables.cards {
        items.extend(pause(card));
        items.push(lro(card));
        items.push(queues(tunables, card));
        items.extend(rings(card));
        items.extend(hash(tunables, card));
        items.extend(coalescing(card));
        items.extend(interrupts(tunables, card));
        items.extend(numa(tunables, card).map(Item::from));
    }
    let of_machine =
        [uneven(facts), irqbalance(tunables), governor(tunables), idle(tunables), isolation(tunables)];
    items.extend(of_machine.into_iter().flatten().map(Item::from));
    items
}

/// No pause frames.
fn pause(card: &Card) -> Option<Item> {
    let pause = card.settings.pause?;
    let subject = Finding::of("pause frames", &card.name).seen("ethtool -a");
    let [receive, send] = [pause.receive, pause.transmit].map(|on| if on { "on" } else { "off" });
    let now = format!("receive {receive}, send {send}");
    Some(if pause.receive || pause.transmit {
        let autoneg = if LINK_AUTONEG.contains(&card.device.driver.as_str()) { "" } else { " autoneg off" };
        Item::set(
            subject.warn(format!(
                "{now}; wanted off: otherwise a director that is slow for a moment stops its switch port for \
                 all"
            )),
            Action::Ethtool(format!("-A {}{autoneg} rx off tx off", card.name)),
        )
    } else {
        subject.ok(now).into()
    })
}

/// No large receive offload.
fn lro(card: &Card) -> Item {
    let subject = Finding::of("lro", &card.name).seen("ethtool -k");
    if card.device.features.contains("rx-lro") {
        Item::set(
            subject.warn("on; wanted off: it merges packets, and drivers refuse native XDP with it"),
            Action::Ethtool(format!("-K {} lro off", card.name)),
        )
    } else {
        subject.ok("off").into()
    }
}

/// One queue for each worker.
fn queues(tunables: &Tunables, card: &Card) -> Item {
    let name = &card.name;
    let now = card.device.receive_queues;
    let most = most_queues(&card.device);
    let target = tunables.worker_cores.len() as u32;
    let wanted = tunables.wanted_workers;
    let subject = Finding::of("queues", name).seen("ethtool -l");
    let found = format!("receive queues {now}, workers {target}");
    let why = "each worker then serves one queue of each interface";
    if now != target && card.attached {
        subject
            .warn(format!(
                "{found}; wanted {target}: {why}. The kernel changes them only without sockets of xvsd: set \
                 `queues = {target}` under `[interfaces.{name}]` of xvs.toml, then `xvs reload`"
            ))
            .into()
    } else if now != target {
        Item::set(
            subject.warn(format!("{found}; wanted {target}: {why}")),
            Action::Ethtool(format!("-L {name} {} {target}", card.device.queues_word)),
        )
    } else if (most as usize) < wanted {
        subject
            .warn(format!(
                "receive queues {now}, at most {most}, and workers {wanted}: xvsd starts only {target}; set \
                 `workers = {target}` in xvs.toml"
            ))
            .into()
    } else {
        subject.ok(found).into()
    }
}

/// Rings that hold what comes while a worker is busy, and no more.
fn rings(card: &Card) -> Option<Item> {
    let rings = card.settings.rings?;
    let subject = Finding::of("rings", &card.name).seen("ethtool -g");
    let mut changed = Vec::new();
    for (ring, now, most) in
        [("rx", rings.receive, rings.receive_max), ("tx", rings.transmit, rings.transmit_max)]
    {
        let wanted = now.clamp(RING_LEAST.min(most), RING_MOST);
        if most > 0 && now != wanted {
            changed.push(format!("{ring} {wanted}"));
        }
    }
    let now = format!("{} receive and {} transmit descriptors", rings.receive, rings.transmit);
    Some(if changed.is_empty() {
        subject.ok(now).into()
    } else {
        let changed = changed.join(" ");
        Item::set(
            subject.warn(format!(
                "{now}; wanted {changed}: fewer than {RING_LEAST} lose packets of a burst, more than \
                 {RING_MOST} delay them. The change may reset the link"
            )),
            Action::Ethtool(format!("-G {} {changed}", card.name)),
        )
    })
}

/// Flows of UDP between the same two addresses on several queues.
fn hash(tunables: &Tunables, card: &Card) -> Vec<Item> {
    let queues =
        if card.attached { card.device.receive_queues as usize } else { tunables.worker_cores.len() };
    if queues <= 1 {
        return Vec::new();
    }
    let CardSettings { udp4_by_ports, udp6_by_ports, .. } = card.settings;
    let mut items = Vec::new();
    for (check, flow, by_ports) in
        [("hash of udp4", "udp4", udp4_by_ports), ("hash of udp6", "udp6", udp6_by_ports)]
    {
        let subject =
            Finding::of(check, &card.name).seen(format!("ethtool -n {} rx-flow-hash {flow}", card.name));
        items.push(match by_ports {
            Some(true) => subject.ok("addresses and ports").into(),
            Some(false) => Item::set(
                subject.warn(
                    "addresses alone; wanted ports too: otherwise all flows between two addresses reach one \
                     worker. Fragments still go by addresses alone",
                ),
                Action::Ethtool(format!("-N {} rx-flow-hash {flow} sdfn", card.name)),
            ),
            None => continue,
        });
    }
    items
}

/// Interrupts that are coalesced, and not for long. Values between are left.
fn coalescing(card: &Card) -> Option<Item> {
    let now = card.settings.coalescing?;
    let none = now.micros == 0 && now.frames <= 1;
    // Without VIRTIO_NET_F_NOTF_COAL it reports one frame, and refuses all other values
    // (`virtnet_coal_params_supported`).
    if none && now.frames == 1 && card.device.driver == "virtio_net" {
        return None;
    }
    let subject = Finding::of("coalescing", &card.name).seen("ethtool -c");
    let found = format!("after {} µs or {} packets", now.micros, now.frames);
    let too_long = now.micros > COALESCING_MOST_MICROS;
    Some(if now.adaptive {
        subject.ok("adaptive").into()
    } else if none || too_long {
        let why = if none { "each packet costs an interrupt" } else { "each packet waits that long" };
        Item::set(
            subject.warn(format!("{found}; wanted {COALESCING_MICROS} µs: {why}")),
            Action::Ethtool(format!("-C {} rx-usecs {COALESCING_MICROS}", card.name)),
        )
    } else {
        subject.ok(found).into()
    })
}

/// The interrupts of a queue on the core of the worker that serves it.
fn interrupts(tunables: &Tunables, card: &Card) -> Vec<Item> {
    let subject = Finding::of("interrupts", &card.name).seen("/proc/interrupts");
    let workers = tunables.worker_cores.len().max(1);
    let queues = if card.attached { card.device.receive_queues } else { workers as u32 };
    let mut placed = 0;
    let mut items = Vec::new();
    for Interrupt { irq, name, queue, cores } in &card.interrupts {
        // The same assignment of queues to workers as in `xvs_ctl::placement::shares`.
        let worker = *queue as usize % workers;
        let Some(core) = tunables.worker_cores.get(worker).copied().flatten() else { continue };
        if *queue >= queues {
            continue;
        }
        if *cores == core.to_string() {
            placed += 1;
            continue;
        }
        let finding = subject.clone().seen(affinity_path(*irq)).warn(format!(
            "IRQ {irq} ({name}) of queue {queue} on cores {cores}; wanted core {core}, that of worker \
             {worker}: under overload the kernel then receives no more there than the worker forwards"
        ));
        items.push(Item::set(finding, Action::Interrupt { irq: *irq, core }));
    }
    if items.is_empty() {
        let finding = match placed {
            0 if !card.up => subject
                .warn("it is down, so its driver may have set up no interrupts yet")
                .mend(format!("ip link set dev {} up", card.name)),
            0 => subject.ok("none has the number of a queue in its name, so all are left"),
            count => subject.ok(format!("{count}, each on the core of its worker")),
        };
        items.push(finding.into());
    }
    items
}

/// Workers on cores of the card's NUMA node.
fn numa(tunables: &Tunables, card: &Card) -> Option<Finding> {
    let node = card.node.filter(|_| tunables.nodes.len() > 1)?;
    let near = tunables.nodes.get(&node)?;
    let subject = Finding::of("numa", &card.name).seen(format!("{CLASS}/{}/device/numa_node", card.name));
    let far: Vec<_> = pinned(tunables).difference(&parse_cores(near)).copied().collect();
    Some(if far.is_empty() {
        subject.ok(format!("node {node}, that of the workers' cores"))
    } else {
        subject.warn(format!(
            "node {node} with cores {near}, and workers run on {}: each packet crosses between nodes. Give \
             xvsd cores of node {node}: `CPUAffinity={near}` in its unit",
            joined(far)
        ))
    })
}

/// Interfaces with different numbers of queues.
fn uneven(facts: &Facts) -> Option<Finding> {
    let mut counts = BTreeSet::new();
    let mut of_each = Vec::new();
    for (name, device) in facts.devices() {
        counts.insert(device.receive_queues);
        of_each.push(format!("{name} {}", device.receive_queues));
    }
    let finding = Finding::of("queues", "").seen("ethtool -l").warn(format!(
        "interfaces have different numbers: {}; there are at most as many workers as the fewest",
        of_each.join(", ")
    ));
    (counts.len() > 1).then_some(finding)
}

fn irqbalance(tunables: &Tunables) -> Option<Finding> {
    tunables.irqbalance.then(|| {
        Finding::of("irqbalance", "")
            .seen("/proc/*/comm")
            .warn("it runs, and moves the interrupts of queues to other cores again")
            .mend("systemctl disable --now irqbalance")
    })
}

fn governor(tunables: &Tunables) -> Option<Finding> {
    let slow: Vec<_> = tunables.governors.iter().filter(|(_, governor)| *governor != "performance").collect();
    let (_, governor) = slow.first()?;
    let cores = joined(slow.iter().map(|(core, _)| **core));
    Some(
        Finding::of("governor", "")
            .seen(format!("{CORE}/cpufreq/scaling_governor"))
            .warn(format!(
                "{governor} on cores of workers ({cores}); wanted performance: a worker that wakes up is \
                 slow until the frequency rises"
            ))
            .mend(format!("cpupower -c {cores} frequency-set -g performance")),
    )
}

fn idle(tunables: &Tunables) -> Option<Finding> {
    let deep: Vec<_> =
        tunables.idle_exit_micros.iter().filter(|(_, micros)| **micros > IDLE_MOST_MICROS).collect();
    let most = deep.iter().map(|(_, micros)| **micros).max()?;
    let cores = joined(deep.iter().map(|(core, _)| **core));
    Some(
        Finding::of("idle states", "")
            .seen(format!("{CORE}/cpuidle"))
            .warn(format!(
                "cores of workers ({cores}) need up to {most} µs to wake up; wanted {IDLE_MOST_MICROS} at \
                 most: the first packet waits that long"
            ))
            .mend(format!("cpupower -c {cores} idle-set -D {}", IDLE_MOST_MICROS + 1)),
    )
}

fn isolation(tunables: &Tunables) -> Option<Finding> {
    let pinned = pinned(tunables);
    let shared: Vec<_> = pinned.difference(&tunables.isolated).copied().collect();
    if tunables.cores.len() <= 2 || shared.is_empty() {
        return None;
    }
    // Without CPUAffinity, programs do not get isolated cores (kernel sched/core.c, `sched_init_smp`).
    Some(Finding::of("isolation", "").seen("/sys/devices/system/cpu/isolated").warn(format!(
        "other programs may run on cores of workers ({}): the kernel argument `isolcpus={}` keeps them off, \
         with `CPUAffinity=0-{}` in the unit of xvsd, which may not use these cores otherwise",
        joined(shared),
        joined(pinned),
        tunables.cores.last()?
    )))
}

/// The cores that workers are pinned to.
fn pinned(tunables: &Tunables) -> BTreeSet<usize> {
    tunables.worker_cores.iter().flatten().copied().collect()
}

fn joined(cores: impl IntoIterator<Item = usize>) -> String {
    cores.into_iter().map(|core| core.to_string()).collect::<Vec<_>>().join(",")
}

impl Item {
    /// A setting that differs, and the command that sets it.
    fn set(finding: Finding, action: Action) -> Self {
        Self { finding: finding.mend(&action), action: Some(action) }
    }

    /// Runs the command, if there is one, and states the result.
    fn apply(self, run: impl Fn(&Action) -> Result<(), Box<dyn Error>>) -> Finding {
        let Self { finding, action: Some(action) } = self else { return self.finding };
        let (level, result, mend) = match run(&action) {
            Ok(()) => (Level::Ok, "done".to_owned(), None),
            Err(error) => (Level::Fail, error.to_string(), finding.mend),
        };
        Finding { level, found: format!("{}; `{action}`: {result}", finding.found), mend, ..finding }
    }
}

impl From<Finding> for Item {
    fn from(finding: Finding) -> Self {
        Self { finding, action: None }
    }
}

impl Action {
    fn run(&self) -> Result<(), Box<dyn Error>> {
        match self {
            // Equivalent to the printed command, without a shell.
            Self::Interrupt { irq, core } => Ok(fs::write(affinity_path(*irq), core.to_string())?),
            Self::Ethtool(arguments) => {
                let Output { status, stderr, .. } = Command::new("ethtool")
                    .args(arguments.split(' '))
                    .output()
                    .map_err(|error| format!("the program ethtool cannot be started: {error}"))?;
                if status.success() {
                    return Ok(());
                }
                let reason =
                    String::from_utf8_lossy(&stderr).split_whitespace().collect::<Vec<_>>().join(" ");
                Err(format!("{reason} ({status})").into())
            }
        }
    }
}

/// The command for a shell.
impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ethtool(arguments) => write!(f, "ethtool {arguments}"),
            Self::Interrupt { irq, core } => write!(f, "sh -c 'echo {core} >{}'", affinity_path(*irq)),
        }
    }
}

const CLASS: &str = "/sys/class/net";
const CORE: &str = "/sys/devices/system/cpu/cpu*";
/// Descriptors of a ring.
const RING_LEAST: u32 = 1024;
const RING_MOST: u32 = 4096;
const COALESCING_MICROS: u32 = 20;
const COALESCING_MOST_MICROS: u32 = 100;
const IDLE_MOST_MICROS: u32 = 50;
/// Drivers that report the link's autonegotiation as that of pause frames, and refuse another value
/// (`i40e_set_pauseparam`, `ice_set_pauseparam`, `hclge_set_pauseparam`).
const LINK_AUTONEG: [&str; 3] = ["i40e", "ice", "hns3"];

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::io;

    use xvs_xdp::card::{Coalescing, Pause, Rings};

    use crate::doctor::facts::tests::{device, facts};
    use crate::doctor::finding::worst;
    use crate::doctor::tunables::Interrupt;
    use crate::doctor::tune::*;

    /// Two workers on cores 3 and 2 of four, all isolated, and `wan`, a card with two queues, all of it as wanted.
    fn tuned() -> Tunables {
        let facts = facts();
        let mut device = device(&facts, "wan");
        device.driver = "igb".to_owned();
        (device.receive_queues, device.most_receive_queues) = (2, 8);
        let interrupt = |irq, queue, cores: &str| Interrupt {
            irq,
            name: format!("wan-TxRx-{queue}"),
            queue,
            cores: cores.to_owned(),
        };
        let settings = CardSettings {
            rings: Some(Rings { receive: 1024, receive_max: 4096, transmit: 1024, transmit_max: 4096 }),
            pause: Some(Pause { receive: false, transmit: false }),
            coalescing: Some(Coalescing { micros: 3, frames: 0, adaptive: false }),
            udp4_by_ports: Some(true),
            udp6_by_ports: Some(true),
        };
        let card = Card {
            name: "wan".to_owned(),
            device,
            settings,
            up: true,
            attached: false,
            node: Some(0),
            interrupts: vec![interrupt(40, 0, "3"), interrupt(41, 1, "2")],
        };
        Tunables {
            cards: vec![card],
            wanted_workers: 2,
            worker_cores: vec![Some(3), Some(2)],
            cores: (0..4).collect(),
            isolated: BTreeSet::from([2, 3]),
            governors: [(2, "performance".to_owned()), (3, "performance".to_owned())].into(),
            idle_exit_micros: [(2, 10), (3, 50)].into(),
            nodes: [(0, "0-3".to_owned())].into(),
            irqbalance: false,
        }
    }

    /// The differences after `change`, as «check object: command»; items that `--apply` does not run are in brackets.
    fn wanted(change: impl Fn(&mut Tunables)) -> Vec<String> {
        let mut tunables = tuned();
        change(&mut tunables);
        let items = examine(&facts(), &tunables).into_iter().filter(|item| item.finding.level > Level::Ok);
        let shown = items.map(|Item { finding, action }| {
            let command = finding.mend.as_ref().map_or("", |mend| &mend.command);
            let command = if action.is_some() { command.to_owned() } else { format!("[{command}]") };
            format!("{} {}: {command}", finding.check, finding.object)
        });
        shown.collect()
    }

    /// The commands of [`wanted`] after a change of the card.
    fn wanted_of(change: impl Fn(&mut Card)) -> Vec<String> {
        wanted(|tunables| change(&mut tunables.cards[0]))
    }

    /// The text about this check after `change`.
    fn text(check: &str, change: impl Fn(&mut Tunables)) -> String {
        let mut tunables = tuned();
        change(&mut tunables);
        let mut items = examine(&facts(), &tunables).into_iter();
        items.find(|item| item.finding.check == check).map(|item| item.finding.found).unwrap_or_default()
    }

    #[test]
    fn nothing_differs_on_a_card_and_a_machine_that_are_as_wanted_and_each_value_is_shown() {
        assert_eq!(wanted(|_| {}), [""; 0]);
        let shown: Vec<_> = examine(&facts(), &tuned()).into_iter().map(|item| item.finding.found).collect();
        let values = [
            "receive off, send off",
            "off",
            "receive queues 2, workers 2",
            "1024 receive and 1024 transmit descriptors",
            "addresses and ports",
            "addresses and ports",
            "after 3 µs or 0 packets",
            "2, each on the core of its worker",
        ];
        assert_eq!(shown, values);
    }

    #[test]
    fn without_a_device_behind_an_interface_there_is_nothing_to_tune_and_all_is_well() {
        let items = examine(&facts(), &Tunables { irqbalance: true, ..Tunables::default() });
        assert_eq!(items.len(), 1);
        assert_eq!(items[0].finding.level, Level::Ok);
        assert_eq!(items[0].finding.found, "no device is behind wan, lan, so there is nothing to tune");
    }

    #[test]
    fn an_absent_interface_fails() {
        let mut facts = facts();
        facts.interfaces[0].device = Err("No such device".to_owned());
        let findings: Vec<_> = examine(&facts, &tuned()).into_iter().map(|item| item.finding).collect();
        assert_eq!(worst(&findings), Level::Fail);
    }

    #[test]
    fn a_card_has_as_many_receive_queues_as_there_are_workers() {
        let queues = |now| wanted_of(move |card| card.device.receive_queues = now);
        assert_eq!(queues(1), ["queues wan: ethtool -L wan combined 2"]);
        assert_eq!(queues(8), ["queues wan: ethtool -L wan combined 2"]);
    }

    #[test]
    fn the_queues_of_a_card_with_sockets_of_xvsd_are_advice_to_change_xvs_toml() {
        let attached = |tunables: &mut Tunables| {
            (tunables.cards[0].attached, tunables.cards[0].device.receive_queues) = (true, 1);
        };
        assert_eq!(wanted(attached), ["queues wan: []"]);
        let found = text("queues", attached);
        let advice = "set `queues = 2` under `[interfaces.wan]` of xvs.toml, then `xvs reload`";
        assert!(found.ends_with(advice), "{found}");
    }

    #[test]
    fn a_card_that_cannot_have_as_many_queues_as_workers_are_wanted_is_advice_to_want_fewer() {
        let few = |tunables: &mut Tunables| {
            (tunables.wanted_workers, tunables.cards[0].device.most_receive_queues) = (4, 2);
        };
        assert_eq!(wanted(few), ["queues wan: []"]);
        assert!(text("queues", few).ends_with("set `workers = 2` in xvs.toml"));
    }

    #[test]
    fn interfaces_with_different_numbers_of_queues_are_named() {
        let mut facts = facts();
        facts.interfaces[1].device.as_mut().unwrap().receive_queues = 4;
        let items = examine(&facts, &tuned());
        let last = &items.last().unwrap().finding;
        assert!(last.found.starts_with("interfaces have different numbers: wan 1, lan 4"), "{last}");
    }

    #[test]
    fn an_interrupt_goes_to_the_core_of_the_worker_that_serves_its_queue() {
        let moved = wanted_of(|card| {
            for interrupt in &mut card.interrupts {
                interrupt.cores = "0-3".to_owned();
            }
        });
        let commands = [
            "interrupts wan: sh -c 'echo 3 >/proc/irq/40/smp_affinity_list'",
            "interrupts wan: sh -c 'echo 2 >/proc/irq/41/smp_affinity_list'",
        ];
        assert_eq!(moved, commands);
    }

    #[test]
    fn queues_beyond_the_number_of_workers_have_the_cores_of_the_workers_in_turn() {
        let moved = wanted_of(|card| {
            (card.attached, card.device.receive_queues) = (true, 3);
            card.interrupts[1].queue = 2;
        });
        let place = "interrupts wan: sh -c 'echo 3 >/proc/irq/41/smp_affinity_list'";
        assert_eq!(moved, ["queues wan: []", place]);
    }

    #[test]
    fn interrupts_of_queues_without_a_worker_and_of_workers_without_a_core_are_left() {
        let unused =
            |card: &mut Card| (card.interrupts[1].queue, card.interrupts[1].cores) = (2, "0".to_owned());
        assert_eq!(wanted_of(unused), [""; 0]);
        let unpinned = wanted(|tunables| {
            tunables.worker_cores = vec![None, None];
            tunables.cards[0].interrupts[0].cores = "0".to_owned();
        });
        assert_eq!(unpinned, [""; 0]);
    }

    #[test]
    fn a_card_that_is_down_has_to_be_up_before_its_interrupts_are_known() {
        let down = wanted_of(|card| (card.up, card.interrupts) = (false, Vec::new()));
        assert_eq!(down, ["interrupts wan: [ip link set dev wan up]"]);
        assert_eq!(wanted_of(|card| card.interrupts.clear()), [""; 0]);
    }

    #[test]
    fn rings_have_from_1024_to_4096_descriptors_if_the_card_can() {
        let rings = |receive, receive_max, transmit, transmit_max| {
            let rings = Rings { receive, receive_max, transmit, transmit_max };
            wanted_of(move |card| card.settings.rings = Some(rings))
        };
        assert_eq!(rings(256, 4096, 256, 4096), ["rings wan: ethtool -G wan rx 1024 tx 1024"]);
        assert_eq!(rings(256, 512, 1024, 4096), ["rings wan: ethtool -G wan rx 512"]);
        assert_eq!(rings(8192, 8192, 2048, 8192), ["rings wan: ethtool -G wan rx 4096"]);
        assert_eq!(rings(256, 256, 256, 256), [""; 0]);
        assert_eq!(rings(256, 0, 256, 0), [""; 0], "the driver has rings that cannot be set");
    }

    #[test]
    fn pause_frames_are_switched_off_and_the_links_autonegotiation_is_left() {
        let paused = |driver: &'static str| {
            wanted_of(move |card| {
                card.device.driver = driver.to_owned();
                card.settings.pause = Some(Pause { receive: true, transmit: false });
            })
        };
        assert_eq!(paused("igb"), ["pause frames wan: ethtool -A wan autoneg off rx off tx off"]);
        assert_eq!(paused("ice"), ["pause frames wan: ethtool -A wan rx off tx off"]);
    }

    #[test]
    fn the_hash_of_udp_covers_ports_if_there_are_several_queues() {
        let by_addresses = |card: &mut Card| card.settings.udp4_by_ports = Some(false);
        assert_eq!(wanted_of(by_addresses), ["hash of udp4 wan: ethtool -N wan rx-flow-hash udp4 sdfn"]);
        assert!(text("hash of udp4", |tunables| by_addresses(&mut tunables.cards[0])).contains("Fragments"));
        let one = wanted(|tunables| {
            tunables.worker_cores.pop();
            tunables.wanted_workers = 1;
            tunables.cards[0].device.receive_queues = 1;
            by_addresses(&mut tunables.cards[0]);
        });
        assert_eq!(one, [""; 0]);
    }

    #[test]
    fn coalescing_is_named_only_if_each_packet_interrupts_or_waits_for_more_than_100_microseconds() {
        let of = |driver: &'static str, micros, frames, adaptive| {
            wanted_of(move |card| {
                card.device.driver = driver.to_owned();
                card.settings.coalescing = Some(Coalescing { micros, frames, adaptive });
            })
        };
        let set = ["coalescing wan: ethtool -C wan rx-usecs 20"];
        assert_eq!(of("ice", 0, 1, false), set);
        assert_eq!(of("ice", 101, 0, false), set);
        for (micros, frames, adaptive) in [(0, 1, true), (200, 0, true), (0, 8, false), (100, 0, false)] {
            assert_eq!(of("ice", micros, frames, adaptive), [""; 0]);
        }
        assert_eq!(of("virtio_net", 0, 1, false), [""; 0], "it would refuse another value");
    }

    #[test]
    fn large_receive_offload_is_switched_off() {
        let on = wanted_of(|card| _ = card.device.features.insert("rx-lro".to_owned()));
        assert_eq!(on, ["lro wan: ethtool -K wan lro off"]);
    }

    #[test]
    fn what_the_driver_does_not_report_has_no_item() {
        let items = {
            let mut tunables = tuned();
            tunables.cards[0].settings = CardSettings::default();
            examine(&facts(), &tunables)
        };
        let checks: Vec<_> = items.iter().map(|item| item.finding.check).collect();
        assert_eq!(checks, ["lro", "queues", "interrupts"]);
    }

    #[test]
    fn workers_on_another_numa_node_than_the_card_are_advice_that_names_cores_of_its_node() {
        let far = |tunables: &mut Tunables| {
            tunables.nodes = [(0, "0-1".to_owned()), (1, "2-3".to_owned())].into();
        };
        assert_eq!(wanted(far), ["numa wan: []"]);
        assert!(text("numa", far).ends_with("`CPUAffinity=0-1` in its unit"));
        let near = |tunables: &mut Tunables| {
            far(tunables);
            tunables.cards[0].node = Some(1);
        };
        assert_eq!(wanted(near), [""; 0]);
    }

    #[test]
    fn what_is_of_the_whole_machine_is_advice_that_apply_does_not_run() {
        let advice = wanted(|tunables| {
            tunables.irqbalance = true;
            tunables.governors.insert(3, "powersave".to_owned());
            tunables.idle_exit_micros.insert(2, 51);
            tunables.isolated.remove(&3);
        });
        let expected = [
            "irqbalance : [systemctl disable --now irqbalance]",
            "governor : [cpupower -c 3 frequency-set -g performance]",
            "idle states : [cpupower -c 2 idle-set -D 51]",
            "isolation : []",
        ];
        assert_eq!(advice, expected);
        let found = text("isolation", |tunables| tunables.isolated.clear());
        assert!(found.contains("`isolcpus=2,3`") && found.contains("`CPUAffinity=0-3`"), "{found}");
        let two =
            wanted(|tunables| (tunables.cores, tunables.isolated) = ((2..4).collect(), BTreeSet::new()));
        assert_eq!(two, [""; 0], "with two cores, other programs need both");
    }

    #[test]
    fn apply_runs_the_printed_command_and_a_failure_keeps_it_and_is_a_failure() {
        let ran = RefCell::new(Vec::new());
        let item = || {
            let action = Action::Ethtool("-K wan lro off".to_owned());
            Item::set(Finding::of("lro", "wan").warn("on; wanted off"), action)
        };
        let done = item().apply(|action| {
            ran.borrow_mut().push(action.to_string());
            Ok(())
        });
        assert_eq!(*ran.borrow(), ["ethtool -K wan lro off"]);
        assert_eq!((done.level, done.mend), (Level::Ok, None));
        assert_eq!(done.found, "on; wanted off; `ethtool -K wan lro off`: done");
        let failed = item().apply(|_| Err(io::Error::other("Operation not supported").into()));
        assert_eq!(failed.level, Level::Fail);
        assert_eq!(failed.mend.unwrap().command, "ethtool -K wan lro off");
        let advice = Item::from(Finding::of("isolation", "").warn("advice"));
        assert_eq!(advice.apply(|_| panic!("it has no command")).level, Level::Warn);
    }
}
