//! Asks by TCP whether a port takes a connection.
//!
//! Runs once for each attempt of a `TCP_CHECK`. Well is a handshake before the deadline; the connection is closed at
//! once, and nothing is sent over it. Cost: seven system calls, no buffer. Not here: the socket (`socket.rs`).

use tokio::time::Instant;
use xvs_model::check::Target;

use crate::probe_result::ProbeResult;
use crate::socket;

/// Asks the target once, until the deadline at most.
pub(super) async fn probe(target: &Target, deadline: Instant) -> ProbeResult {
    match socket::connect(target, deadline).await {
        Ok(_) => ProbeResult::Passed(0),
        Err(answer) => answer,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{SocketAddr, TcpListener};

    use socket2::{Domain, Socket, Type};

    use crate::socket::testing::{soon, target};
    use crate::tcp::*;

    #[tokio::test]
    async fn a_port_that_takes_a_connection_is_well_and_is_sent_nothing() {
        for addr in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(addr).unwrap();
            assert_eq!(probe(&target(listener.local_addr().unwrap()), soon()).await, ProbeResult::Passed(0));
            let mut stream = listener.accept().unwrap().0;
            assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
        }
    }

    #[tokio::test]
    async fn a_port_that_is_closed_is_not_well() {
        for addr in ["127.0.0.1:0", "[::1]:0"] {
            let closed = TcpListener::bind(addr).unwrap().local_addr().unwrap();
            let why = format!("connection refused by {closed}");
            assert_eq!(probe(&target(closed), soon()).await, ProbeResult::Failed(why));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_takes_no_more_connections_is_not_well_by_the_deadline() {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        listener.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
        listener.listen(0).unwrap();
        let endpoint = listener.local_addr().unwrap().as_socket().unwrap();
        let waiting = [(); 4].map(|()| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None).unwrap();
            // One of them is taken, and the rest are in progress, which is said as an error.
            let _ = socket.connect(&endpoint.into());
            socket
        });
        let why = format!("no connection to {endpoint} within 5s");
        assert_eq!(probe(&target(endpoint), soon()).await, ProbeResult::Failed(why));
        drop(waiting);
    }
}
