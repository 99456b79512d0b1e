//! The noise levels of a rectified flow, as a pure table: Euler steps over shifted and stretched sigmas.
//!
//! Formulas: diffusers' `FlowMatchEulerDiscreteScheduler.set_timesteps` and `calculate_shift`, in their single precision.

use std::path::Path;

use candle_core::Tensor;
use serde::Deserialize;

use crate::EngineError;
use crate::json_config::{Fixed, read};

const SUPPORTED: Fixed = &[
    ("_class_name", &["\"FlowMatchEulerDiscreteScheduler\""]),
    ("invert_sigmas", &["false"]),
    ("stochastic_sampling", &["false"]),
    ("time_shift_type", &["\"exponential\""]),
    ("use_beta_sigmas", &["false"]),
    ("use_exponential_sigmas", &["false"]),
    ("use_karras_sigmas", &["false"]),
];

/// `scheduler/scheduler_config.json` of a flow-match Euler scheduler.
#[derive(Debug, Clone, Deserialize)]
pub struct FlowConfig {
    #[serde(default = "train_timesteps")]
    pub num_train_timesteps: usize,
    /// Whether the shift grows with the image; else it is `shift`.
    #[serde(default)]
    pub use_dynamic_shifting: bool,
    #[serde(default = "one")]
    pub shift: f64,
    /// Tokens of the image at which the logarithm of the shift is `base_shift`, and at which it is `max_shift`.
    #[serde(default = "base_tokens")]
    pub base_image_seq_len: usize,
    #[serde(default = "max_tokens")]
    pub max_image_seq_len: usize,
    #[serde(default = "base_shift")]
    pub base_shift: f64,
    #[serde(default = "max_shift")]
    pub max_shift: f64,
    /// The last sigma before 0, where the sigmas are stretched to reach it.
    #[serde(default)]
    pub shift_terminal: Option<f64>,
}

impl FlowConfig {
    /// Reads `scheduler/scheduler_config.json` under `directory`.
    ///
    /// # Errors
    /// [`EngineError::Checkpoint`] with the file and what is missing in it or not supported, and what would be.
    pub(crate) fn read(directory: &Path) -> Result<Self, EngineError> {
        let config: Self = read(&directory.join("scheduler/scheduler_config.json"), SUPPORTED)?;
        if config.max_image_seq_len <= config.base_image_seq_len {
            let problem = "max_image_seq_len must be above base_image_seq_len".to_owned();
            return Err(EngineError::Checkpoint { path: directory.join("scheduler"), problem });
        }
        Ok(config)
    }

    /// The same for weights distilled to a few steps: always a shift of 3 and no stretch, which is what the Lightning weights were
    /// distilled with (`generate_with_diffusers.py` in ModelTC/Qwen-Image-Lightning).
    #[must_use]
    pub fn lightning(&self) -> Self {
        let shift = 3.0_f64.ln();
        Self { use_dynamic_shifting: true, base_shift: shift, max_shift: shift, shift_terminal: None, ..self.clone() }
    }

    /// Logarithm of the shift for an output of so many tokens; those of references do not count.
    fn mu(&self, output_tokens: usize) -> f64 {
        let first = self.base_image_seq_len as f64;
        let last = self.max_image_seq_len as f64;
        let slope = (self.max_shift - self.base_shift) / (last - first);
        output_tokens as f64 * slope + (self.base_shift - slope * first)
    }
}

/// Noise levels from 1 to 0; a step goes from one to the next.
#[derive(Debug, Clone, PartialEq)]
pub struct FlowSchedule {
    /// One more than there are steps.
    pub sigmas: Vec<f32>,
    train_timesteps: f32,
}

impl FlowSchedule {
    /// `steps`: at least 1.
    #[must_use]
    pub fn new(config: &FlowConfig, steps: u32, output_tokens: usize) -> Self {
        Self::shifted(config, steps, config.mu(output_tokens))
    }

    /// Of FLUX.2, whose shift its makers have fitted to sizes and steps (`compute_empirical_mu` of diffusers and of Black Forest Labs): for more than 4300
    /// tokens the steps do not count.
    #[must_use]
    pub fn fitted(config: &FlowConfig, steps: u32, output_tokens: usize) -> Self {
        let tokens = output_tokens as f64;
        let of_200_steps = 0.000_169_27 * tokens + 0.456_666_66;
        let of_10_steps = 8.738_095_24e-5 * tokens + 1.898_333_33;
        let slope = (of_200_steps - of_10_steps) / 190.0;
        let of_steps = slope * f64::from(steps) + (of_200_steps - 200.0 * slope);
        Self::shifted(config, steps, if output_tokens > 4300 { of_200_steps } else { of_steps })
    }

    /// `mu`: the logarithm of the shift, where it is none of the checkpoint's.
    fn shifted(config: &FlowConfig, steps: u32, mu: f64) -> Self {
        let last = 1.0 / f64::from(steps);
        let spacing = if steps > 1 { (last - 1.0) / f64::from(steps - 1) } else { 0.0 };
        let even = (0..steps).map(|step| if step + 1 == steps { last } else { 1.0 + f64::from(step) * spacing } as f32);
        let shifted = even.map(|sigma| {
            if config.use_dynamic_shifting {
                let shift = mu.exp() as f32;
                shift / (shift + (1.0 / sigma - 1.0))
            } else {
                let shift = config.shift as f32;
                shift * sigma / (1.0 + (config.shift - 1.0) as f32 * sigma)
            }
        });
        let mut sigmas: Vec<f32> = shifted.collect();
        let lowest = sigmas.last().copied().unwrap_or(1.0);
        // A single step begins at 1, and there is nothing to stretch.
        if let Some(terminal) = config.shift_terminal.filter(|_| lowest < 1.0) {
            let factor = (1.0 - lowest) / (1.0 - terminal) as f32;
            for sigma in &mut sigmas {
                *sigma = 1.0 - (1.0 - *sigma) / factor;
            }
        }
        sigmas.push(0.0);
        Self { sigmas, train_timesteps: config.num_train_timesteps as f32 }
    }

    /// What is left of it for a generation from an image, which has less noise to begin with. `strength`, above 0 to 1, is the part of the steps that
    /// is done; one that it covers in part is done too (`get_timesteps` of diffusers' `FluxImg2ImgPipeline`).
    #[must_use]
    pub fn from_image(mut self, strength: f64) -> Self {
        let steps = self.steps();
        let covered = (f64::from(steps) * strength).min(f64::from(steps));
        let skipped = (f64::from(steps) - covered) as usize;
        self.sigmas.drain(..skipped.min(steps.saturating_sub(1) as usize));
        self
    }

    /// How many there are.
    #[must_use]
    pub fn steps(&self) -> u32 {
        self.sigmas.len().saturating_sub(1) as u32
    }

    /// How much of an image's latents, and how much noise, there is at the noise level of place `index` (`scale_noise`).
    #[must_use]
    pub fn mixture(&self, index: usize) -> (f64, f64) {
        let sigma = self.sigmas[index];
        (f64::from(1.0 - sigma), f64::from(sigma))
    }

    /// The image without noise that a model predicts with `velocity`, of `latents` at the noise level of place `index`; both of one shape, f32.
    ///
    /// # Errors
    /// When the shapes differ, or there is no memory.
    pub fn predicted_image(&self, index: usize, latents: &Tensor, velocity: &Tensor) -> candle_core::Result<Tensor> {
        latents - (velocity * f64::from(self.sigmas[index]))?
    }

    /// What the model gets at each step: 0 to `num_train_timesteps`.
    #[must_use]
    pub fn timesteps(&self) -> Vec<f32> {
        self.sigmas[..self.sigmas.len() - 1].iter().map(|sigma| sigma * self.train_timesteps).collect()
    }
}

fn train_timesteps() -> usize {
    1000
}

fn one() -> f64 {
    1.0
}

fn base_tokens() -> usize {
    256
}

fn max_tokens() -> usize {
    4096
}

fn base_shift() -> f64 {
    0.5
}

fn max_shift() -> f64 {
    1.15
}
