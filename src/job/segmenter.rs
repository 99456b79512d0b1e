//! What a function can find in a person's image, whatever the job: its host learns it from the handler and refuses the rest at the door.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::Job;
use super::outcome::JobError;
use super::task::Task;
use super::task::auto_mask::{AutoMask, Parts};
use crate::shown;

/// The segmenter of a function; by default it has none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segmenter {
    /// In the order of their places; empty: there is no segmenter.
    pub classes: Vec<String>,
    /// Of its weights, as the model's manifest names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub licence: Option<String>,
}

impl Segmenter {
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.classes.is_empty()
    }

    /// The places of the classes that a job's mask is made of, in the segmenter's order.
    ///
    /// # Errors
    /// [`JobError::Invalid`] of the field `auto_mask`, or of its `classes` or `garment`, with what there is.
    pub fn of(&self, auto_mask: &AutoMask) -> Result<Vec<usize>, JobError> {
        if self.is_none() {
            return invalid("auto_mask", "this function's model has no segmenter: send a mask, or leave it out".into());
        }
        let names = self.classes.join(", ");
        match &auto_mask.parts {
            Parts::Classes { classes } => {
                let places = classes.get().iter().map(|class| {
                    let own = self.place(class);
                    own.ok_or_else(|| format!("must be of this function's segmenter's, {names}, got {}", shown::text(class)))
                });
                let places: Result<BTreeSet<usize>, String> = places.collect();
                places.map(Vec::from_iter).or_else(|problem| invalid("auto_mask.classes", problem))
            }
            Parts::Garment { garment, limbs } => {
                let mut places: BTreeSet<usize> = garment.classes().into_iter().filter_map(|class| self.place(class)).collect();
                if places.is_empty() {
                    let problem = format!(
                        "has no class among this function's segmenter's, {names}: name those that may be changed in auto_mask.classes"
                    );
                    return invalid("auto_mask.garment", problem);
                }
                if *limbs {
                    places.extend(garment.limbs().into_iter().filter_map(|class| self.place(class)));
                }
                Ok(places.into_iter().collect())
            }
        }
    }

    /// Refuses what this function can never do.
    ///
    /// # Errors
    /// As [`Self::of`].
    pub fn check(&self, job: &Job) -> Result<(), JobError> {
        match &job.task {
            Task::TryOn(tryon) => tryon.auto_mask.as_ref().map_or(Ok(()), |auto_mask| self.of(auto_mask).map(drop)),
            Task::Generate(_) | Task::Edit(_) => Ok(()),
        }
    }

    /// Case, spaces, `-` and `_` do not count.
    fn place(&self, class: &str) -> Option<usize> {
        let plain = |class: &str| class.chars().filter(|c| !matches!(c, ' ' | '-' | '_')).collect::<String>().to_lowercase();
        let wanted = plain(class);
        self.classes.iter().position(|own| plain(own) == wanted)
    }
}

fn invalid<T>(field: &str, problem: String) -> Result<T, JobError> {
    Err(JobError::Invalid { field: field.into(), problem })
}
