//! How libbpf is called: results and sizes of options.

use std::ffi::c_int;
use std::io;

/// Bytes of a structure of options up to this field of 4 bytes. libbpf wants zero bytes after what it knows, and what
/// pads a structure at its end holds anything.
macro_rules! size_to {
    ($options:ty, $field:ident) => {
        std::mem::offset_of!($options, $field) + 4
    };
}
pub(super) use size_to;

/// What libbpf returns: a value, or an error number below zero.
pub(super) fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(result) }
}
