//! A slot for the newest value, between a follower and the control thread.
//!
//! A new value replaces one that has not been taken, so a busy control thread finds only the newest value. Neither
//! thread waits for the other.

use std::sync::{Arc, Mutex, PoisonError};

use crate::network::View;

/// The slot; clones share it.
#[derive(Debug)]
pub struct Latest<T = View>(Arc<Mutex<Option<T>>>);

impl<T> Clone for Latest<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Default for Latest<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

/// The state of a slot before [`Latest::put`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slot {
    /// Empty: the receiver has to be woken.
    Empty,
    /// The slot has a value that has not been taken: the receiver has already been woken.
    Full,
}

impl<T> Latest<T> {
    /// Stores a value, replacing an earlier one.
    pub fn put(&self, view: T) -> Slot {
        match self.slot().replace(view) {
            None => Slot::Empty,
            Some(_) => Slot::Full,
        }
    }

    /// Takes the newest value.
    pub fn take(&self) -> Option<T> {
        self.slot().take()
    }

    /// Each change of the slot is one move, so it is valid even after a panic in another thread.
    fn slot(&self) -> std::sync::MutexGuard<'_, Option<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use crate::network::latest::*;
    use crate::notice::Notice;

    #[test]
    fn of_many_values_the_newest_is_taken_and_the_first_wakes_the_receiver() {
        let latest: Latest = Latest::default();
        let view =
            |number: usize| View { warnings: vec![Notice::new(number, String::new())], ..View::default() };
        let states: Vec<_> = (0..20).map(|number| latest.put(view(number))).collect();
        assert_eq!(states.iter().filter(|slot| **slot == Slot::Empty).count(), 1);
        assert_eq!(states[0], Slot::Empty);
        assert_eq!(latest.take(), Some(view(19)));
        assert_eq!(latest.take(), None);
        assert_eq!(latest.put(view(20)), Slot::Empty, "the receiver is woken again");
    }
}
