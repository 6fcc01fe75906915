//! Reads the rules of this machine's own IPVS: services, destinations, timeouts and settings, as the kernel has them.
//!
//! The kernel answers only those with CAP_NET_ADMIN, so reading is a task of the helper. It announces no change, and a
//! reading is not one moment: an object that changes meanwhile may be missing, so a caller believes what two readings
//! agree on. The kernel is never asked while it has no IPVS, because the question alone would load the module. Cost: a
//! request for each service, about 10 µs, and 1 µs for each destination.

mod message;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Seek, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::Duration;

use netlink_packet_generic::GenlMessage;
use netlink_packet_generic::ctrl::nlas::GenlCtrlAttrs;
use netlink_packet_generic::ctrl::{GenlCtrl, GenlCtrlCmd};
use rustix::fd::BorrowedFd;
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use xvs_helper::task::{Answer, Task, only};

use crate::ipvs::message::Message;
use crate::network::netlink::Netlink;

/// The rules of the kernel's IPVS.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Table {
    /// The services, in the order in which the kernel lists them.
    pub services: Vec<Service>,
    /// The timeouts of `ipvsadm --set`.
    pub timeouts: Timeouts,
}

/// A service, with the kernel's numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// `AF_INET` or `AF_INET6`.
    pub family: u16,
    /// The number of the protocol; 0 for a mark.
    pub protocol: u16,
    /// The virtual address; meaningless for a mark.
    pub addr: IpAddr,
    /// The port; 0: all.
    pub port: u16,
    /// The firewall mark; 0: the service has an address.
    pub mark: u32,
    /// The name of the scheduler; `none` if there is none.
    pub scheduler: String,
    /// `IP_VS_SVC_F_*`.
    pub flags: u32,
    /// The timeout of persistence.
    pub persistence_seconds: u32,
    /// IPv4: the mask, in the order of the network; IPv6: the number of bits, in the machine's order.
    pub netmask: [u8; 4],
    /// The name of the persistence engine.
    pub persistence_engine: Option<String>,
    /// The destinations in the kernel's order.
    pub destinations: Vec<Destination>,
}

/// A destination, with the kernel's numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Destination {
    /// The address.
    pub addr: IpAddr,
    /// The port.
    pub port: u16,
    /// `IP_VS_CONN_F_*`, those of the forwarding method.
    pub method: u32,
    /// The weight.
    pub weight: u32,
    /// The upper threshold of connections; 0: none.
    pub upper_threshold: u32,
    /// The lower threshold of connections; 0: none.
    pub lower_threshold: u32,
    /// `IP_VS_CONN_F_TUNNEL_TYPE_*`.
    pub tunnel: u8,
    /// The UDP port of GUE.
    pub tunnel_port: u16,
    /// `IP_VS_TUNNEL_ENCAP_FLAG_*`.
    pub tunnel_flags: u16,
}

/// The timeouts of `ipvsadm --set`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Timeouts {
    pub tcp_seconds: u32,
    pub tcp_fin_seconds: u32,
    pub udp_seconds: u32,
}

impl Service {
    /// Whether its family is IPv6.
    pub fn is_ipv6(&self) -> bool {
        self.family == message::AF_INET6
    }
}

impl Default for Service {
    fn default() -> Self {
        Self {
            family: 0,
            protocol: 0,
            addr: Ipv4Addr::UNSPECIFIED.into(),
            port: 0,
            mark: 0,
            scheduler: String::new(),
            flags: 0,
            persistence_seconds: 0,
            netmask: [0; 4],
            persistence_engine: None,
            destinations: Vec::new(),
        }
    }
}

impl Default for Destination {
    fn default() -> Self {
        Self {
            addr: Ipv4Addr::UNSPECIFIED.into(),
            port: 0,
            method: 0,
            weight: 0,
            upper_threshold: 0,
            lower_threshold: 0,
            tunnel: 0,
            tunnel_port: 0,
            tunnel_flags: 0,
        }
    }
}

/// Reads the rules in the network namespace of the calling thread, with the helper's rights. Returns also the CPU time
/// that this took. The kernel may let a reading wait for long while others change its rules, which takes none.
///
/// # Errors
///
/// The kernel has no IPVS in this namespace, or refuses an answer.
pub fn read() -> io::Result<(Table, Duration)> {
    let (reading, file) = only(ReadTable.run(&[])?)?;
    let begun = cpu_time();
    let table = serde_json::from_reader(BufReader::new(File::from(file)))?;
    Ok((table, reading + (cpu_time() - begun)))
}

/// The CPU time of this thread.
fn cpu_time() -> Duration {
    // The kernel's time is not negative.
    clock_gettime(ClockId::ThreadCPUTime).try_into().unwrap_or_default()
}

/// The settings `net.ipv4.vs.*` that can be read, by their names.
pub fn settings<'a>(names: impl IntoIterator<Item = &'a str>) -> BTreeMap<String, String> {
    names
        .into_iter()
        .filter_map(|name| {
            let value = fs::read_to_string(Path::new(SETTINGS).join(name)).ok()?;
            Some((name.to_owned(), value.trim().to_owned()))
        })
        .collect()
}

/// Reads the rules into a file in memory, as JSON. The answer is the CPU time that this took.
#[derive(Debug, Serialize, Deserialize)]
pub struct ReadTable;

impl Task for ReadTable {
    const NAME: &'static str = "read-ipvs";
    type Done = Duration;

    fn carry_out(&self, _: &[BorrowedFd<'_>]) -> io::Result<Answer<Duration>> {
        let begun = cpu_time();
        let table = Connection::open()?.table()?;
        let mut file = File::from(memfd_create("xvs-ipvs", MemfdFlags::CLOEXEC)?);
        let mut to = BufWriter::new(&mut file);
        serde_json::to_writer(&mut to, &table)?;
        to.flush()?;
        drop(to);
        file.rewind()?;
        Ok((cpu_time() - begun, vec![file.into()]))
    }
}

/// A socket for requests to the kernel's IPVS.
struct Connection {
    netlink: Netlink,
    family: u16,
}

impl Connection {
    fn open() -> io::Result<Self> {
        if !Path::new(PRESENT).exists() {
            let why = "the kernel has no IPVS here; what writes its rules loads it, or `modprobe ip_vs`";
            return Err(io::Error::other(why));
        }
        let mut netlink = Netlink::open_generic()?;
        let name = <Message as netlink_packet_generic::GenlFamily>::family_name().to_owned();
        let question = GenlCtrl { cmd: GenlCtrlCmd::GetFamily, nlas: vec![GenlCtrlAttrs::FamilyName(name)] };
        let answer = netlink.get(GenlMessage::from_payload(question))?;
        let family =
            answer.iter().flat_map(|answer| &answer.payload.nlas).find_map(|attribute| match attribute {
                GenlCtrlAttrs::FamilyId(id) => Some(*id),
                _ => None,
            });
        let family = family.ok_or_else(|| io::Error::other("the kernel names no family IPVS"))?;
        Ok(Self { netlink, family })
    }

    fn table(&mut self) -> io::Result<Table> {
        let mut table = Table::default();
        for reply in self.dump(Message::GetServices)? {
            if let Message::Service(service) = reply {
                table.services.push(service);
            }
        }
        for service in &mut table.services {
            for reply in self.dump(Message::GetDestinations(service.clone()))? {
                if let Message::Destination(destination) = reply {
                    service.destinations.push(destination);
                }
            }
        }
        for reply in self.netlink.get(self.message(Message::GetTimeouts))? {
            if let Message::Timeouts(timeouts) = reply.payload {
                table.timeouts = timeouts;
            }
        }
        Ok(table)
    }

    fn dump(&mut self, request: Message) -> io::Result<Vec<Message>> {
        let replies = self.netlink.dump(self.message(request))?;
        Ok(replies.into_iter().map(|reply| reply.payload).collect())
    }

    fn message(&self, request: Message) -> GenlMessage<Message> {
        let mut message = GenlMessage::from_payload(request);
        message.set_resolved_family_id(self.family);
        message
    }
}

/// A file that exists in each network namespace while the kernel has IPVS.
const PRESENT: &str = "/proc/thread-self/net/ip_vs";
/// The folder of the settings.
const SETTINGS: &str = "/proc/sys/net/ipv4/vs";

#[cfg(test)]
mod tests {
    use netlink_packet_core::{NetlinkMessage, NetlinkPayload};

    use super::*;

    /// The messages of Debian's kernel 6.1 with the rules of the file `rules`: each service before its destinations,
    /// then the timeouts.
    fn recorded() -> impl Iterator<Item = Message> {
        include_str!("dump.hex").lines().map(|line| {
            let byte = |at| u8::from_str_radix(&line[at..at + 2], 16).unwrap();
            let bytes: Vec<_> = (0..line.len()).step_by(2).map(byte).collect();
            let message = NetlinkMessage::<GenlMessage<Message>>::deserialize(&bytes).unwrap();
            let NetlinkPayload::InnerMessage(message) = message.payload else { panic!("{message:?}") };
            message.payload
        })
    }

    #[test]
    fn the_messages_of_a_kernel_are_the_recorded_table() {
        let mut table = Table::default();
        for message in recorded() {
            match message {
                Message::Service(service) => table.services.push(service),
                Message::Destination(destination) => {
                    table.services.last_mut().unwrap().destinations.push(destination);
                }
                Message::Timeouts(timeouts) => table.timeouts = timeouts,
                request => panic!("{request:?}"),
            }
        }
        // `crates/ctl/src/kernel_rules.rs` compares this table with the rules.
        let expected: Table = serde_json::from_str(include_str!("table.json")).unwrap();
        assert_eq!(table, expected, "{}", serde_json::to_string(&table).unwrap());
    }

    #[test]
    fn without_ipvs_the_kernel_is_not_asked_and_the_error_names_the_next_step() {
        if !Path::new(PRESENT).exists() {
            let error = read().unwrap_err().to_string();
            assert!(error.ends_with("or `modprobe ip_vs`"), "{error}");
        }
    }

    #[test]
    fn a_message_that_is_cut_off_is_an_error_and_no_panic() {
        use netlink_packet_core::ParseableParametrized;
        use netlink_packet_generic::GenlHeader;
        for line in include_str!("dump.hex").lines() {
            let byte = |at| u8::from_str_radix(&line[at..at + 2], 16).unwrap();
            let bytes: Vec<_> = (40..line.len()).step_by(2).map(byte).collect();
            for cmd in [1, 5, 12] {
                for end in 0..bytes.len() {
                    let _ = Message::parse_with_param(&bytes[..end], GenlHeader { cmd, version: 1 });
                }
            }
        }
    }
}
