//! What a flow reads of a request: the rest is refused by name, nothing is left out in silence.

use image::RgbImage;

use super::family::Family;
use crate::step_cache::StepCache;
use crate::unread::check_unread;
use crate::{EngineError, InitImage, LoraFile, Request};

/// A request, as far as a flow reads it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub(super) prompt: &'a str,
    /// What it is shown, in the order in which the prompt counts them; none of a generation from text alone.
    pub(super) images: &'a [RgbImage],
    pub(super) loras: &'a [LoraFile],
    /// What it starts from instead of noise, in its size, and the part of the steps that is done then: above 0 to 1.
    pub(super) start: Option<(&'a InitImage, f64)>,
    /// 1 or more.
    pub(super) steps: u32,
    pub(super) step_cache: Option<StepCache>,
    pub(super) width_px: u32,
    pub(super) height_px: u32,
    /// One an image.
    pub(super) seeds: &'a [u64],
}

/// The request, if it asks for nothing that this family does not read.
pub(super) fn readable<F: Family>(request: &Request) -> Result<Wanted<'_>, EngineError> {
    let (wanted, guidance_scale, mode) = match request {
        Request::Generate(request) => {
            check_unread(request, F::STARTS)?;
            let wanted = Wanted {
                prompt: &request.prompt,
                images: &[],
                loras: &request.loras,
                start: request.start.as_ref().map(|image| (image, request.strength)),
                steps: request.steps,
                step_cache: request.sampling.step_cache,
                width_px: request.width_px,
                height_px: request.height_px,
                seeds: &request.seeds,
            };
            (wanted, request.guidance_scale, &request.mode)
        }
        Request::Edit(request) if F::EDITS => {
            let wanted = Wanted {
                prompt: &request.prompt,
                images: &request.images,
                loras: &request.loras,
                start: None,
                steps: request.steps,
                step_cache: request.step_cache,
                width_px: request.width_px,
                height_px: request.height_px,
                seeds: &request.seeds,
            };
            (wanted, request.guidance_scale, &request.mode)
        }
        Request::Edit(_) => {
            let problem = "must be generate: this model generates from text alone".into();
            return Err(EngineError::Request { field: "task", problem });
        }
    };
    if guidance_scale > 1.0 {
        let problem = format!("must be at most 1, got {guidance_scale}: this model was distilled to generate without guidance");
        return Err(EngineError::Request { field: "guidance_scale", problem });
    }
    if wanted.steps == 0 {
        return Err(EngineError::Request { field: "steps", problem: "must be 1 or more, got 0".into() });
    }
    if let Some((_, strength)) = wanted.start.filter(|(_, strength)| !(*strength > 0.0 && *strength <= 1.0)) {
        let problem = format!("must be above 0, at most 1, got {strength}");
        return Err(EngineError::Request { field: "strength", problem });
    }
    if mode.is_some() {
        return Err(EngineError::Request { field: "mode", problem: "this model has no modes: leave it out".into() });
    }
    Ok(wanted)
}
