//! Keys and values of maps, which the kernel reads and writes as bytes.

use zerocopy::{FromBytes, Immutable, IntoBytes};

/// A type without padding that may have any bytes.
pub trait Key: Copy + FromBytes + Immutable + IntoBytes {}

impl<T: Copy + FromBytes + Immutable + IntoBytes> Key for T {}
