//! The noise levels a model was trained on, and the ways to choose steps among them.
//!
//! Single precision stands where diffusers has it: near the image 1 − alpha keeps few digits, and a table in double
//! precision would be another schedule.

use super::config::{BetaSchedule, ScheduleConfig};
use super::scheduler::Sampler;

/// One entry a training timestep, from the image to noise.
pub(super) struct TrainingSchedule {
    /// Products of (1 − beta): in f32 precision but where they were rescaled.
    pub(super) alphas_cumprod: Vec<f64>,
    /// Noise over signal, sqrt((1 − alpha) / alpha), f32 precision.
    pub(super) sigmas: Vec<f32>,
}

/// The betas of a sampler where a checkpoint says nothing: diffusers has others for each.
#[derive(Clone, Copy)]
struct DefaultBetas {
    start: f64,
    end: f64,
    schedule: BetaSchedule,
}

impl DefaultBetas {
    const DDPM: Self = Self { start: 0.0001, end: 0.02, schedule: BetaSchedule::Linear };
    const SECOND_ORDER: Self = Self { start: 0.00085, end: 0.012, schedule: BetaSchedule::Linear };
    const LATENT_DIFFUSION: Self = Self { start: 0.00085, end: 0.012, schedule: BetaSchedule::ScaledLinear };

    fn of(sampler: Sampler) -> Self {
        match sampler {
            Sampler::Lcm | Sampler::Tcd => Self::LATENT_DIFFUSION,
            Sampler::Heun | Sampler::Dpm2 | Sampler::Dpm2Ancestral => Self::SECOND_ORDER,
            _ => Self::DDPM,
        }
    }
}

/// What a sampler makes of `rescale_betas_zero_snr`: some leave a trace of signal in the last timestep, so that its noise level is finite.
fn zero_terminal_snr(sampler: Sampler, config: &ScheduleConfig) -> (bool, bool) {
    let asked = config.rescale_betas_zero_snr == Some(true);
    let (reads, leaves_a_trace) = match sampler {
        Sampler::DpmSolverPlusPlus
        | Sampler::DpmSolverPlusPlusSde
        | Sampler::UniPc
        | Sampler::Euler
        | Sampler::EulerAncestral => (true, true),
        Sampler::Ddim | Sampler::Ddpm | Sampler::Lcm | Sampler::Tcd => (true, false),
        _ => (false, false),
    };
    (asked && reads, asked && leaves_a_trace)
}

impl TrainingSchedule {
    pub(super) fn new(config: &ScheduleConfig, sampler: Sampler) -> Self {
        let betas = betas(config, DefaultBetas::of(sampler));
        let (rescaled, with_a_trace) = zero_terminal_snr(sampler, config);
        if !rescaled {
            let products: Vec<f32> = cumulative_products(&betas).map(|product| product as f32).collect();
            let sigmas = products.iter().map(|alpha| ((1.0 - alpha) / alpha).sqrt()).collect();
            return Self { alphas_cumprod: products.into_iter().map(f64::from).collect(), sigmas };
        }
        let mut alphas_cumprod = without_terminal_signal(&betas);
        if let (true, Some(last)) = (with_a_trace, alphas_cumprod.last_mut()) {
            *last = 2.0_f64.powi(-24);
        }
        let sigmas = alphas_cumprod.iter().map(|alpha| ((1.0 - alpha) / alpha).sqrt() as f32).collect();
        Self { alphas_cumprod, sigmas }
    }

    /// The product of (1 − beta) up to a timestep, the first or last one's outside of them.
    pub(super) fn alpha_cumprod(&self, timestep: i64) -> f64 {
        let timestep = usize::try_from(timestep).unwrap_or(0).min(self.len() - 1);
        self.alphas_cumprod[timestep]
    }

    /// Signal and noise of variance 1 together, at a timestep.
    pub(super) fn alpha_sigma(&self, timestep: i64) -> (f64, f64) {
        let alpha = self.alpha_cumprod(timestep);
        (alpha.sqrt(), (1.0 - alpha).sqrt())
    }

    /// Noise over signal at a timestep.
    pub(super) fn ratio(&self, timestep: i64) -> f64 {
        let (alpha, sigma) = self.alpha_sigma(timestep);
        sigma / alpha
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
        let low = f64::from(self.sigmas[below]);
        let high = f64::from(self.sigmas[above]);
        low + (timestep - below as f64).clamp(0.0, 1.0) * (high - low)
    }

    /// The timestep of a noise level, linear in its logarithm between the trained ones.
    pub(super) fn timestep_of(&self, sigma: f64) -> f64 {
        let log_sigma = sigma.max(1e-10).ln();
        // Rounded once, as numpy's logarithm in single precision: where a timestep is cut off, the last digit decides.
        let log = |index: usize| f64::from(f64::from(self.sigmas[index]).ln() as f32);
        let not_above = (0..self.len()).filter(|index| log(*index) <= log_sigma).count();
        let low = not_above.saturating_sub(1).min(self.len() - 2);
        let weight = ((log(low) - log_sigma) / (log(low) - log(low + 1))).clamp(0.0, 1.0);
        low as f64 + weight
    }

    /// Half the log signal-to-noise ratio at a training timestep.
    pub(super) fn lambda_at(&self, timestep: usize) -> f64 {
        let alpha = self.alphas_cumprod[timestep];
        alpha.sqrt().ln() - (1.0 - alpha).sqrt().ln()
    }
}

/// `count` values from `start` to `end`, both among them; a single one is `start`.
pub(super) fn linspace(start: f64, end: f64, count: usize) -> Vec<f64> {
    let step = (end - start) / count.saturating_sub(1).max(1) as f64;
    (0..count).map(|index| start + index as f64 * step).collect()
}

fn cumulative_products(betas: &[f32]) -> impl Iterator<Item = f64> {
    betas.iter().scan(1.0_f64, |product, beta| {
        *product *= f64::from(1.0 - beta);
        Some(*product)
    })
}

/// Products of (1 − beta) after algorithm 1 of Lin et al. 2023, arXiv 2305.08891. Diffusers' single precision leaves two or three digits of 1 − alpha
/// near the image here, and which ones depends on the square root of its processor's library; so these are in double.
fn without_terminal_signal(betas: &[f32]) -> Vec<f64> {
    let roots: Vec<f64> = cumulative_products(betas).map(f64::sqrt).collect();
    let first = roots.first().copied().unwrap_or(1.0);
    let last = roots.last().copied().unwrap_or(0.0);
    roots.iter().map(|root| ((root - last) * (first / (first - last))).powi(2)).collect()
}

fn betas(config: &ScheduleConfig, defaults: DefaultBetas) -> Vec<f32> {
    if let Some(betas) = &config.trained_betas {
        return betas.clone();
    }
    let start = config.beta_start.unwrap_or(defaults.start);
    let end = config.beta_end.unwrap_or(defaults.end);
    let count = config.num_train_timesteps;
    match config.beta_schedule.unwrap_or(defaults.schedule) {
        BetaSchedule::Linear => linspace_f32(start as f32, end as f32, count),
        BetaSchedule::ScaledLinear => {
            let roots = linspace_f32(start.sqrt() as f32, end.sqrt() as f32, count);
            roots.into_iter().map(|root| root * root).collect()
        }
        BetaSchedule::SquaredcosCapV2 => {
            betas_of(count, |time| ((time + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2).cos().powi(2))
        }
        BetaSchedule::Exp => betas_of(count, |time| (time * -12.0).exp()),
        BetaSchedule::Laplace => betas_of(count, |time| {
            let half_log_snr = -0.5 * (0.5 - time).signum() * (1.0 - 2.0 * (0.5 - time).abs() + 1e-6).ln();
            let snr = half_log_snr.exp();
            (snr / (1.0 + snr)).sqrt()
        }),
        BetaSchedule::Sigmoid => {
            let sigmoid = linspace_f32(-6.0, 6.0, count).into_iter().map(|x| (1.0 / (1.0 + (-f64::from(x)).exp())) as f32);
            sigmoid.map(|share| share * (end - start) as f32 + start as f32).collect()
        }
    }
}

/// diffusers' `betas_for_alpha_bar`: `alpha_bar` is the product of (1 − beta) up to a time from 0 to 1.
fn betas_of(count: usize, alpha_bar: impl Fn(f64) -> f64) -> Vec<f32> {
    const MAX_BETA: f64 = 0.999;
    let at = |index: usize| alpha_bar(index as f64 / count as f64);
    (0..count).map(|index| (1.0 - at(index + 1) / at(index)).min(MAX_BETA) as f32).collect()
}

/// `torch.linspace` in single precision, which counts from both ends to the middle, and rounds once as its vectors do.
fn linspace_f32(start: f32, end: f32, count: usize) -> Vec<f32> {
    let step = (end - start) / (count.max(2) - 1) as f32;
    let entries = (0..count).map(|index| {
        if index < count / 2 { step.mul_add(index as f32, start) } else { (-step).mul_add((count - index - 1) as f32, end) }
    });
    entries.collect()
}
