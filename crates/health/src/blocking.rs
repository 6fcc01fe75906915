//! Blocking calls, run on threads of their own.

use std::sync::Arc;

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

/// Half of the threads that tokio's blocking pool has at most (512 by default).
pub(crate) const BLOCKING_MAX: usize = 256;
