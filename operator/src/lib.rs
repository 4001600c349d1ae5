//! operator

pub mod kube;
