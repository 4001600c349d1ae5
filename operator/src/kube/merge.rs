//! JSON merge patches (RFC 7386).

use serde_json::{Map, Value};

/// The patch that turns `from` into `to`; an empty object if they are the same.
pub(crate) fn diff(from: &Value, to: &Value) -> Value {
    let (Value::Object(from), Value::Object(to)) = (from, to) else { return to.clone() };
    let gone = from.keys().filter(|key| !to.contains_key(*key)).map(|key| (key.clone(), Value::Null));
    let changed = to.iter().filter(|(key, value)| from.get(*key) != Some(value)).map(|(key, value)| {
        let old = from.get(key).filter(|old| old.is_object());
        let patch = match old {
            Some(old) => diff(old, value),
            None => value.clone(),
        };
        (key.clone(), patch)
    });
    Value::Object(gone.chain(changed).collect::<Map<_, _>>())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_patch_names_only_what_changes() {
        let from = json!({ "a": 1, "b": { "c": 1, "d": 2 }, "e": [1, 2], "f": 1 });
        let to = json!({ "a": 1, "b": { "c": 1, "d": 3 }, "e": [1], "g": { "h": 1 } });
        assert_eq!(diff(&from, &to), json!({ "b": { "d": 3 }, "e": [1], "f": null, "g": { "h": 1 } }));
        assert_eq!(diff(&from, &from), json!({}));
    }
}
