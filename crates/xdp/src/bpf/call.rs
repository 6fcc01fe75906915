//! Results and option sizes of libbpf calls.

use std::ffi::c_int;
use std::io;

/// The size of an options structure up to this field of 4 bytes. libbpf requires zeros behind the fields that it knows,
/// and the padding at the end of a structure is undefined.
macro_rules! size_to {
    ($options:ty, $field:ident) => {
        std::mem::offset_of!($options, $field) + 4
    };
}
pub(super) use size_to;

/// The result of a libbpf call: a value, or a negative error number.
pub(super) fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(result) }
}
