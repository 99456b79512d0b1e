//! What became of the steps of the user's own: part of records, of results on the host's disk, and of what is measured.

use serde::{Deserialize, Serialize};

/// A step that let a job go on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserStepDone {
    /// As `workflow.steps` names it.
    pub step: String,
    /// It gave other images.
    pub changed: bool,
}

/// One step in one run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserStepRun {
    /// As `workflow.steps` names it.
    pub step: String,
    pub result: UserStepResult,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UserStepResult {
    /// The job went on.
    Ok,
    /// It ended the job.
    Refused,
    /// It gave no answer that can be used.
    Failed,
    /// It was away, and the job waits.
    Unavailable,
}

impl UserStepResult {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::Unavailable => "unavailable",
        }
    }
}
