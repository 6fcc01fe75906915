//! Results and option sizes of libbpf calls.

use std::ffi::c_int;
use std::time::Duration;
use std::{io, thread};

/// The size of an options structure up to this field of 4 bytes. libbpf requires zeros behind the fields that it knows,
/// and the padding at the end of a structure is undefined.
macro_rules! size_to {
    ($options:ty, $field:ident) => {
        std::mem::offset_of!($options, $field) + 4
    };
}
pub(super) use size_to;

/// The result of a call of libbpf or libxdp: a value, or a negative error number.
pub(in super::super) fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(result) }
}

/// How often a call is repeated, and after which pause.
const TRIES: usize = 10;
const PAUSE: Duration = Duration::from_millis(20);

/// Repeats a call that the kernel refuses for the moment (`EAGAIN`): a signal to the thread stops the verifier.
///
/// # Errors
/// The last error.
pub fn repeated<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    for _ in 1..TRIES {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(PAUSE),
            done => return done,
        }
    }
    call()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_call_that_is_refused_for_the_moment_is_repeated() {
        let tries = |error: i32| {
            let mut tries = 0;
            let result: io::Result<()> = repeated(|| {
                tries += 1;
                if tries == 3 { Ok(()) } else { Err(io::Error::from_raw_os_error(error)) }
            });
            (tries, result.is_ok())
        };
        assert_eq!(tries(libc::EAGAIN), (3, true));
        assert_eq!(tries(libc::EPERM), (1, false));
    }
}
