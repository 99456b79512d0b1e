//! Step `store`: uploads the images, then the record that they are all there.

use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;

use super::context::JobContext;
use super::{Step, StepName};
use crate::fault_point::fault_point;
use crate::job::outcome::{JobError, Record};
use crate::job::task::ModelName;
use crate::store::{self, Store};

pub struct StoreStep {
    pub store: Arc<Store>,
    /// The one model this function serves.
    pub model: ModelName,
}

#[async_trait]
impl Step for StoreStep {
    fn name(&self) -> StepName {
        StepName::Store
    }

    async fn run(&self, context: &mut JobContext<'_>) -> Result<(), JobError> {
        let mut images = Vec::with_capacity(context.files.len());
        let attempt = store::attempt_token();
        fault_point!("before-images");
        for (number, (image, file)) in context.images.iter().zip(std::mem::take(&mut context.files)).enumerate() {
            images.push(
                self.store.put_image(context.job, &attempt, number, image.width_px, image.height_px, image.seed, file).await?,
            );
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let record = Record {
            job_id: context.job.id.to_string(),
            fingerprint: context.job.fingerprint.clone(),
            model: self.model.as_str().to_owned(),
            images,
            timings_ms: context.timings_ms.clone(),
            finished_at_s: now.as_secs(),
        };
        context.finalizing.begin();
        fault_point!("before-record");
        match self.store.put_record(&context.job.output.prefix, &record).await? {
            None => context.record = Some(record),
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
