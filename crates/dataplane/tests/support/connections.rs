//! Connections of every kind for tests of the table, and short forms of the operations on it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use xvs_dataplane::clock::Millis;
use xvs_dataplane::conn::{
    ConnId, Direction, Flags, Inserted, NewConnection, Removal, Spare, Table, TableConfig, TableWorker,
    Timers,
};
use xvs_dataplane::shm::Memory;
use xvs_proto::{Endpoint, FlowKey, Protocol};
use xvs_sched::ForwardingMethod;

pub(crate) const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
pub(crate) const VIP: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
pub(crate) const SERVER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 11);
pub(crate) const LOCAL: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);

pub(crate) fn table(capacity: usize, workers: usize) -> Arc<Table> {
    Table::create(TableConfig { capacity, workers, memory: Memory::OnDemand }).expect("a small table")
}

pub(crate) fn connection(port: u16, method: ForwardingMethod) -> NewConnection {
    NewConnection {
        protocol: Protocol::TCP,
        client: Endpoint::new(CLIENT, port),
        virtual_endpoint: Endpoint::new(VIP, 80),
        dest: Endpoint::new(SERVER, 8080),
        local: None,
        method,
        flags: Flags::NONE,
        state: 1,
        expires: Millis(60_000),
        spare: Spare::template(7),
        dest_ref: 8,
        mark: 9,
        controller: None,
    }
}

pub(crate) fn direct(port: u16) -> NewConnection {
    connection(port, ForwardingMethod::DirectRouting)
}

pub(crate) fn nat(port: u16) -> NewConnection {
    connection(port, ForwardingMethod::Nat)
}

/// The same connection over IPv6.
pub(crate) fn six(new: NewConnection) -> NewConnection {
    let six = |endpoint: Endpoint| match endpoint.addr {
        IpAddr::V4(addr) => {
            let [a, b, c, d] = addr.octets().map(u16::from);
            Endpoint::new(Ipv6Addr::new(0x2001, 0xdb8, a << 8 | b, 0, 0x8000, 0, c, d), endpoint.port)
        }
        IpAddr::V6(_) => endpoint,
    };
    NewConnection {
        client: six(new.client),
        virtual_endpoint: six(new.virtual_endpoint),
        dest: six(new.dest),
        local: new.local.map(six),
        ..new
    }
}

/// A connection with a local endpoint of the director towards the real server.
pub(crate) fn full_nat(port: u16, local: u16) -> NewConnection {
    NewConnection { local: Some(Endpoint::new(LOCAL, local)), ..nat(port) }
}

/// A tunnel to a real server of the other family.
pub(crate) fn mixed(port: u16, inner: fn(NewConnection) -> NewConnection) -> NewConnection {
    let outer = inner(direct(port)).client.addr.is_ipv4();
    let (four, new) = (connection(port, ForwardingMethod::Tunnel), six(direct(port)));
    let dest = if outer { new.dest } else { four.dest };
    NewConnection { dest, ..inner(four) }
}

pub(crate) fn inbound(new: &NewConnection) -> FlowKey {
    FlowKey { protocol: new.protocol, source: new.client, dest: new.virtual_endpoint }
}

pub(crate) fn reply(new: &NewConnection) -> FlowKey {
    let nat = new.method == ForwardingMethod::Nat;
    let source = if nat { new.dest } else { new.virtual_endpoint };
    FlowKey { protocol: new.protocol, source, dest: new.local.unwrap_or(new.client) }
}

pub(crate) fn find(worker: &TableWorker, flow: FlowKey) -> Option<(ConnId, Direction)> {
    worker.find(&flow, worker.hash(&flow))
}

pub(crate) fn insert(worker: &mut TableWorker, new: &NewConnection) -> ConnId {
    match worker.insert(new) {
        Inserted::New(id) => id,
        other => panic!("{other:?} for {new:?}"),
    }
}

/// Removes the connections that are due at `now` and returns their ids. Each call ends in a quiescent point.
pub(crate) fn expire(worker: &mut TableWorker, now: u64) -> Vec<ConnId> {
    let mut expired = Vec::new();
    while worker.advance_timers(Millis(now), |worker, id| {
        expired.push(id);
        assert!(matches!(worker.remove(id), Removal::Done(_)));
    }) == Timers::Behind
    {
        worker.quiescent();
    }
    worker.quiescent();
    expired
}
