//! The noise levels a model was trained on, and the ways to choose steps among them.
//!
//! Single precision stands where diffusers has it: near the image 1 − alpha keeps few digits, and a table in double
//! precision would be another schedule.

use super::config::{BetaSchedule, ScheduleConfig};

/// Exponent of Karras et al. 2022, arXiv 2206.00364.
const KARRAS_RHO: f64 = 7.0;

/// One entry a training timestep, from the image to noise.
pub(super) struct TrainingSchedule {
    /// Products of (1 − beta), f32 precision.
    pub(super) alphas_cumprod: Vec<f32>,
    /// Noise over signal, sqrt((1 − alpha) / alpha), f32 precision.
    pub(super) sigmas: Vec<f32>,
}

/// The betas of a sampler where a checkpoint says nothing: diffusers has others for each.
#[derive(Clone, Copy)]
pub(super) struct DefaultBetas {
    start: f64,
    end: f64,
    schedule: BetaSchedule,
}

impl DefaultBetas {
    pub(super) const DDPM: Self = Self { start: 0.0001, end: 0.02, schedule: BetaSchedule::Linear };
    pub(super) const LATENT_DIFFUSION: Self = Self { start: 0.00085, end: 0.012, schedule: BetaSchedule::ScaledLinear };
}

impl TrainingSchedule {
    pub(super) fn new(config: &ScheduleConfig, defaults: DefaultBetas) -> Self {
        let mut product = 1.0_f64;
        let alphas_cumprod: Vec<f32> = betas(config, defaults)
            .into_iter()
            .map(|beta| {
                product *= f64::from(1.0 - beta);
                product as f32
            })
            .collect();
        let sigmas = alphas_cumprod.iter().map(|alpha| ((1.0 - alpha) / alpha).sqrt()).collect();
        Self { alphas_cumprod, sigmas }
    }

    pub(super) fn len(&self) -> usize {
        self.sigmas.len()
    }

    pub(super) fn sigma_min(&self) -> f64 {
        f64::from(self.sigmas[0])
    }

    pub(super) fn sigma_max(&self) -> f64 {
        f64::from(self.sigmas[self.len() - 1])
    }

    /// The noise level at `timestep`, linear between the trained ones.
    pub(super) fn sigma_at(&self, timestep: f64) -> f64 {
        let below = (timestep.floor().max(0.0) as usize).min(self.len() - 1);
        let above = (below + 1).min(self.len() - 1);
        let (low, high) = (f64::from(self.sigmas[below]), f64::from(self.sigmas[above]));
        low + (timestep - below as f64).clamp(0.0, 1.0) * (high - low)
    }

    /// The timestep of a noise level, linear in its logarithm between the trained ones.
    pub(super) fn timestep_of(&self, sigma: f64) -> f64 {
        let log_sigma = sigma.max(1e-10).ln();
        let log = |index: usize| f64::from(self.sigmas[index].ln());
        let not_above = (0..self.len()).filter(|index| log(*index) <= log_sigma).count();
        let low = not_above.saturating_sub(1).min(self.len() - 2);
        let weight = ((log(low) - log_sigma) / (log(low) - log(low + 1))).clamp(0.0, 1.0);
        low as f64 + weight
    }

    /// Half the log signal-to-noise ratio at a training timestep.
    pub(super) fn lambda_at(&self, timestep: usize) -> f64 {
        let alpha = self.alphas_cumprod[timestep];
        f64::from(alpha.sqrt().ln() - (1.0 - alpha).sqrt().ln())
    }
}

/// `steps` noise levels from `sigma_max` down to `sigma_min`, equation (5) of Karras et al. 2022.
pub(super) fn karras_sigmas(sigma_max: f64, sigma_min: f64, steps: usize) -> Vec<f64> {
    let (from, to) = (sigma_max.powf(KARRAS_RHO.recip()), sigma_min.powf(KARRAS_RHO.recip()));
    linspace(0.0, 1.0, steps).into_iter().map(|ramp| (from + ramp * (to - from)).powf(KARRAS_RHO)).collect()
}

/// `count` values from `start` to `end`, both among them; a single one is `start`.
pub(super) fn linspace(start: f64, end: f64, count: usize) -> Vec<f64> {
    let step = (end - start) / count.saturating_sub(1).max(1) as f64;
    (0..count).map(|index| start + index as f64 * step).collect()
}

fn betas(config: &ScheduleConfig, defaults: DefaultBetas) -> Vec<f32> {
    if let Some(betas) = &config.trained_betas {
        return betas.clone();
    }
    let (start, end) = (config.beta_start.unwrap_or(defaults.start), config.beta_end.unwrap_or(defaults.end));
    let count = config.num_train_timesteps;
    match config.beta_schedule.unwrap_or(defaults.schedule) {
        BetaSchedule::Linear => linspace_f32(start as f32, end as f32, count),
        BetaSchedule::ScaledLinear => {
            let roots = linspace_f32(start.sqrt() as f32, end.sqrt() as f32, count);
            roots.into_iter().map(|root| root * root).collect()
        }
        BetaSchedule::SquaredcosCapV2 => {
            const MAX_BETA: f64 = 0.999;
            let alpha_bar = |index: usize| {
                let time = index as f64 / count as f64;
                ((time + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2).cos().powi(2)
            };
            (0..count).map(|index| (1.0 - alpha_bar(index + 1) / alpha_bar(index)).min(MAX_BETA) as f32).collect()
        }
    }
}

/// `torch.linspace` in single precision, which counts from both ends to the middle.
fn linspace_f32(start: f32, end: f32, count: usize) -> Vec<f32> {
    let step = (end - start) / (count.max(2) - 1) as f32;
    let entry = |index: usize| {
        if index < count / 2 { start + step * index as f32 } else { end - step * (count - index - 1) as f32 }
    };
    (0..count).map(entry).collect()
}
