//! Buffers for I/O: aligned, owned, and given back with the completion.
//!
//! [`IoBuf`] is held by one owner, who may write into it; [`IoBytes`] is a shared slice that nobody may write into.
//! One turns into the other without a copy: [`IoBuf::freeze`], [`IoBytes::try_into_buf`]. Parts of one allocation can
//! be taken apart ([`IoBuf::split_off`]) for several requests and put together again ([`IoBuf::join`]).

use std::fmt;
use std::ops::{Deref, DerefMut, Range};
use std::sync::Arc;

use allocation::Allocation;

mod allocation;

/// Alignment of a buffer's first byte: what `O_DIRECT` asks of 4 KiB devices.
pub const BUFFER_ALIGNMENT: usize = 4096;

/// A buffer with one owner, aligned to [`BUFFER_ALIGNMENT`] unless it has less than 512 bytes or was split off at an odd
/// place.
pub struct IoBuf {
    // Invariant: no other IoBuf or IoBytes covers [offset, offset + len) of this allocation.
    allocation: Arc<Allocation>,
    offset: usize,
    len: usize,
}

impl IoBuf {
    /// A buffer of `len` zero bytes.
    pub fn zeroed(len: usize) -> Self {
        Self { allocation: Arc::new(Allocation::zeroed(len)), offset: 0, len }
    }

    /// A buffer of `len` bytes that hold zeroes or what an earlier buffer of this thread has left: for reads and receives,
    /// which give back only what they have filled. Never let more of it out than was filled.
    pub fn recycled(len: usize) -> Self {
        Self { allocation: Arc::new(Allocation::recycled(len)), offset: 0, len }
    }

    /// A buffer with a copy of `bytes`.
    pub fn from_slice(bytes: &[u8]) -> Self {
        let mut buf = Self::recycled(bytes.len());
        buf.copy_from_slice(bytes);
        buf
    }

    /// Keeps `[0, at)` and returns `[at, len)`; both are parts of the same allocation.
    ///
    /// # Panics
    /// If `at` is larger than the length.
    pub fn split_off(&mut self, at: usize) -> Self {
        assert!(at <= self.len, "split at {at} of a buffer of {} bytes", self.len);
        let tail =
            Self { allocation: Arc::clone(&self.allocation), offset: self.offset + at, len: self.len - at };
        self.len = at;
        tail
    }

    /// Puts parts of one allocation together again, in the order of their addresses.
    ///
    /// # Panics
    /// If there are no parts or they are not neighbours.
    pub fn join(parts: Vec<Self>) -> Self {
        let mut parts = parts.into_iter();
        let mut whole = parts.next().expect("join takes at least one part");
        for part in parts {
            assert!(
                Arc::ptr_eq(&whole.allocation, &part.allocation) && whole.offset + whole.len == part.offset,
                "only neighbouring parts of one allocation can be joined"
            );
            whole.len += part.len;
        }
        whole
    }

    /// Shortens the buffer; longer than it is has no effect. The cut-off bytes stay allocated.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Makes the buffer shareable and read-only.
    pub fn freeze(self) -> IoBytes {
        IoBytes { allocation: self.allocation, offset: self.offset, len: self.len }
    }
}

impl Deref for IoBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the range lies within the allocation, was initialised when allocated, and by the invariant nobody else
        // covers it.
        unsafe { std::slice::from_raw_parts(self.allocation.start().add(self.offset), self.len) }
    }
}

impl DerefMut for IoBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; `&mut self` makes this the only access through this owner.
        unsafe { std::slice::from_raw_parts_mut(self.allocation.start().add(self.offset), self.len) }
    }
}

impl fmt::Debug for IoBuf {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "IoBuf({} bytes)", self.len)
    }
}

/// A shared, read-only part of a buffer; clones are cheap.
#[derive(Clone)]
pub struct IoBytes {
    // Invariant: no IoBuf covers any byte of [offset, offset + len) of this allocation.
    allocation: Arc<Allocation>,
    offset: usize,
    len: usize,
}

impl IoBytes {
    /// A copy of `bytes`.
    pub fn from_slice(bytes: &[u8]) -> Self {
        IoBuf::from_slice(bytes).freeze()
    }

    /// A part of this slice.
    ///
    /// # Panics
    /// If the range reaches past the end.
    pub fn slice(&self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {} bytes", self.len);
        Self {
            allocation: Arc::clone(&self.allocation),
            offset: self.offset + range.start,
            len: range.end - range.start,
        }
    }

    /// The buffer back for writing, if nobody else holds a part of its allocation; else `self`.
    pub fn try_into_buf(mut self) -> Result<IoBuf, Self> {
        // `get_mut` succeeds only for the sole owner, and orders this after the last drop of the others.
        if Arc::get_mut(&mut self.allocation).is_some() {
            Ok(IoBuf { allocation: self.allocation, offset: self.offset, len: self.len })
        } else {
            Err(self)
        }
    }
}

impl Deref for IoBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the range lies within the allocation, and by the invariant nobody may write into it.
        unsafe { std::slice::from_raw_parts(self.allocation.start().add(self.offset), self.len) }
    }
}

impl fmt::Debug for IoBytes {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "IoBytes({} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_aligned_and_zero() {
        let buf = IoBuf::zeroed(8192);
        assert_eq!(buf.as_ptr() as usize % BUFFER_ALIGNMENT, 0);
        assert!(buf.iter().all(|byte| *byte == 0));
    }

    #[test]
    fn parts_can_be_written_apart_and_joined_again() {
        let mut head = IoBuf::zeroed(12);
        let mut tail = head.split_off(4);
        head.fill(1);
        tail.fill(2);
        assert_eq!(&*IoBuf::join(vec![head, tail]), &[1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2]);
    }

    #[test]
    #[should_panic(expected = "neighbouring parts")]
    fn strangers_are_not_joined() {
        let _ = IoBuf::join(vec![IoBuf::zeroed(4), IoBuf::zeroed(4)]);
    }

    #[test]
    fn a_shared_buffer_is_not_handed_back_for_writing() {
        let bytes = IoBytes::from_slice(b"0123456789");
        let part = bytes.slice(2..5);
        assert_eq!(&*part, b"234");
        let bytes = bytes.try_into_buf().expect_err("a part is still held");
        drop(part);
        assert_eq!(bytes.try_into_buf().expect("nobody else holds it").len(), 10);
    }

    #[test]
    fn a_split_off_part_keeps_the_whole_from_being_written_through_the_other_side() {
        let mut head = IoBuf::zeroed(8);
        let tail = head.split_off(4);
        let shared = head.freeze();
        assert!(shared.try_into_buf().is_err(), "the tail still shares the allocation");
        drop(tail);
    }
}
