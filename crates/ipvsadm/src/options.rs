//! The option table: letters, name, argument and text of every option of ipvsadm 1.31 and of xvs.
//!
//! `popt.rs` finds options in it, `grammar.rs` reads their arguments, `manual.rs` makes `-h`, the manual page and the
//! completion from it. The options of each command are in `option_matrix.rs`.

use xvs_model::config::destination::TunnelChecksum;
use xvs_proto::Protocol;
use xvs_sched::ForwardingMethod;

/// One option.
pub(super) struct OptionEntry {
    /// The one-letter names without the hyphen; empty if there are none.
    pub(super) letters: &'static str,
    /// The long name without the hyphens.
    pub(super) name: &'static str,
    pub(super) argument: Argument,
    pub(super) option: OptionName,
    /// The column in the option matrix; commands, `-6` and `--sort` have none, nor have options that only xvs has.
    pub(super) column: Option<Column>,
    /// The text in `-h` and in the manual page.
    pub(super) help: &'static str,
}

/// The argument of an option, with its name in help texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Argument {
    Absent,
    Required(&'static str),
    /// The next word, unless it begins with `-`.
    Optional(&'static str),
}

/// The value that an option sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OptionName {
    Command(CommandName),
    Help,
    Version,
    Address(Protocol),
    Mark,
    V6,
    Scheduler,
    Engine,
    Persistent,
    Netmask,
    Flags,
    OnePacket,
    ClientAddress,
    SlowStart,
    SynProxy,
    RealServer,
    Method(ForwardingMethod),
    TunnelType,
    TunnelPort,
    Checksum(TunnelChecksum),
    Weight,
    Upper,
    Lower,
    /// The subject and format of a listing, determined by its column.
    Listing,
    SyncId,
    MaxLen,
    Interface,
    Group,
    Port,
    Ttl,
    Peers,
}

/// The commands, in the order of the option matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CommandName {
    AddService,
    EditService,
    DeleteService,
    Flush,
    List,
    AddServer,
    DeleteServer,
    EditServer,
    Set,
    StartDaemon,
    StopDaemon,
    Restore,
    Save,
    Zero,
}

impl CommandName {
    /// Whether it sets the options of a service.
    pub(super) fn sets_service(self) -> bool {
        matches!(self, Self::AddService | Self::EditService)
    }
}

/// The columns of the option matrix, in order. An option of ipvsadm has one, several options may share one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Column {
    Numeric,
    Connection,
    Service,
    Scheduler,
    Persistent,
    Netmask,
    RealServer,
    Method,
    Weight,
    Upper,
    Lower,
    Interface,
    Timeout,
    Daemon,
    Stats,
    Rate,
    Thresholds,
    PersistentConn,
    NoSort,
    SyncId,
    Exact,
    OnePacket,
    Engine,
    Flags,
    Group,
    Port,
    Ttl,
    MaxLen,
    TunInfo,
    TunnelType,
    TunnelPort,
    NoChecksum,
    Checksum,
    RemoteChecksum,
}

/// Every option, in the order of the manual page.
pub(super) fn all() -> impl Iterator<Item = &'static OptionEntry> {
    SECTIONS.iter().flat_map(|(_, entries)| *entries)
}

/// The options under their headings in `-h`.
pub(super) const SECTIONS: [(&str, &[OptionEntry]); 5] = [
    ("Commands", COMMANDS),
    ("Services", SERVICE),
    ("Real servers", SERVER),
    (LISTINGS, LISTING),
    ("Synchronization daemons", DAEMON),
];

pub(super) const LISTINGS: &str = "Listings";

#[rustfmt::skip]
const COMMANDS: &[OptionEntry] = {
    use Argument::{Absent, Required};
    use CommandName as C;
    use OptionName::Command;
    &[
        entry("A", "add-service", Absent, Command(C::AddService), None, "Add a virtual service"),
        entry("E", "edit-service", Absent, Command(C::EditService), None,
            "Replace the options of a service; options that are not given get their defaults"),
        entry("D", "delete-service", Absent, Command(C::DeleteService), None,
            "Delete a service and its real servers"),
        entry("C", "clear", Absent, Command(C::Flush), None, "Delete all services"),
        entry("Ll", "list", Absent, Command(C::List), None,
            "List all services, or one; the default without arguments"),
        entry("a", "add-server", Absent, Command(C::AddServer), None, "Add a real server to a service"),
        entry("e", "edit-server", Absent, Command(C::EditServer), None,
            "Replace the options of a real server; options that are not given get their defaults"),
        entry("d", "delete-server", Absent, Command(C::DeleteServer), None,
            "Delete a real server from a service"),
        entry("", "set", Absent, Command(C::Set), None,
            "Set the timeouts of TCP, of TCP after a FIN, and of UDP, in seconds; 0 keeps the present one"),
        entry("", "start-daemon", Required("ROLE"), Command(C::StartDaemon), None,
            "Start a synchronization daemon: master tells other directors of connections, backup enters theirs"),
        entry("", "stop-daemon", Required("ROLE"), Command(C::StopDaemon), None,
            "Stop a synchronization daemon"),
        entry("R", "restore", Absent, Command(C::Restore), None,
            "Run commands from standard input, as printed by -S"),
        entry("S", "save", Absent, Command(C::Save), None,
            "Print all services as commands, without thresholds and timeouts; options of xvs alone are \
             in lines that begin with `#xvs `"),
        entry("Z", "zero", Absent, Command(C::Zero), None, "Zero the counters of a service, or of all"),
        entry("h", "help", Absent, OptionName::Help, None, "Print this help"),
        entry("v", "version", Absent, OptionName::Version, None,
            "Print the version of ipvsadm that this program is compatible with"),
    ]
};

#[rustfmt::skip]
const SERVICE: &[OptionEntry] = {
    use Argument::{Absent, Optional, Required};
    use OptionName as O;
    const ADDRESS: Argument = Required("ADDRESS[:PORT]");
    const AT: Option<Column> = Some(Column::Service);
    &[
        entry("t", "tcp-service", ADDRESS, O::Address(Protocol::TCP), AT,
            "TCP service at this virtual address; an IPv6 address with a port is [ADDRESS]:PORT"),
        entry("u", "udp-service", ADDRESS, O::Address(Protocol::UDP), AT,
            "UDP service at this virtual address"),
        entry("", "sctp-service", ADDRESS, O::Address(Protocol::SCTP), AT,
            "SCTP service at this virtual address"),
        entry("f", "fwmark-service", Required("MARK"), O::Mark, AT,
            "Service of the packets with this firewall mark, 1 to 4294967295"),
        entry("6", "ipv6", Absent, O::V6, None, "With -f: the service is for IPv6"),
        entry("s", "scheduler", Required("SCHEDULER"), O::Scheduler, Some(Column::Scheduler),
            "Scheduler: chooses the real server of a new connection; default wlc"),
        entry("", "pe", Required("ENGINE"), O::Engine, Some(Column::Engine),
            "Persistence engine: identifies clients by the content of their packets"),
        entry("p", "persistent", Optional("SECONDS"), O::Persistent, Some(Column::Persistent),
            "Persistence timeout: how long a client keeps its real server; 360 without a number"),
        entry("M", "netmask", Required("NETMASK"), O::Netmask, Some(Column::Netmask),
            "Persistence granularity: 255.255.255.0, or for IPv6 a number of bits"),
        entry("b", "sched-flags", Required("FLAGS"), O::Flags, Some(Column::Flags),
            "Scheduler flags, separated by commas: sh-fallback, sh-port, mh-fallback, mh-port, \
             flag-1, flag-2, flag-3"),
        entry("o", "ops", Absent, O::OnePacket, Some(Column::OnePacket),
            "One-packet scheduling: schedule each UDP datagram by itself"),
        entry("", "client-address", Required("HOW"), O::ClientAddress, None,
            "How real servers behind --fullnat learn the client's address: not at all (the default), by \
             the PROXY protocol, version 2, or by a TCP option; xvs only"),
        entry("", "syn-proxy", Required("WHEN"), O::SynProxy, None,
            "Whether the director answers SYNs itself, by cookies, so that a flood makes no connections: never (the \
             default), while memory or the connection table is short, or always; -m and --fullnat; xvs only"),
        entry("", "slow-start", Required("SECONDS"), O::SlowStart, None,
            "How long a real server that returns or is added gets less than its share of new connections: from a tenth, \
             growing linearly; 0 to 86400; 0, the default: no slow start; xvs only"),
    ]
};

#[rustfmt::skip]
const SERVER: &[OptionEntry] = {
    use Argument::{Absent, Required};
    use OptionName::{Checksum, Method};
    use OptionName as O;
    const METHOD: Option<Column> = Some(Column::Method);
    &[
        entry("r", "real-server", Required("ADDRESS[:PORT]"), O::RealServer, Some(Column::RealServer),
            "The real server; its default port is the service's"),
        entry("g", "gatewaying", Absent, Method(ForwardingMethod::DirectRouting), METHOD,
            "Direct routing, the default: only the link address of packets is changed"),
        entry("i", "ipip", Absent, Method(ForwardingMethod::Tunnel), METHOD,
            "Tunnel: packets are encapsulated, see --tun-type"),
        entry("m", "masquerading", Absent, Method(ForwardingMethod::Nat), METHOD,
            "Masquerading (NAT): packets get the real server's address; replies pass the director"),
        entry("", "fullnat", Absent, Method(ForwardingMethod::FullNat), METHOD,
            "As -m, and the source address becomes one of `xvs laddr`; xvs only"),
        entry("", "tun-type", Required("TYPE"), O::TunnelType, Some(Column::TunnelType),
            "Encapsulation of a tunnel; default ipip"),
        entry("", "tun-port", Required("PORT"), O::TunnelPort, Some(Column::TunnelPort),
            "UDP port of a gue tunnel"),
        entry("", "tun-nocsum", Absent, Checksum(TunnelChecksum::Without), Some(Column::NoChecksum),
            "No checksum in the header of a gue or gre tunnel"),
        entry("", "tun-csum", Absent, Checksum(TunnelChecksum::Full), Some(Column::Checksum),
            "A checksum in the header of a gue or gre tunnel"),
        entry("", "tun-remcsum", Absent, Checksum(TunnelChecksum::Remote), Some(Column::RemoteChecksum),
            "Remote checksum offload in the header of a gue tunnel"),
        entry("w", "weight", Required("WEIGHT"), O::Weight, Some(Column::Weight),
            "Share of new connections; default 1; 0 gets none"),
        entry("x", "u-threshold", Required("N"), O::Upper, Some(Column::Upper),
            "Upper threshold: no new connections from this number on; 0 is no limit"),
        entry("y", "l-threshold", Required("N"), O::Lower, Some(Column::Lower),
            "Lower threshold: new connections again below this number; 0 is three quarters of -x"),
    ]
};

#[rustfmt::skip]
const LISTING: &[OptionEntry] = &[
    listing("c", "connection", Some(Column::Connection), "List connections and persistence templates"),
    listing("", "timeout", Some(Column::Timeout), "List the timeouts of --set"),
    listing("", "daemon", Some(Column::Daemon), "List the synchronization daemons"),
    listing("", "stats", Some(Column::Stats), "Show totals of connections, packets and bytes"),
    listing("", "rate", Some(Column::Rate), "Show rates per second"),
    listing("", "thresholds", Some(Column::Thresholds), "Show -x and -y"),
    listing("", "persistent-conn", Some(Column::PersistentConn),
        "Show the number of persistence templates; with -c, the data of persistence engines"),
    listing("", "tun-info", Some(Column::TunInfo), "Show the encapsulation of tunnels"),
    listing("X", "exact", Some(Column::Exact), "Show numbers in full, without K, M, G and T"),
    listing("", "nosort", Some(Column::NoSort), "List services and real servers in the order of the director"),
    listing("", "sort", None, "List services and real servers sorted, the default"),
    listing("n", "numeric", Some(Column::Numeric), "Show addresses and port numbers instead of names"),
];

#[rustfmt::skip]
const DAEMON: &[OptionEntry] = {
    use Argument::Required;
    use OptionName as O;
    &[
        entry("", "syncid", Required("ID"), O::SyncId, Some(Column::SyncId), "0 to 255; default 0"),
        entry("", "sync-maxlen", Required("BYTES"), O::MaxLen, Some(Column::MaxLen),
            "Maximum length of messages"),
        entry("", "mcast-interface", Required("NAME"), O::Interface, Some(Column::Interface),
            "Interface of the messages; default eth0"),
        entry("", "mcast-group", Required("ADDRESS"), O::Group, Some(Column::Group),
            "Multicast group; default 224.0.0.81"),
        entry("", "mcast-port", Required("PORT"), O::Port, Some(Column::Port), "UDP port; default 8848"),
        entry("", "mcast-ttl", Required("TTL"), O::Ttl, Some(Column::Ttl),
            "Time to live of messages; default 1, with peers 64"),
        entry("", "sync-peers", Required("ADDRESS,..."), O::Peers, None,
            "The other directors, instead of a multicast group: messages go to these addresses by unicast, and a backup \
             reads only what comes from them; xvs only"),
    ]
};

const fn entry(
    letters: &'static str,
    name: &'static str,
    argument: Argument,
    option: OptionName,
    column: Option<Column>,
    help: &'static str,
) -> OptionEntry {
    OptionEntry { letters, name, argument, option, column, help }
}

const fn listing(
    letters: &'static str,
    name: &'static str,
    column: Option<Column>,
    help: &'static str,
) -> OptionEntry {
    entry(letters, name, Argument::Absent, OptionName::Listing, column, help)
}
