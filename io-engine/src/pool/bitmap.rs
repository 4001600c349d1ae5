//! Bitmaps: plain ones, and those of an extent, which are mostly all or nothing.

use std::ops::Range;

use super::codec::{Decoder, Encoder, Truncated};
use crate::block::to_usize;

const WORD_BITS: u64 = 64;

/// A bitmap of fixed length.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bitmap {
    words: Vec<u64>,
    len: u64,
}

/// The bits of `range` within the word `index`.
fn mask(index: u64, range: &Range<u64>) -> u64 {
    let first = range.start.max(index * WORD_BITS) - index * WORD_BITS;
    let last = range.end.min((index + 1) * WORD_BITS) - index * WORD_BITS;
    let below = |bits: u64| if bits == WORD_BITS { u64::MAX } else { (1 << bits) - 1 };
    below(last) & !below(first)
}

impl Bitmap {
    /// All bits clear.
    pub fn new(len: u64) -> Self {
        Self { words: vec![0; to_usize(len.div_ceil(WORD_BITS))], len }
    }

    /// All bits set.
    pub fn full(len: u64) -> Self {
        let mut bitmap = Self::new(len);
        bitmap.set(0..len, true);
        bitmap
    }

    /// Number of bits.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// True for a map of no bits.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// One bit.
    pub fn get(&self, bit: u64) -> bool {
        assert!(bit < self.len, "bit {bit} of {}", self.len);
        self.words[to_usize(bit / WORD_BITS)] >> (bit % WORD_BITS) & 1 == 1
    }

    /// Sets or clears a range.
    pub fn set(&mut self, range: Range<u64>, value: bool) {
        assert!(range.start <= range.end && range.end <= self.len, "bits {range:?} of {}", self.len);
        if range.is_empty() {
            return;
        }
        for index in range.start / WORD_BITS..=(range.end - 1) / WORD_BITS {
            let word = &mut self.words[to_usize(index)];
            if value {
                *word |= mask(index, &range);
            } else {
                *word &= !mask(index, &range);
            }
        }
    }

    /// The same bits in a map of another length; bits that are new are clear.
    pub fn resized(mut self, len: u64) -> Self {
        if len < self.len {
            self.set(len..self.len, false);
        }
        self.words.resize(to_usize(len.div_ceil(WORD_BITS)), 0);
        self.len = len;
        self
    }

    /// Number of set bits.
    pub fn count(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// The first bit at or after `from` that has `value`.
    pub fn find(&self, from: u64, value: bool) -> Option<u64> {
        self.find_in(from..self.len, value)
    }

    /// The first bit of a range that has `value`; looks no further than the range.
    pub fn find_in(&self, range: Range<u64>, value: bool) -> Option<u64> {
        let end = range.end.min(self.len);
        let mut index = range.start / WORD_BITS;
        let mut ignore = range.start % WORD_BITS;
        while index * WORD_BITS < end {
            let word = self.words[to_usize(index)];
            let wanted = (if value { word } else { !word }) & (u64::MAX << ignore);
            if wanted != 0 {
                let bit = index * WORD_BITS + u64::from(wanted.trailing_zeros());
                return (bit < end).then_some(bit);
            }
            (index, ignore) = (index + 1, 0);
        }
        None
    }

    /// True where every bit set here is set in `other`, a map of the same length.
    pub fn is_within(&self, other: &Self) -> bool {
        self.len == other.len && self.words.iter().zip(&other.words).all(|(mine, theirs)| mine & !theirs == 0)
    }

    /// The runs of set bits, ascending.
    pub fn runs(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.runs_from(0)
    }

    /// The runs of set bits from `from` on, ascending.
    pub fn runs_from(&self, mut from: u64) -> impl Iterator<Item = Range<u64>> + '_ {
        std::iter::from_fn(move || {
            let start = self.find(from, true)?;
            from = self.find(start, false).unwrap_or(self.len);
            Some(start..from)
        })
    }

    /// The words of a range of words, for storage.
    pub(super) fn encode_words(&self, words: Range<usize>, out: &mut Encoder) {
        for word in &self.words[words] {
            out.u64(*word);
        }
    }

    pub(super) fn word_count(&self) -> usize {
        self.words.len()
    }

    /// Replaces `count` words from `first` on by what was stored; bits past the end must be clear.
    pub(super) fn decode_words(
        &mut self,
        first: usize,
        count: usize,
        from: &mut Decoder<'_>,
    ) -> Result<(), Truncated> {
        let end = first.checked_add(count).ok_or(Truncated)?;
        let words = self.words.get_mut(first..end).ok_or(Truncated)?;
        for word in words {
            *word = from.u64()?;
        }
        let used = self.len % WORD_BITS;
        match self.words.last() {
            Some(last) if used != 0 && last >> used != 0 => Err(Truncated),
            _ => Ok(()),
        }
    }
}

/// Which 4 KiB blocks of an extent are held.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Held {
    /// None of them.
    #[default]
    Nothing,
    /// All of them.
    All,
    /// Some of them; never none or all.
    Some(Box<Bitmap>),
}

impl Held {
    /// Marks a range of an extent of `pages` blocks as held or not.
    pub fn set(&mut self, range: Range<u64>, value: bool, pages: u64) {
        if range.is_empty() {
            return;
        }
        let whole = range == (0..pages);
        let unchanged = if value { Self::All } else { Self::Nothing };
        if whole || *self == unchanged {
            *self = unchanged;
            return;
        }
        if !matches!(self, Self::Some(_)) {
            let bitmap = if value { Bitmap::new(pages) } else { Bitmap::full(pages) };
            *self = Self::Some(Box::new(bitmap));
        }
        if let Self::Some(bitmap) = self {
            bitmap.set(range, value);
            if bitmap.find(0, !value).is_none() {
                *self = unchanged;
            }
        }
    }

    /// True where the block is held.
    pub fn get(&self, page: u64) -> bool {
        match self {
            Self::Nothing => false,
            Self::All => true,
            Self::Some(bitmap) => bitmap.get(page),
        }
    }

    /// Whether the block `from` is held, and where the run of blocks alike ends, at `end` at the latest.
    pub fn run(&self, from: u64, end: u64) -> (bool, u64) {
        match self {
            Self::Nothing => (false, end),
            Self::All => (true, end),
            Self::Some(bitmap) => {
                let held = bitmap.get(from);
                (held, bitmap.find_in(from..end, !held).unwrap_or(end))
            }
        }
    }

    /// True where no block is held.
    pub fn is_nothing(&self) -> bool {
        *self == Self::Nothing
    }

    /// Number of blocks held.
    pub fn count(&self, pages: u64) -> u64 {
        match self {
            Self::Nothing => 0,
            Self::All => pages,
            Self::Some(bitmap) => bitmap.count(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_held_map_is_a_vector_of_flags(
            len in 1_u64..300,
            changes in prop::collection::vec((0_u64..300, 0_u64..300, any::<bool>()), 0..20),
        ) {
            let mut held = Held::Nothing;
            let mut bitmap = Bitmap::new(len);
            let mut oracle = vec![false; to_usize(len)];
            for (a, b, value) in changes {
                let (a, b) = (a.min(len), b.min(len));
                let range = a.min(b)..a.max(b);
                held.set(range.clone(), value, len);
                bitmap.set(range.clone(), value);
                oracle[to_usize(range.start)..to_usize(range.end)].fill(value);
                let all = oracle.iter().all(|bit| *bit);
                let any = oracle.iter().any(|bit| *bit);
                prop_assert_eq!(matches!(held, Held::All), all);
                prop_assert_eq!(held.is_nothing(), !any);
                for page in 0..len {
                    prop_assert_eq!(held.get(page), oracle[to_usize(page)]);
                    prop_assert_eq!(bitmap.get(page), oracle[to_usize(page)]);
                    let (is_held, until) = held.run(page, len);
                    prop_assert_eq!(is_held, oracle[to_usize(page)]);
                    let same = oracle[to_usize(page)..].iter().take_while(|bit| **bit == is_held).count();
                    prop_assert_eq!(until, page + same as u64);
                }
                prop_assert_eq!(held.count(len), oracle.iter().filter(|bit| **bit).count() as u64);
                let from_runs: u64 = bitmap.runs().map(|run| run.end - run.start).sum();
                prop_assert_eq!(from_runs, bitmap.count());
            }
        }
    }
}
