//! Names of the samplers that a denoising loop can follow.

/// The sampler of the denoising loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheduler {
    /// DPM-Solver++ 2M.
    DpmSolverPlusPlus,
    /// DPM-Solver++ 2M on the sigmas of Karras et al. 2022.
    DpmSolverPlusPlusKarras,
    /// DPM-Solver++ 2M with fresh noise in every step.
    DpmSolverPlusPlusSde,
    DpmSolverPlusPlusSdeKarras,
    UniPc,
    UniPcKarras,
    Ddim,
    Euler,
    EulerKarras,
    EulerAncestral,
    /// For models and LoRAs that were distilled to a few steps (latent consistency).
    Lcm,
}

impl Scheduler {
    /// Whether it is named with the sigmas of Karras et al. 2022, whatever the checkpoint says.
    #[must_use]
    pub fn karras(self) -> bool {
        matches!(self, Self::DpmSolverPlusPlusKarras | Self::DpmSolverPlusPlusSdeKarras | Self::UniPcKarras | Self::EulerKarras)
    }
}
