//! What happens to a job between its event and its outcome: the steps that config.yaml lists, in that order.

pub mod control;
pub mod encode;
pub mod fetch;
pub mod infer;
pub mod lettering;
pub mod notify;
pub mod piece;
pub mod store;
pub mod watermark;

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use serde::Deserialize;

use self::control::Control;
use self::piece::Piece;
use crate::engine::Progress;
use crate::engine::thread::EngineThread;
use crate::job::outcome::{JobError, Outcome, Record};
use crate::job::task::{ModelName, Task};
use crate::job::{Callback, Job, JobId};
use crate::notify::Notifier;
use crate::store::Store;

/// One step of the workflow.
#[async_trait]
pub trait Step: Send + Sync {
    fn name(&self) -> StepName;

    /// Refuses what this step will not be able to do, before anything is fetched or painted.
    ///
    /// # Errors
    /// One that names the field at fault.
    fn check(&self, _job: &Job) -> Result<(), JobError> {
        Ok(())
    }

    /// Whether this step runs for a job whose pictures are already stored.
    fn runs_on_replay(&self) -> bool {
        false
    }

    /// Does the step's work on the piece. May be dropped at any await: what it had begun must be harmless then.
    ///
    /// # Errors
    /// Whatever keeps the job from going on.
    async fn run(&mut self, piece: &mut Piece<'_>) -> Result<(), JobError>;
}

/// The steps there are, by their names in config.yaml.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StepName {
    /// Download what the job refers to.
    Fetch,
    /// Paint.
    Infer,
    /// Put the artist's signature on.
    Watermark,
    /// Turn pixels into a file.
    Encode,
    /// Upload the pictures, then the record.
    Store,
    /// Tell the caller.
    Notify,
}

impl StepName {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fetch => "fetch",
            Self::Infer => "infer",
            Self::Watermark => "watermark",
            Self::Encode => "encode",
            Self::Store => "store",
            Self::Notify => "notify",
        }
    }
}

/// Which step must come before which, where both are listed.
const ORDER: [(StepName, StepName); 6] = [
    (StepName::Fetch, StepName::Infer),
    (StepName::Infer, StepName::Watermark),
    (StepName::Infer, StepName::Encode),
    (StepName::Watermark, StepName::Encode),
    (StepName::Encode, StepName::Store),
    (StepName::Store, StepName::Notify),
];

/// Hears of every denoising step of a job; returns at once.
pub type Observer = Arc<dyn Fn(&JobId, Progress) + Send + Sync>;

/// What the steps work with.
pub struct Services {
    pub engine: EngineThread,
    pub model: ModelName,
    pub store: Arc<Store>,
    pub notifier: Arc<Notifier>,
    pub observer: Observer,
}

/// The configured steps, ready to run one job at a time.
pub struct Workflow {
    steps: Vec<Box<dyn Step>>,
    store: Arc<Store>,
    notifier: Arc<Notifier>,
}

/// Checks a list of steps.
///
/// # Errors
/// Says which step is missing, doubled or misplaced.
pub fn check_order(steps: &[StepName]) -> Result<(), String> {
    for needed in [StepName::Infer, StepName::Encode, StepName::Store] {
        if !steps.contains(&needed) {
            return Err(format!("must contain `{}`", needed.as_str()));
        }
    }
    for (index, step) in steps.iter().enumerate() {
        if steps[..index].contains(step) {
            return Err(format!("`{}` is listed twice", step.as_str()));
        }
    }
    let place = |name| steps.iter().position(|step| *step == name);
    for (first, second) in ORDER {
        if let (Some(first_place), Some(second_place)) = (place(first), place(second))
            && first_place > second_place
        {
            return Err(format!("`{}` must come before `{}`", first.as_str(), second.as_str()));
        }
    }
    Ok(())
}

impl Workflow {
    /// Sets up the steps in the order of `names`, which [`check_order`] has passed.
    #[must_use]
    pub fn new(names: &[StepName], services: Services) -> Self {
        let Services { engine, model, store, notifier, observer } = services;
        let step = |name: &StepName| -> Box<dyn Step> {
            match name {
                StepName::Fetch => Box::new(fetch::Fetch { store: store.clone() }),
                StepName::Infer => {
                    Box::new(infer::Infer { engine: engine.clone(), model: model.clone(), observer: observer.clone() })
                }
                StepName::Watermark => Box::new(watermark::WatermarkStep),
                StepName::Encode => Box::new(encode::EncodeStep),
                StepName::Store => Box::new(store::StoreStep { store: store.clone(), model: model.clone() }),
                StepName::Notify => Box::new(notify::Notify { store: store.clone(), notifier: notifier.clone() }),
            }
        };
        let steps = names.iter().map(step).collect();
        Self { steps, store, notifier }
    }

    /// Takes one job from here to its outcome. A job whose record is stored already is not painted again: only the steps that
    /// run on a replay do.
    ///
    /// # Errors
    /// What kept the job from its outcome; [`JobError::remedy`] says whether to bring it back.
    pub async fn run(&mut self, job: &Job, control: &Control) -> Result<Outcome, JobError> {
        for step in &self.steps {
            step.check(job)?;
        }
        let mut piece = Piece::new(job, self.notifier.progress(job));
        let run = async {
            if let Some(record) = self.store.record(&job.output.prefix, &job.id).await? {
                piece.replay(record)?;
            }
            for step in &mut self.steps {
                if piece.replayed && !step.runs_on_replay() {
                    continue;
                }
                let started = Instant::now();
                step.run(&mut piece).await?;
                piece.timings_ms.insert(step.name().as_str().to_owned(), started.elapsed().as_millis() as u64);
            }
            Ok(())
        };
        let result = tokio::select! {
            result = run => result,
            stopped = control.stopped() => Err(stopped),
        };
        let Piece { record, replayed, timings_ms, progress, .. } = piece;
        progress.finish().await;
        result?;
        let record = record.ok_or_else(|| JobError::Internal { problem: "the workflow ended without a record".into() })?;
        tell_log(job, &record, replayed, &timings_ms);
        Ok(Outcome { record, replayed })
    }

    /// Tells the caller that the job failed for good.
    ///
    /// # Errors
    /// [`JobError::Notice`] when the notice could not be delivered.
    pub async fn tell_failed(
        &self,
        job_id: Option<&JobId>,
        callback: Option<&Callback>,
        error: &JobError,
        attempt: u32,
    ) -> Result<(), JobError> {
        self.notifier.failed(job_id, callback, error, attempt).await
    }

    /// What a caller is told of a finished job, in a notice and in an HTTP response alike.
    ///
    /// # Errors
    /// [`JobError::Storage`] when an address of a picture could not be made.
    pub async fn complete_body(&self, job: &Job, record: &Record) -> Result<serde_json::Value, JobError> {
        let urls = self.store.urls(record).await?;
        Ok(self.notifier.complete_body(job, record, &urls))
    }
}

fn tell_log(job: &Job, record: &Record, replayed: bool, timings_ms: &std::collections::BTreeMap<String, u64>) {
    let (loras, seed, steps, size) = match &job.task {
        Task::Generate(generate) => (&generate.loras[..], generate.seed, generate.steps, generate.size.to_string()),
        Task::TryOn(tryon) => (&[][..], tryon.seed, tryon.steps, format!("{}p", tryon.resolution.short_side_px())),
    };
    let loras: Vec<String> = loras.iter().map(|lora| lora.url.to_string()).collect();
    tracing::info!(
        job_id = %job.id,
        model = record.model,
        lora = loras.join(" "),
        seed = seed.get(),
        steps = steps.get(),
        size,
        pictures = record.pictures.len(),
        replayed,
        timings_ms = %serde_json::json!(timings_ms),
        "job done"
    );
}
