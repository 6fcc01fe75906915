//! The flags of a scheduler (`-b`).

/// The flags of `sh` and `mh`. Other schedulers ignore them.
///
/// ```
/// use xvs_sched::scheduler::Flags;
///
/// let flags = Flags(Flags::FALLBACK.0 | Flags::PORT.0);
/// assert!(flags.contains(Flags::PORT));
/// assert!(!Flags::FALLBACK.contains(flags));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flags(pub u8);

impl Flags {
    /// `sh-fallback`, `mh-fallback`: clients of an unusable destination get another one.
    pub const FALLBACK: Self = Self(1);
    /// `sh-port`, `mh-port`: the source port is hashed, too.
    pub const PORT: Self = Self(2);

    /// Whether all flags of `other` are set.
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}
