//! The chart, rendered by Helm: what comes out, what is refused, and what a real API server makes of it.

// A test that cannot set up has failed.
#![allow(clippy::unwrap_used)]

mod examples;
mod install;
mod rendered;
mod types;

use serde::Deserialize as _;
use serde_json::Value;

/// Where the chart is installed.
const NAMESPACE: &str = "mayastor";
/// Name of the release.
const RELEASE: &str = "mayastor";

/// The documents of a text in yaml, without empty ones.
fn documents(text: &str) -> Vec<Value> {
    serde_yaml_ng::Deserializer::from_str(text)
        .map(|document| Value::deserialize(document).expect(text))
        .filter(|document| !document.is_null())
        .collect()
}

/// `Kind/name`.
fn title(document: &Value) -> String {
    let text = |pointer: &str| document.pointer(pointer).and_then(Value::as_str).unwrap_or("?");
    format!("{}/{}", text("/kind"), text("/metadata/name"))
}
