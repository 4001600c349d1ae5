//! Asynchronous events of one controller: which are wanted, which are due, which requests wait for one. Pure.
//!
//! An event of a kind is told once, and again only after the host has read the log that it points to (base 2.0,
//! section 5.2): otherwise a host that is slow to read would be told the same thing for ever.

use std::collections::{BTreeSet, VecDeque};

use nvme::feature::AsyncEvent;
use nvme::{CommandId, Tag};

/// Requests outstanding at most; AERL says so too.
pub(super) const REQUESTS_MAX: usize = 4;

/// A request that is answered with an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) tag: Tag,
    pub(super) event: AsyncEvent,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Events {
    /// Asynchronous Event Configuration.
    enabled: u32,
    waiting: VecDeque<(Tag, CommandId)>,
    due: BTreeSet<AsyncEvent>,
    /// Told, and the log not read since.
    masked: BTreeSet<AsyncEvent>,
}

impl Events {
    /// The feature's value.
    pub(super) fn configuration(&self) -> u32 {
        self.enabled
    }

    /// The host chose which events it wants.
    pub(super) fn configure(&mut self, enabled: u32) {
        self.enabled = enabled;
        self.due.retain(|event| event.is_enabled(enabled));
    }

    /// A request came; false if there are too many.
    pub(super) fn request(&mut self, tag: Tag, cid: CommandId) -> bool {
        if self.waiting.len() == REQUESTS_MAX {
            return false;
        }
        self.waiting.push_back((tag, cid));
        true
    }

    /// Something happened.
    pub(super) fn raise(&mut self, event: AsyncEvent) {
        if event.is_enabled(self.enabled) {
            self.due.insert(event);
        }
    }

    /// The host read a log in a way that clears its event.
    pub(super) fn log_read(&mut self, log: u8) {
        self.masked.retain(|event| event.log_page() != log);
    }

    /// The next request to answer.
    pub(super) fn next(&mut self) -> Option<Told> {
        let event = *self.due.iter().find(|event| !self.masked.contains(event))?;
        let (tag, _) = self.waiting.pop_front()?;
        self.due.remove(&event);
        self.masked.insert(event);
        Some(Told { tag, event })
    }

    /// Takes back the request `cid`.
    pub(super) fn abort(&mut self, cid: CommandId) -> Option<Tag> {
        let index = self.waiting.iter().position(|(_, waiting)| *waiting == cid)?;
        self.waiting.remove(index).map(|(tag, _)| tag)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enabled() -> Events {
        let mut events = Events::default();
        events.configure(nvme::feature::EVENT_ANA_CHANGED | nvme::feature::EVENT_NAMESPACE_CHANGED);
        events
    }

    #[test]
    fn an_event_waits_for_a_request_and_is_told_once() {
        let mut events = enabled();
        events.raise(AsyncEvent::AnaChanged);
        events.raise(AsyncEvent::AnaChanged);
        assert_eq!(events.next(), None);
        assert!(events.request(Tag(0), CommandId(10)) && events.request(Tag(1), CommandId(11)));
        assert_eq!(events.next(), Some(Told { tag: Tag(0), event: AsyncEvent::AnaChanged }));
        assert_eq!(events.next(), None);
    }

    #[test]
    fn an_event_is_told_again_only_after_its_log_was_read() {
        let mut events = enabled();
        for index in 0..3 {
            assert!(events.request(Tag(index), CommandId(index)));
        }
        events.raise(AsyncEvent::AnaChanged);
        assert!(events.next().is_some());
        events.raise(AsyncEvent::AnaChanged);
        assert_eq!(events.next(), None);
        events.log_read(nvme::log_page::CHANGED_NAMESPACES);
        assert_eq!(events.next(), None);
        events.log_read(nvme::log_page::ANA);
        assert!(events.next().is_some());
    }

    #[test]
    fn events_that_are_not_wanted_are_not_told_and_requests_are_bounded() {
        let mut events = enabled();
        events.raise(AsyncEvent::DiscoveryChanged);
        for index in 0..4 {
            assert!(events.request(Tag(index), CommandId(index)));
        }
        assert!(!events.request(Tag(4), CommandId(4)));
        assert_eq!(events.next(), None);
        assert_eq!(events.abort(CommandId(2)), Some(Tag(2)));
        assert_eq!(events.abort(CommandId(2)), None);
    }
}
