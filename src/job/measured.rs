//! What one run of a job took: measured by the handler, counted by the process that watches it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::safety::Block;
use super::user_step::UserStepRun;

/// One run of one job, replays and failures included.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// From the message's turn to its outcome.
    pub seconds: f64,
    /// By workflow step, of those that ran: without `infer` nothing was generated.
    pub step_seconds: BTreeMap<String, f64>,
    /// Denoising steps, each for all images of the job.
    pub denoising_steps: u64,
    /// From the first denoising step's end to the last one's.
    pub denoising_seconds: f64,
    /// Whether the job's LoRAs were those that were generated with last; none where it has none.
    pub lora_cache_hit: Option<bool>,
    /// What became of its result on the host's disk.
    #[serde(default)]
    pub held_results: HeldResults,
    /// Why this run was not allowed to go on; none also where an earlier run was not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocked: Option<Block>,
    /// How the steps of the user's own ended that ran.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub user_steps: Vec<UserStepRun>,
    /// Webhooks sent meanwhile, by kind and whether they were taken.
    pub webhook_attempts: Vec<WebhookAttempts>,
}

/// Results on the host's disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldResults {
    /// This one was written.
    pub kept: u64,
    /// This one was there, and stored in place of generating.
    pub used: u64,
    /// This one could not be written, or others had to go for it.
    pub dropped: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WebhookAttempts {
    /// Such as `complete`.
    pub kind: String,
    pub delivered: bool,
    pub count: u64,
}

impl Measured {
    /// None where there were not two steps to measure between.
    #[must_use]
    pub fn steps_per_second(&self) -> Option<f64> {
        let between = self.denoising_steps.checked_sub(1).filter(|between| *between > 0)?;
        (self.denoising_seconds > 0.0).then(|| between as f64 / self.denoising_seconds)
    }
}
