//! Step `store`: uploads the images, then the record that they are all there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use async_trait::async_trait;

use super::context::JobContext;
use super::control::NotificationMode;
use super::{Step, StepName};
use crate::fault_point::fault_point;
use crate::job::measured;
use crate::job::outcome::{JobError, Provenance, Record, Signer, StoredImage};
use crate::job::safety::Safety;
use crate::job::task::ModelName;
use crate::job::upscalers::Upscalers;
use crate::store::failed::{FailedJob, RECORD_WITHIN, Stage};
use crate::store::held_results::{HeldImage, HeldResult, HeldResults};
use crate::store::{self, Store};
use atelier_engine::Image;

/// What is known of the model, for records.
#[derive(Debug, Clone, Default)]
pub struct ModelOrigin {
    /// Of its weights.
    pub licence: Option<String>,
    /// SHA-256 of its manifest, in hex.
    pub manifest_sha256: Option<String>,
    /// SHA-256 of its files, in hex, as far as the manifest pins them.
    pub files: BTreeMap<String, String>,
}

pub struct StoreStep {
    pub store: Arc<Store>,
    pub held_results: HeldResults,
    /// The one model this function serves.
    pub model: ModelName,
    /// Of the safety gate; none: it is off.
    pub policy: Option<String>,
    pub signer: Option<Signer>,
    pub origin: ModelOrigin,
    pub upscalers: Upscalers,
}

#[async_trait]
impl Step for StoreStep {
    fn name(&self) -> StepName {
        StepName::Store
    }

    /// A host's handler keeps the result on disk meanwhile: whatever becomes of the store or of this process, it is not generated again.
    async fn run(&self, context: &mut JobContext<'_>) -> Result<(), JobError> {
        fault_point!("before-images");
        let mut looked = Instant::now();
        let (held_results, stored, beside) =
            tokio::join!(self.keep(context), self.upload(context), self.failed_beside(context));
        context.held_results.kept += held_results.kept;
        context.held_results.dropped += held_results.dropped;
        let images = stored?;
        let mut beside = beside?;
        if looked.elapsed() > RECORD_WITHIN / 2 {
            looked = Instant::now();
            beside = self.failed_beside(context).await?;
        }
        if let Some(failed) = beside {
            return Err(self.abandon(context, &images, failed).await);
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let record = Record {
            job_id: context.job.id.to_string(),
            fingerprint: context.job.fingerprint.clone(),
            model: self.model.as_str().to_owned(),
            licence: self.origin.licence.clone(),
            images,
            provenance: self.provenance(context),
            timings_ms: context.timings_ms.clone(),
            finished_at_s: now.as_secs(),
        };
        context.finalizing.begin();
        fault_point!("before-record");
        let earlier = self.store.put_record(&context.job.output.prefix, &record).await?;
        self.held_results.remove(context.job).await;
        match earlier {
            None => {
                // The write took longer than whoever notes a failure waits for it.
                if looked.elapsed() > RECORD_WITHIN
                    && let Some(failed) = self.failed_beside(context).await?.filter(|failed| failed.stage != Stage::Open)
                {
                    self.store.remove_record(&context.job.output.prefix, &context.job.id).await;
                    return Err(self.abandon(context, &record.images, failed).await);
                }
                context.record = Some(record);
            }
            // Another worker was faster with the id: its record stands, and it is the one to be reported.
            Some(earlier) => {
                self.store.delete_images(&record.images).await;
                context.replay(earlier)?;
            }
        }
        fault_point!("after-record");
        Ok(())
    }
}

impl StoreStep {
    fn provenance(&self, context: &JobContext<'_>) -> Provenance {
        let checks = context.checks.clone();
        Provenance {
            trace: context.job.trace,
            consent: context.job.consent.clone(),
            safety: self.policy.clone().map(|policy| Safety { policy, checks }),
            user_steps: context.user_steps.iter().map(|done| done.step.clone()).collect(),
            signer: self.signer.clone(),
            step_cache: context.job.task.step_cache(),
            upscaler: context.job.upscale.as_ref().and_then(|upscale| self.upscalers.of(upscale).ok().cloned()),
            auto_mask: context.made_mask.clone().map(Box::new),
            manifest_sha256: self.origin.manifest_sha256.clone(),
            model_files: self.origin.files.clone(),
        }
    }

    async fn failed_beside(&self, context: &JobContext<'_>) -> Result<Option<FailedJob>, JobError> {
        self.store.failed_beside(context.job, context.began).await
    }

    /// The job has failed in another attempt, and its caller was told so, or is about to be.
    async fn abandon(&self, context: &JobContext<'_>, images: &[StoredImage], failed: FailedJob) -> JobError {
        tracing::warn!(code = failed.error.code, "another attempt ended this job as failed; its images are dropped");
        self.store.delete_images(images).await;
        self.held_results.remove(context.job).await;
        JobError::FailedBeside { problem: failed.error }
    }

    async fn upload(&self, context: &JobContext<'_>) -> Result<Vec<StoredImage>, JobError> {
        let attempt = store::attempt_token();
        let mut stored = Vec::with_capacity(context.files.len());
        let files = context.files.iter().zip(&context.invisible_marks);
        for (number, (image, (file, invisible_mark))) in context.images.iter().zip(files).enumerate() {
            let Image { width_px, height_px, seed, .. } = *image;
            let put = self.store.put_image(context.job, &attempt, number, width_px, height_px, seed, file.clone());
            stored.push(StoredImage { invisible_mark: invisible_mark.clone(), ..put.await? });
        }
        Ok(stored)
    }

    /// A disk that does not take it is no reason to fail: the result may be stored yet.
    async fn keep(&self, context: &JobContext<'_>) -> measured::HeldResults {
        if context.resumed || context.notification_mode == NotificationMode::Now {
            return measured::HeldResults::default();
        }
        let files = context.files.iter().zip(&context.invisible_marks);
        let images = context.images.iter().zip(files).map(|(image, (file, invisible_mark))| HeldImage {
            width_px: image.width_px,
            height_px: image.height_px,
            seed: image.seed,
            invisible_mark: invisible_mark.clone(),
            file: file.clone(),
        });
        let result = HeldResult {
            images: images.collect(),
            timings_ms: context.timings_ms.clone(),
            checks: context.checks.clone(),
            policy: self.policy.clone(),
            user_steps: context.user_steps.clone(),
            made_mask: context.made_mask.clone(),
        };
        match self.held_results.keep(context.job, result).await {
            Ok(dropped) => measured::HeldResults { kept: 1, dropped, ..Default::default() },
            Err(error) => {
                tracing::warn!(%error, "the result could not be kept on disk; check store.held_results");
                measured::HeldResults { dropped: 1, ..Default::default() }
            }
        }
    }
}
