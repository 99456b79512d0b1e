//! The samplers that a job can ask for by name, in the spellings that people use.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::Value;

use crate::shown;

/// The sampler of the denoising loop, and the noise levels it runs over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scheduler {
    pub sampler: Sampler,
    /// What the name asks for; without it the checkpoint decides.
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
    pub const NAMES: &str = "dpmsolver++, dpmsolver++-sde, dpmsolver++-singlestep, deis, unipc, euler, heun, dpm2, dpm2_a, lms, \
                             each also with -karras, -exponential or -beta; euler_a, pndm, ddim, ddpm, lcm, tcd";

    /// On the noise levels that the checkpoint asks for.
    #[must_use]
    pub const fn plain(sampler: Sampler) -> Self {
        Self { sampler, spacing: None }
    }

    #[must_use]
    pub const fn karras(sampler: Sampler) -> Self {
        Self { sampler, spacing: Some(SigmaSpacing::Karras) }
    }

    /// Reads a name of ours, of AUTOMATIC1111, of `ComfyUI` or of diffusers' classes; case, spaces, `-` and `_` do not count.
    ///
    /// # Errors
    /// Says what is allowed when `name` is none.
    pub fn named(name: &str) -> Result<Self, String> {
        let key: String = name.to_lowercase().chars().filter(|c| !matches!(c, ' ' | '-' | '_')).collect();
        let suffixes = [SigmaSpacing::Karras, SigmaSpacing::Exponential, SigmaSpacing::Beta];
        let suffixed = suffixes.into_iter().find_map(|spacing| Some((spacing, key.strip_suffix(spacing.as_str())?)));
        let found = match suffixed {
            Some((spacing, key)) => Sampler::of(key)
                .filter(|sampler| sampler.takes_spacings())
                .map(|sampler| Self { sampler, spacing: Some(spacing) }),
            None => Sampler::of(&key).map(Self::plain),
        };
        found.ok_or_else(|| format!("must be one of {}, got {}", Self::NAMES, shown::text(name)))
    }
}

impl Sampler {
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

    /// Whether a job may say how much fresh noise a step adds (`eta`).
    #[must_use]
    pub const fn takes_eta(self) -> bool {
        matches!(self, Self::Ddim | Self::Tcd)
    }

    /// Whether a job may list the timesteps itself.
    #[must_use]
    pub const fn takes_timesteps(self) -> bool {
        matches!(
            self,
            Self::DpmSolverPlusPlus
                | Self::DpmSolverPlusPlusSde
                | Self::DpmSolverPlusPlusSinglestep
                | Self::Euler
                | Self::Heun
                | Self::Ddpm
                | Self::Lcm
                | Self::Tcd
        )
    }

    /// Whether a job may list the noise levels itself.
    #[must_use]
    pub const fn takes_sigmas(self) -> bool {
        matches!(self, Self::Euler)
    }

    /// `key`: a name in lower case without spaces, `-` and `_`.
    fn of(key: &str) -> Option<Self> {
        let key = key.strip_suffix("scheduler").unwrap_or(key);
        let key = key.strip_suffix("discrete").unwrap_or(key);
        // k-diffusion's samplers are also written with a k: KDPM2DiscreteScheduler, k_euler.
        Some(match key.strip_prefix('k').unwrap_or(key) {
            "dpmsolver++" | "dpmsolvermultistep" | "dpm++2m" | "dpmpp2m" => Self::DpmSolverPlusPlus,
            "dpmsolver++sde" | "dpm++2msde" | "dpmpp2msde" => Self::DpmSolverPlusPlusSde,
            "dpmsolver++singlestep" | "dpmsolversinglestep" => Self::DpmSolverPlusPlusSinglestep,
            "deis" | "deismultistep" => Self::Deis,
            "unipc" | "unipcmultistep" => Self::UniPc,
            "euler" => Self::Euler,
            "eulera" | "eulerancestral" => Self::EulerAncestral,
            "heun" => Self::Heun,
            "dpm2" => Self::Dpm2,
            "dpm2a" | "dpm2ancestral" => Self::Dpm2Ancestral,
            "lms" => Self::Lms,
            "pndm" => Self::Pndm,
            "ddim" => Self::Ddim,
            "ddpm" => Self::Ddpm,
            "lcm" => Self::Lcm,
            "tcd" => Self::Tcd,
            _ => return None,
        })
    }
}

impl SigmaSpacing {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Karras => "karras",
            Self::Exponential => "exponential",
            Self::Beta => "beta",
        }
    }
}

impl fmt::Display for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.sampler.as_str())?;
        self.spacing.map_or(Ok(()), |spacing| write!(f, "-{}", spacing.as_str()))
    }
}

impl Serialize for Scheduler {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Scheduler {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::String(name) => Self::named(&name).map_err(de::Error::custom),
            other => Err(de::Error::custom(format!("must be one of {}, got {}", Self::NAMES, shown::json(&other)))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_one_scheduler_are_one() {
        let spellings = [
            ("dpmsolver++", &["DPM++ 2M", "dpmpp_2m", "DPMSolverMultistepScheduler", "DPMSolver++"][..]),
            ("dpmsolver++-karras", &["DPM++ 2M Karras", "dpm++_2m_karras", "dpmpp_2m_karras"]),
            ("dpmsolver++-sde-karras", &["DPM++ 2M SDE Karras", "DPM++ 2m sde karras"]),
            ("dpmsolver++-sde-exponential", &["DPM++ 2M SDE Exponential"]),
            ("dpmsolver++-singlestep", &["DPMSolverSinglestepScheduler"]),
            ("euler_a", &["Euler a", "euler ancestral", "k_euler_a", "EulerAncestralDiscreteScheduler", "EULER_A"]),
            ("euler", &["Euler", "EulerDiscreteScheduler", "k_euler"]),
            ("dpm2_a-karras", &["DPM2 a Karras", "dpm_2_ancestral_karras"]),
            ("dpm2", &["KDPM2DiscreteScheduler", "DPM2"]),
            ("unipc", &["UniPC", "uni_pc", "UniPCMultistepScheduler"]),
            ("deis-beta", &["DEIS beta"]),
            ("lms-karras", &["LMS Karras"]),
            ("pndm", &["PNDMScheduler"]),
            ("tcd", &["TCD"]),
        ];
        for (name, others) in spellings {
            assert_eq!(Scheduler::named(name).expect(name).to_string(), name);
            for other in others {
                assert_eq!(Scheduler::named(other).expect(other).to_string(), name, "{other}");
            }
        }
    }

    #[test]
    fn a_name_that_means_another_sampler_is_refused() {
        for name in
            ["dpmsolver", "DPM++ SDE", "DPM++ 2S a", "DPM++ 3M SDE", "Restart", "euler_a-karras", "ddim-beta", "", "karras"]
        {
            let problem = Scheduler::named(name).expect_err(name);
            assert!(problem.starts_with("must be one of dpmsolver++, ") && problem.contains(name), "{problem}");
        }
    }
}
