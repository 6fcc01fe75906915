//! Descriptors of `xsk-rs` at addresses of our choice.
//!
//! A packet that grew into its headroom is sent from another address than it was received at, but `FrameDesc` has
//! no setter for its address. It is a `Copy` value of plain integers, so this module finds out by trial, once at
//! set-up, which of its words is the address and which the length, and writes these two. A layout that cannot be
//! told so is refused at set-up. Cost of one descriptor: four words.

use std::mem::{MaybeUninit, size_of, transmute};

use xsk_rs::umem::frame::FrameDesc;

use crate::shm::Span;

const WORDS: usize = 4;
type Words = [MaybeUninit<usize>; WORDS];

const _: () = assert!(size_of::<FrameDesc>() == size_of::<Words>());

/// How a `FrameDesc` is laid out by the compiler at hand.
#[derive(Debug, Clone, Copy)]
pub(super) struct Descriptors {
    address: usize,
    length: usize,
}

impl Descriptors {
    /// Finds the layout; `None` if it is not what this module expects.
    pub(super) fn probe() -> Option<Self> {
        const MARKER: usize = 0x5a5a;
        let marked = |word: usize| {
            let mut words = to_words(FrameDesc::default());
            words[word].write(MARKER);
            from_words(words)
        };
        let only = |field: fn(&FrameDesc) -> usize| {
            let mut hits = (0..WORDS).filter(|word| field(&marked(*word)) == MARKER);
            hits.next().filter(|_| hits.next().is_none())
        };
        let found = Self { address: only(FrameDesc::addr)?, length: only(|desc| desc.lengths().data())? };
        let desc = found.at(Span { offset: 1, len: 2 });
        let others = (desc.options(), desc.lengths().headroom());
        (desc.addr() == 1 && desc.lengths().data() == 2 && others == (0, 0)).then_some(found)
    }

    /// The descriptor of a packet at `span`.
    pub(super) fn at(self, span: Span) -> FrameDesc {
        let mut words = to_words(FrameDesc::default());
        words[self.address].write(span.offset);
        words[self.length].write(span.len);
        from_words(words)
    }
}

fn to_words(desc: FrameDesc) -> Words {
    // SAFETY: both are 32 bytes (asserted above), and `MaybeUninit` takes any bytes, padding included.
    unsafe { transmute::<FrameDesc, Words>(desc) }
}

fn from_words(words: Words) -> FrameDesc {
    // SAFETY: `FrameDesc` consists of three `usize` and one `u32` (its accessors show it), for which every bit
    // pattern is a value. The words come from such a value, some overwritten by initialised words, so no byte of
    // a field is uninitialised.
    unsafe { transmute::<Words, FrameDesc>(words) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_says_the_address_and_length_it_was_made_for_and_nothing_else() {
        let descriptors = Descriptors::probe().expect("the layout of xsk-rs 0.11");
        for span in [Span { offset: 0, len: 0 }, Span { offset: 0x7f_f0c4, len: 1514 }] {
            let desc = descriptors.at(span);
            assert_eq!((desc.addr(), desc.lengths().data()), (span.offset, span.len));
            assert_eq!((desc.lengths().headroom(), desc.options()), (0, 0));
        }
    }
}
