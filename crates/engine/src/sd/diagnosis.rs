//! NaN and infinity: decoded again in f32 where f16 overflowed, else traced to the stage and the weights at fault.
//!
//! The denoising loop is never looked into: one reduction after the decode finds whatever went wrong before it. All that costs more
//! runs on a failure alone.

use std::sync::Arc;

use candle_core::{DType, Tensor};

use super::StableDiffusion;
use super::conditioning::Conditioning;
use super::control::PlannedControl;
use super::start::Start;
use super::steering::{PlannedPrompt, Steering};
use super::tiling::Tiling;
use super::vae::VaeDecoder;
use super::vae_encoder::{Moments, VaeEncoder};
use crate::EngineError;
use crate::adapters::first_not_finite;
use crate::finite::is_finite;

/// A stage whose output can be looked at.
#[derive(Debug, Clone, Copy)]
enum Stage {
    TextEncoder,
    VaeEncoder,
    Unet,
    VaeDecoder,
}

impl Stage {
    fn label(self) -> &'static str {
        match self {
            Self::TextEncoder => "text encoder",
            Self::VaeEncoder => "VAE's encoder",
            Self::Unet => "UNet",
            Self::VaeDecoder => "VAE's decoder",
        }
    }

    /// What the names of its tensors begin with.
    fn prefixes(self) -> &'static [&'static str] {
        match self {
            Self::TextEncoder => &["text_encoder.", "text_encoder_2."],
            Self::VaeEncoder => &["vae.encoder.", "vae.quant_conv."],
            Self::Unet => &["unet."],
            Self::VaeDecoder => &["vae.decoder.", "vae.post_quant_conv."],
        }
    }
}

impl StableDiffusion {
    /// As [`Self::decode`], of one image, (1, 4, H, W), with values that are all finite; `text`, `start` and
    /// `steering`: what its latents came from.
    ///
    /// # Errors
    /// [`EngineError::NotFinite`] names the first stage that gave NaN or infinity, and why where that is known.
    pub(super) fn decode_finite(
        &self,
        latents: &Tensor,
        text: &Conditioning,
        (start, steering): (Option<&Start>, &Steering),
        tiling: Tiling,
    ) -> Result<Tensor, EngineError> {
        let decoded = self.decode(latents, tiling)?;
        if is_finite(&decoded)? {
            return Ok(decoded);
        }
        if !is_finite(latents)? {
            // A start's latents were looked at when it was encoded.
            let texts = text.negative.iter().chain([&text.positive]);
            let finite = texts
                .flat_map(|text| [&text.states].into_iter().chain(&text.added))
                .map(is_finite)
                .collect::<Result<Vec<_>, _>>()?
                .into_iter()
                .all(|finite| finite);
            let stage = if finite { Stage::Unet } else { Stage::TextEncoder };
            if let Some(problem) = self.controlnet_at_fault(&steering.controls)? {
                return Err(EngineError::NotFinite { problem });
            }
            if let Some(problem) = self.ip_adapter_at_fault(&steering.image_prompts, text)? {
                return Err(EngineError::NotFinite { problem });
            }
            return Err(self.not_finite(stage, start.is_some())?);
        }
        let weights = self.adapters.weights();
        if weights.dtype() != DType::F32 && !self.upcasts_vae {
            tracing::warn!(dtype = weights.dtype().as_str(), "the VAE's decoder overflowed: decoding once more in f32");
            let weights = weights.in_f32("vae.")?;
            let vae = weights.build(&Arc::default(), |vb| VaeDecoder::new(&self.checkpoint.vae, &vb.pp("vae")));
            let vae = vae.map_err(|problem| self.rebuild_failed(problem))?;
            // In bands f32 takes less memory than f16 did at once, and the image is the same.
            let decoded = match tiling.tile {
                Some(side) => vae.decode_in_tiles(latents, side)?,
                None => vae.decode_in_bands(latents)?,
            };
            if is_finite(&decoded)? {
                return Ok(decoded);
            }
        }
        Err(self.not_finite(Stage::VaeDecoder, start.is_some())?)
    }

    /// `pixels`: (1, 3, H, W), f32 from -1 to 1; what `encoder` makes of them, again in f32 where it overflowed.
    ///
    /// # Errors
    /// As [`Self::decode_finite`].
    pub(super) fn encode_finite(&self, encoder: &VaeEncoder, pixels: &Tensor) -> Result<Moments, EngineError> {
        let moments = encoder.encode(pixels)?;
        if moments.are_finite()? {
            return Ok(moments);
        }
        let weights = self.adapters.weights();
        if weights.dtype() != DType::F32 && !self.upcasts_vae {
            tracing::warn!(dtype = weights.dtype().as_str(), "the VAE's encoder overflowed: encoding once more in f32");
            let weights = weights.in_f32("vae.")?;
            let encoder = weights.build(&Arc::default(), |vb| VaeEncoder::new(&self.checkpoint.vae, &vb.pp("vae")));
            let moments = encoder.map_err(|problem| self.rebuild_failed(problem))?.encode(pixels)?;
            if moments.are_finite()? {
                return Ok(moments);
            }
        }
        Err(self.not_finite(Stage::VaeEncoder, true)?)
    }

    /// Which of the ControlNets gave NaN or infinity, as far as that shows, and what to do.
    fn controlnet_at_fault(&self, controls: &[PlannedControl]) -> Result<Option<String>, EngineError> {
        for PlannedControl { place, condition, .. } in controls {
            let loaded = &self.controlnets[*place];
            let why = match first_not_finite(loaded.weights.tensors(), &[""])? {
                Some(tensor) => format!("its tensor {tensor} holds some: download it again, or set engine.dtype to f32"),
                None if is_finite(condition)? => continue,
                None => {
                    "its tensors are finite, but what they make of its image is not: set engine.dtype to bf16 or f32".to_owned()
                }
            };
            let path = loaded.path.display();
            return Ok(Some(format!("the ControlNet {} ({path}) gave NaN or infinity; {why}", loaded.name)));
        }
        Ok(None)
    }

    /// The same of the IP-Adapters and what they made of the images beside `text`.
    fn ip_adapter_at_fault(&self, prompts: &[PlannedPrompt], text: &Conditioning) -> Result<Option<String>, EngineError> {
        for (PlannedPrompt { place, .. }, tokens) in prompts.iter().zip(&text.positive.images) {
            let loaded = &self.ip_adapters.loaded[*place];
            let encoder = &self.ip_adapters.encoders[loaded.encoder];
            let in_encoder = first_not_finite(encoder.weights.tensors(), &[""])?;
            let why = match (first_not_finite(loaded.weights.tensors(), &[""])?, in_encoder) {
                (Some(tensor), _) => format!("its tensor {tensor} holds some: download it again, or set engine.dtype to f32"),
                (None, Some(tensor)) => {
                    let path = encoder.path.display();
                    format!(
                        "the tensor {tensor} of its image encoder ({path}) holds some: download it again, or set engine.dtype to f32"
                    )
                }
                (None, None) if is_finite(tokens)? => continue,
                (None, None) => {
                    "its tensors are finite, but what they make of the images is not: set engine.dtype to bf16 or f32"
                        .to_owned()
                }
            };
            let path = loaded.path.display();
            return Ok(Some(format!("the IP-Adapter {} ({path}) gave NaN or infinity; {why}", loaded.name)));
        }
        Ok(None)
    }

    fn rebuild_failed(&self, problem: String) -> EngineError {
        EngineError::Checkpoint { path: self.checkpoint.directory.clone(), problem }
    }

    /// The error for `stage`: what is not finite there, whose fault that is, and what to do.
    fn not_finite(&self, stage: Stage, has_start: bool) -> Result<EngineError, EngineError> {
        let model = self.checkpoint.directory.file_name().unwrap_or_default().to_string_lossy();
        let why = self.adapters.why_not_finite(stage.prefixes())?;
        let input = if has_start { ", from the job's init_image" } else { "" };
        let problem = format!("the {} of model {model} gave NaN or infinity{input}; {why}", stage.label());
        Ok(EngineError::NotFinite { problem })
    }
}
