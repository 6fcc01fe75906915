//! Calls that may block, on threads of their own.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::task::{JoinError, spawn_blocking};

/// Does what may hang, such as a look at a file that is far away, on a thread that may wait. What goes to the control
/// thread needs one too: no more than [`HANGING_MAX`] are taken by this, and others wait for one of these.
pub(crate) async fn apart<T: Send + 'static>(
    what: impl FnOnce() -> T + Send + 'static,
) -> Result<T, JoinError> {
    // There is one thread of health in a process, and each test has its own.
    thread_local!(static ROOM: Arc<Semaphore> = Arc::new(Semaphore::new(HANGING_MAX)));
    let permit = ROOM.with(Arc::clone).acquire_owned().await;
    let done = move || {
        let _permit = permit;
        what()
    };
    spawn_blocking(done).await
}

/// Half of the threads that tokio has for it.
pub(crate) const HANGING_MAX: usize = 256;
