//! What a checkpoint says about its noise schedule.

use serde::Deserialize;

/// `scheduler/scheduler_config.json` of any of diffusers' schedulers. A key that is missing takes the default of the
/// scheduler that is *built*, which is what diffusers' `from_config` does.
#[derive(Debug, Clone, Deserialize)]
pub struct ScheduleConfig {
    #[serde(default = "train_timesteps")]
    pub num_train_timesteps: usize,
    #[serde(default)]
    pub beta_start: Option<f64>,
    #[serde(default)]
    pub beta_end: Option<f64>,
    #[serde(default)]
    pub beta_schedule: Option<BetaSchedule>,
    /// The betas themselves; they take the place of `beta_schedule`.
    #[serde(default)]
    pub trained_betas: Option<Vec<f32>>,
    #[serde(default)]
    pub prediction_type: PredictionType,
    #[serde(default)]
    pub timestep_spacing: Option<TimestepSpacing>,
    #[serde(default)]
    pub steps_offset: usize,
    #[serde(default)]
    pub use_karras_sigmas: Option<bool>,
    #[serde(default)]
    pub final_sigmas_type: FinalSigma,

    /// DPM-Solver++ and `UniPC`: 1 or 2.
    #[serde(default)]
    pub solver_order: Option<usize>,
    /// DPM-Solver++: the last of fewer than 15 steps is of first order; `UniPC`: the last of any number.
    #[serde(default)]
    pub lower_order_final: Option<bool>,
    /// DPM-Solver++: the last step is of first order, however many there are.
    #[serde(default)]
    pub euler_at_final: Option<bool>,
    /// DPM-Solver++: log signal-to-noise ratio (half) below which no timestep is taken.
    #[serde(default)]
    pub lambda_min_clipped: Option<f64>,

    /// DDIM and LCM: whether predicted images are clamped to ±`clip_sample_range`.
    #[serde(default)]
    pub clip_sample: Option<bool>,
    #[serde(default)]
    pub clip_sample_range: Option<f64>,
    /// DDIM: whether the step after the last is free of noise, or the training schedule's first.
    #[serde(default)]
    pub set_alpha_to_one: Option<bool>,

    /// LCM: steps of the sampler that the model was distilled from, the most there can be here.
    #[serde(default)]
    pub original_inference_steps: Option<usize>,
    /// LCM: what timesteps are multiplied by where they decide how much of the latents is kept.
    #[serde(default)]
    pub timestep_scaling: Option<f64>,
}

impl ScheduleConfig {
    #[must_use]
    pub fn beta_schedule(&self) -> BetaSchedule {
        self.beta_schedule.unwrap_or(BetaSchedule::Linear)
    }

    #[must_use]
    pub fn clip_sample_range(&self) -> f64 {
        self.clip_sample_range.unwrap_or(1.0)
    }

    #[must_use]
    pub fn original_inference_steps(&self) -> usize {
        self.original_inference_steps.unwrap_or(50)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BetaSchedule {
    Linear,
    /// Linear in the square root: latent diffusion.
    ScaledLinear,
    /// Cosine (Nichol and Dhariwal 2021).
    SquaredcosCapV2,
}

/// What the UNet predicts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PredictionType {
    #[default]
    Epsilon,
    /// alpha·noise − sigma·image (Salimans and Ho 2022).
    VPrediction,
}

/// How the steps are laid over the training timesteps: table 2 of Lin et al. 2023, arXiv 2305.08891.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimestepSpacing {
    Linspace,
    Leading,
    Trailing,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinalSigma {
    #[default]
    Zero,
    SigmaMin,
}

fn train_timesteps() -> usize {
    1000
}
