//! What becomes of a job whose caller waits for the handler's own answer.

use serde_json::json;

use super::acknowledge::{Acknowledger, failed_state};
use crate::host::answer::{Answer, Ended, reply_value};
use crate::host::job_service::{Direct, Ending};
use crate::host::jobs::State;
use crate::job::outcome::{JobError, Problem};
use crate::protocol::reply::{self, JobOutcome, JobReport};

impl Acknowledger {
    /// A job that someone cancelled before it was started: whoever waits for it hears of it, as of every end that no handler came to.
    pub fn cancelled_direct(&self, direct: Direct) {
        let span = direct.span.clone();
        let _entered = span.enter();
        self.metrics.job("infer", "cancelled", None);
        let problem = json!(Problem::from(&JobError::Cancelled));
        self.jobs.end(direct.job.id.as_str(), State::Cancelled, Some(problem));
        // A caller that is gone needs no answer.
        let _ = direct.answer.send(Ending::Cancelled);
    }

    /// Answers the caller, then delivers the notifications.
    pub(super) async fn answer(&self, direct: Direct, ended: Ended) {
        let id = direct.job.id.as_str();
        let (ending, report) = match ended {
            Ended::Answered(Answer::Reply { body, http_stream }) => {
                let reply = reply_value(&body, http_stream);
                let report = reply::decode(&reply).unwrap_or_else(|unreadable| {
                    tracing::error!(error = %unreadable, "a reply was not understood");
                    Vec::new()
                });
                let report = report.into_iter().next();
                (Ending::Answer(reply), report)
            }
            Ended::Answered(Answer::Error(error)) => (Ending::Crashed(error.to_string()), None),
            Ended::Died(cause) => (Ending::Crashed(cause.to_string()), None),
            Ended::Untried => (Ending::Drained, None),
        };
        // A function that knows nothing of its host answers its caller itself.
        let answered = match &ending {
            Ending::Answer(reply) if report.is_none() && !reply.is_null() && !reply::is_ours(reply) => {
                reply["statusCode"].as_u64().is_none_or(|status| status < 400)
            }
            _ => false,
        };
        let unreported = if answered { (State::Complete, JobOutcome::Complete) } else { (State::Failed, JobOutcome::Failed) };
        let outcome = report.as_ref().map_or(unreported.1, |report| report.outcome).as_str();
        self.metrics.job("infer", outcome, report.as_ref().and_then(|report| report.measured.as_ref()));
        let (state, error, notifications) = match report {
            Some(JobReport { outcome: JobOutcome::Complete, notifications, .. }) => (State::Complete, None, notifications),
            Some(JobReport { error, notifications, .. }) => {
                let error = error.map(|error| json!(error));
                (failed_state(error.as_ref()), error, notifications)
            }
            None => (unreported.0, None, Vec::new()),
        };
        // The only one who wanted it has gone. A queue may hold the same job for somebody else, who would read of its end.
        let was_left = direct.answer.is_closed() && state == State::Cancelled;
        self.jobs.end(id, state, error);
        let _ = direct.answer.send(ending);
        if !was_left {
            self.outbox.send_unqueued(notifications).await;
        }
    }
}
