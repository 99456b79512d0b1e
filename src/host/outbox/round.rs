//! One round of attempts: each notification of a job that was not taken yet is sent once, in their order.

use std::time::Instant;

use super::Outbox;
use super::pending::{FRESH, Later, NotSent, Taken, Written};
use crate::host::ended::{End, EndedJob};
use crate::host::in_flight::InFlight;
use crate::job::Job;
use crate::job::notification::Notification;
use crate::job::outcome::{JobError, Problem, Record, RetryPolicy};
use crate::notify::failure::Undelivered;
use crate::notify::once::OnceError;
use crate::store::failed::{FailedJob, RECORD_WITHIN};

impl Outbox {
    /// As a round, of notifications without a message.
    pub(super) async fn attempt_each(&self, notifications: &mut Vec<Notification>) -> Option<Later> {
        let mut reason = None;
        let mut left = Vec::new();
        for mut notification in std::mem::take(notifications) {
            if let Err(later) = self.attempt(&mut notification).await {
                left.push(notification);
                reason = Some(Later::first_of(reason, later));
            }
        }
        *notifications = left;
        reason
    }

    pub(super) async fn round(
        &self,
        in_flight: &InFlight,
        ended: &mut EndedJob,
        written: &mut Option<Written>,
    ) -> Result<(), NotSent> {
        ended.rounds = ended.rounds.saturating_add(1);
        let is_certain = self.note(in_flight, ended, written.as_ref()).await?;
        // A failure is not reported without a look for the record, each time.
        let is_complete = ended.end == End::Complete;
        if !written.as_ref().is_some_and(|written| is_certain || is_complete && written.since.elapsed() < FRESH) {
            *written = Some(self.write(in_flight, ended, written.clone()).await?);
        }
        let notifications = written.as_mut().map_or(&mut [][..], |written| &mut written.notifications[..]);
        let doubtful = notifications.iter().any(|notification| {
            let receiver = self.services.sender.notifier.destination(notification);
            !ended.delivered.contains(&notification.id)
                && receiver.is_some_and(|name| self.receivers.is_doubtful(&name, notification.into()))
        });
        let _room = self.room(in_flight, doubtful)?;
        let mut reason: Option<Later> = None;
        let mut nobody = None;
        for notification in notifications {
            if ended.delivered.contains(&notification.id) {
                continue;
            }
            match self.attempt(notification).await {
                Ok(Taken::Received) => ended.delivered.push(notification.id.clone()),
                Ok(Taken::ByNobody(problem)) => nobody = Some(problem),
                Err(later) => reason = Some(Later::first_of(reason, later)),
            }
        }
        match (reason, nobody) {
            (Some(later), _) => Err(NotSent::Later(later)),
            (None, Some(problem)) if ended.delivered.is_empty() => Err(NotSent::Nobody(problem)),
            _ => Ok(()),
        }
    }

    /// Before anyone is notified that a job failed: whoever gets its message again is to notify the same, and whoever runs it beside
    /// this attempt is to see it before its record. Then the record is to be looked for, unless every attempt would fail: that is true.
    async fn note(&self, in_flight: &InFlight, ended: &mut EndedJob, written: Option<&Written>) -> Result<bool, NotSent> {
        let problem = ended.problem();
        let is_first = ended.rounds == 1;
        let Ok(job) = &in_flight.job else { return Ok(is_first) };
        // The id of a conflict is another job's, and the next attempt finds the same.
        if ended.end == End::Complete || problem.is_conflict() {
            return Ok(is_first && ended.end != End::Complete);
        }
        let is_certain = is_first && problem.is_of_the_request();
        if ended.noted {
            return Ok(is_certain);
        }
        let notifications = match written {
            Some(written) => written.notifications.clone(),
            None => self.failed(in_flight, ended).map_err(|error| NotSent::Later(self.later(&error)))?,
        };
        if notifications.is_empty() {
            return Ok(is_first);
        }
        let failed = FailedJob::new(job, problem, ended.end == End::DeadLetter, notifications);
        let put = self.store().put_failed(job, &in_flight.message.identity, &failed).await;
        put.map_err(|error| NotSent::Later(self.later(&error)))?;
        ended.noted = true;
        if !is_certain {
            self.record_may_come(job, ended.record_until).await;
        }
        Ok(is_certain)
    }

    /// Waits until no record of the job is to be expected any more, or one is there.
    async fn record_may_come(&self, job: &Job, until: Option<Instant>) {
        tokio::time::sleep(RECORD_WITHIN).await;
        while until.is_some_and(|until| Instant::now() < until) {
            if matches!(self.store().record(&job.output.prefix, &job.id).await, Ok(Some(_))) {
                return;
            }
            tokio::time::sleep(RECORD_WITHIN).await;
        }
    }

    /// A reason to wait; the host receives nothing while it is the store's.
    fn later(&self, error: &JobError) -> Later {
        if error.retry_policy() == RetryPolicy::Wait {
            self.services.store_health.report(&error.to_string());
        }
        let may_give_up = error.retry_policy() != RetryPolicy::Wait;
        Later { problem: error.to_string(), may_give_up, ..Later::default() }
    }

    /// What is to be sent, by what the bucket knows now. A job that has a record is complete, whatever was known of it before. One that
    /// has failed is told in the words in which it was `written`.
    async fn write(&self, in_flight: &InFlight, ended: &mut EndedJob, written: Option<Written>) -> Result<Written, NotSent> {
        // Named: two places tell of a failure, and more of a store that is away.
        let later = |error: JobError| NotSent::Later(self.later(&error));
        let failed = |ended: &EndedJob| match written {
            Some(written) => Ok(written),
            None => self.failed(in_flight, ended).map(Written::now).map_err(later),
        };
        let problem = ended.problem();
        if ended.end != End::Complete && problem.is_conflict() {
            return failed(ended);
        }
        let record = match &in_flight.job {
            Ok(job) => match self.store().record(&job.output.prefix, &job.id).await {
                // Something else lies there, and will: it is no record of this job.
                Err(unreadable) if unreadable.retry_policy() == RetryPolicy::Terminal => None,
                record => record.map_err(later)?,
            },
            Err(_) => None,
        };
        match (&in_flight.job, record) {
            (Ok(job), Some(record)) if record.fingerprint == job.fingerprint => {
                if ended.end != End::Complete {
                    let EndedJob { noted, rounds, waited_ms, ended_s, .. } = *ended;
                    *ended = EndedJob { noted, rounds, waited_ms, ended_s, ..EndedJob::complete(ended.attempt) };
                }
                self.complete(job, &record).await.map(Written::now).map_err(later)
            }
            // Somebody has sent another request under the id, and that one is complete: that this one failed must not be read as its end.
            (Ok(job), Some(_)) if ended.end != End::Complete => {
                tracing::warn!(
                    "the id of a job that failed belongs to another request by now: its caller is told of a conflict"
                );
                ended.end = End::DeadLetter;
                ended.problem = Some(Problem::from(&JobError::Conflict { job_id: job.id.clone() }));
                self.failed(in_flight, ended).map(Written::now).map_err(later)
            }
            _ if ended.end == End::Complete => Err(NotSent::NoRecord),
            _ => failed(ended),
        }
    }

    async fn complete(&self, job: &Job, record: &Record) -> Result<Vec<Notification>, JobError> {
        let urls = self.store().urls(record).await?;
        self.services.sender.notifier.complete(job, record, &urls)
    }

    /// What the caller of a job that has failed is to be sent.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn failed(&self, in_flight: &InFlight, ended: &EndedJob) -> Result<Vec<Notification>, JobError> {
        self.services.sender.notifier.failed_as(&in_flight.notification_target(), &ended.problem(), ended.attempt)
    }

    /// Sends one notification once; to the backend where its `callback.url` may not be reached.
    async fn attempt(&self, notification: &mut Notification) -> Result<Taken, Later> {
        loop {
            let notifier = &self.services.sender.notifier;
            let Some(name) = notifier.destination(notification) else {
                let problem = format!("{}: this host has no address for it (notify, asset_service)", notification.as_str());
                return Err(Later { problem, may_give_up: true, ..Later::default() });
            };
            let later = match self.receivers.enter(&name, (&*notification).into()).await {
                Err(pause) => Later {
                    problem: format!(
                        "{} to {name}: the receiver is busy, or left alone because it has failed before",
                        notification.as_str()
                    ),
                    asked: pause,
                    receiver: Some(name),
                    may_give_up: true,
                },
                Ok(place) => match notifier.send_once(notification).await {
                    Ok(()) => {
                        place.answered();
                        return Ok(Taken::Received);
                    }
                    Err(OnceError::Refused(refused)) => {
                        let Some(instead) = notifier.backend_instead(notification, &refused) else {
                            return Ok(Taken::ByNobody(format!("no one can be notified: {refused}")));
                        };
                        *notification = instead;
                        continue;
                    }
                    Err(OnceError::NotWritten(error)) => self.later(&error),
                    Err(OnceError::Undelivered(Undelivered { problem, retry_after, is_down })) => {
                        if is_down {
                            place.failed(&problem);
                        } else {
                            place.answered();
                        }
                        Later {
                            problem: format!("{} to {name}: {problem}", notification.as_str()),
                            asked: retry_after.unwrap_or_default(),
                            receiver: Some(name),
                            may_give_up: true,
                        }
                    }
                },
            };
            if notification.is_best_effort() {
                tracing::warn!(webhook_id = notification.id, problem = later.problem, "not delivered, and not tried again");
                return Ok(Taken::Received);
            }
            return Err(later);
        }
    }
}
