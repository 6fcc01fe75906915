//! `xvs capture`: packets as received and as sent, into a pcapng file or as lines.
//!
//! The daemon sends the frames that its workers copied; this program writes them, with its user's rights. A capture
//! ends at the requested count or time, or at SIGINT or SIGTERM, with counts on stderr.

pub mod lines;
pub mod pcapng;

use std::error::Error;
use std::fs::File;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{io, thread};

use clap::Args;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use xvs_dataplane::verdict::DropReason;
use xvs_ipvsadm::LineError;
use xvs_model::protocol::client::{Failure, Stopper, default_socket};
use xvs_model::report::capture::{CaptureRequest, CapturedPacket, LARGEST_FRAME, Missed, SNAP_BYTES};
use xvs_proto::Prefix;

use crate::capture::lines::Lines;
use crate::capture::pcapng::Blocks;
use crate::connections::ServiceFilter;
use crate::output::exit::{DONE, Done};
use crate::output::late_reply;

/// The arguments of `xvs capture`.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Write pcapng to this file [default: standard output, with lines instead of pcapng on a terminal]
    #[arg(short, long, value_name = "FILE", conflicts_with = "text")]
    write: Option<PathBuf>,
    /// Print a line for each packet
    #[arg(long)]
    text: bool,
    /// Print JSON, one object per packet and line
    #[arg(long, conflicts_with_all = ["text", "write"])]
    json: bool,
    /// Packets from or to this address or network; the endpoints of a connection count for all its packets
    #[arg(long, value_name = "ADDRESS[/LENGTH]")]
    address: Option<Prefix>,
    /// Packets from or to this port
    #[arg(long)]
    port: Option<u16>,
    #[command(flatten)]
    service: ServiceFilter,
    /// Packets received on this interface
    #[arg(long, value_name = "NAME")]
    interface: Option<String>,
    /// Dropped packets
    #[arg(long)]
    drops: bool,
    /// Packets dropped for this reason, by its name in `xvs status`
    #[arg(long, value_name = "NAME", value_parser = reason)]
    reason: Option<String>,
    /// End after this many packets
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// End after this time
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: Option<u64>,
    /// Keep at most this many bytes of each frame
    #[arg(long, value_name = "BYTES", default_value_t = SNAP_BYTES as u32,
          value_parser = clap::value_parser!(u32).range(1..=LARGEST_FRAME as i64))]
    snaplen: u32,
}

/// The name of a drop reason.
fn reason(text: &str) -> Result<String, String> {
    DropReason::named(text).map(|reason| reason.name().to_owned()).ok_or_else(|| {
        format!("known: {}", DropReason::all().map(DropReason::name).collect::<Vec<_>>().join(", "))
    })
}

impl Arguments {
    fn request(&self) -> Result<CaptureRequest, LineError> {
        Ok(CaptureRequest {
            address: self.address,
            port: self.port,
            service: self.service.key()?,
            interface: self.interface.clone(),
            drops: self.drops,
            reason: self.reason.clone(),
            snap_bytes: self.snaplen as usize,
        })
    }
}

pub(super) fn run(arguments: &Arguments, out: &mut dyn Write) -> Done {
    let request = arguments.request()?;
    // Before the request: if the file cannot be created, the director copies no packet.
    let mut sink = Sink::open(arguments, out)?;
    let mut client = late_reply::connect(&default_socket())?;
    let stopper = client.stopper()?;
    end_by_signal(client.stopper()?)?;
    if let Some(seconds) = arguments.seconds {
        let timer = client.stopper()?;
        spawn("the time limit", move || {
            thread::sleep(Duration::from_secs(seconds));
            timer.stop();
        })?;
    }
    let most = arguments.count.unwrap_or(u64::MAX);
    let mut packets = 0;
    let mut begun = false;
    let ended = client.capture(request, &mut |part| {
        if !begun {
            begun = true;
            sink.begin()?;
            let _ = writeln!(io::stderr(), "capturing; Ctrl-C or SIGTERM ends it");
        }
        let left = usize::try_from(most - packets).unwrap_or(usize::MAX);
        let part = &part[..part.len().min(left)];
        packets += part.len() as u64;
        if packets == most {
            stopper.stop();
        }
        sink.put(part)
    });
    let missed = match ended {
        Ok(missed) => missed,
        Err(Failure::Printing(error)) => return Err(sink.failed(error, packets)),
        // The file written so far is complete.
        Err(failure) => return Err(failure.into()),
    };
    sink.finish(&missed).map_err(|error| sink.failed(error, packets))?;
    let _ = writeln!(
        io::stderr(),
        "{packets} packets captured, {} frames missed because the queue was full",
        missed.values().sum::<u64>()
    );
    Ok(DONE)
}

/// Ends the capture at the first signal, and this program at the second.
fn end_by_signal(stopper: Stopper) -> io::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    spawn("signals", move || {
        for (before, signal) in signals.forever().enumerate() {
            if before > 0 {
                std::process::exit(128 + signal);
            }
            stopper.stop();
        }
    })
}

/// Starts a thread; the error names its purpose.
fn spawn(what: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new()
        .spawn(run)
        .map(drop)
        .map_err(|error| io::Error::new(error.kind(), format!("a thread for {what}: {error}")))
}

/// The output of packets, and its format.
struct Sink<'a> {
    to: Target<'a>,
    form: Form,
}

enum Target<'a> {
    Stdout(&'a mut dyn Write),
    /// The file, and its length in bytes of whole blocks.
    File(File, &'a Path, u64),
}

enum Form {
    Lines(Lines),
    Json,
    Blocks(Box<Blocks>),
}

impl<'a> Sink<'a> {
    fn open(arguments: &'a Arguments, out: &'a mut dyn Write) -> Result<Self, Box<dyn Error>> {
        let to = match arguments.write.as_deref() {
            Some(path) if path != Path::new("-") => {
                // Not truncated yet: the old content stays until there are packets to write.
                let file = File::options()
                    .write(true)
                    .create(true)
                    .truncate(false)
                    .open(path)
                    .map_err(|error| format!("{}: {error}", path.display()))?;
                Target::File(file, path, 0)
            }
            _ => Target::Stdout(out),
        };
        let form = if arguments.json {
            Form::Json
        } else if arguments.text || arguments.write.is_none() && io::stdout().is_terminal() {
            Form::Lines(Lines::default())
        } else {
            Form::Blocks(Box::new(Blocks::new(arguments.snaplen)?))
        };
        Ok(Self { to, form })
    }

    /// Truncates the file.
    fn begin(&mut self) -> io::Result<()> {
        match &self.to {
            Target::File(file, ..) if file.metadata()?.is_file() => file.set_len(0),
            _ => Ok(()),
        }
    }

    fn put(&mut self, packets: &[CapturedPacket]) -> io::Result<()> {
        let bytes = match &mut self.form {
            Form::Lines(lines) => {
                packets.iter().map(|packet| lines.line(packet) + "\n").collect::<String>().into_bytes()
            }
            Form::Json => packets
                .iter()
                .map(|packet| Ok(serde_json::to_string(packet)? + "\n"))
                .collect::<io::Result<String>>()?
                .into_bytes(),
            Form::Blocks(blocks) => {
                packets.iter().try_for_each(|packet| blocks.packet(packet))?;
                blocks.take()
            }
        };
        self.write(&bytes)
    }

    fn finish(&mut self, missed: &Missed) -> io::Result<()> {
        let Form::Blocks(blocks) = &mut self.form else { return Ok(()) };
        blocks.statistics(missed)?;
        let bytes = blocks.take();
        self.write(&bytes)
    }

    /// Writes whole blocks or lines: all of them or, to a file, none.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.to {
            Target::Stdout(out) => out.write_all(bytes).and_then(|()| out.flush()),
            Target::File(file, _, whole) => {
                file.write_all(bytes).inspect_err(|_| {
                    // A pipe or device cannot be truncated.
                    let _ = file.set_len(*whole);
                })?;
                *whole += bytes.len() as u64;
                Ok(())
            }
        }
    }

    fn failed(&self, error: io::Error, packets: u64) -> Box<dyn Error> {
        match &self.to {
            Target::Stdout(_) => error.into(),
            Target::File(_, path, whole) => format!(
                "writing {}: {error}; the capture has ended with {packets} packets, and the {whole} bytes that were \
                 written are whole; make room or write elsewhere",
                path.display()
            )
            .into(),
        }
    }
}
