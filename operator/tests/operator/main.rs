//! The whole operator on engines in memory: one binary, one laboratory.

#![allow(clippy::unwrap_used, reason = "a test that fails here has failed")]

mod converge;
mod crash;
mod groups;
mod identity;
mod lab;
mod leader;
mod plan;
mod plane;
mod resize;
mod rest;
mod scripts;
mod switch;
mod switchover;
mod volumes;
