//! QUIC by real sockets and another implementation (quinn): a client that changes its address during a download.
//!
//! Each test has a cluster of its own. Needs root. Not here: which packets are scheduled (`lab/quic.rs`).

use std::fs::{self, Permissions};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread::JoinHandle;
use std::time::Duration;

use aes::Aes128;
use aes::cipher::{BlockEncrypt, KeyInit};
use quinn::rustls::RootCertStore;
use quinn::rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use quinn::{
    ClientConfig, ConnectionId, ConnectionIdGenerator, Endpoint, EndpointConfig, ServerConfig, TokioRuntime,
    TransportConfig,
};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use tokio::runtime;
use xvs::cluster::{REAL_SERVERS, VIP, VIP6, real_server};
use xvs::{Cluster, Director, Host, Method, Workers, namespace, traffic};

const PORT: u16 = 443;
const NAME: &str = "xvs.test";
/// The client's addresses, before and after it has moved, and the virtual address.
const IPV4: [IpAddr; 3] = [
    IpAddr::V4(Ipv4Addr::new(198, 51, 100, 10)),
    IpAddr::V4(Ipv4Addr::new(198, 51, 100, 11)),
    IpAddr::V4(VIP),
];
const IPV6: [IpAddr; 3] = [client6(0x10), client6(0x11), IpAddr::V6(VIP6)];

const fn client6(number: u16) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, number))
}

/// What a client downloads: more than all windows and buffers hold.
const BYTES: usize = 4 << 20;
const KEY: [u8; 16] = [0x5e; 16];

/// The bytes that each server sends.
fn content() -> Vec<u8> {
    (0..BYTES as u32).map(|at| (at.wrapping_mul(0x9e37_79b1) >> 24) as u8).collect()
}

/// Connection IDs with a server ID of 3 bytes and a nonce of 13.
struct Ids {
    server_id: [u8; 3],
    cipher: Option<Aes128>,
    config: u8,
}

impl ConnectionIdGenerator for Ids {
    fn generate_cid(&mut self) -> ConnectionId {
        let nonce: [u8; 13] = std::array::from_fn(|_| fastrand::u8(..));
        let mut block = [&self.server_id[..], &nonce].concat();
        if let Some(cipher) = &self.cipher {
            cipher.encrypt_block(block.as_mut_slice().into());
        }
        ConnectionId::new(&[&[self.config << 5 | block.len() as u8][..], &block].concat())
    }

    fn cid_len(&self) -> usize {
        17
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// The server ID of a real server.
fn server_id(number: u8) -> [u8; 3] {
    [0xa, 0xb, number]
}

/// A QUIC server on a real server, which sends its content on each connection; ended when dropped.
struct Server {
    endpoint: Endpoint,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn start(
        cluster: &Cluster,
        number: u8,
        method: Method,
        key: Option<[u8; 16]>,
        config: ServerConfig,
    ) -> Self {
        let addr = if method.masquerades() { real_server(number) } else { VIP };
        let (sender, receiver) = channel();
        let work = move || {
            in_runtime(async {
                let mut ids = EndpointConfig::default();
                let cipher = key.map(|key| Aes128::new(&key.into()));
                ids.cid_generator(move || {
                    let (server_id, cipher) = (server_id(number), cipher.clone());
                    Box::new(Ids { server_id, cipher, config: u8::from(key.is_some()) })
                });
                let socket = UdpSocket::bind((addr, PORT)).expect("the port is free");
                let endpoint = Endpoint::new(ids, Some(config), socket, Arc::new(TokioRuntime));
                let endpoint = endpoint.expect("a runtime");
                sender.send(endpoint.clone()).expect("the test waits");
                while let Some(incoming) = endpoint.accept().await {
                    tokio::spawn(async move {
                        // A client that gives up ends its connection.
                        let Ok(connection) = incoming.await else { return };
                        if let Ok(mut stream) = connection.open_uni().await {
                            let _ = stream.write_all(&content()).await;
                            let _ = stream.finish();
                            connection.closed().await;
                        }
                    });
                }
            });
        };
        let thread = Some(namespace::spawn(&cluster.namespace(Host::RealServer(number)), work));
        Self { endpoint: receiver.recv().expect("the server has started"), thread }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.endpoint.close(0u8.into(), b"");
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(ended.is_none_or(|ended| ended.is_ok()) || std::thread::panicking(), "a server panicked");
    }
}

fn in_runtime<T>(work: impl Future<Output = T>) -> T {
    let runtime = runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("the kernel has an epoll").block_on(work)
}

/// The configurations of servers and clients.
fn configs() -> (ServerConfig, ClientConfig) {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed([NAME.to_owned()]).expect("a key");
    let chain: Vec<CertificateDer<'static>> = vec![cert.der().clone()];
    let mut roots = RootCertStore::empty();
    roots.add(chain[0].clone()).expect("a certificate");
    let key = PrivatePkcs8KeyDer::from(signing_key.serialize_der());
    let server = ServerConfig::with_single_cert(chain, key.into()).expect("they belong together");
    (server, ClientConfig::with_root_certificates(Arc::new(roots)).expect("a root"))
}

/// A client's download from the service, which it continues from its second address after the first megabyte.
///
/// # Errors
/// The connection is lost.
fn download(
    cluster: &Cluster,
    mut config: ClientConfig,
    idle: Duration,
    [first, second, vip]: [IpAddr; 3],
) -> Result<Vec<u8>, String> {
    let mut transport = TransportConfig::default();
    transport.max_idle_timeout(Some(idle.try_into().expect("short enough")));
    config.transport_config(Arc::new(transport));
    let to = SocketAddr::new(vip, PORT);
    let receive = async {
        let endpoint = Endpoint::client((first, 0).into()).map_err(|error| error.to_string())?;
        let connecting = endpoint.connect_with(config, to, NAME).map_err(|error| error.to_string())?;
        let connection = connecting.await.map_err(|error| error.to_string())?;
        let mut stream = connection.accept_uni().await.map_err(|error| error.to_string())?;
        let mut received = vec![0; 1 << 20];
        stream.read_exact(&mut received).await.map_err(|error| error.to_string())?;
        let socket = UdpSocket::bind((second, 0)).map_err(|error| error.to_string())?;
        endpoint.rebind(socket).map_err(|error| error.to_string())?;
        received.extend(stream.read_to_end(BYTES).await.map_err(|error| error.to_string())?);
        connection.close(0u8.into(), b"");
        endpoint.wait_idle().await;
        Ok(received)
    };
    cluster.run(Host::Client, || in_runtime(receive))
}

/// A client that moves, with these servers. Returns its download, and the real servers of its two addresses.
fn moved(
    method: Method,
    addresses: [IpAddr; 3],
    key: Option<[u8; 16]>,
    ids: bool,
) -> (Result<Vec<u8>, String>, Vec<String>) {
    let cluster = traffic::prepared(method, Workers::Two);
    let [first, second, vip] = addresses;
    let prefix = if vip.is_ipv4() { 24 } else { 64 };
    cluster.ip(Host::Client, &format!("address add {second}/{prefix} dev wan nodad"));
    let (server_config, client_config) = configs();
    let numbers = 1..=REAL_SERVERS.len() as u8;
    let server = |number| Server::start(&cluster, number, method, key, server_config.clone());
    let _servers: Vec<_> = numbers.clone().map(server).collect();
    let held = ["--hold", "10s"];
    let mut director = Director::start_with(&cluster, Workers::Two, &held);
    let service = format!("-u {}", SocketAddr::new(vip, PORT));
    director.xvs("laddr add 192.0.2.1");
    director.adm(&format!("-A {service} -s rr"));
    for number in numbers.clone() {
        director.adm(&format!("-a {service} -r {}:{PORT} {}", real_server(number), method.option()));
    }
    if ids {
        let file = cluster.state().join("quic.key");
        fs::write(&file, KEY.map(|byte| format!("{byte:02x}")).concat()).expect("a new file");
        fs::set_permissions(&file, Permissions::from_mode(0o600)).expect("its mode");
        let config = match key {
            None => "--config 0".to_owned(),
            Some(_) => format!("--config 1 --key-file {}", file.display()),
        };
        director.xvs(&format!("quic add {service} --server-id-length 3 --nonce-length 13 {config}"));
        for number in numbers {
            let id = server_id(number).map(|byte| format!("{byte:02x}")).concat();
            director.xvs(&format!("quic server-id {service} -r {}:{PORT} {id}", real_server(number)));
        }
    }
    if key.is_some() {
        // It has the configuration from the journal, and reads the key itself.
        director = Director::take_over(&cluster, Workers::Two, &held).unwrap_or_else(|log| panic!("{log}"));
    }
    // A connection of the lost client ends sooner than one that has moved may take.
    let idle = Duration::from_secs(if ids { 30 } else { 2 });
    let downloaded = download(&cluster, client_config, idle, addresses);
    let listed = director.adm("-Lnc");
    let server_of = |client: IpAddr| {
        let end = SocketAddr::new(client, 0).to_string();
        let end = end.strip_suffix('0').expect("the port");
        let mut words = listed.lines().find(|line| line.contains(&format!(" {end}")))?.split_whitespace();
        words.next_back().map(str::to_owned)
    };
    (downloaded, [first, second].into_iter().filter_map(server_of).collect())
}

fn keeps_its_server(method: Method, addresses: [IpAddr; 3], key: Option<[u8; 16]>) {
    let (downloaded, servers) = moved(method, addresses, key, true);
    assert!(
        downloaded.as_ref().is_ok_and(|bytes| *bytes == content()),
        "{:?}",
        downloaded.map(|bytes| bytes.len())
    );
    assert_eq!(servers.len(), 2, "{servers:?}");
    assert_eq!(servers[0], servers[1]);
}

#[test]
fn a_download_goes_on_from_another_address_by_nat_with_plain_connection_ids() {
    keeps_its_server(Method::Nat, IPV4, None);
}

#[test]
fn a_download_by_ipv6_goes_on_from_another_address_with_servers_of_ipv4() {
    keeps_its_server(Method::FullNat, IPV6, None);
}

#[test]
fn a_download_goes_on_from_another_address_by_direct_routing_with_encrypted_ids_through_a_successor() {
    keeps_its_server(Method::DirectRouting, IPV4, Some(KEY));
}

#[test]
fn without_a_configuration_the_moved_client_gets_another_server_and_its_download_ends() {
    let (downloaded, servers) = moved(Method::Nat, IPV4, None, false);
    let lost = downloaded.expect_err("the other server knows nothing of the connection");
    assert!(lost.contains("connection lost"), "{lost}");
    assert_eq!(servers.len(), 2, "{servers:?}");
    assert_ne!(servers[0], servers[1]);
}
