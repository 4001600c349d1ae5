//! A storm of random faults, then calm.
