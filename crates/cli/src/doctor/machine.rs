//! Checks of the machine as a whole: kernel, daemon, memory, the kernel's own IPVS, the role of a real server.

use std::iter;

use xvs_ctl::config::TableMemory;
use xvs_ctl::placement::shares;
use xvs_ctl::steering::rules_of;
use xvs_dataplane::conn::TableConfig;
use xvs_dataplane::steering::Counts;
use xvs_host::memory::HugePages;
use xvs_realserver::status::Status;
use xvs_xdp::kernel::{lack, version};
use xvs_xdp::{RingSizes, frame_bytes, umem_bytes};

use crate::doctor::facts::{Facts, TRANSPARENT};
use crate::doctor::finding::Finding;

pub(super) fn kernel(facts: &Facts) -> Vec<Finding> {
    let release = &facts.kernel;
    let kernel = Finding::of("kernel", "").seen("/proc/sys/kernel/osrelease");
    let finding = match (lack(release), version(release)) {
        (Some(lack), _) => kernel.fail(lack),
        (None, None) => kernel.warn(format!("{release:?} is not a known kernel version")),
        (None, Some(version)) if version < MANAGED => kernel.warn(format!(
            "Linux {release} has no managed neighbours, so the first packets to a real server may be lost; \
             boot 5.16 or later"
        )),
        (None, Some(_)) => kernel.ok(format!("Linux {release}")),
    };
    vec![finding]
}

/// The first kernel with `NTF_EXT_MANAGED`.
const MANAGED: (u32, u32) = (5, 16);

pub(super) fn daemon(facts: &Facts) -> Vec<Finding> {
    let subject = Finding::of("daemon", "");
    let Some(daemon) = &facts.daemon else {
        return vec![subject.ok(format!("{}: checked whether xvsd could start", facts.no_daemon))];
    };
    iter::once(
        subject.ok(format!("xvsd {} is running; connection table on {}", daemon.version, daemon.pages)),
    )
    .chain(daemon.warnings.iter().map(|warning| subject.clone().seen("xvs status").warn(warning)))
    .collect()
}

/// Whether the workers may lock their packets' memory.
pub(super) fn memory_lock(facts: &Facts) -> Vec<Finding> {
    if facts.daemon.is_some() {
        return Vec::new();
    }
    let Some(needed) = packet_bytes(facts) else { return Vec::new() };
    let subject = Finding::of("memory lock", "").seen("ulimit -H -l");
    let finding = match facts.memory.lock_limit_bytes {
        _ if facts.memory.may_lock => {
            subject.seen("CapEff in /proc/self/status").ok("this user may lock memory without a limit")
        }
        Some(limit) if limit < needed => subject
            .fail(format!(
                "this user may lock {} KiB and the workers need {} KiB; for a service of systemd, \
                 LimitMEMLOCK=infinity has the effect of `ulimit`; a lower `receive_ring` needs less",
                limit >> 10,
                needed >> 10
            ))
            .mend("ulimit -l unlimited"),
        limit => {
            let limit =
                limit.map_or("no limit".to_owned(), |bytes| format!("a limit of {} KiB", bytes >> 10));
            subject.ok(format!("{limit}; the workers lock {} KiB", needed >> 10))
        }
    };
    vec![finding]
}

/// The packet memory of all workers that xvsd would start; `None` if the check of queues says that it would not start.
fn packet_bytes(facts: &Facts) -> Option<u64> {
    let mtu = facts.devices().map(|(_, device)| device.mtu).max()?;
    let sizes = RingSizes { receive: facts.config.receive_ring, transmit: facts.config.transmit_ring };
    let frame = facts.devices().map(|(_, device)| frame_bytes(&device.driver, device.mtu)).max()?;
    let bytes = shares(&facts.queues(), facts.config.workers, facts.cores)
        .ok()?
        .iter()
        .map(|share| umem_bytes(mtu, frame, share.iter().map(Vec::len).sum(), sizes))
        .sum();
    Some(bytes)
}

/// Whether there are enough huge pages for a resident connection table, and whether the kernel makes any for one that
/// is not resident. Files on a tmpfs need none of them.
pub(super) fn huge_pages(facts: &Facts) -> Vec<Finding> {
    if facts.daemon.is_some() || facts.config.state_directory.is_some() {
        return Vec::new();
    }
    let subject = Finding::of("huge pages", "").seen("/proc/meminfo");
    match facts.config.conn_table_memory {
        TableMemory::Resident => {}
        TableMemory::OnDemand if facts.memory.transparent.contains("[never]") => {
            let finding = subject
                .seen(TRANSPARENT)
                .warn("the kernel makes none, so a look-up in a large connection table costs more")
                .mend(format!("echo madvise > {TRANSPARENT}"));
            return vec![finding];
        }
        TableMemory::OnDemand | TableMemory::SmallPages => return Vec::new(),
    }
    let HugePages { size_bytes, total, unclaimed: free } = facts.memory.huge_pages;
    let needed = (table(facts).mapped_bytes() as u64).div_ceil(size_bytes.max(1));
    let finding = if free >= needed {
        subject.ok(format!("{free} are free, the table takes {needed}"))
    } else {
        subject
            .warn(format!(
                "{free} are free and the table takes {needed}; with small pages each look-up costs more, \
                 unless the kernel can combine them"
            ))
            .mend(format!("sysctl -w vm.nr_hugepages={}", total + needed - free))
    };
    vec![finding]
}

/// The table that xvsd would make.
fn table(facts: &Facts) -> TableConfig {
    TableConfig {
        capacity: facts.config.conn_table_size,
        workers: facts.config.workers.unwrap_or(1),
        memory: facts.config.conn_table_memory.into(),
    }
}

/// Whether the control group has room for the connection table of an xvsd started from this shell, which would be in
/// the doctor's group. A systemd unit has a different group, so this never fails.
pub(super) fn memory_limit(facts: &Facts) -> Vec<Finding> {
    let Some(limit) = facts.memory.cgroup_limit.as_ref().filter(|_| facts.daemon.is_none()) else {
        return Vec::new();
    };
    let packet_bytes = packet_bytes(facts).unwrap_or(0);
    let free_huge_bytes = facts.memory.huge_pages.unclaimed_bytes();
    let subject = Finding::of("memory limit", "").seen(limit.file.display());
    let finding = match facts.config.check_limit(&table(facts), packet_bytes, free_huge_bytes, limit) {
        Ok(()) => {
            subject.ok(format!("{} MiB if xvsd is started from this shell, it fits", limit.bytes >> 20))
        }
        Err(over) => {
            let when = match facts.config.conn_table_memory {
                TableMemory::Resident => "",
                TableMemory::OnDemand | TableMemory::SmallPages => ", once the table is full",
            };
            subject.warn(format!(
                "if xvsd is started from this shell{when}: {over}. A service has its own limit: `systemctl \
                 show -p MemoryMax xvsd`"
            ))
        }
    };
    vec![finding]
}

/// Whether the XDP program can steer the packets of all services.
pub(super) fn steering(facts: &Facts) -> Vec<Finding> {
    let most = facts.steered_endpoints.unwrap_or(facts.config.steered_endpoints) as usize;
    let services = facts.services.iter().map(|service| (service.key, &service.servers[..]));
    let Counts { endpoints, addresses } = Counts::from(&rules_of(services));
    let needed = endpoints.max(addresses);
    let found = format!(
        "the services need {endpoints} endpoints and {addresses} addresses of at most {most} \
         (`steered_endpoints`)"
    );
    let raise = format!("set `steered_endpoints = {}` in xvs.toml", 2 * needed);
    let steering = Finding::of("steering", "");
    let finding = if needed > most {
        steering.fail(format!("{found}; xvsd refuses the others: {raise}")).mend("xvs reload")
    } else if needed > most / 8 * 7 {
        steering.warn(format!("{found}; before you add more, {raise}")).mend("xvs reload")
    } else {
        steering.ok(found)
    };
    vec![finding]
}

/// Whether the kernel's own IPVS has services.
pub(super) fn kernel_services(facts: &Facts) -> Vec<Finding> {
    let ip_vs = Finding::of("ip_vs", "").seen("/proc/net/ip_vs");
    let finding = match facts.kernel_services {
        0 => ip_vs.ok("the kernel's IPVS has no services"),
        count if facts.follows_kernel => {
            ip_vs.ok(format!("the kernel's IPVS has {count} services, which xvs follows"))
        }
        count => ip_vs
            .warn(format!(
                "the kernel's IPVS has {count} services; it schedules packets that xvsd passes to the \
                 kernel, and its connections end when xvsd takes their packets. The command needs the \
                 kernel's own ipvsadm; xvsadm under that name reaches no daemon and changes nothing"
            ))
            .mend("XVS_SOCKET=/none ipvsadm -C && modprobe -r ip_vs"),
    };
    vec![finding]
}

/// The problems of this machine as a real server; none if it is not one.
pub(super) fn real_server(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    for Status { vip, method, dev, problems, .. } in &facts.real_server {
        let subject = Finding::of("real server", vip).seen("xvs realserver status");
        if problems.is_empty() {
            findings.push(subject.ok(format!("this machine serves it by {method} on {dev}")));
        }
        for problem in problems {
            let up = format!("xvs realserver up --vip {vip} --method {method} --dev {dev}");
            findings.push(subject.fail(problem).mend(up));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use xvs_host::memory::CgroupLimit;
    use xvs_model::config::destination::{Destination, DestinationOptions};
    use xvs_proto::Endpoint;
    use xvs_sched::{ForwardingMethod, ServiceKey};

    use crate::doctor::facts::Service;
    use crate::doctor::facts::tests::{facts, only};
    use crate::doctor::finding::Level;
    use crate::doctor::machine::*;

    #[test]
    fn an_old_kernel_fails_or_warns_by_the_feature_it_lacks() {
        let level = |release: &str| only(kernel(&Facts { kernel: release.to_owned(), ..facts() })).level;
        assert_eq!(level("6.18.5"), Level::Ok);
        assert_eq!(level("5.16-rc1"), Level::Ok);
        assert_eq!(level("5.15.0-91-generic"), Level::Warn);
        assert_eq!(level("5.10.0-28-amd64"), Level::Fail);
        assert_eq!(level("4.19.0"), Level::Fail);
        assert_eq!(level("next"), Level::Warn);
    }

    #[test]
    fn a_lock_limit_below_the_need_is_reported_with_both() {
        let mut facts = facts();
        facts.memory.may_lock = false;
        facts.memory.lock_limit_bytes = Some(64 << 10);
        let found = only(memory_lock(&facts));
        assert_eq!(found.level, Level::Fail);
        // One worker, a queue of each of two interfaces: 2 · 4608 and 576 frames of 2 KiB.
        assert!(
            found.found.starts_with("this user may lock 64 KiB and the workers need 19584 KiB"),
            "{found}"
        );
        assert_eq!(found.mend.unwrap().command, "ulimit -l unlimited");
        facts.memory.lock_limit_bytes = Some(32 << 20);
        assert_eq!(only(memory_lock(&facts)).level, Level::Ok);
        facts.memory.lock_limit_bytes = None;
        assert_eq!(only(memory_lock(&facts)).level, Level::Ok);
    }

    #[test]
    fn the_memory_to_lock_is_that_of_the_queues_that_xvsd_gives_a_card() {
        let mut facts = facts();
        facts.memory.may_lock = false;
        for interface in &mut facts.interfaces {
            interface.device.as_mut().unwrap().receive_queues = 4;
        }
        facts.config.workers = Some(1);
        assert_eq!(only(memory_lock(&facts)).found, "no limit; the workers lock 74880 KiB");
        facts.config.interfaces =
            serde_json::from_str(r#"{"wan": {"queues": 1}, "lan": {"queues": 1}}"#).unwrap();
        assert_eq!(only(memory_lock(&facts)).found, "no limit; the workers lock 19584 KiB");
    }

    #[test]
    fn missing_huge_pages_for_a_resident_table_are_reported_with_the_command_that_reserves_them() {
        let mut facts = facts();
        facts.config.conn_table_memory = TableMemory::Resident;
        assert_eq!(huge_pages(&facts), [], "the table is in files");
        facts.config.state_directory = None;
        facts.memory.huge_pages = HugePages { size_bytes: 2 << 20, total: 10, unclaimed: 4 };
        let found = only(huge_pages(&facts));
        assert_eq!(found.level, Level::Warn);
        // A little more than 169 MiB are 85 pages. 4 are free, and 6 others are in use.
        assert_eq!(found.mend.unwrap().command, "sysctl -w vm.nr_hugepages=91");
        facts.memory.huge_pages.unclaimed = 100;
        assert_eq!(only(huge_pages(&facts)).level, Level::Ok);
    }

    #[test]
    fn a_kernel_without_huge_pages_on_demand_is_a_warning_for_a_table_that_is_in_no_file() {
        let mut facts = facts();
        facts.memory.transparent = "always madvise [never]\n".to_owned();
        assert_eq!(huge_pages(&facts), [], "files need no permission");
        facts.config.state_directory = None;
        let found = only(huge_pages(&facts));
        let command = "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled";
        assert_eq!((found.level, found.mend.unwrap().command.as_str()), (Level::Warn, command));
        facts.memory.transparent = "always [madvise] never\n".to_owned();
        assert_eq!(huge_pages(&facts), []);
    }

    #[test]
    fn the_shells_control_group_without_room_for_the_table_is_a_warning_that_says_whose_it_is() {
        let mut facts = facts();
        assert_eq!(memory_limit(&facts), []);
        facts.memory.cgroup_limit =
            Some(CgroupLimit { bytes: 128 << 20, file: "/sys/fs/cgroup/memory.max".into() });
        assert!(only(memory_limit(&facts)).found.starts_with("if xvsd is started from this shell, once"));
        facts.config.conn_table_memory = TableMemory::Resident;
        let found = only(memory_limit(&facts));
        assert_eq!(found.level, Level::Warn);
        let wanted = "xvsd takes 268 MiB, and /sys/fs/cgroup/memory.max allows 128 MiB";
        assert!(found.found.contains(wanted), "{found}");
        facts.memory.huge_pages = HugePages { size_bytes: 2 << 20, total: 85, unclaimed: 85 };
        facts.config.state_directory = None;
        assert_eq!(
            only(memory_limit(&facts)).level,
            Level::Ok,
            "reserved huge pages do not count for a control group"
        );
        facts.memory.huge_pages.unclaimed = 0;
        facts.memory.cgroup_limit =
            Some(CgroupLimit { bytes: 320 << 20, file: "/sys/fs/cgroup/memory.max".into() });
        assert_eq!(only(memory_limit(&facts)).level, Level::Ok);
    }

    #[test]
    fn services_that_need_more_endpoints_than_are_steered_fail_with_the_setting_to_raise() {
        let server = |number: u16| Destination {
            endpoint: Endpoint::new([192, 0, (number / 256) as u8, number as u8], 80),
            options: DestinationOptions { method: ForwardingMethod::Nat, ..DestinationOptions::default() },
        };
        let key = ServiceKey::tcp(Endpoint::new([198, 51, 100, 100], 80));
        let service = Service { key, servers: (0..1000).map(server).collect() };
        let mut facts = Facts { services: vec![service], ..facts() };
        // Each real server, and the service.
        let needed = "the services need 1001 endpoints and 1001 addresses of at most";
        let mut found = |most: u32| {
            facts.config.steered_endpoints = most;
            only(steering(&facts))
        };
        assert_eq!(found(1200).found, format!("{needed} 1200 (`steered_endpoints`)"));
        assert_eq!(found(1024).level, Level::Warn);
        let full = found(1000);
        assert_eq!(full.level, Level::Fail);
        assert!(full.found.ends_with("set `steered_endpoints = 2002` in xvs.toml"), "{full}");
        assert_eq!(full.mend.unwrap().command, "xvs reload");
        facts.steered_endpoints = Some(1200);
        assert_eq!(only(steering(&facts)).level, Level::Ok, "the daemon's setting counts");
    }

    #[test]
    fn services_of_the_kernels_own_ipvs_are_a_warning() {
        assert_eq!(only(kernel_services(&facts())).level, Level::Ok);
        let followed = Facts { kernel_services: 2, follows_kernel: true, ..facts() };
        assert_eq!(only(kernel_services(&followed)).level, Level::Ok);
        let found = only(kernel_services(&Facts { kernel_services: 2, ..facts() }));
        assert_eq!(found.level, Level::Warn);
        // Where ipvsadm is xvsadm, it must not clear the services of xvs.
        assert_eq!(found.mend.unwrap().command, "XVS_SOCKET=/none ipvsadm -C && modprobe -r ip_vs");
    }
}
