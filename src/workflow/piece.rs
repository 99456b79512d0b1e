//! The piece: one job on its way, with what each step has added to it.

use std::collections::BTreeMap;

use crate::engine::{LoraFile, Picture};
use crate::job::Job;
use crate::job::outcome::{JobError, Record};
use crate::notify::progress::Progress;
use crate::store::cache::Lease;

pub struct Piece<'job> {
    pub job: &'job Job,
    /// One a LoRA of the job, once fetched.
    pub loras: Vec<LoraFile>,
    /// Keep the fetched files in the cache while they are in use.
    pub leases: Vec<Lease>,
    pub pictures: Vec<Picture>,
    /// The encoded files, one a picture, in the same order.
    pub files: Vec<Vec<u8>>,
    /// The proof that the pictures are stored.
    pub record: Option<Record>,
    /// The record was there before this delivery.
    pub replayed: bool,
    pub progress: Progress,
    /// Milliseconds by step.
    pub timings_ms: BTreeMap<String, u64>,
}

impl<'job> Piece<'job> {
    #[must_use]
    pub fn new(job: &'job Job, progress: Progress) -> Self {
        Self {
            job,
            loras: Vec::new(),
            leases: Vec::new(),
            pictures: Vec::new(),
            files: Vec::new(),
            record: None,
            replayed: false,
            progress,
            timings_ms: BTreeMap::new(),
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
        self.replayed = true;
        Ok(())
    }
}
