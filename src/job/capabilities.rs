//! What a function can be asked for, whatever the job: its host learns it from the handler and refuses the rest at the door.

use serde::{Deserialize, Serialize};

use super::Job;
use super::outcome::JobError;
use super::task::tryon::Mode;
use super::task::{ModelName, Task};

/// What the function's model can be asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Capabilities {
    Generate,
    /// In these modes, whose weights are loaded.
    TryOn(Vec<Mode>),
}

impl Capabilities {
    /// Refuses a job that a function with this one model can never do.
    ///
    /// # Errors
    /// [`JobError::Invalid`] of the field `task`, `model` or `mode`.
    pub fn check(&self, model: &ModelName, job: &Job) -> Result<(), JobError> {
        let served = model.as_str();
        let invalid = |field: &str, problem| Err(JobError::Invalid { field: field.into(), problem });
        match (&job.task, self) {
            (Task::Generate(generate), Self::Generate) if generate.model == *model => Ok(()),
            (Task::Generate(generate), Self::Generate) => {
                let asked = generate.model.as_str();
                invalid("model", format!("must be {served:?}, the model this function serves, got {asked:?}"))
            }
            (Task::TryOn(tryon), Self::TryOn(modes)) if modes.contains(&tryon.mode) => Ok(()),
            (Task::TryOn(tryon), Self::TryOn(modes)) => {
                let loaded: Vec<&str> = modes.iter().map(|mode| mode.as_str()).collect();
                let loaded = loaded.join(", ");
                let asked = tryon.mode.as_str();
                invalid("mode", format!("must be {loaded}, what this function has the weights of, got {asked}"))
            }
            (Task::TryOn(_), Self::Generate) => invalid(
                "task",
                format!(
                    "this function serves {served}, which generates from text; try-on needs a try-on model: send the job to a \
                     function that serves one"
                ),
            ),
            (Task::Generate(_), Self::TryOn(_)) => invalid(
                "task",
                format!(
                    "this function serves {served}, which does try-ons (task tryon); send the job to a function that generates from text"
                ),
            ),
        }
    }
}
