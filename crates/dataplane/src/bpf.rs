//! The layouts and constants that the BPF programs share with this crate, by their names in `bpf/maps.h`.
//!
//! `build.rs` makes them of that file. Values that both sides change are words, at the places that [`in_words`] gives.
//! Not here: the places of words in the record of an offloaded connection (`conn/offloaded.rs`, `offload/part.rs`).

#![allow(
    dead_code,
    missing_docs,
    non_camel_case_types,
    unreachable_pub,
    reason = "made of bpf/maps.h, which explains them"
)]

include!(concat!(env!("OUT_DIR"), "/maps.rs"));

/// A size or an offset in words.
pub(crate) const fn in_words(bytes: usize) -> usize {
    assert!(bytes.is_multiple_of(8), "words are at multiples of their size");
    bytes / 8
}
