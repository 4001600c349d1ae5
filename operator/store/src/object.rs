//! What can be stored.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Revision;

/// A typed object of the registry: JSON under `<Type>/<id>`.
pub trait Object: Serialize + DeserializeOwned + Clone + Send + Sync + 'static {
    /// The type's name in the key.
    const KIND: &'static str;

    /// The object's name in the key.
    fn id(&self) -> String;
}

/// An object and the revision it was read or written at, which the next change is compared with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned<T> {
    /// The object.
    pub value: T,
    /// When it last changed.
    pub revision: Revision,
}

impl<T> std::ops::Deref for Versioned<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}
