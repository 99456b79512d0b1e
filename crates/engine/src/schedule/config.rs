//! What a checkpoint says about its noise schedule.

use serde::Deserialize;
use serde::de::IgnoredAny;

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
    pub steps_offset: Option<usize>,
    #[serde(default)]
    pub use_karras_sigmas: Option<bool>,
    #[serde(default)]
    pub final_sigmas_type: FinalSigma,

    #[serde(default)]
    pub use_exponential_sigmas: Option<bool>,
    #[serde(default)]
    pub use_beta_sigmas: Option<bool>,
    /// DPM-Solver++ over several steps: even in the log signal-to-noise ratio.
    #[serde(default)]
    pub use_lu_lambdas: Option<bool>,
    /// Ends of the noise levels of the four above, where they are not those that the timesteps have.
    #[serde(default)]
    pub sigma_min: Option<f64>,
    #[serde(default)]
    pub sigma_max: Option<f64>,
    /// Whether the last trained timestep is noise alone (Lin et al. 2023, arXiv 2305.08891).
    #[serde(default)]
    pub rescale_betas_zero_snr: Option<bool>,

    /// DPM-Solver++, DEIS and `UniPC`: 1 to 3.
    #[serde(default)]
    pub solver_order: Option<usize>,
    /// DPM-Solver++: `midpoint` or `heun`; `UniPC`: `bh1` or `bh2`. Each takes the other's for its own default, as diffusers does.
    #[serde(default)]
    pub solver_type: Option<String>,
    /// DPM-Solver++ and DEIS: the last of fewer than 15 steps is of first order; `UniPC`: the last of any number.
    #[serde(default)]
    pub lower_order_final: Option<bool>,
    /// DPM-Solver++: the last step is of first order, however many there are.
    #[serde(default)]
    pub euler_at_final: Option<bool>,
    /// DPM-Solver++: log signal-to-noise ratio (half) below which no timestep is taken.
    #[serde(default)]
    pub lambda_min_clipped: Option<f64>,
    /// `UniPC`: steps, counted from 0, that are not corrected afterwards.
    #[serde(default)]
    pub disable_corrector: Option<Vec<usize>>,
    /// `UniPC`: whether the image is predicted, and not the noise.
    #[serde(default)]
    pub predict_x0: Option<bool>,
    /// `UniPC`: a scheduler in place of its predictor.
    #[serde(default)]
    pub solver_p: Option<IgnoredAny>,
    /// DDPM: the noise of a step.
    #[serde(default)]
    pub variance_type: Option<String>,
    /// Euler: `linear` or `log_linear`.
    #[serde(default)]
    pub interpolation_type: Option<String>,
    /// Euler: `discrete` or `continuous`.
    #[serde(default)]
    pub timestep_type: Option<String>,
    /// Whether predicted images are thresholded: [`Limit::Dynamic`].
    #[serde(default)]
    pub thresholding: Option<bool>,
    #[serde(default)]
    pub dynamic_thresholding_ratio: Option<f64>,
    #[serde(default)]
    pub sample_max_value: Option<f64>,
    #[serde(default)]
    pub use_flow_sigmas: Option<bool>,
    #[serde(default)]
    pub use_dynamic_shifting: Option<bool>,

    /// DDIM, DDPM, LCM and Heun: whether predicted images are clamped to ±`clip_sample_range`.
    #[serde(default)]
    pub clip_sample: Option<bool>,
    #[serde(default)]
    pub clip_sample_range: Option<f64>,
    /// DDIM and PNDM: whether the step after the last is free of noise, or the training schedule's first.
    #[serde(default)]
    pub set_alpha_to_one: Option<bool>,

    /// PNDM: whether the first steps are already linear multistep ones, and not of Runge and Kutta.
    #[serde(default)]
    pub skip_prk_steps: Option<bool>,

    /// LCM and TCD: steps of the sampler that the model was distilled from, the most there can be here.
    #[serde(default)]
    pub original_inference_steps: Option<usize>,
    /// LCM: what timesteps are multiplied by where they decide how much of the latents is kept.
    #[serde(default)]
    pub timestep_scaling: Option<f64>,
}

/// The pipeline of diffusers that a job corresponds to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pipeline {
    /// `StableDiffusionPipeline`.
    TextToImage,
    /// `StableDiffusionImg2ImgPipeline`.
    ImageToImage,
    /// `StableDiffusionInpaintPipeline`.
    Inpaint,
    /// `StableDiffusionInstructPix2PixPipeline`.
    Instructed,
}

impl ScheduleConfig {
    /// What the checkpoint says, with the corrections that a pipeline's `__init__` makes in diffusers 0.42.1 before any
    /// other scheduler is made from it: `steps_offset` is 1; `clip_sample` is false, but not for inpainting;
    /// `skip_prk_steps` is true, for inpainting alone. The pipeline of instruct-pix2pix corrects nothing.
    ///
    /// Only keys that the file has are corrected. Where a scheduler's own default stood in for a missing key, `from_config`
    /// leaves the correction behind as it leaves that default (`_use_default_values` in `configuration_utils.py`).
    #[must_use]
    pub fn corrected_for(&self, pipeline: Pipeline) -> Self {
        if pipeline == Pipeline::Instructed {
            return self.clone();
        }
        let inpaint = pipeline == Pipeline::Inpaint;
        Self {
            steps_offset: self.steps_offset.map(|_| 1),
            clip_sample: self.clip_sample.map(|clip| clip && inpaint),
            skip_prk_steps: self.skip_prk_steps.map(|skip| skip || inpaint),
            ..self.clone()
        }
    }

    #[must_use]
    pub fn steps_offset(&self) -> usize {
        self.steps_offset.unwrap_or(0)
    }

    #[must_use]
    pub fn beta_schedule(&self) -> BetaSchedule {
        self.beta_schedule.unwrap_or(BetaSchedule::Linear)
    }

    /// What is done to predicted images where a sampler knows both: thresholding goes before clamping.
    #[must_use]
    pub(super) fn limit(&self, clips: bool) -> Option<Limit> {
        self.thresholded().or_else(|| self.clamped(clips))
    }

    /// `clips`: whether the sampler clamps where the checkpoint says nothing.
    #[must_use]
    pub(super) fn clamped(&self, clips: bool) -> Option<Limit> {
        self.clip_sample.unwrap_or(clips).then(|| Limit::Clamp(self.clip_sample_range.unwrap_or(1.0)))
    }

    #[must_use]
    pub(super) fn thresholded(&self) -> Option<Limit> {
        (self.thresholding == Some(true)).then(|| Limit::Dynamic {
            quantile: self.dynamic_thresholding_ratio.unwrap_or(0.995),
            largest: self.sample_max_value.unwrap_or(1.0),
        })
    }

    #[must_use]
    pub fn original_inference_steps(&self) -> usize {
        self.original_inference_steps.unwrap_or(50)
    }
}

/// What is done to a predicted image before it is used.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Limit {
    /// To this magnitude at most.
    Clamp(f64),
    /// Dynamic thresholding (Saharia et al. 2022, arXiv 2205.11487): clamped to a magnitude of 1 to `largest`, in which this share of the image's
    /// values lies (`quantile`, 0 to 1), and divided by it.
    Dynamic { quantile: f64, largest: f64 },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BetaSchedule {
    Linear,
    /// Linear in the square root: latent diffusion.
    ScaledLinear,
    /// Cosine (Nichol and Dhariwal 2021).
    SquaredcosCapV2,
    /// Heun alone: the signal falls exponentially.
    Exp,
    /// DDPM alone (Hang and Gu 2024, arXiv 2407.03297).
    Laplace,
    /// DDPM alone: that of `GeoDiff` (Xu et al. 2022, arXiv 2203.02923).
    Sigmoid,
}

/// What the UNet predicts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PredictionType {
    #[default]
    Epsilon,
    /// alpha·noise − sigma·image (Salimans and Ho 2022).
    VPrediction,
    /// The image.
    Sample,
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
