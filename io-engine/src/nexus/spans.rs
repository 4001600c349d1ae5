//! Sets of byte ranges: ascending, apart, none empty.

use std::ops::Range;

/// A set of byte ranges.
pub type Spans = Vec<Range<u64>>;

/// The union of ranges in any order.
pub fn merge(ranges: impl IntoIterator<Item = Range<u64>>) -> Spans {
    let mut sorted: Vec<_> = ranges.into_iter().filter(|range| !range.is_empty()).collect();
    sorted.sort_unstable_by_key(|range| range.start);
    let mut merged: Spans = Vec::new();
    for range in sorted {
        match merged.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}

/// A single range.
pub fn one(range: Range<u64>) -> Spans {
    merge(std::iter::once(range))
}

/// The parts of `within` that `spans` covers.
pub fn intersect(spans: &[Range<u64>], within: &Range<u64>) -> Spans {
    spans
        .iter()
        .map(|span| span.start.max(within.start)..span.end.min(within.end))
        .filter(|range| !range.is_empty())
        .collect()
}

/// The parts of `within` that `spans` does not cover.
pub fn holes(spans: &[Range<u64>], within: &Range<u64>) -> Spans {
    let mut at = within.start;
    let mut holes = Vec::new();
    for covered in intersect(spans, within) {
        if covered.start > at {
            holes.push(at..covered.start);
        }
        at = covered.end;
    }
    if at < within.end {
        holes.push(at..within.end);
    }
    holes
}

/// Sum of the lengths.
pub fn len_bytes(spans: &[Range<u64>]) -> u64 {
    spans.iter().map(|span| span.end - span.start).sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn contains(spans: &[Range<u64>], at: u64) -> bool {
        spans.iter().any(|span| span.contains(&at))
    }

    proptest! {
        /// Against a set of single bytes.
        #[test]
        fn sets_of_spans_agree_with_sets_of_bytes(
            ranges in prop::collection::vec((0_u64..40, 0_u64..8), 0..8),
            start in 0_u64..40,
            len in 0_u64..40,
        ) {
            let ranges: Vec<_> = ranges.into_iter().map(|(start, len)| start..start + len).collect();
            let merged = merge(ranges.clone());
            let within = start..start + len;
            let (inside, outside) = (intersect(&merged, &within), holes(&merged, &within));
            for at in 0..90 {
                let is_in = ranges.iter().any(|range| range.contains(&at));
                prop_assert_eq!(contains(&merged, at), is_in);
                prop_assert_eq!(contains(&inside, at), is_in && within.contains(&at));
                prop_assert_eq!(contains(&outside, at), !is_in && within.contains(&at));
            }
            prop_assert!(merged.windows(2).all(|pair| pair[0].end < pair[1].start));
            prop_assert_eq!(len_bytes(&inside) + len_bytes(&outside), len);
        }
    }
}
