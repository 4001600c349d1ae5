//! Command and response capsules: nvme-tcp 1.0 sections 3.6.2.5 and 3.6.2.6.

use crate::command::SubmissionEntry;
use crate::completion::CompletionEntry;

/// The submission entry behind the common header.
pub(crate) fn decode_command(specific: &[u8]) -> SubmissionEntry {
    let mut entry = [0; 64];
    entry.copy_from_slice(&specific[..64]);
    SubmissionEntry::decode(&entry)
}

/// The completion entry behind the common header.
pub(crate) fn decode_response(specific: &[u8]) -> CompletionEntry {
    let mut entry = [0; 16];
    entry.copy_from_slice(&specific[..16]);
    CompletionEntry::decode(&entry)
}
