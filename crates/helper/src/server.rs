//! The serving side: the helper process, or a thread of a program that needs no helper process.
//!
//! Each request is carried out on a separate thread until its program has ended. Errors are reported to the requester;
//! a message that is not a request is dropped. A program has a separate process group, and no capabilities except those
//! of its user.

use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::{io, thread};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use rustix::process::{Pid, PidfdFlags, Resource, Rlimit, Signal, kill_process_group, pidfd_open, prlimit};
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};
use serde_json::Value;

use crate::message::{Answer, receive, send};
use crate::request::{End, Event, Request, Script, is_netfilter};
use crate::script::{self, PATH};

/// The permitted requests.
#[derive(Clone, Copy)]
pub(crate) enum Powers {
    /// Anything, because the requester has the same rights.
    Any,
    /// The request types, within these rules. Programs get this limit of open files.
    Fixed(Rules, Rlimit),
}

/// The rules of a helper process.
#[derive(Clone, Copy)]
pub struct Rules {
    /// The command that starts a successor.
    pub successor: fn() -> Command,
    /// Whether a script may be run. May block.
    pub permits: fn(&Script) -> bool,
    /// The tasks that it carries out.
    pub tasks: &'static [Known],
}

/// A task that a helper knows.
#[derive(Clone, Copy)]
pub struct Known {
    pub(crate) name: &'static str,
    pub(crate) carry_out: fn(&Value, &[OwnedFd]) -> io::Result<Answer<Value>>,
}

/// Serves until the other side is closed.
pub(crate) fn serve(socket: &OwnedFd, powers: Powers) -> io::Result<()> {
    loop {
        match receive::<Request>(socket, RecvFlags::empty()) {
            Ok(None) => return Ok(()),
            Ok(Some((request, descriptors))) => {
                let thread = thread::Builder::new().name("xvs-program".to_owned());
                // Without a thread the request's socket is closed, which the requester sees.
                let _ = thread.spawn(move || carry_out(&request, powers, descriptors));
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // It is not a request, or there is no room for its descriptors; they are closed.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {}
            Err(error) if Errno::from_io_error(&error) == Some(Errno::MFILE) => {}
            Err(error) => return Err(error),
        }
    }
}

fn carry_out(request: &Request, powers: Powers, descriptors: Vec<OwnedFd>) {
    let mut descriptors = descriptors.into_iter();
    let Some(control) = descriptors.next() else { return };
    if let Request::LegacyTables(tables) = request {
        let read = tables.read().map_or_else(|error| Event::NotStarted(error.to_string()), Event::Names);
        let _ = send(&control, &read, &[]);
        return;
    }
    if let Request::Task(name, value) = request {
        let done = task(name, powers).and_then(|task| (task.carry_out)(value, descriptors.as_slice()));
        let (event, descriptors) = match done {
            Ok((done, descriptors)) => (Event::Done(done), descriptors),
            Err(error) => (Event::Failed(error.raw_os_error(), error.to_string()), Vec::new()),
        };
        let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        let _ = send(&control, &event, &descriptors);
        return;
    }
    let event = match (command(request, powers), request) {
        (Err(event), _) => Err(event),
        (Ok(_), Request::Examine(script)) => {
            script::missing(script).map_or(Ok(Event::Runnable), |why| Err(Event::Refused(why.to_string())))
        }
        (Ok(mut command), request) => {
            // A successor needs the limit with which xvsd was started.
            if *request != Request::Successor
                && let Err(error) = keep_capabilities()
            {
                let _ = send(&control, &Event::NotStarted(format!("its capabilities: {error}")), &[]);
                return;
            }
            let mut files = descriptors.map(Stdio::from);
            command.stdin(Stdio::null()).stdout(files.next().unwrap_or_else(Stdio::null));
            // A successor has its errors in xvsd's log.
            if *request != Request::Successor {
                command.stderr(files.next().unwrap_or_else(Stdio::null));
            }
            command.process_group(0);
            run(command, powers, &control)
        }
    };
    // An error: the requester has ended.
    let _ = send(&control, &event.unwrap_or_else(|event| event), &[]);
}

fn task(name: &str, powers: Powers) -> io::Result<&'static Known> {
    match powers {
        Powers::Fixed(rules, _) => rules.tasks,
        // The requester carries them out itself.
        Powers::Any => &[],
    }
    .iter()
    .find(|task| task.name == name)
    .ok_or_else(|| io::Error::other(format!("the helper process knows no task {name}")))
}

/// The command of a request, or why there is none.
fn command(request: &Request, powers: Powers) -> Result<Command, Event> {
    match (request, powers) {
        (Request::Script(script) | Request::Examine(script), Powers::Fixed(rules, _))
            if !(rules.permits)(script) =>
        {
            // Not a failure of what the script checks: the file has changed, and xvsd has not read it yet.
            Err(Event::NotStarted(
                "the keepalived.conf does not have it so any more; `xvs reload`".to_owned(),
            ))
        }
        (Request::Script(script) | Request::Examine(script), _) => {
            script::command(script).map_err(|why| Event::Refused(why.to_string()))
        }
        (Request::Netfilter(argv), powers) => match argv.split_first() {
            Some((program, rest)) if matches!(powers, Powers::Any) || is_netfilter(argv) => {
                let mut command = Command::new(program);
                // The PATH of a daemon may lack the directories of these programs.
                let path = format!("{}:{PATH}", std::env::var("PATH").unwrap_or_default());
                command.args(rest).env_clear().env("PATH", path).env("LANG", "C");
                Ok(command)
            }
            _ => Err(Event::Refused(format!("`{}` prints no rules of netfilter", argv.join(" ")))),
        },
        (Request::LegacyTables(_) | Request::Task(..), _) => {
            Err(Event::Refused("it is no program".to_owned()))
        }
        (Request::Successor, Powers::Fixed(rules, _)) => Ok((rules.successor)()),
        (Request::Successor, Powers::Any) => {
            Err(Event::Refused("this program is no xvsd, so it has no successor".to_owned()))
        }
    }
}

/// Runs a command to its end, and ends it if the requester asks for that.
fn run(mut command: Command, powers: Powers, control: &OwnedFd) -> Result<Event, Event> {
    let mut child = command.spawn().map_err(|error| not_started(&command, &error))?;
    let group = Pid::from_child(&child);
    if let Powers::Fixed(_, files) = powers {
        // Set after the start, because before it that would need unsafe code. An error means that the program has
        // ended, or that it runs as another user and this process lacks CAP_SYS_RESOURCE; then it has this process's
        // limit.
        let _ = prlimit(Some(group), Resource::Nofile, files);
    }
    // An error: the requester has ended.
    let _ = send(control, &Event::Started, &[]);
    if let Err(error) = await_end(group, control) {
        // The process is not reaped, so its number is not reused.
        let _ = kill_process_group(group, Signal::KILL);
        let _ = child.wait();
        return Err(Event::NotStarted(error.to_string()));
    }
    reap(&mut child).map_err(|error| Event::NotStarted(error.to_string()))
}

/// Waits until a process has ended, without reaping it, so that the numbers of process and group are not reused.
fn await_end(group: Pid, control: &OwnedFd) -> io::Result<()> {
    let process = pidfd_open(group, PidfdFlags::empty())?;
    let mut is_ending = false;
    let mut has_requester = true;
    loop {
        let mut watched = vec![PollFd::new(&process, PollFlags::IN)];
        if has_requester {
            watched.push(PollFd::from_borrowed_fd(control.as_fd(), PollFlags::IN));
        }
        match poll(&mut watched, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let has_ended = !watched[0].revents().is_empty();
        if watched.get(1).is_some_and(|control| !control.revents().is_empty()) {
            let signal = match receive(control, RecvFlags::DONTWAIT) {
                Ok(Some((End::Terminate, _))) => Some(Signal::TERM),
                Ok(Some((End::Kill, _))) => Some(Signal::KILL),
                Ok(None) => None,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(_) => None,
            };
            has_requester = signal.is_some();
            is_ending |= signal.is_some();
            // An error means that the ended process was the last one in the group.
            let _ = signal.map(|signal| kill_process_group(group, signal));
        } else if has_ended {
            if is_ending {
                // Processes that it has left in its group.
                let _ = kill_process_group(group, Signal::KILL);
            }
            return Ok(());
        }
    }
}

fn reap(child: &mut Child) -> io::Result<Event> {
    let status: ExitStatus = child.wait()?;
    Ok(match status.code() {
        Some(code) => Event::Exit(code),
        None => Event::Signal(status.signal().unwrap_or_default()),
    })
}

fn not_started(command: &Command, error: &io::Error) -> Event {
    let why = format!("{}: {error}", command.get_program().display());
    match Errno::from_io_error(error) {
        Some(Errno::AGAIN | Errno::NOMEM | Errno::MFILE | Errno::NFILE) => Event::NotStarted(why),
        Some(Errno::NOENT) => Event::Missing(why),
        _ => Event::Refused(why),
    }
}

/// Keeps capabilities from the program that this thread starts. Without inheritable capabilities a thread has no
/// ambient ones, and a program has only those that its user and its file give it, as always with root. The thread's own
/// capabilities do not change. Source: capabilities(7), "Transformation of capabilities during execve()".
fn keep_capabilities() -> io::Result<()> {
    let sets = capabilities(None)?;
    if !sets.inheritable.is_empty() {
        set_capabilities(None, CapabilitySets { inheritable: CapabilitySet::empty(), ..sets })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use rustix::fd::BorrowedFd;
    use rustix::process::getrlimit;

    use crate::message::pair;
    use crate::server::*;

    const RULES: Rules = Rules {
        successor: || Command::new("false"),
        permits: |script| script.text.starts_with("true"),
        tasks: &[Known { name: "halve", carry_out: halve }],
    };

    /// A task for even numbers, with a descriptor.
    fn halve(value: &Value, given: &[OwnedFd]) -> io::Result<Answer<Value>> {
        match value.as_u64() {
            _ if given.len() != 1 => Err(io::Error::other("a descriptor is missing")),
            Some(number) if number % 2 == 0 => Ok(((number / 2).into(), Vec::new())),
            _ => Err(Errno::DOM.into()),
        }
    }

    const FILES: u64 = 77;

    /// The last event of a request to a helper process.
    fn answer(request: &impl serde::Serialize) -> Option<Event> {
        answer_with(request, &[])
    }

    /// The last event of a request with descriptors.
    fn answer_with(request: &impl serde::Serialize, more: &[BorrowedFd<'_>]) -> Option<Event> {
        let (own, its) = pair().unwrap();
        let files = Rlimit { current: Some(FILES), ..getrlimit(Resource::Nofile) };
        let serving = thread::spawn(move || serve(&its, Powers::Fixed(RULES, files)));
        let (control, given) = pair().unwrap();
        send(&own, request, &[&[given.as_fd()], more].concat()).unwrap();
        drop(given);
        let mut last = None;
        while let Some((event, _)) = receive(&control, RecvFlags::empty()).unwrap() {
            last = Some(event);
        }
        drop(own);
        serving.join().unwrap().unwrap();
        last
    }

    #[test]
    fn a_helper_runs_the_programs_of_its_requests_and_refuses_others() {
        let netfilter =
            |words: &[&str]| Request::Netfilter(words.iter().map(|word| (*word).to_owned()).collect());
        for words in [
            &["nft", "-f", "/tmp/rules"][..],
            &["iptables-save", "-M", "/tmp/program"],
            &["sh", "-c", "true"],
            &["/tmp/nft", "-j", "list", "ruleset"],
            &[],
        ] {
            let answer = answer(&netfilter(words));
            assert!(
                matches!(&answer, Some(Event::Refused(why)) if why.contains("prints no rules")),
                "{answer:?}"
            );
        }
        let argv = vec!["true".to_owned()];
        let script = Script { text: "true".to_owned(), argv, user: None, group: None, is_checked: false };
        assert_eq!(answer(&Request::Script(script.clone())), Some(Event::Exit(0)));
        assert_eq!(answer(&Request::Examine(script.clone())), Some(Event::Runnable));
        let other = Script { text: "id".to_owned(), ..script };
        for request in [Request::Script(other.clone()), Request::Examine(other)] {
            let answer = answer(&request);
            assert!(
                matches!(&answer, Some(Event::NotStarted(why)) if why.contains("xvs reload")),
                "{answer:?}"
            );
        }
        assert_eq!(answer(&Request::Successor), Some(Event::Exit(1)));
    }

    #[test]
    fn a_helper_goes_on_after_requests_that_are_cut_or_wrong() {
        let (own, its) = pair().unwrap();
        let files = getrlimit(Resource::Nofile);
        let serving = thread::spawn(move || serve(&its, Powers::Fixed(RULES, files)));
        for message in [&b"{\"Task\":[\"halve\""[..], b"{}", b"\xff", b"{\"Netfilter\":[1]}", b"\"Successor"]
        {
            assert_eq!(rustix::io::write(&own, message), Ok(message.len()));
        }
        let (control, given) = pair().unwrap();
        send(&own, &Request::Task("double".to_owned(), 8.into()), &[given.as_fd()]).unwrap();
        drop(given);
        assert!(matches!(receive(&control, RecvFlags::empty()), Ok(Some((Event::Failed(..), _)))));
        drop(own);
        serving.join().unwrap().unwrap();
    }

    #[test]
    fn a_helper_carries_out_the_tasks_that_it_knows_and_reports_errors_with_their_number() {
        let task = |name: &str, value: u64| Request::Task(name.to_owned(), value.into());
        let file = pair().unwrap().0;
        let given = [file.as_fd()];
        assert_eq!(answer_with(&task("halve", 8), &given), Some(Event::Done(4.into())));
        let failed = |event| match event {
            Some(Event::Failed(number, why)) => (number, why),
            other => panic!("{other:?}"),
        };
        let (number, _) = failed(answer_with(&task("halve", 7), &given));
        assert_eq!(number, Some(Errno::DOM.raw_os_error()));
        assert_eq!(failed(answer(&task("halve", 8))), (None, "a descriptor is missing".to_owned()));
        let (number, why) = failed(answer_with(&task("double", 8), &given));
        assert!(number.is_none() && why.contains("knows no task double"), "{why}");
    }

    #[test]
    fn a_program_gets_the_limit_of_open_files_of_the_powers() {
        // The program may run before it has the limit.
        let text = format!(
            "true; for i in $(seq 500); do [ $(ulimit -Sn) = {FILES} ] && exit; sleep 0.01; done; exit 1"
        );
        let argv = vec!["true;".to_owned()];
        let script = Script { text, argv, user: None, group: None, is_checked: false };
        assert_eq!(answer(&Request::Script(script)), Some(Event::Exit(0)));
    }

    #[test]
    fn a_message_that_is_no_request_is_dropped_and_the_helper_goes_on() {
        assert_eq!(answer(&"no request"), None);
        assert_eq!(
            answer(&Request::Netfilter(vec!["x".repeat(100_000)])).map(|event| event == Event::Runnable),
            Some(false)
        );
    }
}
