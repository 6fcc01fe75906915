//! The memory that large requests of all clients of the control socket share.

use std::sync::atomic::{AtomicU64, Ordering};

use xvs_model::protocol::framing::FrameError;

/// The bytes of the large requests that are being read or carried out.
#[derive(Debug, Default)]
pub(super) struct LargeRequests(AtomicU64);

/// The share of one request in the bytes. Dropping it returns the share.
pub(super) struct Room<'a>(&'a AtomicU64, u64);

impl LargeRequests {
    /// Takes room for a request with this length. All large requests together have the room of the largest permitted
    /// request.
    ///
    /// # Errors
    ///
    /// The request is longer than `limit`, or others have the room.
    pub(super) fn take(&self, bytes: u32, limit: u32) -> Result<Option<Room<'_>>, FrameError> {
        if bytes > limit {
            return Err(FrameError::TooLong { bytes, limit });
        }
        if bytes <= SMALL_BYTES {
            return Ok(None);
        }
        let wanted = u64::from(bytes);
        // Relaxed: the number orders nothing.
        let taken = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| {
            Some(taken + wanted).filter(|all| *all <= u64::from(limit))
        });
        match taken {
            Ok(_) => Ok(Some(Room(&self.0, wanted))),
            Err(_) => Err(FrameError::NoRoom),
        }
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(self.1, Ordering::Relaxed);
    }
}

/// Requests up to this length are not limited together.
const SMALL_BYTES: u32 = 64 << 10;
