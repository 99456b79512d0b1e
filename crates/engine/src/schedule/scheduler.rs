//! The samplers that a denoising loop can follow, and the noise levels that they can run over.

/// The sampler of the denoising loop, and the noise levels it runs over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scheduler {
    pub sampler: Sampler,
    /// What is asked for; without it the checkpoint decides.
    pub spacing: Option<SigmaSpacing>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sampler {
    /// DPM-Solver++ over several steps, of the second order unless the checkpoint says otherwise.
    DpmSolverPlusPlus,
    /// The same with fresh noise in every step.
    DpmSolverPlusPlusSde,
    /// DPM-Solver++ that goes back to where it started for every second (or third) prediction.
    DpmSolverPlusPlusSinglestep,
    Deis,
    UniPc,
    Euler,
    EulerAncestral,
    Heun,
    Dpm2,
    Dpm2Ancestral,
    Lms,
    Pndm,
    Ddim,
    Ddpm,
    /// For models and LoRAs that were distilled to a few steps: latent consistency.
    Lcm,
    /// The same: trajectory consistency.
    Tcd,
}

/// Noise levels in place of those of evenly spaced timesteps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SigmaSpacing {
    /// Karras et al. 2022, arXiv 2206.00364.
    Karras,
    /// Even in the logarithm.
    Exponential,
    /// Quantiles of a beta distribution (Lee et al. 2024, arXiv 2407.12173).
    Beta,
}

impl Scheduler {
    /// On the noise levels that the checkpoint asks for.
    #[must_use]
    pub const fn plain(sampler: Sampler) -> Self {
        Self { sampler, spacing: None }
    }

    #[must_use]
    pub const fn karras(sampler: Sampler) -> Self {
        Self { sampler, spacing: Some(SigmaSpacing::Karras) }
    }
}

impl Sampler {
    pub const ALL: [Self; 16] = [
        Self::DpmSolverPlusPlus,
        Self::DpmSolverPlusPlusSde,
        Self::DpmSolverPlusPlusSinglestep,
        Self::Deis,
        Self::UniPc,
        Self::Euler,
        Self::EulerAncestral,
        Self::Heun,
        Self::Dpm2,
        Self::Dpm2Ancestral,
        Self::Lms,
        Self::Pndm,
        Self::Ddim,
        Self::Ddpm,
        Self::Lcm,
        Self::Tcd,
    ];

    /// The name by which problems call it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::DpmSolverPlusPlus => "dpmsolver++",
            Self::DpmSolverPlusPlusSde => "dpmsolver++-sde",
            Self::DpmSolverPlusPlusSinglestep => "dpmsolver++-singlestep",
            Self::Deis => "deis",
            Self::UniPc => "unipc",
            Self::Euler => "euler",
            Self::EulerAncestral => "euler_a",
            Self::Heun => "heun",
            Self::Dpm2 => "dpm2",
            Self::Dpm2Ancestral => "dpm2_a",
            Self::Lms => "lms",
            Self::Pndm => "pndm",
            Self::Ddim => "ddim",
            Self::Ddpm => "ddpm",
            Self::Lcm => "lcm",
            Self::Tcd => "tcd",
        }
    }

    /// Whether it runs over any noise levels, and not over the trained timesteps alone.
    #[must_use]
    pub const fn takes_spacings(self) -> bool {
        !matches!(self, Self::EulerAncestral | Self::Pndm | Self::Ddim | Self::Ddpm | Self::Lcm | Self::Tcd)
    }
}
