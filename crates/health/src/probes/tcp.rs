//! `TCP_CHECK`: a TCP connection to a port.
//!
//! Runs once for each probe. A handshake before the deadline passes; the connection is closed at once, without data.
//! Cost: seven system calls, no buffer.

use tokio::time::Instant;
use xvs_model::health_checks::check::Target;

use crate::probes::probe_result::ProbeResult;
use crate::probes::socket;

/// Probes the target once, at most until the deadline.
pub(crate) async fn probe(target: &Target, deadline: Instant) -> ProbeResult {
    socket::connect(target, deadline).await.err().unwrap_or(ProbeResult::Passed(0))
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{SocketAddr, TcpListener};

    use socket2::{Domain, Socket, Type};

    use crate::probes::socket::testing::{soon, target};
    use crate::probes::tcp::*;

    #[tokio::test]
    async fn a_port_that_accepts_a_connection_passes_and_gets_no_data() {
        for addr in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(addr).unwrap();
            assert_eq!(probe(&target(listener.local_addr().unwrap()), soon()).await, ProbeResult::Passed(0));
            let mut stream = listener.accept().unwrap().0;
            assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
        }
    }

    #[tokio::test]
    async fn a_closed_port_fails() {
        for addr in ["127.0.0.1:0", "[::1]:0"] {
            let closed = TcpListener::bind(addr).unwrap().local_addr().unwrap();
            let why = format!("connection refused by {closed}");
            assert_eq!(probe(&target(closed), soon()).await, ProbeResult::Failed(why));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_accepts_no_more_connections_fails_at_the_deadline() {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        listener.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
        listener.listen(0).unwrap();
        let endpoint = listener.local_addr().unwrap().as_socket().unwrap();
        let waiting = [(); 4].map(|()| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None).unwrap();
            // One is accepted; the rest are in progress, which connect(2) reports as an error.
            let _ = socket.connect(&endpoint.into());
            socket
        });
        let why = format!("no connection to {endpoint} within 5s");
        assert_eq!(probe(&target(endpoint), soon()).await, ProbeResult::Failed(why));
        drop(waiting);
    }
}
