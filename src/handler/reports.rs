//! What a message's report says of its job.

use crate::job::notification::Notification;
use crate::job::outcome::{JobError, Outcome, Problem, RetryPolicy};
use crate::job::{Job, JobId};
use crate::protocol::reply::{JobOutcome, JobReport};

/// What becomes of a job that failed like this, the number of its attempts aside.
pub(super) fn job_outcome(error: &JobError, stored: bool) -> JobOutcome {
    match error.retry_policy() {
        RetryPolicy::Retry => JobOutcome::Retry,
        RetryPolicy::Wait => waiting(error),
        // It came too late: the images are there, and the redelivery reports them.
        RetryPolicy::Terminal if stored && matches!(error, JobError::Cancelled) => JobOutcome::Retry,
        RetryPolicy::Terminal => JobOutcome::Failed,
    }
}

/// What becomes of a message over which something went wrong that is no end of its job.
pub(super) fn handed_back(error: &JobError) -> JobOutcome {
    if error.retry_policy() == RetryPolicy::Wait { waiting(error) } else { JobOutcome::Retry }
}

/// For what a job waits that is no attempt the worse for it.
fn waiting(error: &JobError) -> JobOutcome {
    match error {
        JobError::ModerationUnavailable { .. } => JobOutcome::ModerationUnavailable,
        JobError::StepUnavailable { .. } => JobOutcome::StepUnavailable,
        _ => JobOutcome::StoreUnavailable,
    }
}

pub(super) fn entry(message_id: &str, job_id: Option<&JobId>, outcome: JobOutcome, error: Option<&JobError>) -> JobReport {
    JobReport {
        message_id: message_id.to_owned(),
        job_id: job_id.map(JobId::to_string),
        outcome,
        replayed: false,
        error: error.map(Problem::from),
        notifications: Vec::new(),
        measured: None,
    }
}

pub(super) fn complete(message_id: &str, job: &Job, outcome: &Outcome, notifications: Vec<Notification>) -> JobReport {
    let replayed = outcome.replayed;
    JobReport { replayed, notifications, ..entry(message_id, Some(&job.id), JobOutcome::Complete, None) }
}
