//! Results and option sizes of libbpf calls.

use std::ffi::c_int;
use std::time::Duration;
use std::{io, thread};

/// The size of an options structure up to the end of this 4-byte field. libbpf requires zeros after the fields that it
/// knows, and the padding at the end of a structure is undefined.
macro_rules! size_to {
    ($options:ty, $field:ident) => {
        std::mem::offset_of!($options, $field) + 4
    };
}
pub(super) use size_to;

/// Converts the result of a libbpf or libxdp call: a value, or a negative error number.
pub(in super::super) fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(result) }
}

/// The number of attempts for a call, and the pause between them.
const TRIES: usize = 10;
const PAUSE: Duration = Duration::from_millis(20);

/// Repeats a call that fails temporarily (`EAGAIN`): a signal to the thread stops the verifier.
///
/// # Errors
///
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
