//! Checkpoints in one file under the names of their first release: Stable Diffusion 1 and 2, and Stable Diffusion XL as Stability's `generative-models` names it.
//!
//! The correspondence is that of diffusers' `loaders/single_file_utils.py`.

use std::collections::HashMap;

use candle_core::{Result, Tensor};

use super::original_names::{Layout, canonical, open_clip_name, vae_name};

/// What is expected in the file.
pub(super) struct SingleFile {
    pub(super) unet: Layout,
    pub(super) vae_levels: usize,
    pub(super) is_xl: bool,
}

/// Where the text encoders lie: what the names begin with, the component, and whether the rest is `OpenCLIP`'s.
const ENCODERS: [(&str, &str, bool); 2] =
    [("cond_stage_model.transformer.", "text_encoder", false), ("cond_stage_model.model.", "text_encoder", true)];
const ENCODERS_XL: [(&str, &str, bool); 2] = [
    ("conditioner.embedders.0.transformer.", "text_encoder", false),
    ("conditioner.embedders.1.model.", "text_encoder_2", true),
];
/// `OpenCLIP` on the first place: SDXL's refiner has no other text encoder.
const REFINER: &str = "conditioner.embedders.0.model.";
/// `OpenCLIP`'s query, key and value, one below the other.
const JOINED: &str = ".self_attn.in_proj.";
/// `OpenCLIP`'s projection as a parameter of its own, which is multiplied from the other side.
const TRANSPOSED: &str = ".text_projection.transposed";

impl SingleFile {
    /// The engine's name of a tensor of the file, if it is read.
    pub(super) fn name(&self, name: &str) -> Option<String> {
        if let Some(name) = name.strip_prefix("model.diffusion_model.") {
            let (module, kind) = name.rsplit_once('.')?;
            return Some(format!("unet.{}.{kind}", self.unet.new_name(module)?));
        }
        if let Some(name) = name.strip_prefix("first_stage_model.") {
            return Some(canonical(&format!("vae.{}", vae_name(name, self.vae_levels)?)));
        }
        let encoders = if self.is_xl { ENCODERS_XL } else { ENCODERS };
        let (rest, encoder, is_open_clip) = encoders
            .into_iter()
            .find_map(|(prefix, encoder, is_open_clip)| Some((name.strip_prefix(prefix)?, encoder, is_open_clip)))?;
        match rest {
            _ if !is_open_clip => Some(canonical(&format!("{encoder}.{rest}"))),
            "text_projection" if self.is_xl => Some(format!("{encoder}{TRANSPOSED}")),
            "text_projection.weight" if self.is_xl => Some(format!("{encoder}.{rest}")),
            _ => Some(format!("{encoder}.text_model.{}", open_clip_name(rest)?)),
        }
    }

    /// Why a file with a tensor of this name is refused, if it is.
    pub(super) fn refused(&self, name: &str) -> Option<String> {
        let problem = match self.is_xl {
            _ if name.starts_with(REFINER) => {
                "is Stable Diffusion XL's refiner, which ends what another model began: it is not supported; serve the base model, which \
                 generates alone"
            }
            false if name.starts_with("conditioner.embedders.") => {
                "is a checkpoint of Stable Diffusion XL, and the JSON files of the checkpoint's directory are of another model: take those of \
                 stable-diffusion-xl-base-1.0, and family stable-diffusion-xl"
            }
            true if name.starts_with("cond_stage_model.") => {
                "is a checkpoint of Stable Diffusion 1 or 2, and the JSON files of the checkpoint's directory are of Stable Diffusion XL: take \
                 those of its own model, and family stable-diffusion-1"
            }
            _ => return None,
        };
        Some(problem.to_owned())
    }

    /// What is missing among the engine's `names` of its tensors.
    pub(super) fn missing<'a>(&self, names: impl Iterator<Item = &'a str>) -> Option<String> {
        let names: Vec<&str> = names.collect();
        let has = |component: &str| names.iter().any(|name| name.split('.').next() == Some(component));
        let missing = match (names.is_empty(), has("unet"), has("vae"), has("text_encoder")) {
            (true, ..) => {
                "no tensor of a Stable Diffusion 1 checkpoint in one file, nor of one of 2 or XL (model.diffusion_model.…)"
            }
            (_, false, ..) => "no UNet (model.diffusion_model.…)",
            (_, _, false, _) => "no VAE (first_stage_model.…)",
            (.., false) if self.is_xl => "no first text encoder (conditioner.embedders.0.transformer.…)",
            (.., false) => "no text encoder (cond_stage_model.…)",
            _ if self.is_xl && !has("text_encoder_2") => "no second text encoder (conditioner.embedders.1.model.…)",
            _ => return None,
        };
        Some(format!("holds {missing}: save the checkpoint with all of its parts, or as a directory in diffusers' layout"))
    }
}

/// What `OpenCLIP` keeps otherwise than transformers: the three projections of attention in one matrix, and the pooled text's turned over.
pub(super) fn as_transformers_has_them(read: &HashMap<String, Tensor>) -> Result<HashMap<String, Tensor>> {
    let mut tensors = HashMap::with_capacity(read.len());
    for (name, tensor) in read {
        if let Some((layer, kind)) = name.split_once(JOINED) {
            for (part, values) in ["q_proj", "k_proj", "v_proj"].iter().zip(tensor.chunk(3, 0)?) {
                tensors.insert(format!("{layer}.self_attn.{part}.{kind}"), values.force_contiguous()?);
            }
        } else if let Some(encoder) = name.strip_suffix(TRANSPOSED) {
            tensors.insert(format!("{encoder}.text_projection.weight"), tensor.t()?.force_contiguous()?);
        } else {
            tensors.insert(name.clone(), tensor.clone());
        }
    }
    Ok(tensors)
}
