//! `virtual_server` blocks.
//!
//! Pure. Statements that keepalived leaves out with a message are left out here with a warning; errors of keepalived
//! that are not copied are listed in docs/limits-all.md. Source: keepalived-behaviour, sections 2 and 5.4.
//! `virtual_server/mod.rs` in `health` computes the state of a virtual server.

use std::collections::HashSet;

use xvs_model::config::service::ServiceOptions;
use xvs_model::health_checks::fault::Place;
use xvs_model::health_checks::virtual_server::{RealServer, VirtualServer};
use xvs_proto::{Endpoint, Family};
use xvs_sched::scheduler::Flags;
use xvs_sched::{ForwardingMethod, ServiceKey};

use crate::blocks::Block;
use crate::definitions::Definitions;
use crate::groups::{Entry, Groups};
use crate::head::{Head, NAT};
use crate::own_lines;
use crate::servers::Draft;
use crate::settings::Settings;
use crate::sorry_server::SorryDraft;
use crate::values::{Faults, Method, decimal, port};

/// Reads a `virtual_server`; `None` if it cannot be used and is left out.
pub(super) fn read(block: &Block, definitions: &Definitions, faults: &mut Faults) -> Option<VirtualServer> {
    faults.block(block);
    let head = head(block, &definitions.groups, faults)?;
    let mut settings = Settings::of(&head);
    let mut drafts = Vec::new();
    for statement in block.statements() {
        match statement.keyword() {
            own_lines::KEYWORD => {}
            "real_server" => drafts.extend(Draft::read(statement, &mut settings, faults)),
            _ => settings.apply(statement, faults),
        }
    }
    settings.family = settings.family.or(settings.sorry.as_ref().and_then(SorryDraft::family));
    settings.check(&head, block, faults);
    if settings.method.is_none() && drafts.iter().any(|draft| draft.method.is_none()) {
        faults.assume(block, "method", "NAT");
    }
    let mark_family = settings.family.unwrap_or_else(|| family_of_tunnels(&drafts));
    let mut services = settings.services(&head, mark_family);
    keep_one_family(&mut services, &drafts, settings.method, block, faults);
    let families: HashSet<_> = services.iter().map(|(key, _)| key.family()).collect();
    let mut real_servers: Vec<RealServer> = Vec::new();
    let mut known = HashSet::new();
    for draft in drafts {
        let server = draft.finish(&settings, &head, definitions, faults);
        if !fits(&families, server.endpoint, server.options.method, &server.place, faults) {
            continue;
        }
        if known.insert(server.endpoint) {
            real_servers.push(server);
        } else {
            let text = format!("{} is already a real server; the first definition is used", server.endpoint);
            faults.warn(&server.place, text);
        }
    }
    if real_servers.is_empty() {
        faults.warn_of(block, "it has no real server; the virtual server is left out");
        faults.costs(services.into_iter().map(|(key, _)| key).collect());
        return None;
    }
    warn_of_refused_share(&services, &real_servers, block, faults);
    let limit = own_lines::apply(block, &mut services, &real_servers, faults);
    let (quorum, hysteresis) = settings.quorum(&real_servers, block, faults);
    Some(VirtualServer {
        place: block.place.clone(),
        name: block.arguments().join(" "),
        ordinal: 0,
        services,
        limit,
        quorum,
        hysteresis,
        sorry_server: settings
            .sorry
            .map(|sorry| sorry.finish(settings.method, &head, &real_servers, faults))
            .filter(|sorry| fits(&families, sorry.endpoint, sorry.options.method, &sorry.place, faults)),
        quorum_up: settings.quorum_up,
        quorum_down: settings.quorum_down,
        smtp_alert: settings.smtp_alert,
        omega: settings.omega,
        ha_suspend: settings.ha_suspend,
        real_servers,
    })
}

/// Warns if a hash scheduler refuses the clients of a real server whose checks fail.
fn warn_of_refused_share(
    services: &[(ServiceKey, ServiceOptions)],
    real_servers: &[RealServer],
    block: &Block,
    faults: &mut Faults,
) {
    let is_inhibited = |server: &RealServer| server.inhibit_on_failure && !server.checks.is_empty();
    if let Some((_, ServiceOptions { scheduler, flags, .. })) = services.first()
        && matches!(scheduler.as_str(), "sh" | "mh")
        && !Flags(flags.0).contains(Flags::FALLBACK)
        && real_servers.iter().any(is_inhibited)
    {
        faults.warn_of(
            block,
            format!(
                "with `{scheduler}`, `inhibit_on_failure` and without `{scheduler}-fallback` the clients of a real \
                 server are refused while its checks fail; add `{scheduler}-fallback`"
            ),
        );
    }
}

/// The services that the head names.
fn head(block: &Block, groups: &Groups, faults: &mut Faults) -> Option<Head> {
    let words: Vec<_> = block.arguments().iter().map(String::as_str).collect();
    let entry = match words[..] {
        ["group", name, ..] => match groups.find(name) {
            Some(entries) => return Some(Head { entries: entries.to_vec(), is_group: true }),
            None => return left_out(block, &format!("no group `{name}` with an entry"), faults),
        },
        ["fwmark", mark, ..] => match decimal(mark).filter(|mark| *mark != 0) {
            Some(mark) => Entry::Mark(mark, None),
            None => return left_out(block, "a mark is a number from 1 to 4294967295", faults),
        },
        [addr, ref behind @ ..] => match (faults.address_of(block, addr), port(behind.first().copied())) {
            (Some(addr), Ok(port)) => Entry::Address(addr, port),
            (Some(_), Err(why)) => return left_out(block, why, faults),
            (None, _) => return left_out(block, &format!("`{addr}` is not an address"), faults),
        },
        [] => return left_out(block, "it names no address, mark or group", faults),
    };
    Some(Head { entries: vec![entry], is_group: false })
}

/// Leaves out a virtual server whose services are unknown, with the reason as a warning.
fn left_out<T>(block: &Block, why: &str, faults: &mut Faults) -> Option<T> {
    faults.warn_of(block, format!("{why}; the virtual server is left out"));
    faults.costs(Vec::new());
    None
}

/// Leaves out the services of one family if there are both and a server has a method that cannot cross them. The
/// services that stay have the first address's family, or the other one if no such server has the first.
fn keep_one_family(
    services: &mut Vec<(ServiceKey, ServiceOptions)>,
    drafts: &[Draft<'_>],
    method: Option<Method>,
    block: &Block,
    faults: &mut Faults,
) {
    let bound: HashSet<_> = drafts
        .iter()
        .filter(|draft| !crosses_families(draft.method.or(method).unwrap_or(NAT).0))
        .map(|draft| draft.endpoint.family())
        .collect();
    let mut families = services.iter().map(|(key, _)| key.family());
    let Some(kept) = families.find(|family| bound.contains(family)) else { return };
    let left_out: Vec<_> = services.extract_if(.., |(key, _)| key.family() != kept).collect();
    if let [(first, _), others @ ..] = &left_out[..] {
        let more = match others.len() {
            0 => String::new(),
            number => format!(" and {number} more"),
        };
        faults.warn_of(
            block,
            format!(
                "real servers of the other family cannot serve {first}{more}, left out here; use method FULLNAT or \
                 TUN, or a group for each family"
            ),
        );
        faults.costs(left_out.iter().map(|(key, _)| *key).collect());
    }
}

/// Whether a server with this method may belong to another family than its service.
fn crosses_families(method: ForwardingMethod) -> bool {
    matches!(method, ForwardingMethod::Tunnel | ForwardingMethod::FullNat)
}

/// Whether a server belongs to a family that its method can reach from the services; it is left out otherwise.
fn fits(
    families: &HashSet<Family>,
    endpoint: Endpoint,
    method: ForwardingMethod,
    place: &Place,
    faults: &mut Faults,
) -> bool {
    let fits = crosses_families(method) || families.iter().all(|one| *one == endpoint.family());
    if !fits {
        let why = "is of another family than its virtual server, and its method is neither TUN nor FULLNAT; it is left out";
        faults.warn(place, format!("{} {why}", endpoint.addr));
    }
    fits
}

/// The family of marks whose servers all have method TUN: IPv6 if all servers are IPv6, otherwise IPv4.
fn family_of_tunnels(drafts: &[Draft<'_>]) -> Family {
    let all_v6 = !drafts.is_empty() && drafts.iter().all(|draft| draft.endpoint.family() == Family::V6);
    if all_v6 { Family::V6 } else { Family::V4 }
}
