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
    /// Try-ons and edits in these modes, whose weights are loaded.
    Edit(Vec<Mode>),
}

impl Capabilities {
    /// The tasks that such a function does, as the field `task` has them.
    #[must_use]
    pub fn tasks(&self) -> &'static [&'static str] {
        match self {
            Self::Generate => &["generate"],
            Self::Edit(_) => &["tryon", "edit"],
        }
    }

    /// Refuses a job that a function with this one model can never do.
    ///
    /// # Errors
    /// [`JobError::Invalid`] of the field `task`, `model` or `mode`.
    pub fn check(&self, model: &ModelName, job: &Job) -> Result<(), JobError> {
        self.check_task(model, &job.task)?;
        if let Some(asked) = job.task.model().filter(|asked| *asked != model) {
            let served = model.as_str();
            let asked = asked.as_str();
            return invalid("model", format!("must be {served:?}, the model this function serves, got {asked:?}"));
        }
        match (self, &job.task) {
            (Self::Edit(modes), Task::TryOn(tryon)) => check_mode(modes, tryon.mode),
            (Self::Edit(modes), Task::Edit(edit)) => check_mode(modes, edit.mode),
            _ => Ok(()),
        }
    }

    fn check_task(&self, model: &ModelName, task: &Task) -> Result<(), JobError> {
        let tasks = self.tasks();
        let asked = task.name();
        if tasks.contains(&asked) {
            return Ok(());
        }
        let served = model.as_str();
        let does = tasks.join(" and ");
        let problem = format!(
            "this function serves {served}, which does {does} and not {asked}; send the job to a function whose model does"
        );
        invalid("task", problem)
    }
}

fn check_mode(loaded: &[Mode], asked: Mode) -> Result<(), JobError> {
    if loaded.contains(&asked) {
        return Ok(());
    }
    let loaded: Vec<&str> = loaded.iter().map(|mode| mode.as_str()).collect();
    let loaded = loaded.join(", ");
    let asked = asked.as_str();
    invalid("mode", format!("must be {loaded}, what this function has the weights of, got {asked}"))
}

fn invalid(field: &str, problem: String) -> Result<(), JobError> {
    Err(JobError::Invalid { field: field.into(), problem })
}
