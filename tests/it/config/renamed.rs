//! Keys under the names that they had before 0.1.0: read as their present names, and never under both at once.

use serde_json::{Value, json};

use super::{environment, parse};
use atelier::config::Config;
use atelier::models::source::Place;

/// Old key, present key, a value that is not the default, and how the configuration shows that it was read.
type Row = (&'static str, &'static str, Value, fn(&Config) -> Value);

const TEXT: &str = "elsewhere";

fn rows() -> Vec<Row> {
    let seconds = || json!(17);
    let ms = || json!(1_234);
    vec![
        ("model.folder", "model.directory", json!(TEXT), |config| json!(config.model.directory)),
        ("store.presign_s", "store.presign_seconds", seconds(), |config| json!(config.store.presign_seconds)),
        ("store.cache.folder", "store.cache.directory", json!(TEXT), |config| json!(config.store.cache.directory)),
        ("notify.first_pause_ms", "notify.initial_backoff_ms", ms(), |config| json!(config.notify.initial_backoff_ms)),
        ("notify.longest_pause_ms", "notify.max_backoff_ms", ms(), |config| json!(config.notify.max_backoff_ms)),
        ("host.first_retry_ms", "host.initial_backoff_ms", ms(), |config| json!(config.host.initial_backoff_ms)),
        ("host.longest_retry_ms", "host.max_backoff_ms", ms(), |config| json!(config.host.max_backoff_ms)),
        ("host.handler.first_pause_ms", "host.handler.initial_backoff_ms", ms(), |config| {
            json!(config.host.handler.initial_backoff_ms)
        }),
        ("host.handler.longest_pause_ms", "host.handler.max_backoff_ms", ms(), |config| {
            json!(config.host.handler.max_backoff_ms)
        }),
        ("host.protection.expires_min", "host.protection.expires_minutes", seconds(), |config| {
            json!(config.host.protection.expires_minutes)
        }),
        ("sources.spool.folder", "sources.spool.directory", json!(TEXT), |config| json!(config.sources.spool.directory)),
        ("sources.sqs.wait_s", "sources.sqs.wait_seconds", seconds(), |config| json!(config.sources.sqs.wait_seconds)),
        ("sources.sqs.visibility_s", "sources.sqs.visibility_seconds", seconds(), |config| {
            json!(config.sources.sqs.visibility_seconds)
        }),
        ("sources.rabbitmq.heartbeat_s", "sources.rabbitmq.heartbeat_seconds", seconds(), |config| {
            json!(config.sources.rabbitmq.heartbeat_seconds)
        }),
        ("sources.rabbitmq.consumer_timeout_s", "sources.rabbitmq.consumer_timeout_seconds", seconds(), |config| {
            json!(config.sources.rabbitmq.consumer_timeout_seconds)
        }),
    ]
}

/// YAML, which JSON is, with `value` at the dotted `key`.
fn yaml(keys: &[(&str, &Value)]) -> String {
    let mut tree = json!({});
    for (key, value) in keys {
        let mut place = &mut tree;
        for part in key.split('.') {
            place = &mut place[part];
        }
        *place = (*value).clone();
    }
    tree.to_string()
}

fn variable(key: &str) -> String {
    format!("ATELIER__{}", key.to_uppercase().replace('.', "__"))
}

#[test]
fn old_names_are_read_from_a_file_and_from_the_environment() {
    for (old, new, value, shown) in rows() {
        for key in [old, new] {
            let config = parse(&yaml(&[(key, &value)]), &[]).unwrap_or_else(|error| panic!("{key}: {error}"));
            assert_eq!(shown(&config), value, "{key} in a file");
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let config = parse("", &[(&variable(key), &text)]).unwrap_or_else(|error| panic!("{key}: {error}"));
            assert_eq!(shown(&config), value, "{key} in the environment");
        }
    }
}

#[test]
fn a_key_under_both_names_is_refused_and_both_are_named() {
    for (old, new, value, _) in rows() {
        let error = parse(&yaml(&[(old, &value), (new, &value)]), &[]).expect_err(old);
        assert!(error.contains(old) && error.contains(new), "{error}");
        let text = value.to_string();
        let error = parse("", &[(&variable(old), &text), (&variable(new), &text)]).expect_err(old);
        assert!(error.contains(&variable(old)) && error.contains(&variable(new)), "{error}");
    }
}

#[test]
fn old_names_of_a_manifest_are_read_and_never_beside_the_present_ones() {
    let directory = tempfile::tempdir().expect("a directory");
    let manifest = |lines: &str| {
        let text = format!("{}{lines}", include_str!("../../../models/tiny-edit.yaml"));
        std::fs::write(directory.path().join("edit.yaml"), text).expect("writes");
        let config = parse(&yaml(&[("model", &json!({"name": "edit", "directory": directory.path()}))]), &[])?;
        config.manifest(&environment(&[])).map_err(|error| error.to_string())
    };
    for key in ["folder", "directory"] {
        let read = manifest(&format!("source: {{{key}: here}}\n")).unwrap_or_else(|error| panic!("{key}: {error}"));
        assert_eq!(read.source.map(|source| source.place), Some(Place::Directory("here".into())), "{key}");
    }
    for above in ["beside", "additional_sources"] {
        let read = manifest(&format!("{above}: {{lightning: {{folder: there}}}}\n")).expect(above);
        let places: Vec<_> = read.additional_sources.values().map(|source| source.place.clone()).collect();
        assert_eq!(places, [Place::Directory("there".into())], "{above}");
    }
    for both in ["source: {folder: a, directory: b}\n", "beside: {}\nadditional_sources: {}\n"] {
        let error = manifest(both).expect_err(both);
        assert!(error.contains("is the old name of"), "{error}");
    }
}
