//! Named steps of a story: a test log then reads like the story, and a failure says where in it it happened.

use std::future::Future;

use anyhow::{Context as _, Result};
use tokio::time::Instant;

/// Runs one step and prints how long it took; its name is the context of its error.
pub async fn step<T>(what: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
    let begun = Instant::now();
    // Boxed: a story of many steps is one future, and would outgrow its stack.
    let outcome = Box::pin(work).await;
    let mark = if outcome.is_ok() { "ok" } else { "NO" };
    println!("{mark}  {what}  [{:.1} s]", begun.elapsed().as_secs_f64());
    outcome.with_context(|| format!("step: {what}"))
}
