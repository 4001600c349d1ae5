//! Lists, page by page.
//!
//! Lists whose bodies can say where the next page begins are never longer than [`ENTRIES_MAX`]. Those that clients know
//! as plain arrays are cut only for who asks for it: another would take the first page for everything.

use serde::Deserialize;

/// Entries of a page, however many were asked for: a reply of some megabytes.
const ENTRIES_MAX: usize = 1000;

/// Which part of a list is asked for.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub(super) struct PageQuery {
    /// At most so many; 0, as absent, asks for as many as there may be.
    #[serde(default)]
    max_entries: usize,
    /// Where it begins: the token that the page before ended with.
    #[serde(default)]
    starting_token: usize,
}

impl PageQuery {
    /// The page of a whole list, and the token of the next one.
    pub(super) fn page<T>(self, all: Vec<T>) -> (Vec<T>, Option<u64>) {
        let limit = if self.max_entries == 0 { ENTRIES_MAX } else { self.max_entries.min(ENTRIES_MAX) };
        self.cut(all, limit)
    }

    /// The page of a plain array.
    pub(super) fn array<T>(self, all: Vec<T>) -> Vec<T> {
        let limit = if self.max_entries == 0 { usize::MAX } else { self.max_entries };
        self.cut(all, limit).0
    }

    fn cut<T>(self, all: Vec<T>, limit: usize) -> (Vec<T>, Option<u64>) {
        let end = self.starting_token.saturating_add(limit);
        let next_token = (end < all.len()).then_some(end as u64);
        (all.into_iter().skip(self.starting_token).take(limit).collect(), next_token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(max_entries: usize, starting_token: usize, of: usize) -> (usize, Option<u64>) {
        let (entries, next) = PageQuery { max_entries, starting_token }.page((0..of).collect());
        assert!(entries.first().is_none_or(|first| *first == starting_token));
        (entries.len(), next)
    }

    #[test]
    fn pages_follow_each_other_and_none_is_longer_than_the_limit() {
        assert_eq!(page(0, 0, 3), (3, None));
        assert_eq!(page(2, 0, 3), (2, Some(2)));
        assert_eq!(page(2, 2, 3), (1, None));
        assert_eq!(page(3, 0, 3), (3, None));
        assert_eq!(page(1, 9, 3), (0, None));
        assert_eq!(page(usize::MAX, usize::MAX, 3), (0, None));
        assert_eq!(page(0, 0, 1001), (1000, Some(1000)));
        assert_eq!(page(5000, 1000, 1001), (1, None));
        let array = |max_entries| PageQuery { max_entries, starting_token: 0 }.array(vec![0; 1001]).len();
        assert_eq!((array(0), array(7)), (1001, 7));
    }
}
