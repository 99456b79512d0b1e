//! The labels of a network as transformers writes them into `config.json`.

use std::collections::{BTreeMap, BTreeSet};

/// The labels in the order of the scores. transformers calls them `LABEL_0` and `LABEL_1` where a file names none.
///
/// # Errors
/// Says which of `id2label` and `num_labels` is wrong, and how.
pub(super) fn labels(named: Option<BTreeMap<String, String>>, count: Option<usize>) -> Result<Vec<String>, String> {
    let labels = match named {
        None => (0..count.unwrap_or(2)).map(|index| format!("LABEL_{index}")).collect(),
        Some(named) => in_order(&named)?,
    };
    if labels.len() < 2 {
        return Err(format!("has {} labels; scores that add up to 1 need 2 or more", labels.len()));
    }
    if let Some(count) = count.filter(|count| *count != labels.len()) {
        return Err(format!("num_labels is {count}, but id2label has {}", labels.len()));
    }
    if labels.iter().collect::<BTreeSet<_>>().len() != labels.len() {
        return Err(format!("id2label has one label twice: {}", labels.join(", ")));
    }
    Ok(labels)
}

fn in_order(named: &BTreeMap<String, String>) -> Result<Vec<String>, String> {
    let labels: Option<Vec<String>> = (0..named.len()).map(|index| named.get(&index.to_string()).cloned()).collect();
    labels.ok_or_else(|| {
        let keys: Vec<&str> = named.keys().map(String::as_str).collect();
        format!("id2label has the keys {}; they must be 0 to {}", keys.join(", "), named.len().saturating_sub(1))
    })
}
