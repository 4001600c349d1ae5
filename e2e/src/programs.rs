//! Where the workspace's own programs are.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

/// The path of a program of this workspace, built with the same profile as the caller.
///
/// Cargo builds the programs of *this* crate with its tests; those of other crates come with
/// `cargo build --workspace --bins`, which `make test` and `make demo` run first.
pub fn program(name: &str) -> Result<PathBuf> {
    find(name, "cargo build --workspace --bins")
}

/// The path of an example program, which `cargo build --workspace --examples` builds.
pub fn example(name: &str) -> Result<PathBuf> {
    find(&format!("examples/{name}"), "cargo build --workspace --examples")
}

fn find(name: &str, how: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("find the running program")?;
    // target/debug/deps/<test> and target/debug/examples/<example> lie one below the programs, target/debug/<program>
    // beside them.
    let candidates: Vec<_> = own.ancestors().skip(1).take(2).map(|dir| dir.join(name)).collect();
    match candidates.iter().find(|path| path.is_file()) {
        Some(path) => Ok(path.clone()),
        None => bail!(
            "the program {name} is not built: run `{how}` (looked at {})",
            candidates.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
        ),
    }
}
