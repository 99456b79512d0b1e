//! Reads the JSON next to the files of a model into types; what the files of a family say is known to that family alone.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::EngineError;

/// Keys whose value stands in our code, with the values (as JSON) it stands for. A key may also be missing.
pub(super) type Fixed = &'static [(&'static str, &'static [&'static str])];

/// Reads one file and refuses what contradicts `fixed`.
///
/// # Errors
/// [`EngineError::Checkpoint`] with the file and what is missing in it or not supported, and what would be.
pub(super) fn read<T: DeserializeOwned>(path: &Path, fixed: Fixed) -> Result<T, EngineError> {
    let wrong = |problem: String| EngineError::Checkpoint { path: path.to_owned(), problem };
    let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
    // Python writes values that JSON does not have; here they only ever mean "no limit".
    let text = text.replace(": -Infinity", ": null").replace(": Infinity", ": null");
    let value: Value = serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
    for (key, allowed) in fixed {
        let found = value.get(key).map_or_else(String::new, Value::to_string);
        if !value.get(key).is_none_or(|found| is_allowed(found, allowed)) {
            return Err(wrong(format!("{key} is {found}; supported: {}", allowed.join(", "))));
        }
    }
    T::deserialize(value).map_err(|error| wrong(error.to_string()))
}

/// 1 and 1.0 are one number, and a list for all blocks is as good as its elements.
fn is_allowed(found: &Value, allowed: &[&str]) -> bool {
    match found {
        Value::Array(elements) if !elements.is_empty() => elements.iter().all(|element| is_allowed(element, allowed)),
        Value::Number(_) => allowed.iter().any(|allowed| allowed.parse().ok() == found.as_f64()),
        _ => allowed.contains(&found.to_string().as_str()),
    }
}

/// The files that an index of shards (`model.safetensors.index.json`) names, each once.
pub(super) fn shards(index: &Path) -> Result<Vec<String>, EngineError> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let index: Index = read(index, &[])?;
    let files: BTreeSet<String> = index.weight_map.into_values().collect();
    Ok(files.into_iter().collect())
}
