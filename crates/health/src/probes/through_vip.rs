//! `TCP_CHECK` with `through_vip`: TCP connections to virtual endpoints, forwarded like a client's packets.
//!
//! Runs once for each probe, for real servers with direct routing or tunnels. Passes when the server accepts a
//! connection to every virtual endpoint. It thereby finds faults that a connection to the server's own address cannot:
//! a server without the virtual address, or without decapsulation. The director's workers send the packets
//! (`general_path/vip_probe.rs`); this module polls their result, at intervals that grow to [`LONGEST_PAUSE`].

use std::net::IpAddr;
use std::time::Duration;

use thiserror::Error;
use tokio::time::{Instant, sleep_until};
use xvs_model::health_checks::virtual_server::RealServer;
use xvs_proto::{Endpoint, Family};
use xvs_sched::ForwardingMethod;

use crate::probes::probe_result::ProbeResult;
use crate::probes::socket::{self, Within};

/// The result of a probe through a virtual address so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VipAnswer {
    /// The SYN waits to be sent.
    Queued,
    /// The SYN could not be sent to the real server, for this reason.
    Unsent(String),
    /// The SYN was sent, and there is no reply.
    Sent,
    /// The real server accepts connections.
    Accepted,
    /// The real server refuses connections.
    Refused,
}

/// A probe through a virtual address; dropping it ends it.
pub trait VipProbe: Send {
    /// The result so far. Sends the SYN again if that is due.
    fn answer(&mut self) -> VipAnswer;
}

/// The first pause before the state of the probes is read; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// The reason why a probe through a virtual address cannot begin now.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum VipProbeError {
    /// No check of the configuration needs such probes.
    #[error("probes through virtual addresses are off")]
    Off,
    /// The real server has an address of this machine.
    #[error("it is this machine itself; remove `through_vip`")]
    ThisMachine,
    /// The configured source is elsewhere.
    #[error("`bindto {0}` is not an address of this machine")]
    NotLocal(IpAddr),
    /// The server would mistake a packet from it for its own.
    #[error("`bindto {0}` is a virtual address")]
    IsVirtual(IpAddr),
    /// There is no address to probe from.
    #[error(
        "the attached interfaces towards clients and towards {server} have no {kind} address that is not virtual; \
         see `ip addr`",
        kind = if *family == Family::V4 { "IPv4" } else { "IPv6" }
    )]
    NoSource {
        /// The address of the real server.
        server: IpAddr,
        /// The family of the virtual endpoint.
        family: Family,
    },
    /// No further probe has room.
    #[error("too many probes are in flight")]
    TooMany,
}

/// Probes the real server once through each virtual endpoint, at most until the deadline. `begin` begins the probe of
/// one.
pub(crate) async fn probe(
    begin: impl Fn(Endpoint) -> Result<Box<dyn VipProbe>, VipProbeError>,
    endpoints: &[Endpoint],
    server: &RealServer,
    deadline: Instant,
) -> ProbeResult {
    let within = socket::within(deadline);
    let mut open = Vec::new();
    for endpoint in endpoints {
        match begin(*endpoint) {
            Ok(probe) => open.push((*endpoint, probe)),
            Err(why) => {
                return ProbeResult::NotRun(format!("{} could not be probed: {why}", server.endpoint));
            }
        }
    }
    let mut pause = FIRST_PAUSE;
    loop {
        let is_last = Instant::now() >= deadline;
        let mut waiting = Vec::new();
        for (endpoint, mut probe) in open {
            match probe.answer() {
                VipAnswer::Accepted => {}
                VipAnswer::Refused => {
                    let server = server.endpoint.addr;
                    return ProbeResult::Failed(format!("connection refused by {server} through {endpoint}"));
                }
                answer if is_last => return overdue(answer, endpoint, server, within),
                _ => waiting.push((endpoint, probe)),
            }
        }
        if waiting.is_empty() {
            return ProbeResult::Passed(0);
        }
        open = waiting;
        sleep_until(deadline.min(Instant::now() + pause)).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// The result of a probe without a reply at its deadline.
fn overdue(answer: VipAnswer, endpoint: Endpoint, server: &RealServer, within: Within) -> ProbeResult {
    let addr = server.endpoint.addr;
    let vip = endpoint.addr;
    match answer {
        VipAnswer::Unsent(why) => ProbeResult::Failed(format!("no packet can be sent to {addr}: {why}")),
        VipAnswer::Queued => {
            ProbeResult::NotRun(format!("{addr} could not be probed: no worker has sent the packet {within}"))
        }
        VipAnswer::Sent | VipAnswer::Accepted | VipAnswer::Refused => {
            let (fault, method) = match server.options.method {
                ForwardingMethod::Tunnel => {
                    ("does not decapsulate, or lacks the address", " --method tunnel")
                }
                _ => ("lacks the address", ""),
            };
            ProbeResult::Failed(format!(
                "no answer from {addr} through {endpoint} {within}; if it {fault}, run \
                 `xvs realserver up --vip {vip}{method}` on it"
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use xvs_model::config::destination::DestinationOptions;

    use crate::probes::socket::testing::soon;
    use crate::probes::through_vip::*;

    /// A probe with these answers, one after the other; the last one is repeated.
    struct Scripted(Vec<VipAnswer>);

    impl VipProbe for Scripted {
        fn answer(&mut self) -> VipAnswer {
            match self.0.len() {
                1 => self.0[0].clone(),
                _ => self.0.remove(0),
            }
        }
    }

    fn vip(last: u8) -> Endpoint {
        Endpoint::new([198, 51, 100, last], 80)
    }

    /// The result of a probe of a server with this method through as many endpoints as there are answers. An endpoint
    /// without answers cannot be probed.
    async fn probed(method: ForwardingMethod, answers: &[&[VipAnswer]]) -> ProbeResult {
        let server = RealServer {
            place: Default::default(),
            endpoint: Endpoint::new([192, 0, 2, 11], 80),
            options: DestinationOptions { method, ..Default::default() },
            inhibit_on_failure: false,
            notify_up: None,
            notify_down: None,
            smtp_alert: None,
            checks: Vec::new(),
        };
        let endpoints: Vec<_> = (1..).zip(answers).map(|(last, _)| vip(last)).collect();
        let begin = |at: Endpoint| -> Result<Box<dyn VipProbe>, VipProbeError> {
            let index = endpoints.iter().position(|known| *known == at).unwrap();
            match answers[index] {
                [] => Err(VipProbeError::TooMany),
                answers => Ok(Box::new(Scripted(answers.to_vec()))),
            }
        };
        probe(begin, &endpoints, &server, soon()).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_passes_when_it_has_accepted_a_connection_to_every_virtual_endpoint() {
        use VipAnswer::{Accepted, Queued, Refused, Sent, Unsent};
        let slow = [Queued, Unsent("no neighbour".to_owned()), Sent, Sent, Accepted];
        assert_eq!(
            probed(ForwardingMethod::DirectRouting, &[&[Accepted], &slow]).await,
            ProbeResult::Passed(0)
        );
        let refused = "connection refused by 192.0.2.11 through 198.51.100.2:80".to_owned();
        assert_eq!(
            probed(ForwardingMethod::DirectRouting, &[&[Sent], &[Sent, Refused]]).await,
            ProbeResult::Failed(refused)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_without_answer_fails_at_the_deadline_with_the_cause_and_the_step_for_its_method() {
        use VipAnswer::{Accepted, Sent, Unsent};
        let dr = "no answer from 192.0.2.11 through 198.51.100.2:80 within 5s; if it lacks the address, run \
                  `xvs realserver up --vip 198.51.100.2` on it";
        assert_eq!(
            probed(ForwardingMethod::DirectRouting, &[&[Accepted], &[Sent]]).await,
            ProbeResult::Failed(dr.to_owned())
        );
        let tunnel = "no answer from 192.0.2.11 through 198.51.100.1:80 within 5s; if it does not decapsulate, or \
                      lacks the address, run `xvs realserver up --vip 198.51.100.1 --method tunnel` on it";
        assert_eq!(
            probed(ForwardingMethod::Tunnel, &[&[Sent]]).await,
            ProbeResult::Failed(tunnel.to_owned())
        );
        let unsent = "no packet can be sent to 192.0.2.11: no route".to_owned();
        assert_eq!(
            probed(ForwardingMethod::DirectRouting, &[&[Unsent("no route".to_owned())]]).await,
            ProbeResult::Failed(unsent)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_this_machine_cannot_send_says_nothing_about_the_server() {
        let late = "192.0.2.11 could not be probed: no worker has sent the packet within 5s".to_owned();
        assert_eq!(
            probed(ForwardingMethod::DirectRouting, &[&[VipAnswer::Queued]]).await,
            ProbeResult::NotRun(late)
        );
        let none = "192.0.2.11:80 could not be probed: too many probes are in flight".to_owned();
        assert_eq!(probed(ForwardingMethod::DirectRouting, &[&[]]).await, ProbeResult::NotRun(none));
    }
}
