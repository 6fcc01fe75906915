//! Facts about the machine, which the checks evaluate: plain values, read by [`gather`](crate::doctor::gather) or
//! written by hand in tests.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU32;

use xvs_ctl::bonds::bond_of;
use xvs_ctl::config::Config;
use xvs_ctl::unattached::Attachment;
use xvs_dataplane::egress::Egress;
use xvs_host::memory::{CgroupLimit, HugePages};
use xvs_host::netfilter::chain::Table;
use xvs_model::config::destination::Destination;
use xvs_model::objects::local::LocalAddress;
use xvs_model::report::daemon_facts::DaemonFacts;
use xvs_proto::network::{Link, Network};
use xvs_proto::{LinkId, MacAddr};
use xvs_realserver::status::Status;
use xvs_sched::ServiceKey;
use xvs_xdp::device::Device;
use xvs_xdp::kernel::version;

use crate::doctor::finding::Finding;

/// All facts.
#[derive(Debug, Default)]
pub(super) struct Facts {
    /// The kernel's version.
    pub kernel: String,
    /// The largest MTU that its AF_XDP takes, if it limits it.
    pub mtu_limit: Option<u32>,
    /// How many cores this process may use.
    pub cores: usize,
    /// Limits on locked memory, and huge pages.
    pub memory: Memory,
    /// How many services the kernel's own IPVS has.
    pub kernel_services: usize,
    /// Whether xvs follows them.
    pub follows_kernel: bool,
    /// The configuration file of a daemon; the defaults if no file was named.
    pub config: Config,
    /// Findings about facts that could not be read.
    pub faults: Vec<Finding>,
    /// The daemon's report.
    pub daemon: Option<DaemonFacts>,
    /// Why there is no report.
    pub no_daemon: String,
    /// The daemon's services, otherwise the services in the rules file.
    pub services: Vec<Service>,
    /// The daemon's `steered_endpoints`; `None` if no daemon has reported it.
    pub steered_endpoints: Option<u32>,
    /// Virtual addresses from the command line, in addition to those of the services.
    pub addresses: Vec<IpAddr>,
    /// FULLNAT's local addresses.
    pub locals: Vec<LocalAddress>,
    /// The interfaces that the director is, or would be, attached to.
    pub interfaces: Vec<Interface>,
    /// The kernel's links, addresses, routes and resolved neighbours.
    pub network: Network,
    /// The kernel's settings, by their path under `/proc/sys`.
    pub settings: BTreeMap<String, String>,
    /// The chains of netfilter that the kernel calls before IPVS.
    pub netfilter: Vec<Table>,
    /// Links on which ARP requests for the virtual addresses were sent.
    pub probed: Vec<String>,
    /// The answers to them.
    pub answers: Vec<Answer>,
    /// The real servers to which the kernel itself has a route.
    pub kernel_routes: BTreeSet<IpAddr>,
    /// The kernel's path MTU to an address in bytes, if it is not that of the link.
    pub kernel_mtus: BTreeMap<IpAddr, u32>,
    /// The virtual addresses that this machine serves as a real server.
    pub real_server: Vec<Status>,
    /// The clocks of other directors.
    pub clocks: Vec<Clock>,
}

/// The kernel's setting for the memory that gets huge pages without a reservation.
pub(super) const TRANSPARENT: &str = "/sys/kernel/mm/transparent_hugepage/enabled";

/// Limits on locked memory, and huge pages.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// Whether this process may lock memory without a limit (CAP_IPC_LOCK).
    pub may_lock: bool,
    /// The hard limit RLIMIT_MEMLOCK; `None` if unlimited.
    pub lock_limit_bytes: Option<u64>,
    /// Reserved huge pages.
    pub huge_pages: HugePages,
    /// For which memory the kernel makes huge pages without a reservation: the text of [`TRANSPARENT`].
    pub transparent: String,
    /// The memory limit of a control group of this process.
    pub cgroup_limit: Option<CgroupLimit>,
}

/// A service with its real servers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Service {
    /// The service key.
    pub key: ServiceKey,
    /// The real servers.
    pub servers: Vec<Destination>,
}

/// An interface that is examined.
#[derive(Debug)]
pub(super) struct Interface {
    /// The interface name.
    pub name: String,
    /// The state of the device, or why it cannot be read.
    pub device: Result<Device, String>,
    /// Why it cannot be attached because of its members, or of the link that it is a member of.
    pub refused: Option<String>,
}

/// Another machine's ARP answer for a virtual address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    /// The address.
    pub addr: Ipv4Addr,
    /// The link of the request.
    pub link: String,
    /// The link address of the machine that answered.
    pub mac: MacAddr,
}

/// The measured clock of another director.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Clock {
    /// The director's address.
    pub addr: IpAddr,
    /// Milliseconds by which the clock is ahead of this machine's; or why they are unknown.
    pub ahead_millis: Result<i64, String>,
}

impl Facts {
    /// The interfaces that exist, by name.
    pub(super) fn devices(&self) -> impl Iterator<Item = (&str, &Device)> {
        self.interfaces
            .iter()
            .filter_map(|interface| Some((interface.name.as_str(), interface.device.as_ref().ok()?)))
    }

    /// The interfaces with the number of RX queues under xvsd: `queues` in xvs.toml, otherwise the current number.
    pub(super) fn queues(&self) -> Vec<(&str, u32)> {
        self.devices()
            .map(|(name, device)| {
                let wanted = self
                    .config
                    .interfaces
                    .iter()
                    .find(|(one, _)| *one == name)
                    .and_then(|(_, interface)| interface.queues);
                (name, wanted.map_or(device.receive_queues, NonZeroU32::get))
            })
            .collect()
    }

    /// Whether the kernel reports the XDP features of drivers (since 6.3).
    pub(super) fn reports_xdp_features(&self) -> bool {
        version(&self.kernel) >= Some((6, 3))
    }

    /// The virtual addresses, each once.
    pub(super) fn virtual_addresses(&self) -> Vec<IpAddr> {
        let mut all: Vec<_> = self
            .services
            .iter()
            .filter_map(|service| match service.key {
                ServiceKey::Address { endpoint, .. } => Some(endpoint.addr),
                ServiceKey::Mark { .. } => None,
            })
            .chain(self.addresses.iter().copied())
            .collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Every real server with its service.
    pub(super) fn servers(&self) -> impl Iterator<Item = (&Service, &Destination)> {
        self.services.iter().flat_map(|service| service.servers.iter().map(move |server| (service, server)))
    }

    /// A setting of the kernel, as a number; 0 if it is not known.
    pub(super) fn setting(&self, path: &str) -> u32 {
        self.settings.get(path).and_then(|value| value.trim().parse().ok()).unwrap_or(0)
    }

    /// An IPv4 setting of an interface for which the kernel uses the maximum of the interface's value and `all`.
    pub(super) fn highest(&self, interface: &str, name: &str) -> u32 {
        self.setting(&conf("all", name)).max(self.setting(&conf(interface, name)))
    }

    /// Whether xvsd can send on this link: it is attached, or is a VLAN over an attached link.
    pub(super) fn is_attached(&self, egress: &Egress, link: LinkId) -> bool {
        let below = egress.tag(link).map_or(link, |(below, _)| below);
        egress.link(below).is_some_and(|info| self.names(&info.name))
    }

    /// The machine's interfaces, of which the examined ones are attached, or would be.
    pub(super) fn attachment(&self) -> Attachment<'_> {
        Attachment::new(&self.network, self.interfaces.iter().map(|interface| interface.name.as_str()))
    }

    /// Whether this is one of the examined interfaces, or a bond of such.
    pub(super) fn names(&self, link: &str) -> bool {
        self.interfaces.iter().any(|interface| {
            interface.name == link
                || self
                    .network
                    .link_named(&interface.name)
                    .and_then(|own| bond_of(own, &self.network.links))
                    .is_some_and(|bond| bond.name == link)
        })
    }

    /// The examined interfaces that exist, and the bonds of such.
    pub(super) fn links(&self) -> impl Iterator<Item = &Link> {
        self.network.links.iter().filter(|link| self.names(&link.name))
    }

    /// The link that has an address; an examined one, if several have it.
    pub(super) fn holder(&self, addr: IpAddr) -> Option<&Link> {
        self.network
            .links
            .iter()
            .filter(|link| link.addresses.iter().any(|&(held, _)| held == addr))
            .max_by_key(|link| self.names(&link.name))
    }
}

/// The path of an IPv4 setting of an interface.
pub(super) fn conf(interface: &str, name: &str) -> String {
    format!("net/ipv4/conf/{interface}/{name}")
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeSet;

    use xvs_model::config::destination::DestinationOptions;
    use xvs_proto::Endpoint;
    use xvs_sched::ForwardingMethod;

    use crate::doctor::facts::*;

    /// The one finding of a check.
    pub(crate) fn only(mut findings: Vec<Finding>) -> Finding {
        assert_eq!(findings.len(), 1, "{findings:?}");
        findings.remove(0)
    }

    /// A director between `wan`, 198.51.100.1/24 with the virtual address 198.51.100.100, and `lan`, 192.0.2.1/24,
    /// without faults, services or daemon.
    pub(crate) fn facts() -> Facts {
        let mut network = Network::default();
        let [one, two, vip] =
            ["198.51.100.1", "192.0.2.1", "198.51.100.100"].map(|addr| addr.parse().unwrap());
        network.add_link("wan", MAC, &[(one, 24), (vip, 32)], 1500).unwrap();
        network.add_link("lan", MAC, &[(two, 24)], 1500).unwrap();
        let mut facts = Facts { kernel: "6.18.5".to_owned(), cores: 2, network, ..Facts::default() };
        facts.memory.may_lock = true;
        for name in ["wan", "lan"] {
            let device = Ok(device(&facts, name));
            facts.interfaces.push(Interface { name: name.to_owned(), device, refused: None });
        }
        facts
    }

    pub(crate) fn device(facts: &Facts, name: &str) -> Device {
        Device {
            ifindex: facts.network.link_named(name).unwrap().ifindex,
            driver: "veth".to_owned(),
            loopback: false,
            mtu: 1500,
            receive_queues: 1,
            most_receive_queues: 1,
            queues_word: "combined",
            features: BTreeSet::new(),
            native: true,
            zero_copy: false,
            program: None,
        }
    }

    /// The director of [`facts`] with a daemon attached to both interfaces.
    pub(crate) fn with_daemon() -> Facts {
        use xvs_model::report::status::{InterfaceStatus, LinkState};
        let attached = |name: &str| InterfaceStatus {
            name: name.to_owned(),
            mode: "native".to_owned(),
            why_not_native: None,
            queues: 1,
            state: LinkState::Up,
            attached_again: 0,
            pinned: false,
            bond: None,
            offload: None,
        };
        let daemon = DaemonFacts {
            interfaces: vec![attached("wan"), attached("lan")],
            workers: 1,
            mss_clamp: "tunnels".to_owned(),
            ..DaemonFacts::default()
        };
        Facts { daemon: Some(daemon), ..facts() }
    }

    /// Adds a service of the virtual address with one real server, 192.0.2.11, whose link address is resolved.
    pub(crate) fn serve(mut facts: Facts, key: ServiceKey, method: ForwardingMethod) -> Facts {
        let endpoint = Endpoint::new([192, 0, 2, 11], 80);
        facts.network.add_neighbour("192.0.2.11".parse().unwrap(), SERVER_MAC, "lan").unwrap();
        let options = DestinationOptions { method, ..DestinationOptions::default() };
        facts.services.push(Service { key, servers: vec![Destination { endpoint, options }] });
        facts
    }

    pub(crate) fn web() -> ServiceKey {
        ServiceKey::tcp(Endpoint::new([198, 51, 100, 100], 80))
    }

    pub(crate) const SERVER_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 0x11]);
    const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);

    #[test]
    fn kernels_report_the_xdp_features_of_drivers_since_6_3() {
        let reports =
            |kernel: &str| Facts { kernel: kernel.to_owned(), ..Facts::default() }.reports_xdp_features();
        assert!(reports("6.18.5") && reports("6.3.0-rc1") && reports("7.0.1"));
        assert!(!reports("6.2.16") && !reports("5.19.0") && !reports(""));
    }
}
