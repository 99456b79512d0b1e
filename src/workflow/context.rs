//! The job context: one job on its way, with what each step has added to it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use bytes::Bytes;
use image::{GrayImage, RgbImage};

use super::control::NotificationMode;
use crate::content_credentials::manifest::{Changed, Role};
use crate::job::Job;
use crate::job::measured;
use crate::job::notification::Notification;
use crate::job::outcome::{InvisibleMark, JobError, Record};
use crate::job::safety::{Block, SafetyCheck};
use crate::job::task::Generate;
use crate::job::task::auto_mask::MadeMask;
use crate::job::task::edit::Edit;
use crate::job::task::tryon::TryOn;
use crate::job::user_step::{UserStepDone, UserStepRun};
use crate::notify::progress::Progress;
use crate::store::cache::Lease;
use crate::store::held_results::{HeldImage, HeldResult};
use atelier_engine::thread::BatchSlot;
use atelier_engine::{EmbeddingFile, Image, InitImage, LoraFile, Watch};

pub struct JobContext<'job> {
    pub job: &'job Job,
    /// At the engine; none once the job is generated, or needs no generation.
    pub batch_slot: Option<BatchSlot>,
    /// What the job refers to, as far as the steps have got with it.
    pub inputs: Inputs<'job>,
    /// Keep the fetched files in the cache while they are in use.
    pub leases: Vec<Lease>,
    /// The input images as they were sent, which lie in the cache as long as their leases.
    pub input_images: Vec<InputImage>,
    pub images: Vec<Image>,
    /// What was asked of it, and found.
    pub checks: Vec<SafetyCheck>,
    /// An earlier run was not allowed to go on.
    pub blocked_before: bool,
    /// Why this run was not.
    pub blocked: Option<Block>,
    /// Steps of the user's own that the images have passed, also in an earlier attempt.
    pub user_steps: Vec<UserStepDone>,
    /// How those of this run ended.
    pub user_step_runs: Vec<UserStepRun>,
    /// Of a try-on's person, where nobody sent a mask and the job asks for one; also of an earlier attempt.
    pub made_mask: Option<MadeMask>,
    /// Of the results, where all outside of a mask is a person's own.
    pub changed: Option<Changed>,
    /// Which of the images hold pixels that are a person's own and were not generated.
    pub own_pixels: Range<usize>,
    /// The encoded files, one an image, in the same order.
    pub files: Vec<Bytes>,
    /// Whether the files have the invisible mark, one an image; results that an earlier release held back do not say.
    pub invisible_marks: Vec<Option<InvisibleMark>>,
    /// The proof that the images are stored.
    pub record: Option<Record>,
    /// The record was there before this delivery.
    pub replayed: bool,
    /// Images and files are those of an earlier attempt.
    pub resumed: bool,
    pub held_results: measured::HeldResults,
    /// From here on the job is done rather than not: it may be stopped no more than is needed.
    pub finalizing: Finalizing,
    pub notification_mode: NotificationMode,
    /// Terminal notifications that are left to the receiver of the invocation's answer.
    pub notifications: Vec<Notification>,
    pub progress: Progress,
    /// When there was no record of the job, by the bucket's clock.
    pub began: SystemTime,
    /// Milliseconds by step.
    pub timings_ms: BTreeMap<String, u64>,
    /// Over the generation, once it was asked for: how it goes, or went.
    pub watch: Option<Watch>,
}

/// An image file that the job starts from, before anything was made of it.
pub struct InputImage {
    pub role: Role,
    /// The job's field that names it.
    pub field: String,
    pub path: PathBuf,
}

/// What a job refers to: first URLs, then files, then what the engine is given.
pub enum Inputs<'job> {
    /// Nothing is asked for yet.
    Pending,
    Fetched(Fetched<'job>),
    Decoded(Decoded<'job>),
}

/// Downloaded files, next to the task that they are for.
pub enum Fetched<'job> {
    Generate(&'job Generate, GenerateInputs<StartFiles, PathBuf, PathBuf>),
    TryOn(&'job TryOn, TryOnFiles),
    Edit(&'job Edit, EditFiles),
}

/// Images that are opened and as large as they are to be, next to the task that they are for.
pub enum Decoded<'job> {
    Generate(&'job Generate, GenerateInputs<InitImage, ControlImage, RgbImage>),
    TryOn(&'job TryOn, TryOnInputs),
    Edit(&'job Edit, EditInputs),
}

/// What a generation is given besides its text.
pub struct GenerateInputs<Start, Control, Reference> {
    pub loras: Vec<LoraFile>,
    pub embeddings: Vec<EmbeddingFile>,
    pub start: Option<Start>,
    /// In the order of the job's.
    pub controls: Vec<Control>,
    /// The images of each of the job's IP-Adapters.
    pub image_prompts: Vec<Vec<Reference>>,
}

/// What a ControlNet is given, in the job's size.
pub struct ControlImage {
    /// As it was sent.
    pub sent: RgbImage,
    /// What was detected in it; none: it is looked at as it was sent.
    pub detected: Option<RgbImage>,
}

/// The downloaded files of a try-on.
#[derive(Debug, Clone)]
pub struct TryOnFiles {
    pub person: PathBuf,
    /// 1 to 4.
    pub garments: Vec<PathBuf>,
    pub mask: Option<PathBuf>,
}

/// The downloaded files of an edit.
#[derive(Debug, Clone)]
pub struct EditFiles {
    pub loras: Vec<LoraFile>,
    /// 1 to 3.
    pub images: Vec<PathBuf>,
}

/// The downloaded files that a generation starts from.
#[derive(Debug, Clone)]
pub struct StartFiles {
    pub image: PathBuf,
    pub mask: Option<PathBuf>,
}

/// The images of a try-on, as they are to be generated with.
pub struct TryOnInputs {
    /// As large as the result.
    pub person: RgbImage,
    pub garments: Vec<RgbImage>,
    /// As large as the result: 255 is generated, 0 kept.
    pub mask: Option<GrayImage>,
}

/// What an edit is given besides its text: the images as they were sent, and the size of the result.
pub struct EditInputs {
    pub loras: Vec<LoraFile>,
    pub images: Vec<RgbImage>,
    /// Multiples of 16.
    pub width_px: u32,
    pub height_px: u32,
}

/// Whether the record of the job is stored or on its way; clones watch the same job.
#[derive(Debug, Clone, Default)]
pub struct Finalizing(Arc<AtomicBool>);

impl Finalizing {
    pub fn begin(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl<'job> JobContext<'job> {
    #[must_use]
    pub fn new(job: &'job Job, batch_slot: BatchSlot, progress: Progress, notification_mode: NotificationMode) -> Self {
        Self {
            job,
            batch_slot: Some(batch_slot),
            inputs: Inputs::Pending,
            leases: Vec::new(),
            input_images: Vec::new(),
            images: Vec::new(),
            checks: Vec::new(),
            blocked_before: false,
            blocked: None,
            user_steps: Vec::new(),
            user_step_runs: Vec::new(),
            made_mask: None,
            changed: None,
            own_pixels: 0..0,
            files: Vec::new(),
            invisible_marks: Vec::new(),
            record: None,
            replayed: false,
            resumed: false,
            held_results: measured::HeldResults::default(),
            finalizing: Finalizing::default(),
            notification_mode,
            notifications: Vec::new(),
            began: SystemTime::now(),
            progress,
            timings_ms: BTreeMap::new(),
            watch: None,
        }
    }

    /// Takes over the result of an earlier attempt, which is to be stored.
    pub fn resume(&mut self, result: HeldResult) {
        for HeldImage { width_px, height_px, seed, invisible_mark, file } in result.images {
            self.images.push(Image { width_px, height_px, rgb: Vec::new(), seed });
            self.files.push(file);
            self.invisible_marks.push(invisible_mark);
        }
        self.timings_ms = result.timings_ms;
        self.checks = result.checks;
        self.user_steps = result.user_steps;
        self.made_mask = result.made_mask;
        self.held_results.used = 1;
        self.resumed = true;
        self.batch_slot = None;
    }

    /// The files that are fetched, to be opened.
    ///
    /// # Errors
    /// [`JobError::Internal`] where they are not, which [`super::sequence::check`] rules out.
    pub fn take_fetched(&mut self) -> Result<Fetched<'job>, JobError> {
        match std::mem::replace(&mut self.inputs, Inputs::Pending) {
            Inputs::Fetched(files) => Ok(files),
            Inputs::Pending | Inputs::Decoded(_) => {
                Err(JobError::Internal { problem: "the job's files are not fetched".into() })
            }
        }
    }

    /// What the engine is given.
    ///
    /// # Errors
    /// [`JobError::Internal`] where it is not ready, which [`super::sequence::check`] rules out.
    pub fn decoded(&self) -> Result<&Decoded<'job>, JobError> {
        match &self.inputs {
            Inputs::Decoded(inputs) => Ok(inputs),
            Inputs::Pending | Inputs::Fetched(_) => {
                Err(JobError::Internal { problem: "the job's images are not opened".into() })
            }
        }
    }

    /// Takes over a record that an earlier delivery, or another worker, has stored.
    ///
    /// # Errors
    /// [`JobError::Conflict`] when it belongs to another request.
    pub fn replay(&mut self, record: Record) -> Result<(), JobError> {
        if record.fingerprint != self.job.fingerprint {
            return Err(JobError::Conflict { job_id: self.job.id.clone() });
        }
        self.record = Some(record);
        self.finalizing.begin();
        self.replayed = true;
        self.batch_slot = None;
        Ok(())
    }
}
