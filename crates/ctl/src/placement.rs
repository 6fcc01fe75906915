//! The placement of workers: the queues and the core of each. `workers/` in xvsd pins them.
//!
//! Computed at the start, and whenever an interface is attached again. Every queue belongs to one worker. Every worker
//! has a queue on each interface, so it can send on all interfaces.

use thiserror::Error;
use xvs_dataplane::port::xdp::MAX_SOCKETS;

/// Why queues cannot be shared out.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PlacementError {
    /// Fewer queues than workers.
    #[error(
        "{workers} workers cannot share {queues} queues of {interface}; each needs one, so configure fewer workers, or more queues with `ethtool -L {interface} combined {workers}`"
    )]
    TooManyWorkers {
        /// The configured number of workers.
        workers: usize,
        /// The interface's number of queues.
        queues: u32,
        /// The interface with the fewest queues.
        interface: String,
    },
    /// More queues for a worker than it can have sockets.
    #[error(
        "a worker would have {count} queues and can have {MAX_SOCKETS} at most; {interface} has {queues}: configure more workers, or fewer queues with `ethtool -L {interface} combined N`"
    )]
    TooManyQueues {
        /// The number of queues on all interfaces that the first worker would have.
        count: usize,
        /// The interface's number of queues.
        queues: u32,
        /// The interface with the most queues.
        interface: String,
    },
}

/// An interface's name and its number of receive queues.
pub type InterfaceQueues<'a> = (&'a str, u32);

/// The queues of each worker, by interface. Without a requested number of workers, their number is the number of queues
/// of the interface with the fewest, but at most one less than there are cores, and at least one.
///
/// # Errors
///
/// See [`PlacementError`].
pub fn shares(
    interfaces: &[InterfaceQueues<'_>],
    wanted: Option<usize>,
    cores: usize,
) -> Result<Vec<Vec<Vec<u32>>>, PlacementError> {
    let (fewest, queues) = interfaces.iter().copied().min_by_key(|(_, queues)| *queues).unwrap_or_default();
    let workers = wanted.unwrap_or_else(|| (queues as usize).min(cores.saturating_sub(1)).max(1));
    if workers > queues as usize {
        return Err(PlacementError::TooManyWorkers { workers, queues, interface: fewest.to_owned() });
    }
    let shares: Vec<Vec<Vec<u32>>> = (0..workers)
        .map(|worker| {
            interfaces
                .iter()
                .map(|(_, queues)| (0..*queues).skip(worker).step_by(workers).collect())
                .collect()
        })
        .collect();
    let count = shares.first().map_or(0, |share| share.iter().map(Vec::len).sum());
    if count > MAX_SOCKETS {
        let (most, queues) = interfaces.iter().copied().max_by_key(|(_, queues)| *queues).unwrap_or_default();
        return Err(PlacementError::TooManyQueues { count, queues, interface: most.to_owned() });
    }
    Ok(shares)
}

/// The core of each worker, chosen from the available ones: from the last one down, so that the first is free for the
/// rest of the machine. Workers share cores if there are fewer; `None` if no core is known.
pub fn cores<C: Copy>(workers: usize, available: &[C]) -> Vec<Option<C>> {
    (0..workers).map(|worker| available.iter().rev().nth(worker % available.len().max(1)).copied()).collect()
}

#[cfg(test)]
mod tests {
    use crate::placement::*;

    #[test]
    fn every_queue_belongs_to_one_worker_and_every_worker_has_one_of_each_interface() {
        let shares = shares(&[("wan", 4), ("lan", 2)], None, 3).unwrap();
        assert_eq!(shares, [[vec![0, 2], vec![0]], [vec![1, 3], vec![1]]]);
    }

    #[test]
    fn without_a_number_one_core_is_left_free_and_there_is_at_least_one_worker() {
        let workers = |queues, cores| shares(&[("wan", queues)], None, cores).unwrap().len();
        assert_eq!((workers(8, 4), workers(2, 8), workers(8, 1)), (3, 2, 1));
    }

    #[test]
    fn workers_have_cores_from_the_last_one_down_and_share_them_if_there_are_fewer() {
        assert_eq!(cores(2, &[0, 1, 5]), [Some(5), Some(1)]);
        assert_eq!(cores(3, &[0, 1]), [Some(1), Some(0), Some(1)]);
        assert_eq!(cores::<usize>(1, &[]), [None]);
    }

    #[test]
    fn more_workers_than_queues_are_refused_by_the_interface_with_the_fewest() {
        let refused = shares(&[("wan", 4), ("lan", 2)], Some(3), 8).unwrap_err();
        let lan = "lan".to_owned();
        assert_eq!(refused, PlacementError::TooManyWorkers { workers: 3, queues: 2, interface: lan });
    }

    #[test]
    fn more_queues_than_a_worker_can_have_are_refused_with_the_limit_and_the_next_step() {
        assert!(shares(&[("wan", 60), ("lan", 3)], Some(1), 8).is_ok());
        let refused = shares(&[("lan", 1), ("wan", 63)], Some(1), 8).unwrap_err().to_string();
        for part in ["64 queues", "63 at most", "wan has 63", "more workers", "ethtool -L wan combined"] {
            assert!(refused.contains(part), "{part}: {refused}");
        }
    }
}
