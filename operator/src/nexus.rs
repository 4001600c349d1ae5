//! Nexuses: the targets of volumes. They have no verbs of their own; a volume's service drives them.

pub(crate) mod growth;
pub(crate) mod moving;
pub(crate) mod plan;
pub(crate) mod stop;
