//! What happens to a job between its event and its outcome: the steps that config.yaml lists, in that order.

pub mod absent;
mod blocking;
pub mod context;
pub mod control;
pub mod credentials;
mod done;
pub mod encode;
pub mod fetch;
pub mod infer;
pub mod invisible;
pub mod mark;
pub mod mask;
pub mod notify;
mod opening;
mod png_texts;
pub mod postprocess;
pub mod preprocess;
pub mod previews;
mod reporting;
mod request;
pub mod screening;
pub mod sequence;
mod step_name;
pub mod store;
pub mod text_layout;
pub mod upscale;
pub mod user_step;
pub mod watermark;

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use async_trait::async_trait;
use futures_util::future::join_all;
use tracing::{Instrument as _, Span};

use self::context::JobContext;
use self::control::{Control, NotificationMode};
use self::credentials::CredentialsStep;
use self::done::log_done;
use self::encode::{Encode, EncodeStep};
use self::infer::Observer;
use self::mask::MaskStep;
use self::postprocess::{Postprocess, PostprocessStep};
use self::preprocess::{Preprocess, PreprocessStep};
pub use self::reporting::Noted;
use self::screening::{Check, Screen};
pub use self::step_name::StepName;
use self::store::ModelOrigin;
use self::upscale::UpscaleStep;
use self::user_step::UserSteps;
use self::watermark::{TextStyle, WatermarkStep};
use crate::content_credentials::signing::Signing;
use crate::job::capabilities::Capabilities;
use crate::job::measured::Measured;
use crate::job::notification::Notification;
use crate::job::outcome::{JobError, Outcome, Record, RetryPolicy, Signer};
use crate::job::segmenter::Segmenter;
use crate::job::task::ModelName;
use crate::job::upscalers::Upscalers;
use crate::job::{Job, JobId, trace};
use crate::notify::Notifier;
use crate::safety::gate::Gate;
use crate::store::Store;
use crate::store::held_results::HeldResults;
use crate::store::record::LookedUp;
use atelier_engine::thread::{BatchSlot, EngineThread};

/// One step of the workflow.
#[async_trait]
pub trait Step: Send + Sync {
    fn name(&self) -> StepName;

    /// Refuses what this step will not be able to do, before anything is fetched or generated.
    ///
    /// # Errors
    /// One that names the field at fault.
    fn check(&self, _job: &Job) -> Result<(), JobError> {
        Ok(())
    }

    /// Whether this step runs for a job whose images are already stored.
    fn runs_on_replay(&self) -> bool {
        false
    }

    /// Whether this step runs for a job whose encoded images are there and not stored.
    fn runs_on_resume(&self) -> bool {
        RESUMED.contains(&self.name())
    }

    /// Does the step's work on the job context. May be dropped at any await: what it had begun must be harmless then.
    ///
    /// # Errors
    /// Whatever keeps the job from going on.
    async fn run(&self, context: &mut JobContext<'_>) -> Result<(), JobError>;
}

/// What is left to do for a job whose encoded images are there and not stored.
const RESUMED: [StepName; 2] = [StepName::Store, StepName::Notify];

/// What the steps work with.
pub struct Services {
    pub engine: EngineThread,
    pub model: ModelName,
    pub origin: ModelOrigin,
    pub capabilities: Capabilities,
    pub upscalers: Upscalers,
    pub segmenter: Segmenter,
    pub preprocess: Preprocess,
    pub encode: Encode,
    pub gate: Arc<Gate>,
    /// None: files are not signed.
    pub signing: Option<Arc<Signing>>,
    pub postprocess: Postprocess,
    pub user_steps: UserSteps,
    pub text_style: TextStyle,
    pub store: Arc<Store>,
    /// Where results wait that the store does not take, under a host.
    pub held_results: HeldResults,
    pub notifier: Arc<Notifier>,
    pub observer: Observer,
}

/// The configured steps, ready to run one job, or the jobs of a batch at the same time.
pub struct Workflow {
    steps: Vec<Box<dyn Step>>,
    engine: EngineThread,
    store: Arc<Store>,
    held_results: HeldResults,
    notifier: Arc<Notifier>,
    gate: Arc<Gate>,
    spent: OnceLock<Spent>,
}

/// Why a process can do no more jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spent {
    /// The engine cannot generate any more: nothing but another process helps.
    FatalDeviceError,
    /// Images cannot be signed any more: the next process says at start what is wrong.
    CannotSign,
}

/// How one run of a job ended.
pub struct Ended {
    pub result: Result<Outcome, JobError>,
    /// The images are in the bucket, or may be: whatever error there is, no one may be notified that the job failed.
    pub stored: bool,
    /// What is still to be reported, when the invocation does not deliver its notifications itself.
    pub notifications: Vec<Notification>,
    pub measured: Measured,
}

impl Ended {
    fn without_images(error: JobError) -> Self {
        Self { result: Err(error), stored: false, notifications: Vec::new(), measured: Measured::default() }
    }
}

impl Workflow {
    /// Sets up the steps in the order of `names`, which [`sequence::check`] has passed.
    #[must_use]
    pub fn new(names: &[StepName], services: Services) -> Self {
        let Services {
            engine,
            model,
            origin,
            capabilities,
            upscalers,
            segmenter,
            preprocess,
            postprocess,
            user_steps,
            text_style,
            encode,
            gate,
            signing,
            store,
            held_results,
            notifier,
            observer,
        } = services;
        let observer = Observer { previews: observer.previews.filter(|_| previews::may_be_shown(names, &gate)), ..observer };
        let steps = names.iter().map(|name| -> Box<dyn Step> {
            match name {
                StepName::Fetch => Box::new(fetch::Fetch { store: store.clone() }),
                StepName::Preprocess => Box::new(PreprocessStep(preprocess)),
                StepName::Screen => Box::new(Screen { gate: gate.clone(), engine: engine.clone() }),
                StepName::Check => Box::new(Check { gate: gate.clone(), engine: engine.clone() }),
                StepName::Mask => Box::new(MaskStep { segmenter: segmenter.clone(), engine: engine.clone() }),
                StepName::Infer => Box::new(infer::Infer {
                    model: model.clone(),
                    capabilities: capabilities.clone(),
                    upscalers: upscalers.clone(),
                    observer: observer.clone(),
                }),
                StepName::Postprocess => Box::new(PostprocessStep(postprocess)),
                StepName::Upscale => Box::new(UpscaleStep { upscalers: upscalers.clone(), engine: engine.clone() }),
                StepName::User(name) => Box::new(user_steps.get(name)),
                StepName::Watermark => Box::new(WatermarkStep(text_style.clone())),
                StepName::Encode => Box::new(EncodeStep { settings: encode, store: store.clone() }),
                StepName::Credentials => Box::new(CredentialsStep { signing: signing.clone(), encode, model: model.clone() }),
                StepName::Store => {
                    let policy = gate.is_on().then(|| gate.policy.clone());
                    let signer = signing.as_ref().map(|signing| Signer {
                        subject: signing.subject.clone(),
                        certificate_sha256: signing.certificate_sha256.clone(),
                    });
                    Box::new(store::StoreStep {
                        store: store.clone(),
                        held_results: held_results.clone(),
                        model: model.clone(),
                        policy,
                        signer,
                        origin: origin.clone(),
                        upscalers: upscalers.clone(),
                    })
                }
                StepName::Notify => Box::new(notify::Notify { store: store.clone(), notifier: notifier.clone() }),
            }
        });
        Self { steps: steps.collect(), engine, store, held_results, notifier, gate, spent: OnceLock::new() }
    }

    /// Takes one job from here to its outcome. A job whose record is stored already is not generated again: only the steps that
    /// run on a replay do.
    pub async fn run(&self, job: &Job, control: &Control) -> Ended {
        self.run_from(self.engine.batch_slot(), job, control).await
    }

    /// As [`Self::run`] for jobs that share a batch ([`Job::shares_batch_with`]): each has its own way, and they are generated as
    /// one when all of them are ready for it, or out. Each has the span that its lines of the log stand in. Returns one end a
    /// job, in their order.
    pub async fn run_together(&self, jobs: &[(&Job, Span)], control: &Control) -> Vec<Ended> {
        let batch_slots = self.engine.batch_slots(jobs.len());
        let runs = jobs.iter().zip(batch_slots);
        join_all(runs.map(|((job, span), batch_slot)| self.run_from(batch_slot, job, control).instrument(span.clone()))).await
    }

    async fn run_from(&self, batch_slot: BatchSlot, job: &Job, control: &Control) -> Ended {
        if let Err(refused) = self.check(job) {
            self.note_spent(&refused);
            return Ended::without_images(refused);
        }
        let started = Instant::now();
        let mut context = JobContext::new(job, batch_slot, self.notifier.progress(job), control.notification_mode());
        let finalizing = context.finalizing.clone();
        let stop = async {
            let reason = control.stopped(&job.id).await;
            // What is almost done is not thrown away, and no one can say of it that it failed.
            if finalizing.has_begun() {
                control.over().await;
            }
            reason
        };
        let result = tokio::select! {
            result = Box::pin(self.run_steps(&mut context)) => result,
            reason = stop => Err(reason),
        };
        let result = Box::pin(self.note_blocked(&mut context, result)).await;
        let blocked_now = context.blocked.take();
        let user_steps = std::mem::take(&mut context.user_step_runs);
        let JobContext { record, replayed, batch_slot, timings_ms, progress, notifications, watch, held_results, .. } = context;
        drop(batch_slot);
        progress.finish().await;
        // What an earlier attempt took was counted then.
        let took =
            timings_ms.iter().filter(|(step, _)| held_results.used == 0 || RESUMED.iter().any(|own| own.as_str() == *step));
        let took = took.map(|(step, ms)| (step.clone(), *ms as f64 / 1e3)).collect();
        let pace = watch.map(|watch| watch.pace()).unwrap_or_default();
        let measured = Measured {
            seconds: started.elapsed().as_secs_f64(),
            step_seconds: took,
            denoising_steps: pace.steps.into(),
            denoising_seconds: pace.between.as_secs_f64(),
            lora_cache_hit: pace.lora_cache_hit,
            held_results,
            blocked: blocked_now,
            user_steps,
            webhook_attempts: self.notifier.take_attempts(),
        };
        // A record whose answer was lost may be there, or get there yet.
        let stored = record.is_some() || finalizing.has_begun();
        let result = match (result, record) {
            (Ok(()), Some(record)) => {
                log_done(job, &record, replayed, &timings_ms);
                Ok(Outcome { record, replayed })
            }
            (Ok(()), None) => Err(JobError::Internal { problem: "the workflow ended without a record".into() }),
            (Err(error), _) => Err(error),
        };
        if let Err(error) = &result {
            self.note_spent(error);
        }
        Ended { result, stored, notifications, measured }
    }

    fn check(&self, job: &Job) -> Result<(), JobError> {
        let names: Vec<StepName> = self.steps.iter().map(|step| step.name()).collect();
        absent::check(&names, job)?;
        self.steps.iter().try_for_each(|step| step.check(job))
    }

    async fn run_steps(&self, context: &mut JobContext<'_>) -> Result<(), JobError> {
        let Job { id, output, .. } = context.job;
        let (looked_up, blocked) = tokio::join!(self.store.look_up(&output.prefix, id), self.blocked_before(context.job));
        match looked_up? {
            LookedUp::Record(record) => context.replay(record)?,
            LookedUp::NoneAt(began) => context.began = began,
        }
        if !context.replayed
            && let Some(blocked) = blocked?
        {
            context.blocked_before = true;
            return Err(JobError::Blocked(blocked.block));
        }
        if !context.replayed
            && context.notification_mode == NotificationMode::Later
            && let Some(result) = self.held_results.get(context.job).await
            // One that another gate has judged, or none, is judged anew, and so generated anew.
            && (!self.gate.is_on() || result.policy.as_ref() == Some(&self.gate.policy))
        {
            tracing::info!("the result of an earlier attempt is on disk; it is stored, not generated again");
            context.resume(result);
        }
        for step in &self.steps {
            let is_done = context.replayed && !step.runs_on_replay() || context.resumed && !step.runs_on_resume();
            if is_done {
                continue;
            }
            let started = Instant::now();
            let span = trace::step_span(step.name().as_str());
            step.run(context).instrument(span.clone()).await.inspect_err(|error| trace::fail(&span, error.code()))?;
            context.timings_ms.insert(step.name().as_str().to_owned(), started.elapsed().as_millis() as u64);
        }
        Ok(())
    }

    /// Why this process can do no more jobs, if it cannot.
    #[must_use]
    pub fn spent(&self) -> Option<Spent> {
        self.spent.get().copied()
    }

    fn note_spent(&self, error: &JobError) {
        let spent = match error {
            JobError::FatalDeviceError { .. } => Spent::FatalDeviceError,
            JobError::Signing { .. } => Spent::CannotSign,
            _ => return,
        };
        // The first reason stays.
        let _ = self.spent.set(spent);
    }

    /// The outcome that the bucket knows of the job, whatever its last attempt came to: none when no record of it is there.
    ///
    /// # Errors
    /// When that cannot be known now, also because no time is left to ask.
    pub async fn stored_outcome(&self, job: &Job, control: &Control) -> Result<Option<Outcome>, JobError> {
        let record = self.record(&job.output.prefix, &job.id, control).await?;
        let own = record.filter(|record| record.fingerprint == job.fingerprint);
        Ok(own.map(|record| Outcome { record, replayed: true }))
    }

    /// Whether a job of this id is done; something that is no record counts as one.
    ///
    /// # Errors
    /// As [`Self::stored_outcome`].
    pub async fn is_recorded(&self, prefix: &str, job_id: &JobId, control: &Control) -> Result<bool, JobError> {
        match self.record(prefix, job_id, control).await {
            Err(unreadable) if unreadable.retry_policy() == RetryPolicy::Terminal => Ok(true),
            record => record.map(|record| record.is_some()),
        }
    }

    async fn record(&self, prefix: &str, job_id: &JobId, control: &Control) -> Result<Option<Record>, JobError> {
        tokio::select! {
            record = self.store.record(prefix, job_id) => record,
            reason = control.over() => Err(reason),
        }
    }
}
