//! What a request may ask of a UNet alone: a flow refuses it by name, so that nothing is left out in silence.

use super::schedule::scheduler::{Sampler, Scheduler};
use super::{EngineError, GenerateRequest, Sampling};

/// Refuses what only other models read: one sampler, nothing said of its sampling, and no start but noise unless the model `starts` from images.
///
/// # Errors
/// [`EngineError::Request`] with the first such field.
pub(super) fn check_unread(request: &GenerateRequest, starts: bool) -> Result<(), EngineError> {
    let GenerateRequest { embeddings, start, controls, image_prompts, scheduler, sampling, .. } = request;
    if *scheduler != Scheduler::plain(Sampler::Euler) {
        let problem = "must be euler, the one sampler of this model".into();
        return Err(EngineError::Request { field: "scheduler", problem });
    }
    let Sampling {
        timesteps,
        sigmas,
        eta,
        guidance_rescale,
        image_guidance_scale,
        clip_skip,
        step_cache: _,
        original_size,
        crops_coords_top_left,
        target_size,
    } = sampling;
    let unread = [
        ("embeddings", !embeddings.is_empty()),
        ("init_image", start.is_some() && !starts),
        ("controlnets", !controls.is_empty()),
        ("ip_adapters", !image_prompts.is_empty()),
        ("timesteps", timesteps.is_some()),
        ("sigmas", sigmas.is_some()),
        ("eta", *eta > 0.0),
        ("guidance_rescale", *guidance_rescale > 0.0),
        ("image_guidance_scale", image_guidance_scale.is_some()),
        ("clip_skip", *clip_skip > 0),
        ("original_size", original_size.is_some()),
        ("crops_coords_top_left", crops_coords_top_left.is_some()),
        ("target_size", target_size.is_some()),
    ];
    match unread.into_iter().find(|(_, given)| *given) {
        None => Ok(()),
        Some((field, _)) => Err(EngineError::Request { field, problem: "is not read by this model: leave it out".into() }),
    }
}
