//! An encrypted TCP connection between two directors that have the same key.
//!
//! The handshake is Noise (noiseprotocol.org) with the pattern NNpsk0. The connecting side then sends an empty message,
//! because its first one could be a copy. Each side thereby proves that it has the key before the other sends anything
//! else. On the wire a message is its length in two bytes, then the ciphertext. A message may take a few seconds, and
//! fails when the daemon has to stop.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use snow::{Builder, HandshakeState, TransportState};

use super::key::SyncKey;

/// A connection to a director that has the same key.
pub(super) struct Channel<'a> {
    stream: Stream<'a>,
    noise: TransportState,
    /// The last message that was received.
    plain: Vec<u8>,
}

/// Why a connection has ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    /// A message of the handshake was not encrypted with this key.
    #[error("it has another sync key; give both directors the same sync_key_file")]
    OtherKey,
    /// The peer has closed the connection during the handshake.
    #[error("it has refused the handshake; perhaps the other director has another sync_key_file")]
    NoHandshake,
    /// A later message was changed.
    #[error("a message was changed on its way")]
    Changed,
    /// The peer has closed it.
    #[error("the connection was closed")]
    Closed,
    /// Nothing came, or nothing could be sent.
    #[error("the other director needed more than {:?} for a message", .0)]
    Silent(Duration),
    /// The daemon's thread is to stop.
    #[error("the daemon was stopped")]
    Stopped,
    /// The kernel refuses.
    #[error(transparent)]
    System(#[from] io::Error),
}

impl<'a> Channel<'a> {
    /// Begins as the side that has connected.
    ///
    /// # Errors
    /// See [`Broken`]. A peer with another key closes the connection without an answer.
    pub(super) fn connect(stream: TcpStream, key: &SyncKey, stop: &'a AtomicBool) -> Result<Self, Broken> {
        let mut stream = Stream::new(stream, stop)?;
        let mut noise = builder(key).build_initiator().expect("the pattern needs the key alone");
        stream.write_handshake(&mut noise)?;
        stream.read_handshake(&mut noise).map_err(|error| match error {
            Broken::Closed => Broken::NoHandshake,
            error => error,
        })?;
        let mut channel = Self::over(stream, noise);
        channel.send(&[])?;
        Ok(channel)
    }

    /// Begins as the side that has accepted the connection.
    ///
    /// # Errors
    /// See [`Broken`].
    pub(super) fn accept(stream: TcpStream, key: &SyncKey, stop: &'a AtomicBool) -> Result<Self, Broken> {
        let mut stream = Stream { patience: OF_ANYBODY, ..Stream::new(stream, stop)? };
        let mut noise = builder(key).build_responder().expect("the pattern needs the key alone");
        stream.read_handshake(&mut noise)?;
        stream.write_handshake(&mut noise)?;
        let mut channel = Self::over(stream, noise);
        channel.receive()?;
        channel.stream.patience = PATIENCE;
        Ok(channel)
    }

    fn over(stream: Stream<'a>, noise: HandshakeState) -> Self {
        Self {
            stream,
            noise: noise.into_transport_mode().expect("the handshake has two messages"),
            plain: vec![0; CIPHER_MAX],
        }
    }

    /// Sends a message of at most [`MESSAGE_MAX`] bytes.
    ///
    /// # Errors
    /// See [`Broken`].
    pub(super) fn send(&mut self, message: &[u8]) -> Result<(), Broken> {
        let mut cipher = vec![0; message.len() + TAG];
        let len = self.noise.write_message(message, &mut cipher).expect("the message is not too long");
        self.stream.write_frame(&cipher[..len])
    }

    /// Waits for a message.
    ///
    /// # Errors
    /// See [`Broken`].
    pub(super) fn receive(&mut self) -> Result<&[u8], Broken> {
        let cipher = self.stream.read_frame(CIPHER_MAX)?;
        let len = self.noise.read_message(&cipher, &mut self.plain).map_err(|_| Broken::Changed)?;
        Ok(&self.plain[..len])
    }
}

fn builder(key: &SyncKey) -> Builder<'_> {
    Builder::new(PATTERN.parse().expect("the pattern is valid"))
        .prologue(PROLOGUE)
        .and_then(|builder| builder.psk(0, &key.0))
        .expect("neither was set before")
}

/// The frames of a connection.
struct Stream<'a> {
    stream: TcpStream,
    stop: &'a AtomicBool,
    /// How long a message may take.
    patience: Duration,
}

impl<'a> Stream<'a> {
    fn new(stream: TcpStream, stop: &'a AtomicBool) -> io::Result<Self> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(TURN))?;
        stream.set_write_timeout(Some(TURN))?;
        Ok(Self { stream, stop, patience: PATIENCE })
    }

    fn write_handshake(&mut self, noise: &mut HandshakeState) -> Result<(), Broken> {
        let mut message = [0; HANDSHAKE_MAX];
        let len = noise.write_message(&[], &mut message).expect("it is this side's turn");
        self.write_frame(&message[..len])
    }

    fn read_handshake(&mut self, noise: &mut HandshakeState) -> Result<(), Broken> {
        let message = self.read_frame(HANDSHAKE_MAX)?;
        noise.read_message(&message, &mut [0; HANDSHAKE_MAX]).map_err(|_| Broken::OtherKey)?;
        Ok(())
    }

    fn read_frame(&mut self, longest: usize) -> Result<Vec<u8>, Broken> {
        let mut header = [0; 2];
        let until = Instant::now() + self.patience;
        self.read(&mut header, until)?;
        let len = usize::from(u16::from_be_bytes(header));
        if len > longest {
            return Err(Broken::OtherKey);
        }
        let mut frame = vec![0; len];
        self.read(&mut frame, until)?;
        Ok(frame)
    }

    fn write_frame(&mut self, frame: &[u8]) -> Result<(), Broken> {
        let bytes = [&(frame.len() as u16).to_be_bytes(), frame].concat();
        let mut at = 0;
        let until = Instant::now() + self.patience;
        while at < bytes.len() {
            let written = self.stream.write(&bytes[at..]);
            at += self.done(written, until)?;
        }
        Ok(())
    }

    fn read(&mut self, bytes: &mut [u8], until: Instant) -> Result<(), Broken> {
        let mut at = 0;
        while at < bytes.len() {
            let read = self.stream.read(&mut bytes[at..]);
            if let Ok(0) = read {
                return Err(Broken::Closed);
            }
            at += self.done(read, until)?;
        }
        Ok(())
    }

    /// The number of bytes that a call has read or written, unless the connection has ended or the time is over. After
    /// 0 bytes the call may be repeated.
    fn done(&self, result: io::Result<usize>, until: Instant) -> Result<usize, Broken> {
        use ErrorKind::{BrokenPipe, ConnectionReset, Interrupted, TimedOut, WouldBlock};
        let bytes = match result {
            Ok(bytes) => bytes,
            Err(error) => match error.kind() {
                BrokenPipe | ConnectionReset => return Err(Broken::Closed),
                WouldBlock | TimedOut | Interrupted => 0,
                _ => return Err(error.into()),
            },
        };
        match Instant::now() < until {
            _ if self.stop.load(Ordering::Relaxed) => Err(Broken::Stopped),
            true => Ok(bytes),
            false => Err(Broken::Silent(self.patience)),
        }
    }
}

/// The longest message, in bytes.
pub(super) const MESSAGE_MAX: usize = CIPHER_MAX - TAG;
/// The longest ciphertext: the greatest length in two bytes.
const CIPHER_MAX: usize = u16::MAX as usize;
/// The bytes by which a ciphertext is longer than its message.
const TAG: usize = 16;
/// The longest message of the handshake: a public key, and the tag of an empty payload.
const HANDSHAKE_MAX: usize = 32 + TAG;
const PATTERN: &str = "Noise_NNpsk0_25519_ChaChaPoly_SHA256";
/// The context on which both sides must agree: the messages on the connection.
const PROLOGUE: &[u8] = b"xvs connection table 1";
/// The bytes of the first message of the handshake, with its length.
pub(super) const FIRST_MESSAGE: usize = 2 + HANDSHAKE_MAX;
/// The time that a message of the handshake may take. The other side may have no key, but a copy of a first message.
const OF_ANYBODY: Duration = Duration::from_millis(500);
/// The time that any other message may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// The time that a call waits before it checks whether to stop.
const TURN: Duration = Duration::from_millis(100);
