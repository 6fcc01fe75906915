//! Checks of each interface of the director: link state, XDP mode, queues, offloads, checksums, other XDP programs.

use xvs_ctl::bonds::bond_of;
use xvs_ctl::placement::{PlacementError, shares};
use xvs_host::instance::socket_of;
use xvs_model::protocol::client::default_socket;
use xvs_model::report::status::InterfaceStatus;
use xvs_xdp::device::{Device, Owner, Program};
use xvs_xdp::tap::is_director_tap;
use xvs_xdp::{Mode, leaves_checksums};

use crate::doctor::facts::Facts;
use crate::doctor::finding::{Finding, Level};

/// Every check of every interface.
pub(super) fn all(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    for interface in &facts.interfaces {
        match (&interface.device, &interface.refused) {
            // Without a fix to paste: the machine may be reached by an address of the bridge or bond.
            (Ok(_), Some(why)) => {
                findings.push(Finding::of("interface", &interface.name).seen("ip -details link").fail(why));
            }
            (Ok(device), None) => {
                findings.push(usable(facts, &interface.name, device));
                findings.push(mode(facts, &interface.name, device));
                findings.extend(offloads(facts, &interface.name, device));
                findings.extend(checksums(&interface.name, device));
                findings.push(occupant(facts, &interface.name, device));
            }
            (Err(error), _) => findings.push(absent(facts, &interface.name, error)),
        }
    }
    findings.extend(queues(facts));
    findings
}

/// Whether each interface can be attached and has a carrier, and whether another XDP program has it.
pub(super) fn reachable(facts: &Facts) -> Vec<Finding> {
    all(facts).into_iter().filter(|finding| ["interface", "xdp"].contains(&finding.check)).collect()
}

pub(super) fn absent(facts: &Facts, name: &str, error: &str) -> Finding {
    let present: Vec<_> = facts.network.links.iter().map(|link| link.name.as_str()).collect();
    Finding::of("interface", name).seen("ip link").fail(format!("{error}; there are {}", present.join(", ")))
}

/// Whether it can be attached and has a carrier.
fn usable(facts: &Facts, name: &str, device: &Device) -> Finding {
    let interface = Finding::of("interface", name).seen("ip link");
    if device.loopback {
        interface
            .fail("it is a loopback interface, which receives no packets of clients; name the one that does")
    } else if is_director_tap(name, &device.driver) {
        interface.fail(
            "it is a TAP of xvsd, by which it passes packets to the kernel; name an interface of a network",
        )
    } else if let Some(limit) = facts.mtu_limit.filter(|limit| device.mtu > *limit) {
        interface
            .fail(format!(
                "its MTU of {} admits packets of several buffers, which this kernel does not pass to AF_XDP: \
                 Linux 6.6 and later do",
                device.mtu
            ))
            .mend(format!("ip link set dev {name} mtu {limit}"))
    } else if facts.network.links.iter().any(|link| link.ifindex == device.ifindex && link.up) {
        interface.ok(format!("it is up, MTU {}", device.mtu))
    } else {
        interface
            .fail("it is down, or has no carrier (then check its cable, or its other end)")
            .mend(format!("ip link set dev {name} up"))
    }
}

/// The XDP mode in which its program runs, or would run.
fn mode(facts: &Facts, name: &str, device: &Device) -> Finding {
    let driver =
        if device.driver.is_empty() { "its driver".to_owned() } else { format!("driver {}", device.driver) };
    let subject = Finding::of("mode", name).seen("netdev xdp-features");
    if let Some(attached) = facts.daemon.as_ref().and_then(|daemon| daemon.interface(name)) {
        let InterfaceStatus { mode, why_not_native, .. } = attached;
        let why = why_not_native.as_ref().map(|why| format!(", native refused: {why}")).unwrap_or_default();
        let level = if *mode == Mode::Native.to_string() { Level::Ok } else { Level::Warn };
        return subject.seen("xvs status").at(level, format!("{driver}, {mode} XDP{why}"));
    }
    if device.zero_copy {
        subject.ok(format!("{driver} has native XDP and zero-copy"))
    } else if device.native {
        subject.ok(format!("{driver} has native XDP, with copies"))
    } else if facts.reports_xdp_features() {
        subject.warn(format!("{driver} has no native XDP: generic mode, which costs more per packet"))
    } else {
        subject.seen("ethtool -i").ok(format!(
            "{driver}; this kernel does not report whether it has native XDP: xvsd tries when it attaches"
        ))
    }
}

/// Whether there are queues for as many workers as there are cores to spare, and workers for all queues.
fn queues(facts: &Facts) -> Vec<Finding> {
    let counted = facts.queues();
    if counted.is_empty() {
        return Vec::new();
    }
    let wanted = facts.daemon.as_ref().map(|daemon| daemon.workers).or(facts.config.workers);
    let all = Finding::of("queues", "").seen("ethtool -l");
    let workers = match shares(&counted, wanted, facts.cores) {
        Ok(shares) => shares.len(),
        // xvsd starts as many workers as there are queues.
        Err(error @ PlacementError::TooManyWorkers { .. }) => {
            return vec![all.warn(error)];
        }
        Err(error) => return vec![all.fail(error)],
    };
    let spare = facts.cores.saturating_sub(1).max(1);
    let mut findings = Vec::new();
    for (name, device) in facts.devices() {
        let now = device.receive_queues as usize;
        let better = spare.min(device.most_receive_queues as usize);
        if facts.config.workers.is_none() && now <= workers && now < better {
            findings.push(
                Finding::of("queues", name)
                    .seen("ethtool -l")
                    .warn(format!(
                        "{now} receive queues for {} cores: xvsd has {workers} workers",
                        facts.cores
                    ))
                    .mend(format!("ethtool -L {name} {} {better}", device.queues_word)),
            );
        }
    }
    if findings.is_empty() {
        let queues: Vec<_> = counted.iter().map(|(name, queues)| format!("{name} {queues}")).collect();
        findings.push(all.ok(format!("{}; workers {workers}, cores {}", queues.join(", "), facts.cores)));
    }
    findings
}

/// Whether the device or the kernel merges packets, or strips VLAN tags, before the director sees them.
fn offloads(facts: &Facts, name: &str, device: &Device) -> Vec<Finding> {
    let subject = Finding::of("offload", name).seen("ethtool -k");
    if device.driver == BRIDGE {
        // Otherwise it could not be attached.
        return vec![subject.ok("no port merges packets")];
    }
    let attached = facts.daemon.as_ref().and_then(|daemon| daemon.interface(name));
    let generic = match attached {
        Some(attached) => attached.mode == Mode::Generic.to_string(),
        None => facts.reports_xdp_features() && !device.native,
    };
    let links = &facts.network.links;
    let bond = facts.network.link_named(name).and_then(|link| bond_of(link, links));
    let carriers = [Some(device.ifindex), bond.map(|bond| bond.ifindex)];
    let vlans = links.iter().any(|link| link.vlan.is_some_and(|vlan| carriers.contains(&Some(vlan.over))));
    // veth keeps tags outside the frame and reinserts them for XDP.
    let strips = generic || vlans && device.driver != VETH;
    let merges = "it merges packets before the director sees them";
    let refuses = "drivers refuse native XDP with it, or switch it off";
    let hides = "it strips VLAN tags before the director sees them";
    // With native XDP, drivers switch off the offloads that merge packets; some refuse to start with LRO.
    let seen = generic || attached.is_some();
    let mut findings = Vec::new();
    for (feature, option, counts, level, effect) in [
        ("rx-gro", "gro", generic, Level::Fail, merges),
        ("rx-gro-hw", "rx-gro-hw", seen, Level::Fail, merges),
        ("rx-lro", "lro", seen, Level::Fail, merges),
        ("rx-lro", "lro", !seen, Level::Warn, refuses),
        ("rx-vlan-hw-parse", "rxvlan", strips, Level::Fail, hides),
    ] {
        if counts && device.features.contains(feature) {
            findings.push(
                subject
                    .at(level, format!("{option} is on: {effect}"))
                    .mend(format!("ethtool -K {name} {option} off")),
            );
        }
    }
    if findings.is_empty() {
        findings.push(subject.ok("no offload merges packets or strips VLAN tags"));
    }
    findings
}

/// Whether packets may arrive with checksums that their sender left to its device.
fn checksums(name: &str, device: &Device) -> Option<Finding> {
    leaves_checksums(&device.driver).then(|| {
        Finding::of("checksums", name).seen("ethtool -i").ok(format!(
            "packets from {} may arrive with incomplete checksums; the workers complete and count them",
            device.driver
        ))
    })
}

/// Whether another XDP program takes the packets, or prevents xvsd from attaching.
fn occupant(facts: &Facts, name: &str, device: &Device) -> Finding {
    let ours = facts.daemon.as_ref().is_some_and(|daemon| daemon.interface(name).is_some());
    let xdp = Finding::of("xdp", name).seen("bpftool net");
    match &device.program {
        None if ours => xdp.fail("xvsd runs, but its program is not attached; restart xvsd"),
        None => xdp.ok("no program is attached"),
        Some(Program { owner: Some(Owner::Director) | None, .. }) if ours => xdp.ok("the program is xvsd's"),
        Some(Program { process: None, pinned_by: Some(director), .. }) => {
            let socket = socket_of(director);
            if facts.daemon.is_none() && socket == default_socket() {
                xdp.ok("it has the program of an xvsd that has ended, which the next one takes over")
            } else {
                let socket = socket.display();
                xdp.fail(format!(
                    "it has the program of the director with the socket {socket}, which does not run"
                ))
                .mend(format!("XVS_SOCKET={socket} xvs stop --release"))
            }
        }
        Some(program) => {
            let found = format!("it has an XDP program, {program}, and xvsd cannot attach");
            match program.detach_command(name) {
                Some(command) => xdp.fail(found).mend(command),
                None => xdp.fail(format!("{found}; {}", program.remedy(name))),
            }
        }
    }
}

const VETH: &str = "veth";
const BRIDGE: &str = "bridge";

#[cfg(test)]
mod tests {
    use xvs_host::instance::name_of;
    use xvs_proto::network::LinkKind;

    use crate::doctor::facts::Interface;
    use crate::doctor::facts::tests::{device, facts, with_daemon};
    use crate::doctor::interfaces::*;

    /// The findings that are not ok for `wan` as changed by `change`, as «level check: command».
    fn wrong(change: impl Fn(&mut Interface, &mut Device)) -> Vec<String> {
        complaints(&changed(facts(), change))
    }

    fn changed(mut facts: Facts, change: impl Fn(&mut Interface, &mut Device)) -> Facts {
        let mut device = device(&facts, "wan");
        change(&mut facts.interfaces[0], &mut device);
        facts.interfaces[0].device = Ok(device);
        facts
    }

    fn complaints(facts: &Facts) -> Vec<String> {
        let wrong = all(facts).into_iter().filter(|finding| finding.level > Level::Ok);
        wrong
            .map(|finding| {
                let mend = finding.mend.map(|mend| mend.command).unwrap_or_default();
                format!("{} {} {}: {mend}", finding.level, finding.check, finding.object)
            })
            .collect()
    }

    #[test]
    fn an_interface_without_faults_has_no_complaints_with_and_without_a_daemon() {
        assert_eq!(complaints(&facts()), [""; 0]);
        assert_eq!(complaints(&with_daemon()), ["fail xdp wan: ", "fail xdp lan: "]);
        let mut facts = with_daemon();
        for interface in &mut facts.interfaces {
            let program = Program {
                id: 7,
                mode: Some(Mode::Native),
                owner: Some(Owner::Director),
                process: None,
                pinned_by: None,
            };
            interface.device.as_mut().unwrap().program = Some(program);
        }
        assert_eq!(complaints(&facts), [""; 0]);
    }

    #[test]
    fn an_absent_interface_is_reported_with_the_list_of_existing_ones() {
        let mut facts = facts();
        facts.interfaces[0].device = Err("No such device".to_owned());
        let found = all(&facts).remove(0);
        assert_eq!((found.level, found.found.as_str()), (Level::Fail, "No such device; there are wan, lan"));
    }

    #[test]
    fn an_mtu_of_several_buffers_fails_on_a_kernel_that_does_not_pass_them_to_af_xdp() {
        let of = |mtu_limit, mtu| {
            complaints(&Facts { mtu_limit, ..changed(facts(), |_, device| device.mtu = mtu) })
        };
        assert_eq!(of(None, 9000), [""; 0]);
        assert_eq!(of(Some(3498), 3498), [""; 0]);
        assert_eq!(of(Some(3498), 3499), ["fail interface wan: ip link set dev wan mtu 3498"]);
    }

    #[test]
    fn an_offload_that_would_corrupt_packets_is_reported_with_the_command_of_ethtool() {
        let on = |name: &'static str| {
            move |_: &mut Interface, device: &mut Device| {
                device.features.insert(name.to_owned());
            }
        };
        assert_eq!(wrong(on("rx-lro")), ["warn offload wan: ethtool -K wan lro off"]);
        assert_eq!(wrong(on("rx-gro-hw")), [""; 0]);
        let attached = complaints(&changed(with_daemon(), on("rx-gro-hw")));
        assert!(
            attached.contains(&"fail offload wan: ethtool -K wan rx-gro-hw off".to_owned()),
            "{attached:?}"
        );
        // In native mode the driver runs XDP before these offloads.
        assert_eq!(wrong(on("rx-gro")), [""; 0]);
        assert_eq!(wrong(on("rx-vlan-hw-parse")), [""; 0]);
        let generic = |name: &'static str| {
            wrong(move |interface, device| {
                on(name)(interface, device);
                device.native = false;
            })
        };
        assert_eq!(generic("rx-gro"), ["warn mode wan: ", "fail offload wan: ethtool -K wan gro off"]);
        assert_eq!(
            generic("rx-vlan-hw-parse"),
            ["warn mode wan: ", "fail offload wan: ethtool -K wan rxvlan off"]
        );
    }

    #[test]
    fn what_cannot_be_attached_because_of_other_links_fails_with_the_reason_and_nothing_else_is_checked() {
        let facts = changed(facts(), |interface, device| {
            interface.refused = Some("wan is a team".to_owned());
            device.features.insert("rx-lro".to_owned());
        });
        assert_eq!(complaints(&facts), ["fail interface wan: "]);
        assert_eq!(all(&facts)[0].found, "wan is a team");
    }

    #[test]
    fn the_offloads_of_a_bridge_itself_have_no_effect_and_vlans_over_a_bond_count_for_its_members() {
        let offloads = |driver: &'static str| {
            changed(facts(), move |_, device| {
                (device.driver, device.native) = (driver.to_owned(), driver != "bridge");
                device.features.extend(["rx-gro", "rx-vlan-hw-parse"].map(str::to_owned));
            })
        };
        assert_eq!(complaints(&offloads("bridge")), ["warn mode wan: "]);
        let mut facts = offloads("ixgbe");
        assert_eq!(complaints(&facts), [""; 0]);
        let mac = "02:00:00:00:00:03".parse().unwrap();
        for name in ["bond0", "bond0.5"] {
            facts.network.add_link(name, mac, &[], 1500).unwrap();
        }
        facts.network.make_vlan("bond0.5", 5, "bond0").unwrap();
        facts.network.links[2].kind = LinkKind::Bond;
        facts.network.links[0].master = Some(facts.network.links[2].ifindex);
        assert_eq!(complaints(&facts), ["fail offload wan: ethtool -K wan rxvlan off"]);
        assert!(facts.names("bond0") && !facts.names("bond0.5"));
    }

    #[test]
    fn stripped_vlan_tags_fail_if_there_are_vlans() {
        let mut facts = changed(facts(), |_, device| {
            device.driver = "ixgbe".to_owned();
            device.features.insert("rx-vlan-hw-parse".to_owned());
        });
        assert_eq!(complaints(&facts), [""; 0]);
        facts.network.add_link("wan.5", "02:00:00:00:00:01".parse().unwrap(), &[], 1500).unwrap();
        facts.network.make_vlan("wan.5", 5, "wan").unwrap();
        assert_eq!(complaints(&facts), ["fail offload wan: ethtool -K wan rxvlan off"]);
    }

    #[test]
    fn incomplete_checksums_of_a_virtual_device_are_no_fault() {
        let of = |driver: &str| {
            let mut facts = facts();
            for interface in &mut facts.interfaces {
                interface.device.as_mut().unwrap().driver = driver.to_owned();
            }
            let found = all(&facts);
            found
                .into_iter()
                .filter(|finding| finding.check == "checksums")
                .map(|one| one.level)
                .collect::<Vec<_>>()
        };
        assert_eq!(of("veth"), [Level::Ok, Level::Ok]);
        assert_eq!(of("ice"), []);
    }

    #[test]
    fn another_program_on_the_interface_is_reported_with_the_command_that_detaches_it() {
        let program = |mode, owner, process| Program { id: 7, mode, owner, process, pinned_by: None };
        let held = |mode, owner: Option<Owner>, process| {
            wrong(|_, device| device.program = Some(program(mode, owner.clone(), process)))
        };
        let of = |mode, owner| held(mode, owner, None);
        let other = || Some(Owner::Other("firewall".to_owned()));
        assert_eq!(of(Some(Mode::Native), other()), ["fail xdp wan: ip link set dev wan xdp off"]);
        assert_eq!(of(Some(Mode::Generic), None), ["fail xdp wan: ip link set dev wan xdpgeneric off"]);
        assert!(of(Some(Mode::Native), Some(Owner::RealServer))[0].contains("xvs realserver"));
        // `ip link` cannot detach a program that a process holds.
        assert_eq!(held(Some(Mode::Native), other(), Some(4711)), ["fail xdp wan: "]);
        // Another xvsd's process is not seen without root.
        assert_eq!(of(Some(Mode::Native), Some(Owner::Director)), ["fail xdp wan: "]);
        let pinned = |director: &str| {
            wrong(|_, device| {
                let program = program(Some(Mode::Native), Some(Owner::Director), None);
                device.program = Some(Program { pinned_by: Some(director.to_owned()), ..program });
            })
        };
        let release = "fail xdp wan: XVS_SOCKET=/run/other.sock xvs stop --release";
        assert_eq!(pinned("run-other.sock"), [release]);
        assert_eq!(pinned(&name_of(&default_socket())), [""; 0], "the next xvsd takes it over");
        let remedy = program(Some(Mode::Native), Some(Owner::Director), None).remedy("wan");
        assert_eq!(remedy, "stop that xvsd");
    }

    #[test]
    fn queues_suffice_if_cores_or_the_driver_allow_no_more_and_fewer_than_workers_have_a_warning() {
        let queues = |cores: usize, now: u32, most: u32| {
            let mut facts = facts();
            facts.cores = cores;
            for interface in &mut facts.interfaces {
                let device = interface.device.as_mut().unwrap();
                (device.receive_queues, device.most_receive_queues) = (now, most);
            }
            complaints(&facts)
        };
        assert_eq!(queues(2, 1, 8), [""; 0]);
        assert_eq!(queues(4, 1, 1), [""; 0]);
        let better =
            ["warn queues wan: ethtool -L wan combined 3", "warn queues lan: ethtool -L lan combined 3"];
        assert_eq!(queues(4, 1, 8), better);
        let mut facts = facts();
        facts.config.workers = Some(20);
        assert_eq!(complaints(&facts), ["warn queues : "]);
    }
}
