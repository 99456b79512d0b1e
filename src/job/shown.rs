//! A caller's value in an error message.

use serde_json::Value;

/// A value as JSON, cut so that an error message stays readable.
pub(crate) fn shown(value: &Value) -> String {
    let json = value.to_string();
    if json.chars().count() <= 80 { json } else { json.chars().take(77).chain("...".chars()).collect() }
}
