//! What of the host's environment a handler gets: what its own part of the configuration names, and what any program needs.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;

use super::source::Source;
use super::{BUILT_IN, Config, ConfigError, Environment, read};

/// Sections that the host alone reads: queues and what guards them.
const HOST_ONLY: [&str; 3] = ["host", "hub", "sources"];
const SYSTEM: [&str; 14] = [
    "HOME",
    "HOSTNAME",
    "LANG",
    "LD_LIBRARY_PATH",
    "LD_PRELOAD",
    "LOGNAME",
    "LOG_LEVEL",
    "NO_COLOR",
    "PATH",
    "SSL_CERT_DIR",
    "SSL_CERT_FILE",
    "TMPDIR",
    "TZ",
    "USER",
];
const SYSTEM_PREFIXES: [&str; 10] = ["AWS_", "CUDA_", "LC_", "MALLOC_", "NCCL_", "NVIDIA_", "OMP_", "OTEL_", "RAYON_", "XDG_"];

/// Variables that configuration files name, and whether a handler needs them.
type Named = BTreeMap<String, bool>;

impl Config {
    /// The environment of this binary's own handler under a host.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn handler_environment(&self, path: Option<&Path>, environment: &Environment) -> Result<Environment, ConfigError> {
        let mut named = named(path, environment)?;
        let manifest = read(&self.manifest(environment)?.file)?;
        references(&manifest, |name, _| {
            named.insert(name.to_owned(), true);
        });
        Ok(self.passed(environment, |name| {
            named.get(name).copied().unwrap_or_else(|| is_for_handlers(name) || is_of_the_system(name))
        }))
    }

    /// The environment of a function that is not ours: what this configuration reads is none of its business.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn function_environment(&self, path: Option<&Path>, environment: &Environment) -> Result<Environment, ConfigError> {
        let named = named(path, environment)?;
        Ok(self.passed(environment, |name| {
            let is_shared = name.starts_with("AWS_") || SYSTEM.contains(&name);
            is_shared || !(named.contains_key(name) || override_section(name).is_some())
        }))
    }

    fn passed(&self, environment: &Environment, needed: impl Fn(&str) -> bool) -> Environment {
        let more: BTreeSet<&str> = self.host.handler.environment.iter().map(String::as_str).collect();
        let passed = environment.iter().filter(|(name, _)| more.contains(name.as_str()) || needed(name));
        passed.map(|(name, value)| (name.clone(), value.clone())).collect()
    }
}

/// Whether a variable that no file names is one of this binary's that a handler reads.
fn is_for_handlers(name: &str) -> bool {
    match override_section(name) {
        Some(section) => !HOST_ONLY.contains(&section.as_str()),
        None => name.starts_with("ATELIER_") || name.starts_with("RUST_"),
    }
}

fn is_of_the_system(name: &str) -> bool {
    SYSTEM.contains(&name) || SYSTEM_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// `sources` of `ATELIER__SOURCES__RABBITMQ__PASSWORD`.
fn override_section(name: &str) -> Option<String> {
    name.strip_prefix("ATELIER__").map(|path| path.split("__").next().unwrap_or_default().to_lowercase())
}

/// A variable without a default is needed wherever it stands: the configuration cannot be read without it.
fn named(path: Option<&Path>, environment: &Environment) -> Result<Named, ConfigError> {
    let mut sources = vec![Source::parse("built-in config.yaml", BUILT_IN)?];
    if let Some(file) = Config::file(path, environment) {
        sources.push(Source::parse(&file.display().to_string(), &read(&file)?)?);
    }
    let mut named = Named::new();
    for (section, value) in sources.iter().filter_map(|source| source.tree().as_object()).flatten() {
        let host_only = HOST_ONLY.contains(&section.as_str());
        texts(value, &mut |text| {
            references(text, |name, has_default| *named.entry(name.to_owned()).or_default() |= !(host_only && has_default));
        });
    }
    Ok(named)
}

fn texts(value: &Value, seen: &mut impl FnMut(&str)) {
    match value {
        Value::String(text) => seen(text),
        Value::Array(values) => values.iter().for_each(|value| texts(value, seen)),
        Value::Object(values) => values.values().for_each(|value| texts(value, seen)),
        _ => {}
    }
}

/// Every `${NAME}` and `${NAME:-default}` of a text.
fn references(text: &str, mut found: impl FnMut(&str, bool)) {
    for after in text.split("${").skip(1) {
        if let Some((reference, _)) = after.split_once('}') {
            let (name, default) = reference.split_once(":-").map_or((reference, false), |(name, _)| (name, true));
            found(name, default);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment() -> Environment {
        let names = [
            "PATH",
            "AWS_ACCESS_KEY_ID",
            "INTERNAL_API_TOKEN",
            "WEBHOOK_SIGNING_SECRET",
            "RABBITMQ_PASS",
            "RABBITMQ_USER",
            "HF_TOKEN",
            "DATABASE_PASSWORD",
            "ATELIER__SOURCES__RABBITMQ__PASSWORD",
            "ATELIER__STORE__REGION",
            "ATELIER_CONFIG",
            "RABBIT_SECRET",
            "GREETING",
        ];
        names.into_iter().map(|name| (name.to_owned(), "x".to_owned())).collect()
    }

    fn names(environment: &Environment) -> Vec<&str> {
        environment.keys().map(String::as_str).collect()
    }

    #[test]
    fn a_handler_gets_what_it_needs_and_no_secret_of_a_queue() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("config.yaml");
        std::fs::write(&file, "sources: {rabbitmq: {user: \"${RABBIT_SECRET}\"}}\n").unwrap();
        let environment = environment();
        let mut config = Config::parse("test", "", &Environment::new()).unwrap();
        let handler = config.handler_environment(Some(&file), &environment).unwrap();
        let expected = [
            "ATELIER_CONFIG",
            "ATELIER__STORE__REGION",
            "AWS_ACCESS_KEY_ID",
            "INTERNAL_API_TOKEN",
            "PATH",
            // Without a default the file cannot be read.
            "RABBIT_SECRET",
            "WEBHOOK_SIGNING_SECRET",
        ];
        assert_eq!(names(&handler), expected);
        let function = config.function_environment(Some(&file), &environment).unwrap();
        let left = ["ATELIER_CONFIG", "AWS_ACCESS_KEY_ID", "DATABASE_PASSWORD", "GREETING", "PATH"];
        assert_eq!(names(&function), left);
        config.host.handler.environment = vec!["DATABASE_PASSWORD".into()];
        let handler = config.handler_environment(Some(&file), &environment).unwrap();
        assert!(handler.contains_key("DATABASE_PASSWORD"));
    }
}
