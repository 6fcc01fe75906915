//! TCP states of a connection.
//!
//! Runs for each TCP packet of a connection. It follows the state tables of IPVS cell by cell and does not implement
//! TCP: the state determines only the timeout of the connection and whether it counts as active. Cost: one table
//! look-up. `burst/state.rs` moves a connection to its next state.

use std::time::Duration;

use xvs_proto::tcp::Flags;

use super::direction::Seen;

/// The state of a connection, numbered as in connection sync messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum TcpState {
    /// No packet yet.
    None = 0,
    /// Both ends exchange data.
    Established = 1,
    /// A SYN from the destination.
    SynSent = 2,
    /// A SYN from the client.
    SynRecv = 3,
    /// One end has sent a FIN, as far as the director sees.
    FinWait = 4,
    /// Both ends have sent a FIN.
    TimeWait = 5,
    /// Reset, or an unexpected packet.
    Close = 6,
    /// The client has sent the first FIN.
    CloseWait = 7,
    /// One end waits for the last acknowledgement.
    LastAck = 8,
    /// Not reached by packets alone.
    Listen = 9,
    /// A SYN was answered, under `secure_tcp`.
    SynAck = 10,
}

use TcpState::{
    Close as CL, CloseWait as CW, Established as ES, FinWait as FW, LastAck as LA, Listen as LI, None as NO,
    SynAck as SA, SynRecv as SR, SynSent as SS, TimeWait as TW,
};

type Row = [TcpState; 11];

/// Next states. Columns are the states in numerical order. Each direction has a block with the rows SYN, FIN, ACK and
/// RST.
type Table = [[Row; 4]; 3];

/// Source: ipvs-behaviour, section 4.1, normal table (with the same order of columns).
#[rustfmt::skip]
const ORDINARY: Table = [
    [ // from the client
        // NO  ES  SS  SR  FW  TW  CL  CW  LA  LI  SA
        [SR, ES, ES, SR, SR, SR, SR, SR, SR, SR, SR],
        [CL, CW, SS, TW, TW, TW, CL, CW, LA, LI, TW],
        [ES, ES, SS, ES, FW, TW, CL, CW, CL, LI, ES],
        [CL, CL, CL, SR, CL, CL, CL, CL, LA, LI, SR],
    ],
    [ // a reply
        [SS, ES, SS, SR, SS, SS, SS, SS, SS, LI, SR],
        [TW, FW, SS, TW, FW, TW, CL, TW, LA, LI, TW],
        [ES, ES, SS, ES, FW, TW, CL, CW, LA, ES, ES],
        [CL, CL, SS, CL, CL, TW, CL, CL, CL, CL, CL],
    ],
    [ // from the client, replies not seen
        [SR, ES, ES, SR, SR, SR, SR, SR, SR, SR, SR],
        [CL, FW, SS, TW, FW, TW, CL, CW, LA, LI, TW],
        [ES, ES, SS, ES, FW, TW, CL, CW, CL, LI, ES],
        [CL, CL, CL, SR, CL, CL, CL, CL, LA, LI, CL],
    ],
];

/// With `secure_tcp` a handshake is complete only when packets from both ends were seen. Source: as above, table of
/// secure_tcp.
#[rustfmt::skip]
const SECURE: Table = [
    [ // from the client
        // NO  ES  SS  SR  FW  TW  CL  CW  LA  LI  SA
        [SR, ES, ES, SR, SR, SR, SR, SR, SR, SR, SA],
        [CL, CW, SS, TW, TW, TW, CL, CW, LA, LI, SA],
        [ES, ES, SS, SR, FW, TW, CL, CW, CL, LI, SA],
        [CL, CL, CL, SR, CL, CL, CL, CL, LA, LI, CL],
    ],
    [ // a reply
        [SS, ES, SS, SA, SS, SS, SS, SS, SS, LI, SA],
        [TW, FW, SS, TW, FW, TW, CL, TW, LA, LI, TW],
        [ES, ES, SS, ES, FW, TW, CL, CW, LA, ES, ES],
        [CL, CL, SS, CL, CL, TW, CL, CL, CL, CL, CL],
    ],
    [ // from the client, replies not seen
        [SA, ES, ES, SR, SA, SA, SA, SA, SA, SA, SA],
        [CL, FW, SS, TW, FW, TW, CL, CW, LA, LI, TW],
        [ES, ES, SS, ES, FW, TW, CL, CW, CL, LI, ES],
        [CL, CL, CL, SR, CL, CL, CL, CL, LA, LI, CL],
    ],
];

/// The table for state transitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judgement {
    /// The normal one.
    Ordinary,
    /// The defensive one (`secure_tcp`).
    Secure,
}

impl TcpState {
    /// Every state, in the order of their numbers.
    pub const ALL: [Self; 11] = [NO, ES, SS, SR, FW, TW, CL, CW, LA, LI, SA];

    /// The state with this number; [`TcpState::None`] for an unknown one.
    pub fn of(number: u8) -> Self {
        Self::ALL.get(usize::from(number)).copied().unwrap_or(NO)
    }

    /// The state after a packet with these flags. RST has precedence over SYN, SYN over FIN, and FIN over ACK. A packet
    /// with none of them closes the connection.
    pub fn after(self, flags: Flags, seen: Seen, judgement: Judgement) -> Self {
        let row = match flags {
            flags if flags.has(Flags::RST) => 3,
            flags if flags.has(Flags::SYN) => 0,
            flags if flags.has(Flags::FIN) => 1,
            flags if flags.has(Flags::ACK) => 2,
            _ => return CL,
        };
        let table = match judgement {
            Judgement::Ordinary => &ORDINARY,
            Judgement::Secure => &SECURE,
        };
        table[seen as usize][row][self as usize]
    }

    /// Whether a connection in this state counts as active rather than inactive.
    pub fn is_active(self) -> bool {
        matches!(self, ES | SS | SR | SA)
    }

    /// The name that listings print.
    pub fn name(self) -> &'static str {
        match self {
            NO => "NONE",
            ES => "ESTABLISHED",
            SS => "SYN_SENT",
            SR => "SYN_RECV",
            FW => "FIN_WAIT",
            TW => "TIME_WAIT",
            CL => "CLOSE",
            CW => "CLOSE_WAIT",
            LA => "LAST_ACK",
            LI => "LISTEN",
            SA => "SYNACK",
        }
    }
}

/// The tables in the format of the XDP program (`struct xvs_tcp_states`): each row contains the next state for each
/// state, in four bits; first the ordinary table, then the table of secure_tcp. In addition, the set of active states.
pub(crate) fn rows() -> ([u64; 24], u64) {
    let mut all = [ORDINARY, SECURE].into_iter().flatten().flatten();
    (
        std::array::from_fn(|_| {
            all.next().map_or(0, |row| row.iter().rev().fold(0, |word, state| word << 4 | *state as u64))
        }),
        TcpState::ALL
            .into_iter()
            .filter(|state| state.is_active())
            .fold(0, |set, state| set | 1 << state as u64),
    )
}

/// The timeout of a connection in `state` after its last packet. The timeouts `established` and `fin_wait` can be
/// configured (`--set`).
pub fn timeout(state: TcpState, established: Duration, fin_wait: Duration) -> Duration {
    Duration::from_secs(match state {
        ES => return established,
        FW => return fin_wait,
        NO => 2,
        SS | TW | LI | SA => 120,
        SR | CW => 60,
        CL => 10,
        LA => 30,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIN_ACK: Flags = Flags(0x11);
    const SYN_ACK: Flags = Flags(0x12);

    fn walk(packets: &[(Flags, Seen)]) -> Vec<TcpState> {
        let mut state = NO;
        packets
            .iter()
            .map(|(flags, seen)| {
                state = state.after(*flags, *seen, Judgement::Ordinary);
                state
            })
            .collect()
    }

    #[test]
    fn a_translated_connection_closed_by_its_client_ends_in_time_wait() {
        use Seen::{Input, Output};
        let seen = walk(&[
            (Flags::SYN, Input),
            (SYN_ACK, Output),
            (Flags::ACK, Input),
            (FIN_ACK, Input),
            (FIN_ACK, Output),
            (Flags::ACK, Input),
        ]);
        assert_eq!(seen, [SR, SR, ES, CW, TW, TW]);
    }

    #[test]
    fn a_connection_whose_replies_are_not_seen_ends_in_fin_wait() {
        use Seen::InputOnly;
        let seen = walk(&[
            (Flags::SYN, InputOnly),
            (Flags::ACK, InputOnly),
            (FIN_ACK, InputOnly),
            (Flags::ACK, InputOnly),
        ]);
        assert_eq!(seen, [SR, ES, FW, FW]);
    }

    #[test]
    fn a_reset_has_precedence_but_a_client_cannot_reset_before_the_servers_answer() {
        assert_eq!(SR.after(Flags(0x06), Seen::Input, Judgement::Ordinary), SR);
        assert_eq!(SR.after(Flags::RST, Seen::Output, Judgement::Ordinary), CL);
        assert_eq!(ES.after(Flags(0x15), Seen::InputOnly, Judgement::Ordinary), CL);
    }

    #[test]
    fn under_secure_tcp_packets_of_the_client_alone_complete_no_handshake() {
        let secure = |state: TcpState, flags, seen| state.after(flags, seen, Judgement::Secure);
        assert_eq!(secure(NO, Flags::SYN, Seen::Input), SR);
        assert_eq!(secure(SR, Flags::ACK, Seen::Input), SR);
        assert_eq!(secure(SR, SYN_ACK, Seen::Output), SA);
        assert_eq!(secure(SA, Flags::ACK, Seen::Input), SA);
        assert_eq!(secure(SA, Flags::ACK, Seen::Output), ES);
        assert_eq!(secure(NO, Flags::SYN, Seen::InputOnly), SA);
        assert_eq!(secure(SA, Flags::ACK, Seen::InputOnly), ES);
    }

    #[test]
    fn a_packet_with_none_of_the_four_flags_closes_the_connection() {
        for state in TcpState::ALL {
            assert_eq!(state.after(Flags(0x28), Seen::Input, Judgement::Ordinary), CL);
        }
    }

    #[test]
    fn a_connection_in_its_handshake_counts_as_active() {
        let active: Vec<_> = TcpState::ALL.into_iter().filter(|state| state.is_active()).collect();
        assert_eq!(active, [ES, SS, SR, SA]);
    }

    #[test]
    fn states_have_the_numbers_of_the_sync_protocol() {
        for (number, state) in TcpState::ALL.into_iter().enumerate() {
            assert_eq!((TcpState::of(number as u8), state as usize), (state, number));
        }
        assert_eq!(TcpState::of(99), NO);
    }
}
