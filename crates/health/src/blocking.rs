//! Blocking calls, run on separate threads.

use std::sync::Arc;
use std::time::Duration;
use std::{io, thread};

use tokio::runtime::{Builder, Runtime};
use tokio::sync::Semaphore;
use tokio::task::{JoinError, spawn_blocking};
use tokio::time::interval;

/// Runs a call that may block, such as a read from a network file system, on a thread of tokio's blocking pool.
///
/// At most [`BLOCKING_MAX`] such calls run at once; further ones wait. The rest of the pool stays free for the requests
/// to the control thread, which need its threads, too.
///
/// # Errors
///
/// The call panicked.
pub(crate) async fn run_blocking<T: Send + 'static>(
    call: impl FnOnce() -> T + Send + 'static,
) -> Result<T, JoinError> {
    // A process has one health thread; each test has its own.
    thread_local!(static PERMITS: Arc<Semaphore> = Arc::new(Semaphore::new(BLOCKING_MAX)));
    let permit = PERMITS.with(Arc::clone).acquire_owned().await;
    spawn_blocking(move || {
        let _permit = permit;
        call()
    })
    .await
}

/// The runtime of the health checks, which has at least one thread for blocking calls at all times. Further threads end
/// after a time without calls.
///
/// When the system has no room for another thread, tokio queues a call for the existing threads, and panics if there
/// are none.
///
/// # Errors
///
/// The system cannot create it, or a thread.
pub(crate) fn runtime() -> io::Result<Runtime> {
    runtime_with(KEEP_ALIVE)
}

fn runtime_with(keep_alive: Duration) -> io::Result<Runtime> {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .thread_name("xvs-blocking")
        .thread_keep_alive(keep_alive)
        .build()?;
    // If no thread can be started, this is an error, and the first call would be a panic.
    drop(thread::Builder::new().spawn(|| ())?.join());
    drop(runtime.handle().spawn_blocking(|| ()));
    runtime.spawn(async move {
        // Each call keeps one thread alive.
        let mut calls = interval(keep_alive / 3);
        loop {
            calls.tick().await;
            // It does nothing, so its result does not matter.
            let _ = spawn_blocking(|| ()).await;
        }
    });
    Ok(runtime)
}

/// The time that a thread of the pool waits for its next call.
const KEEP_ALIVE: Duration = Duration::from_secs(60);

/// Half of the maximum number of threads in tokio's blocking pool (512 by default).
pub(crate) const BLOCKING_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::Barrier;

    use crate::blocking::*;

    #[test]
    fn the_runtime_has_a_thread_before_the_first_blocking_call_and_few_some_time_after_the_last() {
        let name = |task: fs::DirEntry| fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        let threads = || {
            let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
            tasks.map(name).filter(|name| name == "xvs-blocking\n").count()
        };
        let keep_alive = Duration::from_millis(300);
        let runtime = runtime_with(keep_alive).unwrap();
        // A new thread gets its name a moment after its start.
        let appears = (0..5000).any(|_| {
            thread::sleep(Duration::from_millis(1));
            threads() > 0
        });
        assert!(appears);
        let barrier = Arc::new(Barrier::new(21));
        for _ in 0..20 {
            let barrier = barrier.clone();
            runtime.spawn_blocking(move || barrier.wait());
        }
        while threads() < 20 {
            thread::sleep(Duration::from_millis(1));
        }
        barrier.wait();
        runtime.block_on(async {
            while threads() > 2 {
                tokio::time::sleep(keep_alive).await;
            }
            tokio::time::sleep(keep_alive * 2).await;
        });
        assert!(threads() > 0);
    }
}
