//! Where configuration values come from: the built-in file, the user's file over it, `${NAME}` and `ATELIER__…` over both.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::ConfigError;
use super::renamed::{self, Renamed};
use crate::shown::mismatch;

const OVERRIDE_PREFIX: &str = "ATELIER__";

/// The environment, read once, so that tests can bring their own.
pub type Environment = BTreeMap<String, String>;

/// A configuration tree under construction.
pub(super) struct Source {
    file: String,
    tree: Value,
    /// Key → environment variable of every leaf whose text came from outside YAML and so has no YAML type yet.
    texts: BTreeMap<String, String>,
}

impl Source {
    /// Starts from the text of one YAML file; `file` is its name in messages.
    pub(super) fn parse(file: &str, yaml: &str) -> Result<Self, ConfigError> {
        let tree: Value = serde_saphyr::from_str(yaml)
            .map_err(|error| ConfigError::Syntax { file: file.to_owned(), problem: error.to_string() })?;
        let tree = if tree.is_null() { Value::Object(Map::new()) } else { tree };
        Ok(Self { file: file.to_owned(), tree, texts: BTreeMap::new() })
    }

    pub(super) fn tree(&self) -> &Value {
        &self.tree
    }

    /// Gives every key that still has its old name the present one.
    pub(super) fn with_present_names(mut self, renamed: &[Renamed]) -> Result<Self, ConfigError> {
        renamed::rename_keys(&self.file, &mut self.tree, renamed).map_err(|(key, problem)| ConfigError::Value {
            file: self.file.clone(),
            key,
            problem,
        })?;
        Ok(self)
    }

    /// Lays this tree over `below`: a mapping is merged key by key, anything else is replaced.
    pub(super) fn over(self, below: Self) -> Self {
        let mut texts = below.texts;
        texts.extend(self.texts);
        Self { file: self.file, tree: merged(below.tree, self.tree), texts }
    }

    /// Replaces `${NAME}` and `${NAME:-default}` in every text.
    pub(super) fn expanded(mut self, environment: &Environment) -> Result<Self, ConfigError> {
        let mut tree = std::mem::take(&mut self.tree);
        self.expand("", &mut tree, environment)?;
        self.tree = tree;
        Ok(self)
    }

    fn expand(&mut self, key: &str, value: &mut Value, environment: &Environment) -> Result<(), ConfigError> {
        match value {
            Value::Object(map) => {
                for (name, child) in map {
                    self.expand(&join(key, name), child, environment)?;
                }
            }
            Value::Array(items) => {
                for (index, child) in items.iter_mut().enumerate() {
                    self.expand(&format!("{key}[{index}]"), child, environment)?;
                }
            }
            Value::String(text) if text.contains("${") => {
                let (full, names) = expand_text(text, environment).map_err(|problem| ConfigError::Value {
                    file: self.file.clone(),
                    key: key.to_owned(),
                    problem,
                })?;
                self.texts.insert(key.to_owned(), names);
                *value = if full.is_empty() { Value::Null } else { Value::String(full) };
            }
            _ => {}
        }
        Ok(())
    }

    /// Applies every `ATELIER__SECTION__KEY` of the environment.
    pub(super) fn overridden(mut self, environment: &Environment) -> Result<Self, ConfigError> {
        for (name, text) in environment {
            let Some(path) = name.strip_prefix(OVERRIDE_PREFIX) else { continue };
            let mut key = path.to_lowercase().replace("__", ".");
            if let Some(present) = renamed::present_name(&key) {
                let variable = override_variable(present);
                if environment.contains_key(&variable) {
                    let (key, problem) = renamed::both(name, &variable);
                    return Err(ConfigError::Value { file: "the environment".into(), key, problem });
                }
                renamed::warn_once("the environment", name, &variable);
                present.clone_into(&mut key);
            }
            let mut place = &mut self.tree;
            for part in key.split('.') {
                if !place.is_object() {
                    *place = Value::Object(Map::new());
                }
                place = &mut place[part];
            }
            // A list or a mapping is given as YAML; anything else stays text until its type is known.
            *place = match text.trim_start().chars().next() {
                Some('[' | '{') => serde_saphyr::from_str(text).unwrap_or_else(|_| Value::String(text.clone())),
                None => Value::Null,
                Some(_) => Value::String(text.clone()),
            };
            self.texts.insert(key, name.clone());
        }
        Ok(self)
    }

    /// What is wrong with a key, with the variable that it, or something below it, came from.
    fn wrong(&self, key: String, mut problem: String) -> ConfigError {
        let below = format!("{key}.");
        let found = self.texts.iter().find(|(text, _)| **text == key || text.starts_with(&below));
        if let Some((_, variable)) = found {
            let _ = write!(problem, " (from the environment: {variable})");
        }
        ConfigError::Value { file: self.file.clone(), key, problem }
    }

    /// As [`Self::read`]; `check` says which key of what was read is wrong, and why.
    pub(super) fn read_checked<T: DeserializeOwned>(
        mut self,
        check: impl FnOnce(&T) -> Result<(), (&'static str, String)>,
    ) -> Result<T, ConfigError> {
        let config = self.read()?;
        check(&config).map_err(|(key, problem)| self.wrong(key.to_owned(), problem))?;
        Ok(config)
    }

    /// Reads the tree into its type. A text from the environment becomes a number or a boolean where the type asks for one.
    pub(super) fn read<T: DeserializeOwned>(&mut self) -> Result<T, ConfigError> {
        loop {
            let error = match serde_path_to_error::deserialize(&self.tree) {
                Ok(config) => return Ok(config),
                Err(error) => error,
            };
            let key = error.path().to_string();
            if !self.retype(&key) {
                return Err(self.wrong(key, mismatch::in_words(&error.inner().to_string())));
            }
        }
    }

    /// Gives a text leaf its next possible type; false when there is none left.
    fn retype(&mut self, key: &str) -> bool {
        if !self.texts.contains_key(key) {
            return false;
        }
        let pointer = format!("/{}", key.replace('[', ".").replace(']', "").replace('.', "/"));
        let Some(leaf) = self.tree.pointer_mut(&pointer) else { return false };
        let retyped = match &*leaf {
            Value::Null => Some(Value::String(String::new())),
            Value::String(text) => {
                serde_json::from_str(text).ok().filter(|value: &Value| value.is_number() || value.is_boolean())
            }
            _ => None,
        };
        retyped.is_some_and(|value| {
            *leaf = value;
            true
        })
    }
}

fn override_variable(key: &str) -> String {
    format!("{OVERRIDE_PREFIX}{}", key.to_uppercase().replace('.', "__"))
}

fn join(key: &str, name: &str) -> String {
    if key.is_empty() { name.to_owned() } else { format!("{key}.{name}") }
}

fn merged(below: Value, above: Value) -> Value {
    match (below, above) {
        (Value::Object(mut below), Value::Object(above)) => {
            for (name, value) in above {
                let under = below.remove(&name).unwrap_or(Value::Null);
                below.insert(name, merged(under, value));
            }
            Value::Object(below)
        }
        (_, above) => above,
    }
}

/// The text with its references replaced, and the names of the variables it used.
fn expand_text(text: &str, environment: &Environment) -> Result<(String, String), String> {
    let mut full = String::new();
    let mut names = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        let (reference, behind) = after.split_once('}').ok_or_else(|| format!("`${{` without `}}` in {text:?}"))?;
        let (name, default) = match reference.split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (reference, None),
        };
        let value = environment.get(name).map(String::as_str).filter(|value| !value.is_empty()).or(default);
        full.push_str(before);
        full.push_str(value.ok_or_else(|| format!("the environment variable {name} is not set"))?);
        names.push(name);
        rest = behind;
    }
    full.push_str(rest);
    Ok((full, names.join(", ")))
}
