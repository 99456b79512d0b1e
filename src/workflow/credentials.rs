//! Step `credentials`: signs the encoded files, each with a manifest of how it came about.
//!
//! An image that cannot be signed goes nowhere: the job is handed back, and the process ends, for the next one checks its signer at start
//! and says what is wrong with it.

use std::fs;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::context::{InputImage, JobContext};
use super::encode::Encode;
use super::mark::DigitalSource;
use super::{Step, StepName};
use crate::content_credentials::manifest::{Manifest, Original, Signed};
use crate::content_credentials::signing::Signing;
use crate::image_file::kind::Kind;
use crate::job::outcome::JobError;
use crate::job::task::ModelName;
use crate::job::{Job, MetadataLevel};

/// Step `credentials`; without a signer it leaves the files as they are.
pub struct CredentialsStep {
    pub signing: Option<Arc<Signing>>,
    pub encode: Encode,
    pub model: ModelName,
}

#[async_trait]
impl Step for CredentialsStep {
    fn name(&self) -> StepName {
        StepName::Credentials
    }

    fn check(&self, _job: &Job) -> Result<(), JobError> {
        let in_time = self.signing.as_ref().map_or(Ok(()), |signing| signing.check_time());
        in_time.map_err(|problem| JobError::Signing { problem })
    }

    async fn run(&self, context: &mut JobContext<'_>) -> Result<(), JobError> {
        let Some(signing) = self.signing.clone() else { return Ok(()) };
        let job = context.job;
        let source = DigitalSource::of(&job.task).uri();
        let format = job.output.format.content_type();
        let is_private = self.encode.level(job) == MetadataLevel::None;
        let model = (!is_private).then(|| self.model.as_str().to_owned());
        let edits = edits(context, is_private);
        let has_text = job.watermark.is_some();
        let marks = context.invisible_marks.iter().map(|mark| mark.as_ref().is_some_and(|mark| mark.embedded));
        let marks: Vec<bool> = marks.collect();
        // A step of the user's own may have moved it, and a sheet behind the results is another image.
        let moved = context.user_steps.iter().any(|done| done.changed);
        let changed = context.changed.filter(|_| !is_private && !moved);
        let results = job.task.num_images().get() as usize;
        let inputs = std::mem::take(&mut context.input_images);
        let files = std::mem::take(&mut context.files);
        // Hashing and signing takes milliseconds, and reading manifests of strangers as long as it likes.
        let signed = tokio::task::spawn_blocking(move || {
            let originals = inputs.iter().map(|input| original(input, is_private)).collect::<Result<Vec<_>, _>>()?;
            let manifest = Manifest::new(&signing, model.as_deref(), source, &originals)?;
            let edited = |manifest: Manifest| {
                let manifest = edits.iter().fold(manifest, |made, name| made.edited_by(name.as_deref()));
                if has_text { manifest.with_text() } else { manifest }
            };
            let of_results = changed.map(|changed| edited(manifest.clone().changed_within(changed)));
            let manifest = edited(manifest);
            let each = files.iter().zip(marks).enumerate().map(|(place, (file, has_mark))| {
                let own = of_results.as_ref().filter(|_| place < results).unwrap_or(&manifest);
                own.sign(&signing, file, format, has_mark)
            });
            each.collect::<Result<Vec<_>, String>>()
        });
        let signed = signed.await.unwrap_or_else(|panic| Err(panic.to_string()));
        for Signed { file, timestamp } in signed.map_err(|problem| JobError::Signing { problem })? {
            if let Some(Err(problem)) = timestamp {
                tracing::warn!(problem, "an image is signed without a timestamp: its credentials end with the certificate");
            }
            context.files.push(Bytes::from(file));
        }
        Ok(())
    }
}

/// What has changed the images behind the model: an upscaler, steps of the user's own. `is_private`: their names stay out.
fn edits(context: &JobContext<'_>, is_private: bool) -> Vec<Option<String>> {
    let upscaled = context.job.upscale.as_ref().map(|upscale| format!("upscaler, {} times", upscale.factor.get()));
    let changed = context.user_steps.iter().filter(|done| done.changed).map(|done| done.step.clone());
    upscaled.into_iter().chain(changed).map(|name| (!is_private).then_some(name)).collect()
}

/// The file as it was sent. `is_private`: what it says of itself stays out.
fn original(input: &InputImage, is_private: bool) -> Result<Original, String> {
    let file = fs::read(&input.path).map_err(|error| format!("{}: cannot be read again ({error})", input.field))?;
    let format = Kind::of(&file).map_err(|problem| format!("{}: {problem}", input.field))?.content_type();
    Ok(Original { role: input.role, field: input.field.clone(), format, file: (!is_private).then_some(file) })
}
