//! Step `notify`: tells the caller that the pictures are there.

use std::sync::Arc;

use async_trait::async_trait;

use super::control::Telling;
use super::piece::Piece;
use super::{Step, StepName};
use crate::job::Job;
use crate::job::outcome::JobError;
use crate::notify::Notifier;
use crate::store::Store;

pub struct Notify {
    pub store: Arc<Store>,
    pub notifier: Arc<Notifier>,
}

#[async_trait]
impl Step for Notify {
    fn name(&self) -> StepName {
        StepName::Notify
    }

    fn check(&self, job: &Job) -> Result<(), JobError> {
        self.notifier.check(job)
    }

    fn runs_on_replay(&self) -> bool {
        true
    }

    async fn run(&self, piece: &mut Piece<'_>) -> Result<(), JobError> {
        let Some(record) = &piece.record else { return Ok(()) };
        // Nothing of this job may reach the caller after its terminal notice.
        piece.progress.close().await;
        let urls = self.store.urls(record).await?;
        let notices = self.notifier.complete(piece.job, record, &urls)?;
        match piece.telling {
            Telling::Now => self.notifier.send_all(&notices).await,
            Telling::Later => {
                piece.notices = notices;
                Ok(())
            }
        }
    }
}
