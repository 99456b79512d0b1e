//! Batches: which messages of an event are run at the same time, because their images can be denoised in one batch.

use crate::events::Delivery;
use crate::job::Job;
use crate::job::request::{Defaults, Refusal};
use crate::job::task::Task;

/// A message with what is in it.
pub(super) struct Waiting<T> {
    /// Its place in the event.
    pub(super) place: usize,
    pub(super) delivery: Delivery,
    pub(super) job: T,
}

/// What is to be run next.
pub(super) enum Batch {
    Refused(Box<Waiting<Refusal>>),
    /// One or several.
    Jobs(Vec<Waiting<Job>>),
}

/// The messages of an event that no batch has taken, in its order.
pub(super) struct Line(Vec<Waiting<Result<Job, Refusal>>>);

impl Line {
    pub(super) fn new(deliveries: Vec<Delivery>, defaults: &Defaults) -> Self {
        let waiting = deliveries.into_iter().enumerate().map(|(place, delivery)| {
            let job = Job::from_message(&delivery.body, delivery.trace, defaults);
            Waiting { place, delivery, job }
        });
        Self(waiting.collect())
    }

    /// Takes the first message, and all that may share its batch as long as their images have `most_px` pixels together. Of
    /// a group whose messages must be settled in order none is taken before another.
    pub(super) fn next(&mut self, most_px: u64) -> Option<Batch> {
        let mut waiting = std::mem::take(&mut self.0).into_iter();
        let Waiting { place, delivery, job } = waiting.next()?;
        let first = match job {
            Ok(job) => Waiting { place, delivery, job },
            Err(refusal) => {
                self.0 = waiting.collect();
                return Some(Batch::Refused(Box::new(Waiting { place, delivery, job: refusal })));
            }
        };
        let mut px = pixels(&first.job);
        let mut batch = vec![first];
        for Waiting { place, delivery, job } in waiting {
            let group = |other: &Delivery| delivery.group.is_some() && other.group == delivery.group;
            let in_order =
                !batch.iter().any(|member| group(&member.delivery)) && !self.0.iter().any(|passed| group(&passed.delivery));
            match job {
                Ok(job) if in_order && px.saturating_add(pixels(&job)) <= most_px && joins(&batch, &delivery, &job) => {
                    px += pixels(&job);
                    batch.push(Waiting { place, delivery, job });
                }
                job => self.0.push(Waiting { place, delivery, job }),
            }
        }
        Some(Batch::Jobs(batch))
    }
}

/// Only first attempts: a job that broke something must not take others with it again.
fn joins(batch: &[Waiting<Job>], delivery: &Delivery, job: &Job) -> bool {
    delivery.attempt == 1 && batch.iter().all(|member| member.delivery.attempt == 1 && member.job.shares_batch_with(job))
}

fn pixels(job: &Job) -> u64 {
    match &job.task {
        Task::Generate(generate) => generate.pixels(),
        Task::TryOn(_) | Task::Edit(_) => 0,
    }
}
