//! The QUIC configurations of a service, and the destination that a connection ID identifies.
//!
//! Immutable, a part of the service. Cost of a look-up: one to four AES blocks if the IDs are encrypted, and a binary
//! search. `xvs_proto::quic` reads connection IDs; `new_connection/quic.rs` decides whether a destination is chosen.

use std::fmt;

use xvs_proto::Endpoint;
use xvs_proto::quic::{CONFIGURATIONS, Decoder, ServerId};

/// The QUIC configurations of a service.
pub struct Quic {
    decoders: [Option<Decoder>; CONFIGURATIONS],
    /// The positions of destinations among the service's members, in the order of their IDs.
    members: Box<[(ServerId, usize)]>,
}

impl Quic {
    /// Creates the look-up from these configurations, by their numbers, and these positions among the service's
    /// members.
    pub fn new(
        configs: impl IntoIterator<Item = (u8, Decoder)>,
        members: impl IntoIterator<Item = (ServerId, usize)>,
    ) -> Self {
        let mut decoders = [const { None }; CONFIGURATIONS];
        for (number, decoder) in configs {
            decoders[usize::from(number)] = Some(decoder);
        }
        let mut members: Box<[_]> = members.into_iter().collect();
        members.sort_unstable();
        Self { decoders, members }
    }

    /// The position of the destination that a connection ID identifies.
    ///
    /// # Errors
    ///
    /// The reason why the ID identifies none.
    pub(crate) fn find(&self, id: &[u8]) -> Result<usize, Unnamed> {
        let number = Decoder::configuration(id).ok_or(Unnamed::Short)?;
        let server = self
            .decoders
            .get(number)
            .and_then(Option::as_ref)
            .ok_or(Unnamed::Configuration(number))?
            .server_id(id)
            .ok_or(Unnamed::Short)?;
        self.members
            .binary_search_by_key(&server, |(known, _)| *known)
            .map(|place| self.members[place].1)
            .map_err(|_| Unnamed::Server(server))
    }
}

/// Why a connection ID chooses no destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unnamed {
    /// There is none, or it is shorter than its configuration requires.
    Short,
    /// The service has no configuration with this number.
    Configuration(usize),
    /// No destination of the service has this server ID.
    Server(ServerId),
    /// The packet may begin a QUIC connection, and the destination gets no new ones.
    NotForNew(Endpoint),
}

impl fmt::Display for Unnamed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Short => write!(f, "it has none, or one that is too short"),
            Self::Configuration(CONFIGURATIONS) => {
                write!(f, "its first bits say that the server has no configuration")
            }
            Self::Configuration(number) => write!(f, "the service has no configuration {number} in force"),
            Self::Server(id) => write!(f, "no real server of the service has server ID {id}"),
            Self::NotForNew(endpoint) => {
                write!(f, "with a long header it may be new, and {endpoint} gets no new connections")
            }
        }
    }
}
