//! The memory behind buffers, and the freed memory that each thread keeps for its next ones.
//!
//! Payload buffers come and go with every request. Freed ones are kept, by size class and up to a bound, so that the
//! next request neither faults pages in nor zeroes what it is about to fill.
//!
//! Invariant: every byte of an allocation is initialised, from the first allocation on; kept memory holds old bytes.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::RefCell;
use std::ptr::NonNull;

use super::BUFFER_ALIGNMENT;

/// Buffers shorter than a sector cannot take part in direct I/O. They are protocol headers, many and short-lived, and a
/// page each would cost more than they hold.
const SMALL_LEN: usize = 512;
const SMALL_ALIGNMENT: usize = 16;
/// Sizes that are kept: 4 KiB, 8 KiB, ... 1 MiB. Larger ones are rare, and zeroing them is what they cost anyway.
const CLASSES: usize = 9;
/// What a thread keeps of each size, in bytes: a queue of 128 requests of 32 KiB, or four of a megabyte.
const KEPT_BYTES_MAX: usize = 4 << 20;

/// A piece of memory. It knows nothing of who may use it: see `IoBuf` and `IoBytes`.
pub(super) struct Allocation {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the allocation is plain memory; access goes through `IoBuf` (one owner per byte range) or `IoBytes` (shared,
// read-only), which keep the aliasing rules over threads too.
unsafe impl Send for Allocation {}
// SAFETY: as above; no method of `Allocation` reads or writes the memory while it is shared.
unsafe impl Sync for Allocation {}

/// Memory that a thread keeps.
#[derive(Default)]
struct Kept {
    by_class: [Vec<NonNull<u8>>; CLASSES],
}

thread_local! {
    static KEPT: RefCell<Kept> = RefCell::default();
}

fn class_bytes(class: usize) -> usize {
    BUFFER_ALIGNMENT << class
}

/// The class whose size holds `len` bytes.
fn class_of(len: usize) -> Option<usize> {
    (len >= SMALL_LEN).then(|| (0..CLASSES).find(|class| class_bytes(*class) >= len)).flatten()
}

fn layout_of(len: usize) -> Layout {
    let (size, alignment) = match class_of(len) {
        Some(class) => (class_bytes(class), BUFFER_ALIGNMENT),
        None if len < SMALL_LEN => (len.max(1), SMALL_ALIGNMENT),
        None => (len, BUFFER_ALIGNMENT),
    };
    Layout::from_size_align(size, alignment).expect("buffer lengths stay far below isize::MAX")
}

impl Allocation {
    /// Memory for `len` bytes, whose content is zeroes or what an earlier buffer of this thread has left.
    pub(super) fn recycled(len: usize) -> Self {
        Self::kept(len).unwrap_or_else(|| Self::fresh(len))
    }

    /// Memory for `len` zero bytes.
    pub(super) fn zeroed(len: usize) -> Self {
        let Some(kept) = Self::kept(len) else { return Self::fresh(len) };
        // SAFETY: at least `len` bytes were allocated, and nobody else has them.
        unsafe { kept.start.write_bytes(0, len) };
        kept
    }

    fn kept(len: usize) -> Option<Self> {
        let class = class_of(len)?;
        let start = KEPT.try_with(|kept| kept.borrow_mut().by_class[class].pop()).ok()??;
        Some(Self { start, layout: layout_of(len) })
    }

    fn fresh(len: usize) -> Self {
        let layout = layout_of(len);
        // SAFETY: the layout's size is at least one.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        Self { start, layout }
    }

    pub(super) fn start(&self) -> *mut u8 {
        self.start.as_ptr()
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        // A class's size names it: the layout was made from it.
        let class = class_of(self.layout.size()).filter(|_| self.layout.align() == BUFFER_ALIGNMENT);
        let is_kept = class.is_some_and(|class| {
            KEPT.try_with(|kept| {
                let kept = &mut kept.borrow_mut().by_class[class];
                let has_room = (kept.len() + 1) * class_bytes(class) <= KEPT_BYTES_MAX;
                if has_room {
                    kept.push(self.start);
                }
                has_room
            })
            // The thread is ending and its kept memory is gone.
            .unwrap_or(false)
        });
        if !is_kept {
            // SAFETY: `start` was allocated with this very layout, and the last owner is gone.
            unsafe { dealloc(self.start.as_ptr(), self.layout) }
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        for (class, kept) in self.by_class.iter_mut().enumerate() {
            let layout = layout_of(class_bytes(class));
            for start in kept.drain(..) {
                // SAFETY: what is kept in a class was allocated with the class's layout, and nobody else has it.
                unsafe { dealloc(start.as_ptr(), layout) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_hold_what_they_are_chosen_for() {
        for len in
            [0, 1, 511, 512, 4096, 4097, 65536, 65537, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 5_000_000]
        {
            let layout = layout_of(len);
            assert!(layout.size() >= len);
            assert_eq!(layout.align() == BUFFER_ALIGNMENT, len >= 512);
            assert_eq!(class_of(len), if len < 512 { None } else { class_of(layout.size()) }, "{len}");
        }
    }

    #[test]
    fn what_a_thread_keeps_is_bounded() {
        let many: Vec<_> = (0..100).map(|_| Allocation::recycled(1 << 20)).collect();
        drop(many);
        KEPT.with(|kept| assert_eq!(kept.borrow().by_class[CLASSES - 1].len(), 4));
    }

    #[test]
    fn freed_memory_is_used_again_and_zeroed_when_asked() {
        let first = Allocation::zeroed(8192);
        let start = first.start();
        // SAFETY: the allocation holds 8192 bytes and is ours alone.
        unsafe { start.write_bytes(7, 8192) };
        drop(first);
        let second = Allocation::zeroed(8000);
        assert_eq!(second.start(), start);
        // SAFETY: as above, and every byte of it is initialised.
        let bytes = unsafe { std::slice::from_raw_parts(start, 8192) };
        assert!(bytes[..8000].iter().all(|byte| *byte == 0));
    }
}
