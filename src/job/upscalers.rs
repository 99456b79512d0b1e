//! What a function can enlarge its images with, whatever the job: its host learns it from the handler and refuses the rest at the door.

use serde::{Deserialize, Serialize};

use super::Job;
use super::outcome::JobError;
use super::task::Task;
use super::task::upscale::{Upscale, Upscaler};

/// The upscalers of a function; by default none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upscalers {
    pub listed: Vec<Upscaler>,
    /// Of one enlarged image.
    pub max_pixels: u64,
}

impl Upscalers {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.listed.is_empty()
    }

    /// The one that a job asks for: by its name, else the first of its factor.
    ///
    /// # Errors
    /// [`JobError::Invalid`] of the field `upscale`, or of its `name` or `factor`, with what there is.
    pub fn of(&self, Upscale { factor, name }: &Upscale) -> Result<&Upscaler, JobError> {
        if self.is_empty() {
            return invalid("upscale", "this function's model has no upscalers: leave it out".into());
        }
        let Some(name) = name else {
            let first = self.listed.iter().find(|upscaler| upscaler.factor == *factor);
            return first.map_or_else(
                || {
                    invalid(
                        "upscale.factor",
                        format!("must be one of this function's upscalers', {}, got {}", self.names(), factor.get()),
                    )
                },
                Ok,
            );
        };
        match self.listed.iter().find(|upscaler| upscaler.name == *name) {
            None => invalid(
                "upscale.name",
                format!("must be one of this function's upscalers, {}, got {}", self.names(), name.as_str()),
            ),
            Some(named) if named.factor != *factor => {
                let own = named.factor.get();
                invalid("upscale.factor", format!("must be {own}, by which {} enlarges, got {}", name.as_str(), factor.get()))
            }
            Some(named) => Ok(named),
        }
    }

    /// Refuses what this function can never do, as far as the job alone says so: the size of a try-on follows from an image.
    ///
    /// # Errors
    /// As [`Self::of`], and as [`Self::check_size`].
    pub fn check(&self, job: &Job) -> Result<(), JobError> {
        let Some(upscale) = &job.upscale else { return Ok(()) };
        self.of(upscale)?;
        match &job.task {
            Task::Generate(generate) => self.check_size(upscale, generate.size.width_px(), generate.size.height_px()),
            Task::Edit(edit) => match (edit.width, edit.height) {
                (Some(width), Some(height)) => self.check_size(upscale, width.get(), height.get()),
                _ => Ok(()),
            },
            Task::TryOn(_) => Ok(()),
        }
    }

    /// `width_px`, `height_px`: of what is enlarged.
    ///
    /// # Errors
    /// [`JobError::Invalid`] of the field `upscale.factor`, with the size that would result and how large one may be.
    pub fn check_size(&self, upscale: &Upscale, width_px: u32, height_px: u32) -> Result<(), JobError> {
        let factor = upscale.factor.get();
        let [width_px, height_px] = [width_px, height_px].map(|px| u64::from(px) * u64::from(factor));
        if width_px * height_px <= self.max_pixels {
            return Ok(());
        }
        let problem = format!(
            "{factor} gives {width_px}x{height_px}, {} pixels; at most {} are allowed (workflow.upscale.max_pixels): generate a smaller image, \
             or take a smaller factor",
            width_px * height_px,
            self.max_pixels
        );
        invalid("upscale.factor", problem)
    }

    /// Name and factor of each, for messages.
    fn names(&self) -> String {
        let names = self.listed.iter().map(|Upscaler { name, factor, .. }| format!("{} ({})", name.as_str(), factor.get()));
        names.collect::<Vec<_>>().join(", ")
    }
}

fn invalid<T>(field: &str, problem: String) -> Result<T, JobError> {
    Err(JobError::Invalid { field: field.into(), problem })
}
