//! SCTP states of an association.
//!
//! Runs for each SCTP packet of a connection. It follows the state table of IPVS cell by cell and does not implement
//! SCTP: the state determines only the timeout of the association and whether it counts as active. Cost: one table
//! look-up.

use std::time::Duration;

use xvs_proto::sctp::Event;

use super::direction::Seen;

/// The state of an association, numbered as in connection sync messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum SctpState {
    /// No packet yet.
    None = 0,
    /// A first INIT from the client.
    Init1 = 1,
    /// The client has sent another INIT.
    Init = 2,
    /// The destination has sent its cookie.
    CookieSent = 3,
    /// The client has returned the cookie.
    CookieReplied = 4,
    /// The destination has sent an INIT.
    CookieWait = 5,
    /// Not reached by packets alone.
    Cookie = 6,
    /// The destination has returned a cookie.
    CookieEchoed = 7,
    /// Both ends exchange data.
    Established = 8,
    /// The destination has begun the shutdown.
    ShutdownSent = 9,
    /// The client has begun the shutdown.
    ShutdownReceived = 10,
    /// The destination has acknowledged the shutdown.
    ShutdownAckSent = 11,
    /// Aborted before it was established.
    Rejected = 12,
    /// Shut down, aborted, or an unexpected packet.
    Closed = 13,
}

use SctpState::{
    Closed as CL, Cookie as CO, CookieEchoed as CE, CookieReplied as CR, CookieSent as CS, CookieWait as CW,
    Established as ES, Init as IN, Init1 as I1, None as NO, Rejected as RJ, ShutdownAckSent as SA,
    ShutdownReceived as SR, ShutdownSent as SS,
};

type Row = [SctpState; 14];

/// Next states. Columns are the states in numerical order. Each direction has a block with a row for each event: DATA,
/// INIT, INIT ACK, COOKIE ECHO, COOKIE ACK, SHUTDOWN, SHUTDOWN ACK, SHUTDOWN COMPLETE, ERROR, ABORT.
///
/// Source: ipvs-behaviour, section 4.2.
#[rustfmt::skip]
const TABLE: [[Row; 10]; 3] = [
    [ // from the client
        // NO  I1  IN  CS  CR  CW  CO  CE  ES  SS  SR  SA  RJ  CL
        [ES, I1, IN, CS, CR, CW, CO, CE, ES, SS, SR, SA, RJ, CL],
        [I1, IN, IN, CS, CR, CW, CO, CE, ES, SS, SR, SA, IN, IN],
        [CW, CW, CW, CS, CR, CO, CO, CE, ES, SS, SR, SA, RJ, CL],
        [CR, IN, IN, CR, CR, CW, CO, CE, ES, SS, SR, SA, RJ, CL],
        [ES, I1, IN, CS, CR, CW, CO, ES, ES, SS, SR, SA, RJ, CL],
        [SR, I1, IN, CS, CR, CW, CO, CE, SR, SS, SR, SA, RJ, CL],
        [CL, IN, IN, CS, CR, CW, CO, CE, ES, CL, SR, CL, RJ, CL],
        [CL, CL, CL, CS, CR, CW, CO, CE, ES, SS, SR, CL, RJ, CL],
        [CL, I1, IN, CS, CR, CW, CO, CL, ES, SS, SR, SA, RJ, CL],
        [CL, CL, CL, CL, CL, RJ, CL, CL, CL, CL, CL, CL, CL, CL],
    ],
    [ // a reply
        // NO  I1  IN  CS  CR  CW  CO  CE  ES  SS  SR  SA  RJ  CL
        [ES, I1, IN, CS, CR, CW, CO, CE, ES, SS, SR, SA, RJ, CL],
        [CW, CW, CW, CW, CW, CW, CW, CW, ES, CW, CW, CW, CW, CW],
        [CS, CS, CS, CS, CR, CW, CO, CE, ES, SS, SR, SA, RJ, CL],
        [CE, CE, CE, CE, CE, CE, CE, CE, ES, SS, SR, SA, RJ, CL],
        [ES, ES, ES, ES, ES, ES, ES, ES, ES, SS, SR, SA, RJ, CL],
        [SS, SS, SS, SS, SS, SS, SS, SS, SS, SS, SR, SA, RJ, CL],
        [SA, SA, SA, SA, SA, CW, CO, CE, ES, SA, SA, SA, RJ, CL],
        [CL, I1, IN, CS, CR, CW, CO, CE, ES, SS, SR, SA, RJ, CL],
        [CL, CL, CL, CL, CL, CW, CO, CE, ES, SS, SR, SA, RJ, CL],
        [CL, RJ, CL, CL, CL, CL, CL, CL, CL, CL, CL, CL, CL, CL],
    ],
    [ // from the client, replies not seen
        // NO  I1  IN  CS  CR  CW  CO  CE  ES  SS  SR  SA  RJ  CL
        [ES, I1, IN, CS, CR, ES, CO, CE, ES, SS, SR, SA, RJ, CL],
        [I1, IN, IN, IN, IN, IN, CO, CE, ES, SS, SR, SA, IN, IN],
        [CE, CE, CE, CE, CE, CE, CO, CE, ES, SS, SR, SA, RJ, CL],
        [ES, ES, ES, ES, ES, ES, CO, CE, ES, SS, SR, SA, RJ, CL],
        [ES, I1, IN, ES, ES, CW, ES, ES, ES, SS, SR, SA, RJ, CL],
        [SR, I1, IN, CS, CR, CW, CO, CE, SR, SS, SR, SA, RJ, CL],
        [CL, IN, IN, CS, CR, CW, CO, CE, CL, CL, SR, CL, RJ, CL],
        [CL, CL, CL, CL, CL, CW, CO, CE, ES, SS, CL, CL, RJ, CL],
        [CL, I1, IN, CS, CR, CW, CO, CE, ES, SS, SR, SA, RJ, CL],
        [CL, CL, CL, CL, CL, RJ, CL, CL, CL, CL, CL, CL, CL, CL],
    ],
];

impl SctpState {
    /// Every state, in the order of their numbers.
    pub const ALL: [Self; 14] = [NO, I1, IN, CS, CR, CW, CO, CE, ES, SS, SR, SA, RJ, CL];

    /// The state with this number; [`SctpState::None`] for an unknown one.
    pub fn of(number: u8) -> Self {
        Self::ALL.get(usize::from(number)).copied().unwrap_or(NO)
    }

    /// The state after a packet with this event. A packet without a chunk leaves the state unchanged.
    pub fn after(self, event: Option<Event>, seen: Seen) -> Self {
        let row = match event {
            None => return self,
            Some(event) if event.aborts() => Event::Abort,
            Some(event) => event,
        };
        TABLE[seen as usize][row as usize][self as usize]
    }

    /// Whether an association in this state counts as active rather than inactive.
    pub fn is_active(self) -> bool {
        self == ES
    }

    /// The timeout of an association in this state after its last packet.
    pub fn timeout(self) -> Duration {
        Duration::from_secs(match self {
            NO => 2,
            I1 | RJ => 4,
            ES => 900,
            IN | CS | CR | CW | CO | CE | SS | SR | SA | CL => 61,
        })
    }

    /// The name that listings print.
    pub fn name(self) -> &'static str {
        match self {
            NO => "NONE",
            I1 => "INIT1",
            IN => "INIT",
            CS => "C-SENT",
            CR => "C-REPLIED",
            CW => "C-WAIT",
            CO => "COOKIE",
            CE => "C-ECHOED",
            ES => "ESTABLISHED",
            SS => "S-SENT",
            SR => "S-RECEIVED",
            SA => "S-ACK-SENT",
            RJ => "REJECTED",
            CL => "CLOSED",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Seen::{Input, InputOnly, Output};

    fn walk(packets: &[(Event, Seen)]) -> Vec<SctpState> {
        let mut state = NO;
        packets
            .iter()
            .map(|(event, seen)| {
                state = state.after(Some(*event), *seen);
                state
            })
            .collect()
    }

    #[test]
    fn the_servers_cookie_ack_establishes_and_the_clients_shutdown_complete_closes_a_translated_association()
    {
        let seen = walk(&[
            (Event::Init, Input),
            (Event::InitAck, Output),
            (Event::CookieEcho, Input),
            (Event::CookieAck, Output),
            (Event::Data, Input),
            (Event::Shutdown, Input),
            (Event::ShutdownAck, Output),
            (Event::ShutdownComplete, Input),
        ]);
        assert_eq!(seen, [I1, CS, CR, ES, ES, SR, SA, CL]);
    }

    #[test]
    fn the_clients_cookie_establishes_an_association_whose_replies_are_not_seen() {
        let seen = walk(&[
            (Event::Init, InputOnly),
            (Event::CookieEcho, InputOnly),
            (Event::Data, InputOnly),
            (Event::Shutdown, InputOnly),
            (Event::ShutdownComplete, InputOnly),
        ]);
        assert_eq!(seen, [I1, ES, ES, SR, CL]);
    }

    #[test]
    fn the_clients_acknowledgement_closes_a_shutdown_that_the_server_has_begun() {
        let begun = ES.after(Some(Event::Shutdown), Output);
        assert_eq!(begun, SS);
        assert_eq!(begun.after(Some(Event::ShutdownAck), Input), CL);
        assert_eq!(begun.after(Some(Event::ShutdownComplete), Output), SS);
    }

    #[test]
    fn a_repeated_init_changes_the_state_unless_the_association_is_established() {
        assert_eq!(walk(&[(Event::Init, Input), (Event::Init, Input), (Event::Init, Input)]), [I1, IN, IN]);
        for seen in [Input, Output, InputOnly] {
            assert_eq!(ES.after(Some(Event::Init), seen), ES);
        }
    }

    #[test]
    fn an_abort_closes_but_rejects_if_it_answers_the_first_init_of_the_peer() {
        for state in SctpState::ALL {
            for abort in [Event::Abort, Event::AbortBehindCookie] {
                let after = |seen| state.after(Some(abort), seen);
                assert_eq!(after(Input), if state == CW { RJ } else { CL }, "{state:?}");
                assert_eq!(after(InputOnly), if state == CW { RJ } else { CL }, "{state:?}");
                assert_eq!(after(Output), if state == I1 { RJ } else { CL }, "{state:?}");
            }
        }
    }

    #[test]
    fn data_changes_only_the_state_none_and_a_packet_without_a_chunk_changes_no_state() {
        for state in SctpState::ALL {
            for seen in [Input, Output] {
                assert_eq!(state.after(Some(Event::Data), seen), if state == NO { ES } else { state });
                assert_eq!(state.after(None, seen), state);
            }
        }
    }

    #[test]
    fn only_an_established_association_counts_as_active() {
        let active: Vec<_> = SctpState::ALL.into_iter().filter(|state| state.is_active()).collect();
        assert_eq!(active, [ES]);
    }

    #[test]
    fn timeouts_of_states_are_those_of_ipvs() {
        let seconds = SctpState::ALL.map(|state| state.timeout().as_secs());
        assert_eq!(seconds, [2, 4, 61, 61, 61, 61, 61, 61, 900, 61, 61, 61, 4, 61]);
    }

    #[test]
    fn states_have_the_numbers_of_the_sync_protocol() {
        for (number, state) in SctpState::ALL.into_iter().enumerate() {
            assert_eq!((SctpState::of(number as u8), state as usize), (state, number));
        }
        assert_eq!(SctpState::of(99), NO);
    }
}
