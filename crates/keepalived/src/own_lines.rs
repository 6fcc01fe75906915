//! Lines `#xvs …`, which are comments for keepalived: features for which keepalived has no keyword.
//!
//! Such lines occur directly in a `virtual_server` and apply to all of its services. An invalid line is an error: a
//! service without its SYN proxy, limit or PROXY header does not correspond to the file. Pure. The crate `xvs_ipvsadm`
//! defines their grammar.

use std::collections::HashSet;
use std::mem::{Discriminant, discriminant};

use xvs_ipvsadm::ServiceLine;
use xvs_model::config::command::Command;
use xvs_model::config::desired_state::State;
use xvs_model::config::service::ServiceOptions;
use xvs_model::health_checks::virtual_server::RealServer;
use xvs_model::objects::Rule;
use xvs_model::objects::limit::ServiceLimit;
use xvs_proto::Endpoint;
use xvs_sched::{ClientLimit, ServiceKey};

use crate::blocks::Block;
use crate::values::Faults;

/// Their keyword.
pub(super) const KEYWORD: &str = "#xvs";

/// Removes lines in other positions; `around` is the keyword of the block that contains these statements.
pub(super) fn remove_misplaced(blocks: &mut Vec<Block>, around: &str, faults: &mut Faults) {
    blocks.retain_mut(|block| {
        if let Some(body) = &mut block.body {
            // A virtual server in another block is not used at all.
            let inner = if around.is_empty() { block.words.first().map_or("?", String::as_str) } else { "?" };
            remove_misplaced(body, inner, faults);
        }
        if block.keyword() != KEYWORD || around == "virtual_server" {
            return true;
        }
        let advice = "it can stand directly in a `virtual_server` alone, and say syn-proxy, client-address or limit \
                      set; other words belong into a rules file";
        faults.error(&block.place, format!("`{}` is in the wrong place: {advice}", block.text));
        false
    });
}

/// Applies the lines of a virtual server to its services. Returns the limit on their clients.
pub(super) fn apply(
    block: &Block,
    services: &mut [(ServiceKey, ServiceOptions)],
    servers: &[RealServer],
    faults: &mut Faults,
) -> Option<ClientLimit> {
    let mut state = state(services, servers);
    let mut limit = None;
    let mut known = HashSet::new();
    for line in block.statements().iter().filter(|statement| statement.keyword() == KEYWORD) {
        faults.line(line, true);
        match apply_line(line, &mut known, services, &mut state) {
            Ok(ServiceLine::Limit(new)) => limit = Some(new),
            Ok(ServiceLine::SynProxy(_) | ServiceLine::ClientAddress(_)) => {}
            Err(why) => faults.error(&line.place, format!("`{}`: {why}", line.text)),
        }
    }
    limit
}

/// Applies a line to all services, or to none if it is wrong.
fn apply_line(
    line: &Block,
    known: &mut HashSet<Discriminant<ServiceLine>>,
    services: &mut [(ServiceKey, ServiceOptions)],
    state: &mut State,
) -> Result<ServiceLine, String> {
    let words: Vec<_> = line.arguments().iter().map(String::as_str).collect();
    let read = ServiceLine::read(&words).map_err(|error| error.to_string())?;
    if !known.insert(discriminant(&read)) {
        return Err("there is such a line before it; remove one".to_owned());
    }
    let mut changed = services.to_vec();
    for (key, options) in &mut changed {
        match read {
            ServiceLine::Limit(_) => {}
            ServiceLine::SynProxy(when) => options.syn_proxy = when,
            ServiceLine::ClientAddress(how) => options.client_address = how,
        }
        let command = match read {
            ServiceLine::Limit(limit) => Command::Add(Rule::Limit(ServiceLimit { service: *key, limit })),
            _ => Command::EditService { key: *key, options: options.clone() },
        };
        state.apply(&command).map_err(|error| error.to_string().trim_start_matches("xvs: ").to_owned())?;
    }
    services.clone_from_slice(&changed);
    Ok(read)
}

/// The services without these lines, to find what the director refuses. Other refusals are found later.
fn state(services: &[(ServiceKey, ServiceOptions)], servers: &[RealServer]) -> State {
    let mut state = State::default();
    for (key, options) in services {
        let _ = state.apply(&Command::Add(Rule::Service { key: *key, options: options.clone() }));
        for RealServer { endpoint, options, .. } in servers {
            let port = match key {
                ServiceKey::Address { endpoint: of_service, .. } if endpoint.port == 0 => of_service.port,
                _ => endpoint.port,
            };
            let _ = state.apply(&Command::Add(Rule::Destination {
                service: *key,
                endpoint: Endpoint { port, ..*endpoint },
                options: options.clone(),
            }));
        }
    }
    state
}
