//! Flags of a scheduler (`-b`).

/// The flags of a scheduler (`-b`), as `sh` and `mh` have them; others ignore them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flags(pub u8);

impl Flags {
    /// `sh-fallback`, `mh-fallback`: an unusable destination's clients go to others.
    pub const FALLBACK: Self = Self(1);
    /// `sh-port`, `mh-port`: the source port counts as well.
    pub const PORT: Self = Self(2);

    /// Whether all flags of `other` are set.
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}
