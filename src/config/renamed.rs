//! Keys that had another name before 0.1.0: still read, with a warning that says the present name.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use serde_json::Value;

/// A key's old and present path; `*` stands for any one key.
pub(super) type Renamed = (&'static str, &'static str);

/// Keys of config.yaml, and of the `ATELIER__SECTION__KEY` that overrides each.
pub(super) const CONFIG: &[Renamed] = &[
    ("model.folder", "model.directory"),
    ("store.presign_s", "store.presign_seconds"),
    ("store.cache.folder", "store.cache.directory"),
    ("notify.first_pause_ms", "notify.initial_backoff_ms"),
    ("notify.longest_pause_ms", "notify.max_backoff_ms"),
    ("host.first_retry_ms", "host.initial_backoff_ms"),
    ("host.longest_retry_ms", "host.max_backoff_ms"),
    ("host.handler.first_pause_ms", "host.handler.initial_backoff_ms"),
    ("host.handler.longest_pause_ms", "host.handler.max_backoff_ms"),
    ("host.protection.expires_min", "host.protection.expires_minutes"),
    ("sources.spool.folder", "sources.spool.directory"),
    ("sources.sqs.wait_s", "sources.sqs.wait_seconds"),
    ("sources.sqs.visibility_s", "sources.sqs.visibility_seconds"),
    ("sources.rabbitmq.heartbeat_s", "sources.rabbitmq.heartbeat_seconds"),
    ("sources.rabbitmq.consumer_timeout_s", "sources.rabbitmq.consumer_timeout_seconds"),
];

/// Keys of a model's manifest. A key stands above the keys inside it.
pub(super) const MANIFEST: &[Renamed] = &[
    ("source.folder", "source.directory"),
    ("beside", "additional_sources"),
    ("additional_sources.*.folder", "additional_sources.*.directory"),
];

/// Moves every old key of `tree` to its present name.
///
/// # Errors
/// The old key and a problem that names both, where both are set.
pub(super) fn rename_keys(file: &str, tree: &mut Value, renamed: &[Renamed]) -> Result<(), (String, String)> {
    for (old, new) in renamed {
        let old: Vec<&str> = old.split('.').collect();
        let new: Vec<&str> = new.split('.').collect();
        rename_key(file, tree, &old, &new, &mut Vec::new())?;
    }
    Ok(())
}

/// `above`: the keys that lead to `place`, without those of `old` and `new`.
fn rename_key(
    file: &str,
    place: &mut Value,
    old: &[&str],
    new: &[&str],
    above: &mut Vec<String>,
) -> Result<(), (String, String)> {
    let Some(map) = place.as_object_mut() else { return Ok(()) };
    let (&[old_key, ref old_rest @ ..], &[new_key, ref new_rest @ ..]) = (old, new) else { return Ok(()) };
    if !old_rest.is_empty() {
        let inner = map.iter_mut().filter(|(key, _)| old_key == "*" || key.as_str() == old_key);
        for (key, child) in inner {
            above.push(key.clone());
            rename_key(file, child, old_rest, new_rest, above)?;
            above.pop();
        }
        return Ok(());
    }
    let Some(value) = map.remove(old_key) else { return Ok(()) };
    let full_name = |key: &str| above.iter().map(String::as_str).chain([key]).collect::<Vec<_>>().join(".");
    if map.contains_key(new_key) {
        return Err(both(&full_name(old_key), &full_name(new_key)));
    }
    warn_once(file, &full_name(old_key), &full_name(new_key));
    map.insert(new_key.to_owned(), value);
    Ok(())
}

/// The present name of the configuration key `key`.
pub(super) fn present_name(key: &str) -> Option<&'static str> {
    CONFIG.iter().find(|(old, _)| *old == key).map(|(_, new)| *new)
}

/// The key at fault and the problem of a file, or an environment, that has a key under both names.
pub(super) fn both(old: &str, new: &str) -> (String, String) {
    (old.to_owned(), format!("is the old name of {new}, which is set as well; keep {new} alone"))
}

/// Manifests are read several times in one process; the operator reads each warning once.
pub(super) fn warn_once(place: &str, old: &str, new: &str) {
    static WARNED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let warning = format!("{place}: {old} is now called {new}; the old name works until 0.2.0");
    if WARNED.lock().unwrap_or_else(PoisonError::into_inner).insert(warning.clone()) {
        tracing::warn!("{warning}");
    }
}
