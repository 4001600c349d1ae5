//! The conformance suite of hosts, on the one in memory and on the real one with a tree of files.

// A test that cannot set up has failed.
#![allow(clippy::unwrap_used)]

use csi::host::memory::MemoryNvme;
use csi::host::suite::{self, OnTree, Subject};
use csi::host::tree::Tree;

fn memory() -> Box<dyn Subject> {
    Box::new(MemoryNvme::default())
}

fn sysfs() -> Box<dyn Subject> {
    Box::new(OnTree::new(Tree::new().unwrap()))
}

macro_rules! suite {
    ($($check:ident),* $(,)?) => {
        mod in_memory {
            $(#[test] fn $check() { super::suite::$check(&*super::memory()); })*
        }
        mod on_sysfs {
            $(#[test] fn $check() { super::suite::$check(&*super::sysfs()); })*
        }
    };
}

suite!(
    a_controller_is_found_among_others_as_it_is_in_the_list_of_all,
    a_controller_that_was_seen_being_made_is_found_later,
    a_second_path_joins_the_head_of_the_first,
    a_connect_to_the_same_address_says_that_it_is_connected,
    a_refused_connect_leaves_nothing,
    states_follow_the_kernel,
    an_io_timeout_is_gone_with_its_controller,
    a_deleted_controller_is_not_confused_with_the_next_of_its_name,
    a_reset_controller_tries_to_connect_anew,
    a_controller_is_there_before_its_namespaces,
);
