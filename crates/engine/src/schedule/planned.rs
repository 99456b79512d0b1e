//! Makes the table that a job asks for: each sampler has a file of its own.

use super::config::ScheduleConfig;
use super::scheduler::{Sampler, Scheduler};
use super::training::TrainingSchedule;
use super::{Input, Plan, Schedule, ScheduleError};
use super::{ddim, ddpm, deis, dpm_solver, dpm2, euler, heun, lcm, lms, needs, pndm, singlestep, tcd, unipc};

impl Schedule {
    /// The table of `scheduler` with `steps` steps over the noise a model was trained on.
    ///
    /// # Errors
    /// As [`Self::planned`].
    pub fn new(scheduler: Scheduler, steps: u32, config: &ScheduleConfig) -> Result<Self, ScheduleError> {
        Self::planned(&Plan::new(scheduler, steps), config)
    }

    /// The table of what a job asks for.
    ///
    /// # Errors
    /// When the checkpoint's settings, or the number of steps, are none that the scheduler can work with.
    pub fn planned(plan: &Plan<'_>, config: &ScheduleConfig) -> Result<Self, ScheduleError> {
        let spacing = needs::spacing(plan, config)?;
        needs::check(plan, config)?;
        let training = TrainingSchedule::new(config, plan.scheduler.sampler);
        needs::check_plan(plan, spacing, training.len())?;
        let steps = plan.steps as usize;
        let first = plan.skipped();
        let input = Input { training: &training, config, plan, spacing, steps, first };
        let mut schedule = match plan.scheduler.sampler {
            Sampler::DpmSolverPlusPlus | Sampler::DpmSolverPlusPlusSde => dpm_solver::schedule(&input),
            Sampler::DpmSolverPlusPlusSinglestep => singlestep::schedule(&input),
            Sampler::Deis => deis::schedule(&input),
            Sampler::UniPc => unipc::schedule(&input),
            Sampler::Euler => euler::schedule(&input),
            Sampler::EulerAncestral => euler::ancestral_schedule(&input),
            Sampler::Heun => heun::schedule(&input),
            Sampler::Dpm2 => dpm2::schedule(&input),
            Sampler::Dpm2Ancestral => dpm2::ancestral_schedule(&input),
            Sampler::Lms => lms::schedule(&input),
            Sampler::Pndm => pndm::schedule(&input)?,
            Sampler::Ddim => ddim::schedule(&input),
            Sampler::Ddpm => ddpm::schedule(&input),
            Sampler::Lcm => lcm::schedule(&input)?,
            Sampler::Tcd => tcd::schedule(&input)?,
        };
        schedule.sigmas.drain(..first.min(schedule.sigmas.len()));
        if schedule.steps.is_empty() { Err(ScheduleError::NoSteps) } else { Ok(schedule) }
    }
}
