//! One slot for the newest view of what is followed, the network by default, between the follower and the control thread.
//!
//! Views that come while the control thread is busy replace each other, so it builds from the newest alone, however
//! fast they change. Neither end waits for the other.

use std::sync::{Arc, Mutex, PoisonError};

use crate::network::View;

/// The slot; its clones are the same one.
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

/// What a slot was when a view was put into it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slot {
    /// Empty: whoever takes views has to be told.
    Empty,
    /// Another view was there, of which whoever takes views has been told.
    Full,
}

impl<T> Latest<T> {
    /// Puts a view in the place of one that nobody has taken.
    pub fn put(&self, view: T) -> Slot {
        match self.slot().replace(view) {
            None => Slot::Empty,
            Some(_) => Slot::Full,
        }
    }

    /// Takes the newest view out.
    pub fn take(&self) -> Option<T> {
        self.slot().take()
    }

    /// Each change of the slot is one move, so a panic elsewhere leaves it whole.
    fn slot(&self) -> std::sync::MutexGuard<'_, Option<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use crate::network::latest::*;

    #[test]
    fn of_many_views_only_the_newest_is_taken_and_only_the_first_is_told_of() {
        let latest: Latest = Latest::default();
        let view = |number: usize| View { warnings: vec![number.to_string()], ..View::default() };
        let told: Vec<_> = (0..20).map(|number| latest.put(view(number))).collect();
        assert_eq!(told.iter().filter(|slot| **slot == Slot::Empty).count(), 1);
        assert_eq!(told[0], Slot::Empty);
        assert_eq!(latest.take(), Some(view(19)));
        assert_eq!(latest.take(), None);
        assert_eq!(latest.put(view(20)), Slot::Empty, "told of again");
    }
}
