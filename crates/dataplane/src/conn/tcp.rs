//! TCP states of a connection: from the flags that pass the director.
//!
//! Runs once per TCP packet of a connection. Follows IPVS's ordinary table cell by cell; it is no TCP
//! implementation, it only judges how long a connection is worth remembering and whether it counts as active.
//! Cost: one table look-up.

use std::time::Duration;

use xvs_proto::tcp::Flags;

use super::direction::Seen;

/// What a connection is taken to be in, numbered as connection sync messages number them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum TcpState {
    /// Nothing seen yet.
    None = 0,
    /// Both ends talk.
    Established = 1,
    /// A SYN from the destination's side.
    SynSent = 2,
    /// A SYN from the client.
    SynRecv = 3,
    /// One end has finished, as far as is seen.
    FinWait = 4,
    /// Both have finished.
    TimeWait = 5,
    /// Reset or out of order.
    Close = 6,
    /// The client has finished first.
    CloseWait = 7,
    /// Waiting for the last acknowledgement.
    LastAck = 8,
    /// Never reached by packets alone.
    Listen = 9,
    /// A SYN answered, under `secure_tcp`.
    SynAck = 10,
}

use TcpState::{
    Close as CL, CloseWait as CW, Established as ES, FinWait as FW, LastAck as LA, Listen as LI, None as NO,
    SynAck as SA, SynRecv as SR, SynSent as SS, TimeWait as TW,
};

type Row = [TcpState; 11];

/// Next states, columns in the order of the states' numbers. One block a direction, in each the rows SYN, FIN, ACK,
/// RST.
type Table = [[Row; 4]; 3];

/// Source: ipvs-behaviour, section 4.1, normal table (there the columns stand in the same order).
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

/// Under `secure_tcp` a handshake counts only when both its ends were seen. Source: as above, table of secure_tcp.
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

/// By which table handshakes are judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judgement {
    /// The one for quiet times.
    Ordinary,
    /// The defensive one (`secure_tcp`).
    Secure,
}

impl TcpState {
    /// Every state, in the order of their numbers.
    pub const ALL: [Self; 11] = [NO, ES, SS, SR, FW, TW, CL, CW, LA, LI, SA];

    /// The state of this number; unknown numbers are taken for [`TcpState::None`].
    pub fn of(number: u8) -> Self {
        Self::ALL.get(usize::from(number)).copied().unwrap_or(NO)
    }

    /// The state after a packet with these flags. RST outranks SYN, SYN outranks FIN, FIN outranks ACK; a packet
    /// with none of them closes.
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

    /// Whether a connection in it counts as active rather than inactive.
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

/// How long a connection in `state` is remembered after its last packet; the first two can be set (`--set`).
pub fn timeout(state: TcpState, established: Duration, fin_wait: Duration) -> Duration {
    let seconds = match state {
        ES => return established,
        FW => return fin_wait,
        NO => 2,
        SS | TW | LI | SA => 120,
        SR | CW => 60,
        CL => 10,
        LA => 30,
    };
    Duration::from_secs(seconds)
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
    fn a_reset_outranks_everything_but_a_client_cannot_reset_what_the_server_has_not_answered() {
        assert_eq!(SR.after(Flags(0x06), Seen::Input, Judgement::Ordinary), SR);
        assert_eq!(SR.after(Flags::RST, Seen::Output, Judgement::Ordinary), CL);
        assert_eq!(ES.after(Flags(0x15), Seen::InputOnly, Judgement::Ordinary), CL);
    }

    #[test]
    fn under_secure_tcp_a_client_alone_does_not_make_a_handshake() {
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
    fn a_packet_without_any_of_the_four_flags_closes() {
        for state in TcpState::ALL {
            assert_eq!(state.after(Flags(0x28), Seen::Input, Judgement::Ordinary), CL);
        }
    }

    #[test]
    fn a_handshake_under_way_counts_as_active() {
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
