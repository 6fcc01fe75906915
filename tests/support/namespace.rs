//! Work inside a network namespace, on threads that have entered it.
//!
//! A socket belongs to the namespace of the thread that makes it, so clients and servers of a test are threads of the
//! test's own process: no helper program, and a panic fails the test. Cost: a thread and a system call each. Not here:
//! programs, which `Cluster::command` starts.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::panic;
use std::path::Path;
use std::thread::{self, JoinHandle};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Runs `work` in the namespace called `name`, and returns its result.
///
/// # Panics
///
/// With `work`'s panic, or if the namespace can't be entered.
pub fn run<T: Send>(name: &str, work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let inside = scope.spawn(|| {
            enter(name);
            work()
        });
        inside.join().unwrap_or_else(|cause| panic::resume_unwind(cause))
    })
}

/// Starts `work` on a thread that stays in the namespace called `name`.
pub fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    let name = name.to_owned();
    thread::spawn(move || {
        enter(&name);
        work();
    })
}

fn enter(name: &str) {
    let path = Path::new("/run/netns").join(name);
    let entered = File::open(&path).and_then(|namespace| {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(io::Error::from)
    });
    entered.unwrap_or_else(|error| panic!("{} can't be entered (root is needed): {error}", path.display()));
}
