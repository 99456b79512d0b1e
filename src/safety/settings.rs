//! Section `safety` of config.yaml.

use std::path::PathBuf;

use serde::{Deserialize, Deserializer, de};
use serde_json::Value;

use super::moderator;
use crate::job::Job;
use crate::job::outcome::JobError;
use crate::job::task::Task;

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    #[serde(deserialize_with = "mode")]
    pub mode: Mode,
    /// Nothing starts without a classifier or a moderator.
    pub required: bool,
    /// Files with words and expressions that no prompt may have ([`super::prompt_list`]).
    pub prompt_lists: Vec<PathBuf>,
    pub moderator: moderator::Settings,
    /// Uploaded inputs of a job that was blocked are deleted from the bucket.
    pub delete_inputs: bool,
    pub tryon: TryOnSettings,
}

/// Whether anyone looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    On,
    /// Nothing is looked at, and no record says that it was.
    Off,
}

/// Of try-ons and edits, which change images of people.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TryOnSettings {
    /// Underwear may be shown, of jobs with a `consent`.
    pub allow_underwear: bool,
    /// A try-on or an edit without `consent` is refused.
    pub require_consent: bool,
}

impl TryOnSettings {
    /// Refuses a job that lacks the consent that is asked for here; at the door, and again in the handler.
    ///
    /// # Errors
    /// [`JobError::Invalid`] of the field `consent`.
    pub fn check(self, job: &Job) -> Result<(), JobError> {
        let is_of_a_person = matches!(job.task, Task::TryOn(_) | Task::Edit(_));
        if !(self.require_consent && is_of_a_person && job.consent.is_none()) {
            return Ok(());
        }
        let problem = "is required here: say on what basis the person's image is used, \
                       as in {\"basis\": \"given\", \"reference\": \"form-17\"}";
        Err(JobError::Invalid { field: "consent".into(), problem: problem.into() })
    }
}

/// `off` is a word to some writers of YAML and `false` to others.
fn mode<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Mode, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::Bool(true) => Ok(Mode::On),
        Value::Bool(false) => Ok(Mode::Off),
        Value::String(word) if word == "on" => Ok(Mode::On),
        Value::String(word) if word == "off" => Ok(Mode::Off),
        other => Err(de::Error::custom(format!("must be on or off, got {}", crate::shown::json(&other)))),
    }
}
