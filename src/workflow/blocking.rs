//! What becomes of a job that the safety gate does not let through: it is noted in the bucket before anyone is told.

use std::time::SystemTime;

use super::Workflow;
use super::context::JobContext;
use crate::job::Job;
use crate::job::outcome::JobError;
use crate::job::safety::BlockedJob;

impl Workflow {
    /// What an earlier run noted of this very request, as it is judged now: another list, classifier or moderator is asked anew. Where nobody looks at
    /// jobs, nobody has noted anything.
    pub(super) async fn blocked_before(&self, job: &Job) -> Result<Option<BlockedJob>, JobError> {
        if !self.gate.is_on() {
            return Ok(None);
        }
        let blocked = self.store.blocked(&job.output.prefix, &job.id).await?;
        Ok(blocked.filter(|blocked| blocked.fingerprint == job.fingerprint && blocked.policy == self.gate.policy))
    }

    /// Notes that this run was not allowed to go on. A note that cannot be written leaves the job to wait: the next run asks again.
    pub(super) async fn note_blocked(
        &self,
        context: &mut JobContext<'_>,
        result: Result<(), JobError>,
    ) -> Result<(), JobError> {
        let Err(JobError::Blocked(block)) = result else { return result };
        let job = context.job;
        if !context.blocked_before {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            let blocked = BlockedJob {
                job_id: job.id.to_string(),
                fingerprint: job.fingerprint.clone(),
                block: block.clone(),
                policy: self.gate.policy.clone(),
                checks: std::mem::take(&mut context.checks),
                blocked_at_s: now.as_secs(),
            };
            self.store.put_blocked(job, &blocked).await?;
            context.blocked = Some(block.clone());
        }
        // Again on a redelivery: the first time may have been killed before it was done.
        if self.gate.deletes_inputs {
            self.store.delete_uploads(job).await;
        }
        Err(JobError::Blocked(block))
    }
}
