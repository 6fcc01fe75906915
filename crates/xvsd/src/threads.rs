//! Threads whose end is reported.
//!
//! A worker or the control thread ends only when it is stopped. If one panicked unnoticed, the director would receive
//! packets and forward none. These threads therefore report their end, also after a panic. Other threads, such as those
//! of synchronization, may end while xvsd continues; they report only a panic. Any report ends xvsd: its supervisor
//! starts it again, the pinned program holds the frames until then, and the connections are kept. A client's thread
//! reports nothing, because only that client is lost.

use std::sync::LazyLock;
use std::thread::JoinHandle;
use std::{io, thread};

use crossbeam::channel::{Receiver, Sender, unbounded};

/// Sends the thread's name when it is dropped; the thread owns it.
pub(crate) struct EndNotice {
    thread: String,
    to: Sender<String>,
}

impl EndNotice {
    /// A notice for the thread with this name.
    pub(crate) fn new(thread: &str, to: &Sender<String>) -> Self {
        Self { thread: thread.to_owned(), to: to.clone() }
    }
}

impl Drop for EndNotice {
    fn drop(&mut self) {
        // In an orderly shutdown the receiver is gone already.
        let _ = self.to.send(std::mem::take(&mut self.thread));
    }
}

/// Starts a thread that reports its end by its name.
///
/// # Errors
/// The system has no room for another thread.
pub(crate) fn spawn<T: Send + 'static>(
    name: &str,
    ended: &Sender<String>,
    run: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    let notice = EndNotice::new(name, ended);
    thread::Builder::new().name(name.to_owned()).spawn(move || {
        let _notice = notice;
        run()
    })
}

/// The names of threads that have panicked. Static, because the threads of all modules report here, also before there
/// is a daemon.
static PANICKED: LazyLock<(Sender<String>, Receiver<String>)> = LazyLock::new(unbounded);

/// Receives the names of threads of [`spawn_stoppable`] that have panicked.
pub fn panicked() -> Receiver<String> {
    PANICKED.1.clone()
}

/// Reports a panic of the thread that owns it, by its name.
struct PanicNotice(String);

impl Drop for PanicNotice {
    fn drop(&mut self) {
        if thread::panicking() {
            // There is always a receiver.
            let _ = PANICKED.0.send(std::mem::take(&mut self.0));
        }
    }
}

/// Starts a thread that may end while xvsd goes on, and reports a panic by its name.
///
/// # Errors
/// The system has no room for another thread.
pub fn spawn_stoppable<T: Send + 'static>(
    name: &str,
    run: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    let notice = PanicNotice(name.to_owned());
    thread::Builder::new().name(name.to_owned()).spawn(move || {
        let _notice = notice;
        run()
    })
}

#[cfg(test)]
mod tests {
    use crate::threads::*;

    #[test]
    fn a_thread_that_may_be_stopped_reports_a_panic_and_no_orderly_end() {
        let names = panicked();
        spawn_stoppable("xvs-stopped", || ()).unwrap().join().unwrap();
        let panicking = spawn_stoppable("xvs-fleet", || panic!("a fault of this test")).unwrap();
        assert!(panicking.join().is_err());
        // All are from this test: no other one has such a thread that panics.
        assert_eq!(names.try_iter().collect::<Vec<_>>(), ["xvs-fleet"]);
    }

    #[test]
    fn the_end_of_a_thread_is_reported_by_its_name_also_after_a_panic() {
        let (ended, names) = unbounded();
        let panicking = spawn("xvs-worker-7", &ended, || panic!("a fault of this test")).unwrap();
        assert_eq!(names.recv().unwrap(), "xvs-worker-7");
        let _: Result<(), _> = panicking.join();
        let ending = spawn("xvs-control", &ended, || 5).unwrap();
        assert_eq!(names.recv().unwrap(), "xvs-control");
        assert_eq!(ending.join().unwrap(), 5);
    }
}
