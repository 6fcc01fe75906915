//! Blocking calls, run on threads of their own.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::sync::Semaphore;
use tokio::task::{JoinError, spawn_blocking};

/// Runs a call that may block, such as a read from a network file system, on a thread of tokio's blocking pool.
///
/// At most [`BLOCKING_MAX`] such calls run at once; further ones wait. The rest of the pool stays free for the requests
/// to the control thread, which need one of its threads too.
///
/// # Errors
/// The call panicked.
pub(crate) async fn run_blocking<T: Send + 'static>(
    call: impl FnOnce() -> T + Send + 'static,
) -> Result<T, JoinError> {
    // A process has one health thread; each test has its own.
    thread_local!(static PERMITS: Arc<Semaphore> = Arc::new(Semaphore::new(BLOCKING_MAX)));
    let permit = PERMITS.with(Arc::clone).acquire_owned().await;
    let with_permit = move || {
        let _permit = permit;
        call()
    };
    spawn_blocking(with_permit).await
}

/// The runtime of the health checks, with one thread for blocking calls that never ends.
///
/// When the system has no room for another thread, tokio queues a call for the threads that there are, and panics if
/// there are none.
///
/// # Errors
/// The system cannot create it.
pub(crate) fn runtime() -> io::Result<Runtime> {
    let mut builder = Builder::new_current_thread();
    let runtime = builder.enable_all().thread_name("xvs-blocking").thread_keep_alive(KEEP_ALIVE).build()?;
    drop(runtime.handle().spawn_blocking(|| ()));
    Ok(runtime)
}

/// How long a thread of the pool waits for its next call: for ever.
const KEEP_ALIVE: Duration = Duration::from_secs(u32::MAX as u64);

/// Half of the threads that tokio's blocking pool has at most (512 by default).
pub(crate) const BLOCKING_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use std::{fs, thread};

    use crate::blocking::*;

    #[test]
    fn the_runtime_has_a_thread_for_blocking_calls_before_the_first_one() {
        let name = |task: fs::DirEntry| fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        let threads = || {
            let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
            tasks.map(name).filter(|name| name == "xvs-blocking\n").count()
        };
        let _runtime = runtime().unwrap();
        // A new thread gets its name a moment after its start.
        let appears = (0..5000).any(|_| {
            thread::sleep(Duration::from_millis(1));
            threads() > 0
        });
        assert!(appears);
    }
}
