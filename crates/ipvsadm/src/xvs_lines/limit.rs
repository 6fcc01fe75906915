//! `xvs limit`: limits of each client of a service, and of all its clients together.

use clap::Subcommand;
use xvs_model::config::command::Command;
use xvs_model::objects::limit::ServiceLimit;
use xvs_model::objects::{Object, Rule};
use xvs_sched::{Above, ClientLimit};

use crate::error::LineError;
use crate::resolver::Resolver;
use crate::xvs_lines::arguments::{Line, ServiceArgument};

/// A change of the limits of clients.
#[derive(Debug, Subcommand)]
#[allow(
    missing_docs,
    reason = "clap would take a sentence about the service's options as one about the subcommand"
)]
pub enum LimitChange {
    /// Limit each client of a service, and all its clients together, in place of the service's former limit
    #[command(group = clap::ArgGroup::new("what").args(["connections", "rate", "syn_rate"]).required(true).multiple(true))]
    Set {
        #[command(flatten)]
        service: ServiceArgument,
        /// Maximum number of connections at once; closed connections count until they expire
        #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        connections: Option<u32>,
        /// Maximum number of new connections a second
        #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        rate: Option<u32>,
        /// Maximum number of new connections at once after a pause; as many as --rate by default
        #[arg(short, long, value_name = "N", requires = "rate", value_parser = clap::value_parser!(u32).range(1..))]
        burst: Option<u32>,
        /// Action for SYNs above --rate: drop, the default, or syn-proxy, which answers them with cookies
        #[arg(long, value_name = "WHAT", requires = "rate", value_parser = above)]
        above: Option<Above>,
        /// Maximum number of SYNs a second of all clients together
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        syn_rate: Option<u32>,
        /// Maximum number of SYNs of all clients at once after a pause; as many as --syn-rate by default
        #[arg(long, value_name = "N", requires = "syn_rate", value_parser = clap::value_parser!(u32).range(1..))]
        syn_burst: Option<u32>,
    },
    /// End the limit of a service; connections stay
    Delete {
        #[command(flatten)]
        service: ServiceArgument,
    },
}

impl LimitChange {
    pub(super) fn service(&self) -> &ServiceArgument {
        let (Self::Set { service, .. } | Self::Delete { service }) = self;
        service
    }

    /// The limit to set; `None`: it is ended.
    pub(super) fn limit(&self) -> Option<ClientLimit> {
        let Self::Set { connections, rate, burst, above, syn_rate, syn_burst, .. } = self else {
            return None;
        };
        let [connections, rate, burst, syn_rate, syn_burst] =
            [connections, rate, burst, syn_rate, syn_burst].map(|number| number.unwrap_or(0));
        let above = above.unwrap_or_default();
        Some(ClientLimit { connections, rate, burst, above, syn_rate, syn_burst })
    }
}

impl Line for LimitChange {
    const WORD: &str = "limit";

    fn command(&self, resolver: &dyn Resolver) -> Result<Command, LineError> {
        let service = self.service().required(Self::WORD, "-t, -u, --sctp-service or -f", resolver)?;
        Ok(match self.limit() {
            None => Command::Delete(Object::Limit(service)),
            Some(limit) => Command::Add(Rule::Limit(ServiceLimit { service, limit })),
        })
    }
}

fn above(text: &str) -> Result<Above, &'static str> {
    Above::ALL
        .into_iter()
        .find(|above| above.name() == text)
        .ok_or("SYNs above the rate get drop or syn-proxy")
}
