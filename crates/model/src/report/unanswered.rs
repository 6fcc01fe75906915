//! Real servers that answer no client, and the likely cause.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use xvs_proto::Endpoint;
use xvs_sched::{ForwardingMethod, ServiceKey};

/// The number of connections in a row from which on a real server is reported.
pub const REPORTED: u32 = 3;

/// A real server whose last connections were not answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Unanswered {
    /// The service.
    pub service: ServiceKey,
    /// The real server.
    pub endpoint: Endpoint,
    /// How packets reach it.
    pub method: ForwardingMethod,
    /// The UDP port of its tunnel, if that is GUE.
    pub gue_port: Option<u16>,
    /// TCP connections whose clients repeated their SYN, or that it refused, since the last one that was established.
    pub connections: u32,
    /// What this director has seen of its answers.
    pub seen: Seen,
}

/// A director's observation of a real server's answers to connections that were not established.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Seen {
    /// Nothing.
    Nothing,
    /// Resets.
    Refusals,
    /// ICMP errors, of itself or of a router.
    Errors,
    /// Replies by this director, which has their source, so that its kernel drops them.
    OwnSource,
    /// That its clients, such as this one, are in its own network (NAT).
    Neighbour(IpAddr),
}

impl Unanswered {
    /// The warning: what is wrong, the likely cause, and the next step.
    pub fn warning(&self) -> String {
        let Self { service, endpoint, method, gue_port, connections, seen } = self;
        let server = endpoint.addr;
        let vip = match service {
            ServiceKey::Address { endpoint, .. } => endpoint.addr.to_string(),
            ServiceKey::Mark { .. } => "VIP".to_owned(),
        };
        let cause = match seen {
            Seen::Refusals => format!(
                "it refuses them (RST): nothing listens on {endpoint}, or its firewall refuses them; on {server} see `ss -ltn`"
            ),
            Seen::Errors if *method == ForwardingMethod::Tunnel => {
                format!("an ICMP error answers them: {}", likely_cause(server, *method, *gue_port, &vip))
            }
            Seen::Errors => format!(
                "an ICMP error answers them: its firewall, or a router's, rejects them; on {server} see `nft list ruleset`, `iptables -S`"
            ),
            Seen::OwnSource => format!(
                "its replies come by this director, whose kernel drops them because {vip} is its own address; `xvs set forward_shared 1` forwards them, or give {server} another gateway"
            ),
            Seen::Neighbour(client) => neighbour_cause(*client),
            Seen::Nothing => likely_cause(server, *method, *gue_port, &vip),
        };
        format!("{service}: {endpoint}: {connections} connections, none answered; {cause}")
    }
}

/// Why a client in a real server's own network does not connect by NAT, and the next step.
pub fn neighbour_cause(client: IpAddr) -> String {
    format!(
        "{client} is a client in the network of the real servers, whose replies go to it directly; use FULLNAT for it"
    )
}

/// Why a real server with this method probably answers no connection to a virtual address, and the next step.
fn likely_cause(server: IpAddr, method: ForwardingMethod, gue_port: Option<u16>, vip: &str) -> String {
    let port = gue_port.map(|port| format!(" --gue-port {port}")).unwrap_or_default();
    match method {
        ForwardingMethod::Nat => format!(
            "its replies probably do not pass this director; on {server} see `ip route get CLIENT`, and make the director its gateway, or use FULLNAT; or it does not run, or its firewall drops them"
        ),
        ForwardingMethod::FullNat => format!(
            "its firewall, or its route to the addresses of `xvs laddr list`, probably stops it; see both on {server}, and whether it runs"
        ),
        ForwardingMethod::DirectRouting => {
            format!("it probably has not the virtual address; on {server}: `xvs realserver up --vip {vip}`")
        }
        ForwardingMethod::Tunnel => format!(
            "it probably has not the virtual address, or does not decapsulate; on {server}: `xvs realserver up --vip {vip} --method tunnel{port}`"
        ),
        ForwardingMethod::Local => {
            "nothing on the director answers there; see `ss -ltn` and the firewall".to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::report::unanswered::*;

    #[test]
    fn the_step_depends_on_the_tunnel_and_on_what_the_director_has_seen_of_the_answers() {
        let step = |gue_port, seen| {
            let (service, endpoint) =
                ("TCP 198.51.100.1:80".parse().unwrap(), Endpoint::new([192, 0, 2, 11], 80));
            let method = ForwardingMethod::Tunnel;
            Unanswered { service, endpoint, method, gue_port, connections: 3, seen }.warning()
        };
        assert!(
            step(None, Seen::Nothing).ends_with("`xvs realserver up --vip 198.51.100.1 --method tunnel`")
        );
        assert!(step(Some(5555), Seen::Nothing).ends_with("--method tunnel --gue-port 5555`"));
        assert!(
            step(None, Seen::OwnSource)
                .contains("`xvs set forward_shared 1` forwards them, or give 192.0.2.11 another")
        );
        assert!(
            step(None, Seen::Errors).contains("an ICMP error answers them: it probably has not the virtual")
        );
        assert!(step(None, Seen::Refusals).contains("nothing listens on 192.0.2.11:80"));
    }
}
