//! How a Stable Diffusion checkpoint is loaded and used.

use std::path::PathBuf;

use candle_core::{DType, Device};

use super::controlnet::files::ControlNetFile;
use super::ip_adapter::files::IpAdapterFile;
use crate::schedule::config::TimestepSpacing;

/// What [`StableDiffusion::load`](super::StableDiffusion::load) has to know.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The checkpoint in diffusers' layout.
    pub directory: PathBuf,
    /// One file that has all weights under the names of Stable Diffusion's first release (`model.diffusion_model.…`), in place of those
    /// in `directory`.
    pub single_file: Option<PathBuf>,
    /// Those that jobs may ask for; all of them are loaded with the checkpoint and stay.
    pub controlnets: Vec<ControlNetFile>,
    /// The same of IP-Adapters, with their image encoders.
    pub ip_adapters: Vec<IpAdapterFile>,
    /// What weights are kept in, and the layers computed in: f32, f16 or bf16
    /// ([`device::default_dtype`](crate::device::default_dtype)). Latents, schedule, guidance, the timestep's waves and the
    /// statistics of norms are f32 with any of them.
    pub dtype: DType,
    pub device: Device,
    pub prompts: PromptSyntax,
    /// How steps are laid over the trained timesteps; none: as the checkpoint says.
    pub timestep_spacing: Option<TimestepSpacing>,
    /// Bytes within which the tensors of the model and of a generation are kept; what a LoRA changes comes on top.
    pub memory_budget: Option<u64>,
    /// Whether denoising steps become CUDA graphs: captured when one of their kind is first done, one launch from then on. Whatever else is sent to
    /// the device's stream during a capture becomes part of the graph, so it is for who has the device alone. Without effect on a CPU.
    pub graphs: bool,
    /// What most jobs will ask for, and the warm-up generates; none: the size that the checkpoint was trained on, without guidance.
    pub defaults: Option<Defaults>,
}

/// How prompts are read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PromptSyntax {
    /// As they stand, up to the tokens that the model was trained on; more are dropped, which the log says.
    #[default]
    Plain,
    /// As AUTOMATIC1111's web interface: `(word:1.2)`, `(word)`, `[word]`, `BREAK`, and any length.
    Weighted,
    /// As diffusers' community pipeline `lpw_stable_diffusion`: the same without `BREAK`, up to three times the model's length.
    Lpw,
}

/// What most jobs ask for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Defaults {
    pub width_px: u32,
    pub height_px: u32,
    pub guidance_scale: f64,
}

impl Settings {
    /// A checkpoint with its own weights, plain prompts and as much memory as there is.
    #[must_use]
    pub fn new(directory: impl Into<PathBuf>, dtype: DType, device: Device) -> Self {
        Self {
            directory: directory.into(),
            single_file: None,
            controlnets: Vec::new(),
            ip_adapters: Vec::new(),
            dtype,
            device,
            prompts: PromptSyntax::Plain,
            timestep_spacing: None,
            memory_budget: None,
            graphs: false,
            defaults: None,
        }
    }
}
