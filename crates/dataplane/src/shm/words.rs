//! The words of a BPF map: mapped, or boxed in a model, which has no kernel.

use std::ffi::CStr;
use std::io;

use xvs_xdp::bpf::{KernelMap, Object};

#[cfg(loom)]
pub(crate) use self::model::{Rows, Words};
#[cfg(not(loom))]
pub(crate) use xvs_xdp::bpf::{Rows, Words};

/// Maps the words of a map in this object.
///
/// # Errors
///
/// The kernel's.
#[cfg(not(loom))]
pub(crate) fn of_object<const N: usize>(object: &Object, map: &CStr) -> io::Result<Words<N>> {
    object.words(map)
}

/// Maps the words of another process's map.
///
/// # Errors
///
/// The kernel's.
#[cfg(not(loom))]
pub(crate) fn of_map<const N: usize>(map: &KernelMap) -> io::Result<Words<N>> {
    map.map_words()
}

/// Maps the values of a map in this object.
///
/// # Errors
///
/// The kernel's.
#[cfg(not(loom))]
pub(crate) fn rows_of_object<const N: usize>(object: &Object, map: &CStr) -> io::Result<Rows<N>> {
    object.rows(map)
}

/// Maps the values of another process's map.
///
/// # Errors
///
/// The kernel's.
#[cfg(not(loom))]
pub(crate) fn rows_of_map<const N: usize>(map: &KernelMap) -> io::Result<Rows<N>> {
    map.map_rows()
}

#[cfg(loom)]
pub(crate) fn rows_of_object<const N: usize>(_object: &Object, _map: &CStr) -> io::Result<Rows<N>> {
    Ok(Rows::of(1))
}

#[cfg(loom)]
pub(crate) fn rows_of_map<const N: usize>(_map: &KernelMap) -> io::Result<Rows<N>> {
    Ok(Rows::of(1))
}

#[cfg(loom)]
pub(crate) fn of_object<const N: usize>(_object: &Object, _map: &CStr) -> io::Result<Words<N>> {
    Ok(Words::default())
}

#[cfg(loom)]
pub(crate) fn of_map<const N: usize>(_map: &KernelMap) -> io::Result<Words<N>> {
    Ok(Words::default())
}

#[cfg(loom)]
mod model {
    use std::ops::Deref;
    use std::sync::Arc;

    use crate::shm::atomic::AtomicU64;

    /// Initially zero. A clone is another mapping of the same words.
    #[derive(Debug, Clone)]
    pub(crate) struct Words<const N: usize>(Arc<[AtomicU64; N]>);

    /// Initially zero, in rows. A clone is another mapping of the same words.
    #[derive(Debug, Clone)]
    pub(crate) struct Rows<const N: usize>(Arc<[[AtomicU64; N]]>);

    impl<const N: usize> Rows<N> {
        pub(crate) fn of(count: usize) -> Self {
            Self((0..count).map(|_| std::array::from_fn(|_| AtomicU64::new(0))).collect())
        }
    }

    impl<const N: usize> Deref for Rows<N> {
        type Target = [[AtomicU64; N]];

        fn deref(&self) -> &Self::Target {
            &self.0
        }
    }

    impl<const N: usize> Default for Words<N> {
        fn default() -> Self {
            Self(Arc::new(std::array::from_fn(|_| AtomicU64::new(0))))
        }
    }

    impl<const N: usize> Deref for Words<N> {
        type Target = [AtomicU64; N];

        fn deref(&self) -> &Self::Target {
            &self.0
        }
    }
}
