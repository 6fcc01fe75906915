//! Cores of this machine.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::thread;

/// The number of cores that this process may use; 1 if unknown.
pub fn cores_available() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// Parses a set of cores in the kernel's notation, such as `0-3,8`. Elements in another notation are left out.
///
/// Source: kernel `Documentation/admin-guide/cputopology.rst`.
pub fn parse_cores(list: &str) -> BTreeSet<usize> {
    list.trim().split(',').filter_map(range).flatten().collect()
}

fn range(part: &str) -> Option<RangeInclusive<usize>> {
    let (first, last) = part.split_once('-').unwrap_or((part, part));
    Some(first.parse().ok()?..=last.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use crate::cores::*;

    #[test]
    fn lists_of_cores_have_single_ones_and_ranges() {
        assert_eq!(parse_cores("0-2,8\n"), BTreeSet::from([0, 1, 2, 8]));
        assert_eq!(parse_cores("5"), BTreeSet::from([5]));
        assert_eq!(parse_cores("\n"), BTreeSet::new());
    }
}
