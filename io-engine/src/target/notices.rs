//! Reservation notifications that a host has not read yet (base 5.16.1, "Reservation Notification"). Pure.

use std::collections::VecDeque;

use nvme::log_page::{ReservationNotice, encode_reservation_notice};

use super::io::NSID;

/// Entries that wait at most: what the log's count can say. The oldest goes first; its number shows that it is missing.
const WAITING_MAX: usize = 255;

/// The log of one controller.
#[derive(Debug, Default)]
pub(super) struct Notices {
    count: u64,
    waiting: VecDeque<(u64, ReservationNotice)>,
}

impl Notices {
    /// Something happened.
    pub(super) fn push(&mut self, notice: ReservationNotice) {
        if self.waiting.len() == WAITING_MAX {
            self.waiting.pop_front();
        }
        // 0 says that there is no entry.
        self.count = self.count.wrapping_add(1).max(1);
        self.waiting.push_back((self.count, notice));
    }

    /// The oldest entry as the log page shows it.
    pub(super) fn page(&self) -> Vec<u8> {
        let more = u8::try_from(self.waiting.len().saturating_sub(1)).unwrap_or(u8::MAX);
        encode_reservation_notice(self.waiting.front().copied(), more, NSID.0)
    }

    /// The oldest entry was read; true where more wait.
    pub(super) fn pop(&mut self) -> bool {
        self.waiting.pop_front();
        !self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_read_in_order_and_numbered() {
        let mut notices = Notices::default();
        assert_eq!(notices.page(), [0; 64]);
        notices.push(ReservationNotice::RegistrationPreempted);
        notices.push(ReservationNotice::ReservationReleased);
        let page = notices.page();
        assert_eq!(page[..16], [1, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 1, 0, 0, 0]);
        assert!(notices.pop());
        assert_eq!(notices.page()[..16], [2, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0]);
        assert!(!notices.pop());
        assert_eq!(notices.page(), [0; 64]);
    }

    #[test]
    fn a_host_that_does_not_read_loses_the_oldest() {
        let mut notices = Notices::default();
        for _ in 0..300 {
            notices.push(ReservationNotice::ReservationPreempted);
        }
        let page = notices.page();
        assert_eq!((page[0], page[9]), (46, 254));
    }
}
