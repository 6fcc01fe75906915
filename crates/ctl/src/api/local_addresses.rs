//! The ports in use at FULLNAT's local addresses, which real servers see instead of clients.
//!
//! `xvs laddr` sets the addresses; the desired state keeps them, the snapshot publishes them. A request counts the
//! ports by a walk over the connections in bounded slices, at no cost for packets. `xvs_dataplane::new_connection`
//! chooses the port of a connection; `xvs_host::reserved_ports` reserves the ports in the kernel.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Mutex;

use xvs_dataplane::conn::TableReader;
use xvs_model::objects::local::{Busiest, LocalAddress, LocalReport, LocalRow};
use xvs_proto::{Endpoint, Protocol};

use crate::api::connections::walk;

/// Counts the connections at these addresses. `exhausted` is passed through.
pub fn report(locals: &[LocalAddress], reader: &Mutex<TableReader>, exhausted: u64) -> LocalReport {
    let mut taken: HashMap<(IpAddr, Protocol, Endpoint), u64> = HashMap::new();
    walk(reader, |connection| {
        if let Some(local) = connection.local() {
            *taken.entry((local.addr, connection.protocol(), connection.dest())).or_default() += 1;
        }
    });
    let rows = locals.iter().map(|local| {
        let of_it = taken.iter().filter(|((addr, ..), _)| *addr == local.addr);
        LocalRow {
            local: *local,
            connections: of_it.clone().map(|(_, ports)| ports).sum(),
            busiest: of_it
                .map(|((_, protocol, dest), ports)| Busiest {
                    ports: *ports,
                    dest: *dest,
                    protocol: *protocol,
                })
                .max(),
        }
    });
    LocalReport { addresses: rows.collect(), exhausted }
}
