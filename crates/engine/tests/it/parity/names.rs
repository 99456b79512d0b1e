//! Schedulers by the oracle's names, which are a job's too.

use atelier_engine::schedule::scheduler::{Sampler, Scheduler, SigmaSpacing};
use serde::{Deserialize, Deserializer, de};

pub(super) fn scheduler(name: &str) -> Option<Scheduler> {
    let suffixes =
        [("-karras", SigmaSpacing::Karras), ("-exponential", SigmaSpacing::Exponential), ("-beta", SigmaSpacing::Beta)];
    let spaced = suffixes.into_iter().find_map(|(suffix, spacing)| Some((name.strip_suffix(suffix)?, Some(spacing))));
    let (name, spacing) = spaced.unwrap_or((name, None));
    let sampler = Sampler::ALL.into_iter().find(|sampler| sampler.as_str() == name)?;
    Some(Scheduler { sampler, spacing })
}

pub(super) fn named_scheduler<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Scheduler, D::Error> {
    let name = String::deserialize(deserializer)?;
    scheduler(&name).ok_or_else(|| de::Error::custom(format!("the oracle has no scheduler {name}")))
}
