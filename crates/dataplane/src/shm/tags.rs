//! Comparison of all slots of a bucket with a tag at once.
//!
//! A look-up compares eight slots, of which most often one or none matches, so branches would be mispredicted. With
//! SSE2, part of every x86_64, the comparison costs a third of plain code.

use super::atomic::AtomicU64;
#[cfg(any(test, not(all(target_arch = "x86_64", not(loom)))))]
use super::atomic::Ordering;
use super::layout::SLOTS;

/// A bit for each slot whose upper half equals that of `wanted` under the upper half of `mask`. The slots are read
/// without ordering: code that reads the entry of a hit reads the slot again.
#[cfg(all(target_arch = "x86_64", not(loom)))]
#[inline(always)]
pub(crate) fn matching(slots: &[AtomicU64; SLOTS], mask: u64, wanted: u64) -> u32 {
    // SAFETY: SSE2 is part of every x86_64.
    unsafe { by_vectors(slots, mask, wanted) }
}

#[cfg(all(target_arch = "x86_64", not(loom)))]
#[target_feature(enable = "sse2")]
#[inline]
fn by_vectors(slots: &[AtomicU64; SLOTS], mask: u64, wanted: u64) -> u32 {
    use std::arch::asm;
    use std::arch::x86_64::{
        _mm_and_si128, _mm_castps_si128, _mm_castsi128_ps, _mm_cmpeq_epi32, _mm_movemask_epi8,
        _mm_packs_epi16, _mm_packs_epi32, _mm_set1_epi32, _mm_setzero_si128, _mm_shuffle_ps,
    };
    let mut pairs = [_mm_setzero_si128(); SLOTS / 2];
    for (pair, slots) in pairs.iter_mut().zip(slots.chunks_exact(2)) {
        let from: *const AtomicU64 = slots.as_ptr();
        // SAFETY: it reads two slots, which are inside `slots`. Other threads may write them at the same time; if the
        // processor reads a slot half old and half new, the result is a wrong hit or miss. Callers read the slot of a
        // hit again, and a miss leads to a look-up for the insertion, which reads every slot whole.
        unsafe {
            asm!("movdqu {to}, [{from}]", to = out(xmm_reg) *pair, from = in(reg) from,
                 options(nostack, readonly, preserves_flags));
        }
    }
    let mask = _mm_set1_epi32((mask >> 32) as i32);
    let wanted = _mm_set1_epi32((wanted >> 32) as i32);
    let mut equal = [_mm_setzero_si128(); SLOTS / 4];
    for (equal, pairs) in equal.iter_mut().zip(pairs.chunks_exact(2)) {
        // The second and fourth of the four halves of either.
        let upper = _mm_shuffle_ps::<0b11_01_11_01>(_mm_castsi128_ps(pairs[0]), _mm_castsi128_ps(pairs[1]));
        *equal = _mm_cmpeq_epi32(_mm_and_si128(_mm_castps_si128(upper), mask), wanted);
    }
    let words = _mm_packs_epi32(equal[0], equal[1]);
    _mm_movemask_epi8(_mm_packs_epi16(words, _mm_setzero_si128())) as u32
}

/// The comparison in plain code.
#[cfg(not(all(target_arch = "x86_64", not(loom))))]
#[inline]
pub(crate) fn matching(slots: &[AtomicU64; SLOTS], mask: u64, wanted: u64) -> u32 {
    plainly(slots, mask, wanted)
}

#[cfg(any(test, not(all(target_arch = "x86_64", not(loom)))))]
#[inline]
fn plainly(slots: &[AtomicU64; SLOTS], mask: u64, wanted: u64) -> u32 {
    slots.iter().rev().fold(0, |hits, slot| {
        let is_hit = (slot.load(Ordering::Relaxed) & mask) >> 32 == wanted >> 32;
        hits << 1 | u32::from(is_hit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MASK: u64 = 0xffff_0001 << 32;

    proptest! {
        #[test]
        fn both_ways_to_compare_find_the_same_slots(
            slots: [u64; SLOTS], wanted: u64, equal in 0..1u32 << SLOTS,
        ) {
            let wanted = wanted & MASK;
            let slot = |at: usize| match equal >> at & 1 {
                0 => slots[at],
                _ => slots[at] & !MASK | wanted,
            };
            let cells: [AtomicU64; SLOTS] = std::array::from_fn(|at| AtomicU64::new(slot(at)));
            prop_assert_eq!(matching(&cells, MASK, wanted), plainly(&cells, MASK, wanted));
            prop_assert_eq!(matching(&cells, MASK, wanted) & equal, equal);
        }
    }
}
