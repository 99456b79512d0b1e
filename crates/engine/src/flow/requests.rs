//! What a flow reads of a request: the rest is refused by name, nothing is left out in silence.

use crate::unread::check_unread;
use crate::{EngineError, GenerateRequest, Request};

/// The request, if it asks for nothing that a flow does not read.
pub(super) fn readable(request: &Request) -> Result<&GenerateRequest, EngineError> {
    let Request::Generate(request) = request else {
        let problem = "must be generate: this model generates from text alone".into();
        return Err(EngineError::Request { field: "task", problem });
    };
    if request.guidance_scale > 1.0 {
        let scale = request.guidance_scale;
        let problem = format!("must be at most 1, got {scale}: this model was distilled to generate without guidance");
        return Err(EngineError::Request { field: "guidance_scale", problem });
    }
    if request.steps == 0 {
        return Err(EngineError::Request { field: "steps", problem: "must be 1 or more, got 0".into() });
    }
    if request.mode.is_some() {
        return Err(EngineError::Request { field: "mode", problem: "this model has no modes: leave it out".into() });
    }
    check_unread(request)?;
    Ok(request)
}
