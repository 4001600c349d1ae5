//! The gRPC front: engines register here.

pub mod registration;
