//! Step `notify`: notifies the caller that the images are there.

use std::sync::Arc;

use async_trait::async_trait;

use super::context::JobContext;
use super::control::NotificationMode;
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

    async fn run(&self, context: &mut JobContext<'_>) -> Result<(), JobError> {
        let Some(record) = &context.record else { return Ok(()) };
        // Nothing of this job may reach the caller after its terminal notification.
        context.progress.close().await;
        let urls = self.store.urls(record).await?;
        let notifications = self.notifier.complete(context.job, record, &urls)?;
        match context.notification_mode {
            NotificationMode::Now => self.notifier.send_all_or_backend(&notifications).await,
            NotificationMode::Later => {
                context.notifications = notifications;
                Ok(())
            }
        }
    }
}
