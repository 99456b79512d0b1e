//! The files that a ControlNet lies in: a directory as diffusers saves it, or one file, also under the names of its first release.
//!
//! The correspondence is that of `convert_controlnet_checkpoint` in diffusers' `loaders/single_file_utils.py`.

use std::path::PathBuf;
use std::sync::Arc;

use candle_core::{DType, Device};

use super::ControlNet;
use super::config::ControlNetConfig;
use crate::EngineError;
use crate::graphs::module_number;
use crate::original_names::Layout;
use crate::sd::checkpoint::Checkpoint;
use crate::sd::config::UnetConfig;
use crate::tensor_file::TensorFile;
use crate::weights::{Named, Shapes, Weights, component_files};

/// A ControlNet of a model, as jobs name it.
#[derive(Debug, Clone, PartialEq)]
pub struct ControlNetFile {
    pub name: String,
    /// A directory with `config.json` and weights, or one `.safetensors` file.
    pub path: PathBuf,
}

/// A ControlNet that is loaded.
pub(in crate::sd) struct Loaded {
    pub(in crate::sd) name: String,
    pub(in crate::sd) path: PathBuf,
    pub(in crate::sd) net: ControlNet,
    /// Of its tensors, for graphs.
    pub(in crate::sd) module: u64,
    pub(in crate::sd) is_bgr: bool,
    pub(in crate::sd) weights: Weights,
}

/// What the names of a ControlNet's tensors in its first release begin with, where it is not alone in the file.
const PREFIX: &str = "control_model.";
/// Weights that look like a ControlNet's and are another thing: part of a name, what it is.
const OTHERS: [(&str, &str); 4] = [
    ("lora_controlnet", "is a Control-LoRA, which is not supported; take the whole ControlNet that it was made from"),
    (
        "difference",
        "holds the difference to a base model (a ControlNet of sd-webui's \"diff\" kind), which is not supported; take the whole ControlNet",
    ),
    ("control_add_embedding", "is a ControlNet Union, which is not supported; take a ControlNet for one kind of image"),
    ("task_embedding", "is a ControlNet Union, which is not supported; take a ControlNet for one kind of image"),
];

/// What is known of a ControlNet before its tensors are read.
struct Described {
    config: ControlNetConfig,
    spelling: Spelling,
    files: Vec<PathBuf>,
}

impl ControlNetFile {
    /// Looks at settings, names and shapes, not at the tensors.
    ///
    /// # Errors
    /// [`EngineError::Checkpoint`] names the file and why it is no ControlNet of this checkpoint.
    pub fn check(&self, checkpoint: &Checkpoint) -> Result<(), EngineError> {
        self.described(checkpoint).map(drop)
    }

    fn described(&self, checkpoint: &Checkpoint) -> Result<Described, EngineError> {
        let files = if self.path.is_dir() { component_files(&self.path)? } else { vec![self.path.clone()] };
        let mut shapes = Shapes::new();
        for path in &files {
            let tensors = TensorFile::open(path)?;
            let names = tensors.tensors().map(|(name, _)| name);
            shapes.extend(names.filter_map(|name| Some((name.clone(), tensors.info(&name)?.shape.clone()))));
        }
        if let Some((_, problem)) = OTHERS.into_iter().find(|(part, _)| shapes.keys().any(|name| name.contains(part))) {
            return Err(self.wrong(problem.into()));
        }
        let spelling = Spelling::of(&shapes, &checkpoint.unet);
        let shapes: Shapes = shapes.into_iter().filter_map(|(name, shape)| Some((spelling.name(&name)?, shape))).collect();
        let config = if self.path.is_dir() {
            ControlNetConfig::read(&self.path.join("config.json"))?
        } else {
            of_file(&shapes, &checkpoint.unet).map_err(|problem| self.wrong(problem))?
        };
        match config.mismatch(&checkpoint.unet, &checkpoint.vae) {
            Some(problem) => Err(self.wrong(problem)),
            None => Ok(Described { config, spelling, files }),
        }
    }

    fn wrong(&self, problem: String) -> EngineError {
        EngineError::Checkpoint { path: self.path.clone(), problem }
    }
}

impl Loaded {
    /// `kept`: what its tensors are kept in and where.
    ///
    /// # Errors
    /// As [`ControlNetFile::check`]; lists the tensors that are missing or have another shape.
    pub(in crate::sd) fn read(
        file: &ControlNetFile,
        checkpoint: &Checkpoint,
        kept: (DType, &Device),
    ) -> Result<Self, EngineError> {
        let Described { config, spelling, files } = file.described(checkpoint)?;
        let named = files.iter().map(|path| Named::open(path, |name| spelling.name(name))).collect::<Result<Vec<_>, _>>()?;
        let weights = Weights::of(&named, kept)?.laid_out()?;
        let net = weights.build(&Arc::default(), |vb| ControlNet::new(&config, vb)).map_err(|problem| file.wrong(problem))?;
        Ok(Self {
            name: file.name.clone(),
            path: file.path.clone(),
            net,
            module: module_number(),
            is_bgr: config.is_bgr,
            weights,
        })
    }
}

/// How the tensors of a file are called.
struct Spelling {
    /// None: as diffusers calls them.
    original: Option<Layout>,
    /// Whether the names begin with [`PREFIX`]; what does not is another model's.
    is_prefixed: bool,
    /// Of the convolutions over the image, the first and the last not among them.
    hint_blocks: usize,
}

impl Spelling {
    fn of(shapes: &Shapes, unet: &UnetConfig) -> Self {
        let is_prefixed = shapes.keys().any(|name| name.starts_with(PREFIX));
        let bare = |name: &str| name.trim_start_matches(PREFIX).to_owned();
        let hints =
            shapes.keys().filter(|name| bare(name).starts_with("input_hint_block.") && name.ends_with(".weight")).count();
        let is_original = shapes.keys().any(|name| bare(name).starts_with("input_blocks."));
        Self {
            original: is_original.then(|| Layout::new(&unet.layers(), &[])),
            is_prefixed,
            hint_blocks: hints.saturating_sub(2),
        }
    }

    /// diffusers' name of a tensor of the file, if it is one of a ControlNet.
    fn name(&self, name: &str) -> Option<String> {
        let bare = if self.is_prefixed { name.strip_prefix(PREFIX)? } else { name };
        let Some(layout) = &self.original else { return Some(bare.to_owned()) };
        let (module, kind) = bare.rsplit_once('.')?;
        let parts: Vec<&str> = module.split('.').collect();
        let module = match parts.as_slice() {
            ["zero_convs", index, "0"] => format!("controlnet_down_blocks.{index}"),
            ["middle_block_out", "0"] => "controlnet_mid_block".to_owned(),
            ["input_hint_block", index] => format!("controlnet_cond_embedding.{}", self.hint(index.parse().ok()?)),
            _ => layout.new_name(module)?,
        };
        Some(format!("{module}.{kind}"))
    }

    /// The convolution at this place of the first release's list, where an activation stands behind each.
    fn hint(&self, index: usize) -> String {
        match index / 2 {
            0 => "conv_in".to_owned(),
            place if place > self.hint_blocks => "conv_out".to_owned(),
            place => format!("blocks.{}", place - 1),
        }
    }
}

/// The sizes of a file without a config.json, which has to be one of this UNet's; `shapes`: by diffusers' names.
fn of_file(shapes: &Shapes, unet: &UnetConfig) -> Result<ControlNetConfig, String> {
    let of = |name: &str| shapes.get(&format!("{name}.weight"));
    let (Some(first), Some(width)) = (of("controlnet_cond_embedding.conv_in"), of("conv_in")) else {
        return Err(
            "holds no ControlNet (controlnet_cond_embedding.…, or control_model.input_hint_block.… of the first release)"
                .into(),
        );
    };
    let mut hint_channels = vec![first.first().copied().unwrap_or_default()];
    // Every second one goes on to the next width.
    for index in (1..).step_by(2) {
        let Some(shape) = of(&format!("controlnet_cond_embedding.blocks.{index}")) else { break };
        hint_channels.push(shape.first().copied().unwrap_or_default());
    }
    let config = ControlNetConfig::of_unet(unet, hint_channels);
    let is_xl = of("add_embedding.linear_1").is_some();
    let text = shapes.iter().find(|(name, _)| name.ends_with(".attn2.to_k.weight")).and_then(|(_, shape)| shape.get(1));
    let text = text.copied().unwrap_or(unet.cross_attention_dim);
    if is_xl != unet.is_xl() || text != unet.cross_attention_dim || width.first() != unet.block_out_channels.first() {
        let family = if is_xl { "Stable Diffusion XL" } else { "Stable Diffusion 1 or 2" };
        let width = width.first().copied().unwrap_or_default();
        return Err(format!(
            "is a ControlNet of {family} with a width of {width} over texts of {text} numbers, and the model has {:?} over {}: take one that \
             was trained for this model's family",
            unet.block_out_channels.first().copied().unwrap_or_default(),
            unet.cross_attention_dim
        ));
    }
    Ok(config)
}
