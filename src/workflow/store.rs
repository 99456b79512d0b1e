//! Step `store`: uploads the pictures, then the record that they are all there.

use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;

use super::piece::Piece;
use super::{Step, StepName};
use crate::job::outcome::{JobError, Record};
use crate::job::task::ModelName;
use crate::store::Store;

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

    async fn run(&self, piece: &mut Piece<'_>) -> Result<(), JobError> {
        let mut pictures = Vec::with_capacity(piece.files.len());
        for (number, (picture, file)) in piece.pictures.iter().zip(std::mem::take(&mut piece.files)).enumerate() {
            pictures.push(
                self.store.put_picture(piece.job, number, picture.width_px, picture.height_px, picture.seed, file).await?,
            );
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let record = Record {
            job_id: piece.job.id.to_string(),
            fingerprint: piece.job.fingerprint.clone(),
            model: self.model.as_str().to_owned(),
            pictures,
            timings_ms: piece.timings_ms.clone(),
            finished_at_s: now.as_secs(),
        };
        piece.concluding.begin();
        match self.store.put_record(&piece.job.output.prefix, &record).await? {
            None => piece.record = Some(record),
            // Another worker was faster with the same job: its record stands, and it is the one to be told of.
            Some(earlier) => piece.replay(earlier)?,
        }
        Ok(())
    }
}
