//! What a function refuses because it lacks a built-in step.

use super::{StepName, mask, upscale, watermark};
use crate::job::Job;
use crate::job::outcome::JobError;

/// Asks every built-in step that is not among `listed` what of the job it alone could do.
///
/// # Errors
/// [`JobError::Invalid`] names the field that asks for it.
pub fn check(listed: &[StepName], job: &Job) -> Result<(), JobError> {
    StepName::BUILT_IN.iter().filter(|step| !listed.contains(step)).try_for_each(|step| check_without(step, job))
}

fn check_without(step: &StepName, job: &Job) -> Result<(), JobError> {
    match step {
        StepName::Mask => mask::check_absent(job),
        StepName::Upscale => upscale::check_absent(job),
        StepName::Watermark => watermark::check_absent(job),
        // No field of a job asks for one of these.
        StepName::Fetch
        | StepName::Preprocess
        | StepName::Screen
        | StepName::Infer
        | StepName::Postprocess
        | StepName::User(_)
        | StepName::Check
        | StepName::Encode
        | StepName::Credentials
        | StepName::Store
        | StepName::Notify => Ok(()),
    }
}
