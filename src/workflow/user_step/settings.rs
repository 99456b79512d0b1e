//! Section `workflow.user_steps` of config.yaml.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::setting::Secret;
use crate::workflow::step_name::{StepName, UserStepKind, UserStepName};

/// Of one answer, and of one request.
const DEFAULT_MAX_BYTES: u64 = 256 << 20;
const DEFAULT_TIMEOUT_MS: u64 = 30_000;

/// Steps of the user's own, by the name that `workflow.steps` lists behind `command:` or `http:`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    pub command: BTreeMap<String, CommandSettings>,
    pub http: BTreeMap<String, HttpSettings>,
}

/// A program that is started for each job.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CommandSettings {
    /// A path, or a name to be found in PATH; then its arguments.
    pub program: Vec<String>,
    /// It is killed after so long.
    pub timeout_ms: u64,
    /// Of its answer.
    pub max_bytes: u64,
}

impl Default for CommandSettings {
    fn default() -> Self {
        Self { program: Vec::new(), timeout_ms: DEFAULT_TIMEOUT_MS, max_bytes: DEFAULT_MAX_BYTES }
    }
}

/// A service that is asked about each job.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HttpSettings {
    /// Gets a POST.
    pub url: Option<String>,
    /// Goes along as bearer token.
    pub token: Option<Secret>,
    /// Of one request.
    pub timeout_ms: u64,
    /// A job waits so long for a service that is away; then it is handed back, which counts as no attempt.
    pub max_wait_ms: u64,
    /// Of its answer.
    pub max_bytes: u64,
}

impl Default for HttpSettings {
    fn default() -> Self {
        Self { url: None, token: None, timeout_ms: DEFAULT_TIMEOUT_MS, max_wait_ms: 30_000, max_bytes: DEFAULT_MAX_BYTES }
    }
}

impl Settings {
    /// Whether there are settings of every step that is listed.
    ///
    /// # Errors
    /// Names the step, and the key where its settings belong.
    pub fn check(&self, steps: &[StepName]) -> Result<(), String> {
        let mut listed = steps.iter().filter_map(StepName::as_user_step);
        match listed.find(|step| !self.has(step)) {
            None => Ok(()),
            Some(step) => {
                let kind = step.kind().as_str();
                let name = step.name();
                Err(format!("lists `{step}`, and there is no workflow.user_steps.{kind}.{name} that says what it is"))
            }
        }
    }

    fn has(&self, step: &UserStepName) -> bool {
        match step.kind() {
            UserStepKind::Command => self.command.contains_key(step.name()),
            UserStepKind::Http => self.http.contains_key(step.name()),
        }
    }
}
