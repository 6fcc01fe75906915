//! Connections that another director has announced: whole workers, in memory.

use xvs_dataplane::conn::tcp::TcpState;
use xvs_dataplane::snapshot::sync_backup::Trust;

use crate::workers::{ACK, Flow, SYN, Workers};

#[test]
fn a_syn_begins_anew_where_only_an_unsigned_message_knows_a_connection_and_else_follows_it() {
    let (begun, goes_on) = (TcpState::SynRecv, TcpState::Established);
    for (trust, passed, expected) in [
        (Trust::Unsigned, None, begun),
        (Trust::Unsigned, Some(Flow::request as fn(&Flow, u8) -> Vec<u8>), goes_on),
        (Trust::Unsigned, Some(Flow::reply), goes_on),
        (Trust::Signed, None, goes_on),
    ] {
        let mut workers = Workers::new(256, 2);
        let flow = Flow::nat(1, 0);
        workers.tell(trust, [flow].into_iter());
        // By the other worker.
        passed.map(|passed| workers.worker(1).packet(passed(&flow, ACK)));
        assert_eq!(workers.state(&flow), Some(goes_on as u8));
        workers.worker(0).packet(flow.request(SYN));
        assert_eq!(workers.state(&flow), Some(expected as u8), "{trust:?}");
        assert_eq!(workers.table().live(), 1);
        workers.assert_ends_empty();
    }
}
