//! Probes of real servers through their virtual address: from a health check to the workers and back.
//!
//! Used only by the health checks. While the configuration has checks of this kind, a TCP port is reserved, and replies
//! to it are steered. A probe is put into the object that the workers share through the snapshot, and one worker is
//! woken to send it; its stage is read whenever the check polls it. Cost of a probe: two look-ups of a route, and after
//! a change of the services one pass over them. `general_path/vip_probe.rs` in the data plane sends the packets.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::net::sockopt::set_ipv6_v6only;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, socket_with};
use xvs_ctl::registry::tunnels::encapsulation;
use xvs_dataplane::egress::Egress;
use xvs_dataplane::port::xdp::Waker;
use xvs_dataplane::snapshot::Snapshot;
use xvs_dataplane::snapshot::vip_probes::{InFlight, VipPath, VipProbes, VipStage};
use xvs_health::{VipAnswer, VipProbe, VipProbeError};
use xvs_model::config::refusal::CommandError;
use xvs_model::health_checks::virtual_server::RealServer;
use xvs_proto::network::RouteKey;
use xvs_proto::{Endpoint, Family};

use crate::handle::Handle;
use crate::lock::lock;
use crate::status::virtual_addresses;

/// The time after which a SYN without reply is sent again (RFC 6298 §2).
const SEND_AGAIN: Duration = Duration::from_secs(1);

/// The probes of the health checks.
pub(crate) struct VipProber {
    daemon: Handle,
    /// `None` while no check is of this kind.
    open: Mutex<Option<Open>>,
}

/// The data for probes.
struct Open {
    probes: Arc<VipProbes>,
    virtual_addresses: VirtualAddresses,
    /// Keeps the port.
    _reserved: OwnedFd,
}

/// The addresses of all services of a snapshot.
#[derive(Default)]
struct VirtualAddresses {
    epoch: u64,
    addresses: HashSet<IpAddr>,
}

impl VirtualAddresses {
    /// The addresses of the services in this snapshot.
    fn of(&mut self, snapshot: &Snapshot) -> &HashSet<IpAddr> {
        if self.epoch != snapshot.epoch {
            self.addresses = virtual_addresses(snapshot).collect();
            self.epoch = snapshot.epoch;
        }
        &self.addresses
    }
}

impl VipProber {
    /// No probes yet.
    pub(crate) fn new(daemon: Handle) -> Self {
        Self { daemon, open: Mutex::default() }
    }

    /// Prepares for probes, or ends that. Waits for the control thread.
    ///
    /// # Errors
    /// No port is free, or the daemon is ending.
    pub(crate) fn expect(&self, expected: bool) -> Result<(), CommandError> {
        if lock(&self.open).is_some() == expected {
            return Ok(());
        }
        let open = expected.then(Open::new).transpose().map_err(|error| {
            CommandError::failed(format_args!("no port for checks with `through_vip`: {error}"))
        })?;
        let probes = open.as_ref().map(|open| open.probes.clone());
        let published = self.daemon.run(|thread| {
            thread.control.set_vip_probes(probes);
            Ok(())
        });
        *lock(&self.open) = open;
        published
    }

    /// Begins a probe of a real server through this endpoint, from this address if one is configured.
    pub(crate) fn begin(
        &self,
        virtual_endpoint: Endpoint,
        source: Option<IpAddr>,
        server: &RealServer,
    ) -> Result<Box<dyn VipProbe>, VipProbeError> {
        let shared = self.daemon.shared();
        let in_flight = {
            let mut open = lock(&self.open);
            let Open { probes, virtual_addresses, .. } = open.as_mut().ok_or(VipProbeError::Off)?;
            let snapshot = shared.published.load();
            let virtual_addresses = virtual_addresses.of(&snapshot);
            let addr = local_address(&snapshot.egress, virtual_addresses, virtual_endpoint, source, server)?;
            probes
                .begin(VipPath {
                    local: Endpoint { addr, port: probes.port },
                    virtual_endpoint,
                    server: server.endpoint,
                    method: server.options.method,
                    encapsulation: encapsulation(server.options.tunnel),
                })
                .ok_or(VipProbeError::TooMany)?
        };
        Ok(Box::new(Begun::new(in_flight, shared.wakers.first().cloned())))
    }
}

impl Open {
    fn new() -> io::Result<Self> {
        let (reserved, port) = reserve_port()?;
        Ok(Self {
            probes: Arc::new(VipProbes::new(port)),
            virtual_addresses: VirtualAddresses::default(),
            _reserved: reserved,
        })
    }
}

/// The director's address for a probe: `source`, or the one that the director uses towards clients, so the server's
/// reply takes the route of its replies to clients. A director without a default route uses the address towards the
/// server.
fn local_address(
    egress: &Egress,
    virtual_addresses: &HashSet<IpAddr>,
    virtual_endpoint: Endpoint,
    source: Option<IpAddr>,
    server: &RealServer,
) -> Result<IpAddr, VipProbeError> {
    let addr = server.endpoint.addr;
    let family = virtual_endpoint.family();
    let vrf = egress.vrf_of_address(virtual_endpoint.addr);
    let in_vrf = |addr: IpAddr| RouteKey::from(addr).of_vrf(vrf);
    if egress.is_local(in_vrf(addr)) {
        return Err(VipProbeError::ThisMachine);
    }
    // The server would mistake a packet from a virtual address for its own.
    let is_virtual = |addr| addr == virtual_endpoint.addr || virtual_addresses.contains(&addr);
    let clients = match family {
        Family::V4 => IpAddr::from(Ipv4Addr::UNSPECIFIED),
        Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
    };
    match source {
        Some(addr) if !egress.is_local(in_vrf(addr)) => Err(VipProbeError::NotLocal(addr)),
        Some(addr) if is_virtual(addr) => Err(VipProbeError::IsVirtual(addr)),
        Some(addr) => Ok(addr),
        None => [clients, addr]
            .into_iter()
            .find_map(|dest| egress.source_of_family(in_vrf(dest), family, is_virtual))
            .ok_or(VipProbeError::NoSource { server: addr, family }),
    }
}

/// A probe that was begun.
struct Begun {
    in_flight: InFlight,
    waker: Option<Waker>,
    send_again: Instant,
    /// Whether the worker was woken to send the reset.
    is_reset_due: bool,
}

impl Begun {
    /// A probe, and the waker of a worker that sends its packets.
    fn new(in_flight: InFlight, waker: Option<Waker>) -> Self {
        let begun = Self { in_flight, waker, send_again: Instant::now() + SEND_AGAIN, is_reset_due: false };
        begun.wake();
        begun
    }

    fn wake(&self) {
        self.waker.iter().for_each(Waker::wake);
    }

    fn send(&mut self) {
        self.in_flight.send();
        self.wake();
        self.send_again = Instant::now() + SEND_AGAIN;
    }
}

impl VipProbe for Begun {
    fn answer(&mut self) -> VipAnswer {
        match self.in_flight.stage() {
            VipStage::Queued => {
                self.wake();
                VipAnswer::Queued
            }
            VipStage::Unsent(reason) => {
                self.send();
                VipAnswer::Unsent(reason.sentence().to_owned())
            }
            VipStage::Sent => {
                if Instant::now() >= self.send_again {
                    self.send();
                }
                VipAnswer::Sent
            }
            // If the probe ended now, its reset would not be sent.
            VipStage::Accepted if !std::mem::replace(&mut self.is_reset_due, true) => {
                self.wake();
                VipAnswer::Sent
            }
            VipStage::Accepted | VipStage::Done => VipAnswer::Accepted,
            VipStage::Refused => VipAnswer::Refused,
        }
    }
}

/// A TCP port that the kernel gives to no other socket, at any address, until this socket is closed. It does not
/// listen.
fn reserve_port() -> io::Result<(OwnedFd, u16)> {
    // A machine without IPv6 refuses the first one.
    let socket = bound(AddressFamily::INET6, Ipv6Addr::UNSPECIFIED.into())
        .or_else(|_| bound(AddressFamily::INET, Ipv4Addr::UNSPECIFIED.into()))?;
    let port = SocketAddr::try_from(getsockname(&socket)?)?.port();
    Ok((socket, port))
}

fn bound(family: AddressFamily, any: IpAddr) -> io::Result<OwnedFd> {
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    if family == AddressFamily::INET6 {
        set_ipv6_v6only(&socket, false)?;
    }
    bind(&socket, &SocketAddr::new(any, 0))?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use xvs_model::objects::Rule;

    use xvs_ctl::control::Control;
    use xvs_ctl::in_memory::MemoryDatapath;
    use xvs_dataplane::clock::Millis;
    use xvs_model::config::command::Command;
    use xvs_model::config::destination::DestinationOptions;
    use xvs_model::config::load_feedback::Feedback;
    use xvs_model::config::service::ServiceOptions;
    use xvs_model::config::settings::Ipvs;
    use xvs_model::protocol::question::ControlRequest;
    use xvs_proto::network::Network;
    use xvs_sched::ServiceKey;

    use crate::vip_probes::*;

    fn server(addr: &str) -> RealServer {
        RealServer {
            place: Default::default(),
            endpoint: Endpoint::new(addr.parse::<IpAddr>().unwrap(), 80),
            options: DestinationOptions::default(),
            inhibit_on_failure: false,
            notify_up: None,
            notify_down: None,
            smtp_alert: None,
            checks: Vec::new(),
        }
    }

    #[test]
    fn a_probe_comes_from_an_address_towards_clients_else_towards_the_server_and_never_from_a_virtual_one() {
        let addresses = |all: &[&str]| -> Vec<(IpAddr, u8)> {
            all.iter().map(|addr| (addr.parse().unwrap(), if addr.contains(':') { 64 } else { 24 })).collect()
        };
        let mut network = Network::default();
        let mac = "02:00:00:00:00:01".parse().unwrap();
        let wan = ["198.51.100.1", "198.51.100.100", "198.51.100.2"];
        network.add_link("wan", mac, &addresses(&wan), 1500).unwrap();
        let lan = ["192.0.2.1", "fe80::1", "2001:db8::1"];
        network.add_link("lan", mac, &addresses(&lan), 1500).unwrap();
        let mut control = Control::new(MemoryDatapath::default(), 1, Ipvs::default(), Feedback::default());
        control.set_network(&network);
        let mut known = VirtualAddresses::default();
        let mut from = |control: &Control<MemoryDatapath>, vip: &str, source: Option<&str>, dest: &str| {
            let vip = Endpoint::new(vip.parse::<IpAddr>().unwrap(), 80);
            let source = source.map(|addr| addr.parse().unwrap());
            let snapshot = control.published().load();
            let known = known.of(&snapshot);
            let local = local_address(&snapshot.egress, known, vip, source, &server(dest));
            local.map(|addr| addr.to_string()).map_err(|error| error.to_string())
        };
        let (vip, rs) = ("198.51.100.100", "192.0.2.11");
        let local = |addr: &str| Ok(addr.to_owned());
        assert_eq!(from(&control, vip, None, rs), local("192.0.2.1"));
        assert_eq!(from(&control, "2001:db8:1::1", None, rs), local("2001:db8::1"));
        assert!(from(&control, vip, None, "203.0.113.1").unwrap_err().starts_with("the attached interfaces"));

        network.add_route("0.0.0.0/0".parse().unwrap(), "198.51.100.254".parse().ok(), "wan").unwrap();
        control.set_network(&network);
        assert_eq!(from(&control, vip, None, rs), local("198.51.100.1"));
        assert_eq!(from(&control, "198.51.100.1", None, rs), local("198.51.100.100"));
        assert_eq!(from(&control, vip, None, "2001:db8::11"), local("198.51.100.1"));
        assert_eq!(from(&control, vip, Some("192.0.2.1"), rs), local("192.0.2.1"));
        for key in [[198, 51, 100, 1], [198, 51, 100, 100]] {
            let key = ServiceKey::tcp(Endpoint::new(key, 80));
            let add = Command::Add(Rule::Service { key, options: ServiceOptions::of(Family::V4) });
            control.handle(&ControlRequest::Change(add), Millis(0)).unwrap();
        }
        assert_eq!(from(&control, vip, None, rs), local("198.51.100.2"));
        let refused = |why: &str| Err(why.to_owned());
        let why = "`bindto 198.51.100.1` is a virtual address";
        assert_eq!(from(&control, vip, Some("198.51.100.1"), rs), refused(why));
        let why = "`bindto 192.0.2.9` is not an address of this machine";
        assert_eq!(from(&control, vip, Some("192.0.2.9"), rs), refused(why));
        let why = "it is this machine itself; remove `through_vip`";
        assert_eq!(from(&control, vip, None, "192.0.2.1"), refused(why));
    }

    #[test]
    fn the_reserved_port_is_refused_to_others_at_every_address() {
        let (reserved, port) = reserve_port().unwrap();
        for addr in ["127.0.0.1", "0.0.0.0", "::1", "::"] {
            let refused = TcpListener::bind((addr, port)).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::AddrInUse, "{addr}");
        }
        drop(reserved);
        TcpListener::bind(("127.0.0.1", port)).unwrap();
    }
}
