//! The requesting side: xvsd's threads, and any other program that runs scripts.
//!
//! Waits for the helper only in functions that document it. Cost: a message and a socket for each program.

use std::os::fd::{AsRawFd, RawFd};
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use std::{io, thread};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::net::RecvFlags;
use serde_json::Value;

use crate::message::{Answer, pair, receive, send};
use crate::request::{End, Event, LegacyTables, Request, Script};
use crate::server::{Powers, serve};

/// The helper of this process.
static HELPER: OnceLock<Helper> = OnceLock::new();

/// Maximum time for a task: the control thread waits for it, and must not seem to hang.
const TASK_TIME: Duration = Duration::from_secs(3);

/// A task that got no answer in time. Until its answer arrives, no other task waits for the helper, which hangs.
static UNANSWERED: Mutex<Option<Run>> = Mutex::new(None);

/// Whether it carries out tasks.
static IS_USED_FOR_TASKS: AtomicBool = AtomicBool::new(false);

struct Helper {
    socket: OwnedFd,
    keeper: Mutex<Option<Child>>,
    losses: Mutex<Losses>,
}

/// How often the helper has ended.
#[derive(Debug, Default, Clone)]
struct Losses {
    count: u32,
    why: String,
    /// Whether it is not started again.
    is_gone: bool,
}

/// A requested program. Dropping this value does not affect the program.
#[derive(Debug)]
pub struct Run(OwnedFd);

impl Run {
    /// Sends a request with the files for the program's output.
    ///
    /// # Errors
    ///
    /// The helper does not accept it.
    pub fn request(request: &Request, files: &[BorrowedFd<'_>]) -> io::Result<Self> {
        let (own, its) = pair()?;
        let descriptors: Vec<_> = [its.as_fd()].into_iter().chain(files.iter().copied()).collect();
        send(&helper()?.socket, request, &descriptors).map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe => io::Error::other(GONE),
            io::ErrorKind::WouldBlock => io::Error::other("the helper process does not take requests"),
            _ => error,
        })?;
        Ok(Self(own))
    }

    /// The next event; `None` if there is none yet. Does not wait: the descriptor is readable when there is one.
    pub fn event(&self) -> Option<Event> {
        self.answer().map(|(event, _)| event)
    }

    /// The next event with its descriptors; `None` if there is none yet.
    fn answer(&self) -> Option<Answer<Event>> {
        let why = match receive(&self.0, RecvFlags::DONTWAIT) {
            Ok(Some(answer)) => return Some(answer),
            Ok(None) => "the helper process has ended; its result is unknown".to_owned(),
            Err(error) if [io::ErrorKind::WouldBlock, io::ErrorKind::Interrupted].contains(&error.kind()) => {
                return None;
            }
            Err(error) => error.to_string(),
        };
        Some((Event::NotStarted(why), Vec::new()))
    }

    /// Ends the program.
    pub fn end(&self, how: End) {
        // An error: it has ended already.
        let _ = send(&self.0, &how, &[]);
    }

    /// Waits for the end, a second for each event. `None` if the program is still running.
    pub fn last_event(&self) -> Option<Event> {
        let most = Timespec { tv_sec: 1, tv_nsec: 0 };
        loop {
            let _ = poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&most));
            match self.event() {
                Some(Event::Started) => {}
                last => return last,
            }
        }
    }
}

impl AsFd for Run {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Run {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// The reason why a script cannot be run now; `None` if it can. Waits for look-ups of users and files.
pub fn obstacle(script: Script) -> Option<String> {
    match answer(&Request::Examine(script)) {
        Ok(Event::Refused(why) | Event::NotStarted(why)) => Some(why),
        Ok(_) => None,
        Err(error) => Some(error.to_string()),
    }
}

/// The names of the tables of iptables-legacy. Reads the file itself if this process may, otherwise waits for the
/// helper.
///
/// # Errors
///
/// Neither can read it.
pub fn legacy_tables(tables: LegacyTables) -> io::Result<String> {
    match tables.read() {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            match answer(&Request::LegacyTables(tables))? {
                Event::Names(names) => Ok(names),
                _ => Err(error),
            }
        }
        read => read,
    }
}

/// Makes the helper process carry out tasks from now on, because this process gives up the rights for them.
pub fn use_for_tasks() {
    // Relaxed: there are no other threads yet.
    IS_USED_FOR_TASKS.store(true, Ordering::Relaxed);
}

/// Whether the helper process carries out tasks.
pub fn is_used_for_tasks() -> bool {
    IS_USED_FOR_TASKS.load(Ordering::Relaxed)
}

/// Waits until the helper has carried out a task. A late answer is lost, with its descriptors.
pub(crate) fn task(name: &str, value: Value, given: &[BorrowedFd<'_>]) -> io::Result<Answer<Value>> {
    if is_unanswered() {
        return Err(hangs());
    }
    let run = Run::request(&Request::Task(name.to_owned(), value), given)?;
    let until = Instant::now() + TASK_TIME;
    let (event, descriptors) = loop {
        let left =
            Timespec::try_from(until.saturating_duration_since(Instant::now())).map_err(io::Error::other)?;
        let _ = poll(&mut [PollFd::new(&run, PollFlags::IN)], Some(&left));
        if let Some(answer) = run.answer() {
            break answer;
        }
        if until <= Instant::now() {
            *UNANSWERED.lock().unwrap_or_else(PoisonError::into_inner) = Some(run);
            return Err(hangs());
        }
    };
    match event {
        Event::Done(done) => Ok((done, descriptors)),
        Event::Failed(Some(number), _) => Err(io::Error::from_raw_os_error(number)),
        Event::Failed(None, why) | Event::NotStarted(why) => Err(io::Error::other(why)),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Whether the helper has not answered an earlier request yet.
fn is_unanswered() -> bool {
    let mut unanswered = UNANSWERED.lock().unwrap_or_else(PoisonError::into_inner);
    unanswered.take_if(|run| run.answer().is_some());
    unanswered.is_some()
}

fn hangs() -> io::Error {
    io::Error::other(format!("the helper process does not answer within {TASK_TIME:?}"))
}

/// Waits for the one event of a request that runs no program.
fn answer(request: &Request) -> io::Result<Event> {
    let run = Run::request(request, &[])?;
    loop {
        // An interrupted wait is repeated.
        let _ = poll(&mut [PollFd::new(&run, PollFlags::IN)], None);
        if let Some(event) = run.event() {
            return Ok(event);
        }
    }
}

/// A message for the operator, if the helper has ever ended.
pub fn warning() -> Option<String> {
    let losses = HELPER.get()?.losses().clone();
    match losses {
        Losses { is_gone: true, .. } => Some(GONE.to_owned()),
        Losses { count: 0, .. } => None,
        Losses { count, why, .. } => Some(format!(
            "the helper process, which runs scripts, reads netfilter's rules and does what needs more rights, has ended \
             {count} times, last by {why}; it was started again, and what it ran then has no result"
        )),
    }
}

/// Uses the helper behind this socket, which is a child of this process.
pub(crate) fn set(socket: OwnedFd, keeper: Option<Child>) {
    // A process has one helper.
    let _ = HELPER.set(Helper { socket, keeper: Mutex::new(keeper), losses: Mutex::default() });
}

/// The socket to the helper process; `None` if there is none.
pub(crate) fn socket() -> Option<io::Result<OwnedFd>> {
    HELPER.get().map(|helper| helper.socket.try_clone())
}

/// Logs each end of the helper process from now on, and makes [`warning`] report it.
///
/// # Errors
///
/// The system has no room for another thread.
pub fn follow() -> io::Result<()> {
    let Some(helper) = HELPER.get() else { return Ok(()) };
    thread::Builder::new().name("xvs-helper".to_owned()).spawn(move || helper.follow())?;
    Ok(())
}

impl Helper {
    fn follow(&self) {
        loop {
            match receive::<(u32, String)>(&self.socket, RecvFlags::empty()) {
                Ok(Some(((count, why), _))) => {
                    tracing::error!("the helper process has ended by {why}; it is started again");
                    *self.losses() = Losses { count, why, is_gone: false };
                }
                Ok(None) => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => tracing::error!("a message of the helper process: {error}"),
            }
        }
        tracing::error!("{GONE}");
        self.losses().is_gone = true;
        let keeper = self.keeper.lock().unwrap_or_else(PoisonError::into_inner).take();
        // The end is already known; this lets the kernel forget it.
        let _ = keeper.map(|mut keeper| keeper.wait());
    }

    fn losses(&self) -> MutexGuard<'_, Losses> {
        self.losses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn helper() -> io::Result<&'static Helper> {
    if let Some(helper) = HELPER.get() {
        return Ok(helper);
    }
    let (own, its) = pair()?;
    // If another thread was faster, the server of this pair ends as its other end is dropped.
    thread::Builder::new().name("xvs-programs".to_owned()).spawn(move || serve(&its, Powers::Any))?;
    Ok(HELPER.get_or_init(|| Helper { socket: own, keeper: Mutex::default(), losses: Mutex::default() }))
}

const GONE: &str = "there is no helper process any more, so no script runs, netfilter's rules are not read, and with `user` \
                    interfaces and neighbours stay as they are; \
                    `systemctl reload xvsd` or `xvsd --take-over` brings it back";
