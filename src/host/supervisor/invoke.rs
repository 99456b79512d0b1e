//! One invocation of one handler: the event in, the answer out, or how it died over it.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep_until};

use super::{Phase, Worker};
use crate::clock::later;
use crate::host::answer::{Answer, Ended, FunctionError};
use crate::host::cause::Cause;
use crate::host::dispatch::Assignment;
use crate::host::ended::{End, EndedJob};
use crate::host::in_flight::InFlight;
use crate::host::process::Process;
use crate::host::runtime_api::{Invocation, RuntimeApi};
use crate::job::trace::Trace;
use crate::protocol::context;
use crate::protocol::control::ControlCommand;

/// The bounds of an invocation.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// For each job of an event, from event to answer.
    pub(super) job: Duration,
    /// From SIGTERM to SIGKILL.
    pub(super) kill_grace: Duration,
}

/// Why the host stops waiting for an answer.
enum Stop {
    Deadline,
    Drain,
}

impl Worker {
    pub(super) fn limits(&self) -> Limits {
        Limits {
            job: Duration::from_millis(self.settings.job_timeout_ms),
            kill_grace: Duration::from_millis(self.settings.kill_grace_ms),
        }
    }

    /// Leaves out what was cancelled while it waited; none when nothing is left.
    pub(super) fn begin(&self, assignment: Assignment) -> Option<Assignment> {
        let jobs = self.dispatcher.jobs();
        match assignment {
            Assignment::Direct(direct) if jobs.start(&direct.job, 1) => Some(Assignment::Direct(direct)),
            Assignment::Direct(direct) => {
                self.acknowledger.cancelled_direct(direct);
                None
            }
            Assignment::Messages(in_flight) => {
                let in_flight = in_flight.into_iter().filter_map(|in_flight| self.unless_told(in_flight)).collect::<Vec<_>>();
                let (begun, cancelled): (Vec<_>, Vec<_>) = in_flight.into_iter().partition(|in_flight| {
                    in_flight.job.as_ref().map_or(true, |job| jobs.start(job, in_flight.message.attempt))
                });
                for in_flight in cancelled {
                    self.acknowledger.cancelled(in_flight);
                }
                Some(Assignment::Messages(begun)).filter(|assignment| assignment.count() > 0)
            }
        }
    }

    /// None for a message that was sent before the same job's end was told: published twice, it has one end, which is told again.
    fn unless_told(&self, in_flight: InFlight) -> Option<InFlight> {
        let sent = in_flight.message.sent.filter(|_| in_flight.source.knows_when_sent());
        let told = in_flight.job.as_ref().ok().zip(sent).and_then(|(job, sent)| self.dispatcher.jobs().told_since(job, sent));
        let Some(problem) = told else { return Some(in_flight) };
        tracing::warn!(code = problem.code, "a message of a job that has failed since it was sent is not run");
        let ended = EndedJob::failed(End::Failed, in_flight.message.attempt, problem);
        self.acknowledger.notify(in_flight, ended, None);
        None
    }

    /// Runs one assignment and has it settled. Says whether the handler answered, and why it has to be replaced, if so.
    pub(super) async fn invoke(
        &mut self,
        api: &RuntimeApi,
        process: &mut Process,
        mut assignment: Assignment,
    ) -> (bool, Option<Cause>) {
        self.metrics.started(self.model.as_str(), assignment.count());
        let limit = self.limits().job.saturating_mul(u32::try_from(assignment.count()).unwrap_or(u32::MAX));
        let answer = api.invoke(Invocation {
            event: self.acknowledger.event(&assignment),
            limit,
            client_context: Some(context::encode()),
            trace_id: assignment.trace().map(Trace::to_xray),
        });
        let (ended, cause) = self.follow(api, process, &mut assignment, (answer, limit)).await;
        api.abandon();
        let answered = matches!(ended, Ended::Answered(_));
        self.acknowledger.acknowledge(assignment, ended);
        (answered, cause)
    }

    async fn follow(
        &mut self,
        api: &RuntimeApi,
        process: &mut Process,
        assignment: &mut Assignment,
        (mut answer, limit): (oneshot::Receiver<Answer>, Duration),
    ) -> (Ended, Option<Cause>) {
        let deadline = later(Instant::now(), limit);
        let mut caller_waits = true;
        // Callers may repeat a DELETE as often as they like; the handler hears of it once.
        let mut cancelled = HashSet::new();
        let previews = Arc::clone(&self.dispatcher.jobs().previews);
        let mut looks = previews.changes();
        let mut shown = BTreeSet::new();
        let job_ids = assignment.job_ids();
        for job_id in &job_ids {
            previews.begin(job_id);
        }
        looks.mark_changed();
        let drained = drained(self.phase.clone());
        tokio::pin!(drained);
        let stop = loop {
            tokio::select! {
                biased;
                answer = &mut answer => return (answered(answer), None),
                status = process.ended() => {
                    let cause = Cause::of(status, process.oom_kills());
                    return (last_word(api, &mut answer, cause), Some(cause));
                }
                () = sleep_until(deadline) => break Stop::Deadline,
                () = &mut drained => break Stop::Drain,
                Some(job_id) = self.cancels.recv() => if cancelled.insert(job_id.clone()) {
                    process.send(&ControlCommand::Cancel(job_id));
                },
                Ok(()) = looks.changed() => {
                    previews.commands(&job_ids, &mut shown).iter().for_each(|command| process.send(command));
                }
                () = caller_gone(assignment), if caller_waits => {
                    caller_waits = false;
                    for job_id in &job_ids {
                        process.send(&ControlCommand::Cancel(job_id.clone()));
                    }
                }
            }
        };
        self.stop(api, process, answer, stop).await
    }

    /// Ends a handler over its work; what it still answers counts.
    async fn stop(
        &mut self,
        api: &RuntimeApi,
        process: &mut Process,
        mut answer: oneshot::Receiver<Answer>,
        stop: Stop,
    ) -> (Ended, Option<Cause>) {
        let cause = match stop {
            Stop::Deadline => Cause::Deadline,
            Stop::Drain => Cause::Stopped,
        };
        tracing::warn!(handler = self.index, cause = cause.as_str(), "a handler is ended over its work");
        process.terminate();
        let grace = later(Instant::now(), self.limits().kill_grace);
        let given = tokio::select! {
            biased;
            answer = &mut answer => Some(answered(answer)),
            _ = process.ended() => None,
            () = sleep_until(grace) => None,
        };
        let ended = match given {
            Some(ended) => ended,
            None => last_word(api, &mut answer, cause),
        };
        if tokio::time::timeout_at(grace, process.ended()).await.is_err() {
            process.kill();
            process.ended().await;
        }
        let ended = match (ended, stop) {
            (Ended::Died(_), Stop::Drain) => Ended::Untried,
            (ended, _) => ended,
        };
        (ended, Some(cause))
    }
}

/// Resolves when running work is to be handed back; never while the host just runs.
async fn drained(mut phase: watch::Receiver<Phase>) {
    loop {
        let now = *phase.borrow_and_update();
        match now {
            Phase::Running => {
                if phase.changed().await.is_err() {
                    return std::future::pending().await;
                }
            }
            Phase::Draining(end) => tokio::select! {
                () = sleep_until(end) => return,
                Ok(()) = phase.changed() => {}
            },
        }
    }
}

/// A handler that asks for another event instead of answering has failed this one.
fn answered(answer: Result<Answer, oneshot::error::RecvError>) -> Ended {
    Ended::Answered(answer.unwrap_or_else(|_| {
        Answer::Error(FunctionError::new(
            "Runtime.NoAnswer",
            "the function asked for the next event without answering this one",
        ))
    }))
}

/// What a handler that is gone had still said, or that it never had the event.
fn last_word(api: &RuntimeApi, answer: &mut oneshot::Receiver<Answer>, cause: Cause) -> Ended {
    match answer.try_recv() {
        Ok(answer) => Ended::Answered(answer),
        Err(_) if !api.was_taken() => Ended::Untried,
        Err(_) => Ended::Died(cause),
    }
}

async fn caller_gone(assignment: &mut Assignment) {
    match assignment {
        Assignment::Direct(direct) => direct.answer.closed().await,
        Assignment::Messages(_) => std::future::pending().await,
    }
}
