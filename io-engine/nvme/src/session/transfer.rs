//! Commands in flight and how much of their data has moved.

use crate::outbox::Tag;

/// A bounded table of commands in flight; a tag is an index into it.
#[derive(Debug)]
pub(super) struct Slots<T> {
    entries: Vec<Option<T>>,
    free: Vec<Tag>,
    bound: usize,
}

impl<T> Slots<T> {
    /// At most `bound` commands.
    pub(super) fn new(bound: usize) -> Self {
        Self { entries: Vec::new(), free: Vec::new(), bound }
    }

    /// Changes the bound; commands in flight stay.
    pub(super) fn set_bound(&mut self, bound: usize) {
        self.bound = bound;
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    /// Adds a command; `None` if the table is full.
    pub(super) fn insert(&mut self, value: T) -> Option<Tag> {
        if self.len() >= self.bound {
            return None;
        }
        if let Some(tag) = self.free.pop() {
            self.entries[tag.index()] = Some(value);
            return Some(tag);
        }
        let tag = Tag(u16::try_from(self.entries.len()).ok()?);
        self.entries.push(Some(value));
        Some(tag)
    }

    pub(super) fn get_mut(&mut self, tag: Tag) -> Option<&mut T> {
        self.entries.get_mut(tag.index())?.as_mut()
    }

    pub(super) fn remove(&mut self, tag: Tag) -> Option<T> {
        let value = self.entries.get_mut(tag.index())?.take()?;
        self.free.push(tag);
        Some(value)
    }

    pub(super) fn find(&self, mut is_wanted: impl FnMut(&T) -> bool) -> Option<Tag> {
        let index = self.entries.iter().position(|entry| entry.as_ref().is_some_and(&mut is_wanted))?;
        u16::try_from(index).ok().map(Tag)
    }
}

/// Progress of data that arrives in order. Invariant: `moved <= granted <= len`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Progress {
    /// Bytes of the whole transfer.
    pub(super) len: u32,
    /// The peer may send up to here.
    pub(super) granted: u32,
    /// The peer has sent up to here.
    pub(super) moved: u32,
}

impl Progress {
    pub(super) fn new(len: u32) -> Self {
        Self { len, granted: 0, moved: 0 }
    }

    /// Grants at most `bytes_max` more; offset and length of the grant, `None` where all was granted.
    pub(super) fn grant(&mut self, bytes_max: u32) -> Option<(u32, u32)> {
        let len = (self.len - self.granted).min(bytes_max);
        let offset = self.granted;
        self.granted += len;
        (len > 0).then_some((offset, len))
    }

    /// True where a PDU with `len` bytes at `offset` is the next one and stays within the grant.
    pub(super) fn expects(&self, offset: u32, len: u32) -> bool {
        offset == self.moved && len <= self.granted - self.moved
    }

    pub(super) fn is_complete(&self) -> bool {
        self.moved == self.len
    }

    pub(super) fn is_grant_used(&self) -> bool {
        self.moved == self.granted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_table_takes_no_more_and_reuses_what_is_freed() {
        let mut slots = Slots::new(2);
        let first = slots.insert('a').expect("room");
        assert!(slots.insert('b').is_some());
        assert_eq!(slots.insert('c'), None);
        assert_eq!(slots.remove(first), Some('a'));
        assert_eq!(slots.remove(first), None);
        assert_eq!(slots.insert('c'), Some(first));
        assert_eq!(slots.find(|value| *value == 'b'), Some(Tag(1)));
    }

    #[test]
    fn data_is_taken_in_order_and_only_where_it_was_granted() {
        let mut progress = Progress::new(10);
        assert!(!progress.expects(0, 1));
        assert_eq!(progress.grant(4), Some((0, 4)));
        assert!(progress.expects(0, 4) && !progress.expects(1, 3) && !progress.expects(0, 5));
        progress.moved = 4;
        assert!(progress.is_grant_used() && !progress.is_complete());
        assert_eq!(progress.grant(100), Some((4, 6)));
        assert_eq!(progress.grant(100), None);
    }
}
