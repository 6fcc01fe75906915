//! Threads whose end is reported.
//!
//! A worker or the control thread ends only when it is stopped. After a panic of one, the director would take packets
//! and forward none. So each thread reports its end, also that by a panic.

use std::thread::JoinHandle;
use std::{io, thread};

use crossbeam::channel::Sender;

/// Sends the thread's name when it is dropped; the thread owns it.
pub(crate) struct EndNotice {
    thread: String,
    to: Sender<String>,
}

impl EndNotice {
    /// A notice for the thread of this name.
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

#[cfg(test)]
mod tests {
    use crossbeam::channel::unbounded;

    use crate::daemon::threads::*;

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
