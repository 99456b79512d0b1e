//! A model's manifest: which files it is made of, and what its jobs get that leave a field out.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::nets::{ControlNet, IpAdapter};
use super::relative::{relative, relative_if_any};
use super::segmenter::Segmenter;
use super::upscaler::{Upscaler, check_upscalers};
use crate::job::request::Defaults;
use crate::job::task::LoraScale;
use crate::job::task::control::NetName;
use crate::job::task::prompt::PromptSyntax;
use crate::job::task::scheduler::{Sampler, Scheduler};
use crate::job::task::tryon::Mode;
use crate::models::file::FilePath;
use crate::models::source::Source;
use crate::safety::checker::Categories;

/// A model this function can serve, `NAME.yaml` in the models directory.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The file it was read from.
    #[serde(skip)]
    pub file: PathBuf,
    pub family: Family,
    /// The checkpoint's diffusers-layout directory, relative to the manifest.
    #[serde(deserialize_with = "relative")]
    pub checkpoint: PathBuf,
    /// One file with all weights under the names of Stable Diffusion's first release, relative to the manifest; of a flow the transformer alone, which
    /// may be GGUF. Without it the weights lie in the checkpoint's directory.
    #[serde(default, deserialize_with = "relative_if_any")]
    pub weights: Option<PathBuf>,
    /// Z-Image and FLUX: a GGUF file with the weights of the large text encoder, Qwen3 or T5, relative to the manifest.
    #[serde(default, deserialize_with = "relative_if_any")]
    pub text_encoder: Option<PathBuf>,
    /// The licence of the weights, which goes into every record: a name that people know, such as `CreativeML OpenRAIL-M`.
    #[serde(default)]
    pub licence: Option<String>,
    /// Stable Diffusion: how steps are laid over the trained timesteps, in place of what the checkpoint's `scheduler_config.json` says;
    /// models of a few steps ask for `trailing`.
    #[serde(default)]
    pub timestep_spacing: Option<TimestepSpacing>,
    /// Whether prompts are read as they stand, as the service always did, or with weights and at any length.
    #[serde(default)]
    pub prompt: PromptSyntax,
    /// Qwen-Image's families: the weights of each mode.
    #[serde(default)]
    pub modes: Modes,
    /// Try-on: pixels of every reference image for the autoencoder; none: 1024x1024, as the checkpoint's own pipeline.
    #[serde(default)]
    pub reference_px: Option<u32>,
    /// Try-on: pixels of every image for the text encoder; none: 384x384, as the checkpoint's own pipeline.
    #[serde(default)]
    pub condition_px: Option<u32>,
    /// Try-on: the largest short side that the model generates well, whatever resolution a job asks for.
    #[serde(default)]
    pub max_short_side_px: Option<u32>,
    /// Edits: pixels of a result whose job gives no size, in the ratio of the first image; none: as the checkpoint's own pipeline.
    #[serde(default)]
    pub edit_px: Option<u32>,
    /// What looks at images before and after they are generated.
    #[serde(default)]
    pub checker: Option<Checker>,
    /// Stable Diffusion: the ControlNets that jobs may ask for. All of them are loaded at start, and stay.
    #[serde(default)]
    pub controlnets: Vec<ControlNet>,
    /// The same of IP-Adapters, with their image encoders.
    #[serde(default)]
    pub ip_adapters: Vec<IpAdapter>,
    /// What images of jobs that ask for it are enlarged with. All of them are loaded at start, and stay.
    #[serde(default)]
    pub upscalers: Vec<Upscaler>,
    /// Try-on: what finds the clothes in the images of jobs that ask for it. It is loaded at start, and stays.
    #[serde(default)]
    pub segmenter: Option<Segmenter>,
    /// Where `atelier models pull` finds the checkpoint's files.
    #[serde(default)]
    pub source: Option<Source>,
    /// Directories next to the checkpoint, relative to the manifest, and where `atelier models pull` finds the files in them that `modes`,
    /// `weights`, `text_encoder`, `controlnets`, `ip_adapters`, `upscalers` or `segmenter` name.
    #[serde(default)]
    pub additional_sources: BTreeMap<FilePath, Source>,
    /// What a job gets that leaves a field out.
    #[serde(default)]
    pub defaults: Defaults,
}

/// An image classifier in transformers' layout.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checker {
    /// Relative to the manifest.
    #[serde(deserialize_with = "relative")]
    pub directory: PathBuf,
    /// Which of its labels stand for what may not be shown.
    pub categories: Categories,
}

const WEIGHTS: &str = "is for family stable-diffusion-1, -xl, z-image, flux or flux2; name a transformer in one file in modes";
const GGUF_WEIGHTS: &str = "is GGUF, which is read for families z-image, flux and flux2 alone; take a .safetensors file";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Family {
    /// CLIP text encoder, UNet with cross attention, `AutoencoderKL`.
    #[serde(rename = "stable-diffusion-1")]
    StableDiffusion1,
    /// The same with two CLIP text encoders, pooled text and sizes.
    #[serde(rename = "stable-diffusion-xl")]
    StableDiffusionXl,
    /// Qwen2.5-VL, Qwen-Image's transformer and autoencoder, several reference images (`QwenImageEditPlusPipeline`).
    #[serde(rename = "qwen-image-edit")]
    QwenImageEdit,
    /// The same without references: images from text alone (`QwenImagePipeline`).
    #[serde(rename = "qwen-image")]
    QwenImage,
    /// Qwen3, Z-Image's transformer, `AutoencoderKL` (`ZImagePipeline`).
    #[serde(rename = "z-image")]
    ZImage,
    /// T5 and CLIP, FLUX.1's transformer, `AutoencoderKL` (`FluxPipeline`).
    #[serde(rename = "flux")]
    Flux,
    /// Qwen3, FLUX.2 klein's transformer, `AutoencoderKLFlux2`, with references or without (`Flux2KleinPipeline`).
    #[serde(rename = "flux2")]
    Flux2,
}

/// Which of the engines a family is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A UNet over text encoders of CLIP.
    StableDiffusion,
    /// Qwen-Image's transformer, in the modes of a manifest.
    Qwen,
    /// A flow over an `AutoencoderKL`'s latents, without modes.
    Flow,
}

impl Family {
    /// All that is told apart by family but for how a checkpoint is loaded: its name, and the engine it is for.
    fn row(self) -> (&'static str, Kind) {
        match self {
            Self::StableDiffusion1 => ("stable-diffusion-1", Kind::StableDiffusion),
            Self::StableDiffusionXl => ("stable-diffusion-xl", Kind::StableDiffusion),
            Self::QwenImageEdit => ("qwen-image-edit", Kind::Qwen),
            Self::QwenImage => ("qwen-image", Kind::Qwen),
            Self::ZImage => ("z-image", Kind::Flow),
            Self::Flux => ("flux", Kind::Flow),
            Self::Flux2 => ("flux2", Kind::Flow),
        }
    }

    #[must_use]
    pub fn kind(self) -> Kind {
        self.row().1
    }

    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.row().0
    }

    /// Whether it generates from text with the one scheduler of a flow.
    fn is_flow_from_text(self) -> bool {
        self.kind() == Kind::Flow || self == Self::QwenImage
    }
}

/// How steps are laid over the trained timesteps (Lin et al. 2023, arXiv 2305.08891, table 2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimestepSpacing {
    Linspace,
    Leading,
    Trailing,
}

/// The modes that there are weights for.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Modes {
    pub base: Option<ModeWeights>,
    pub lora: Option<ModeWeights>,
    pub fp8: Option<ModeWeights>,
}

/// What is generated with in one mode.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModeWeights {
    /// One file in place of the checkpoint's own transformer, relative to the manifest.
    #[serde(deserialize_with = "relative_if_any")]
    pub transformer: Option<PathBuf>,
    pub loras: Vec<ModeLora>,
    /// Whether these weights were distilled to a few steps (Lightning), which takes a schedule of its own; none: `lora` and `fp8` are.
    pub distilled: Option<bool>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModeLora {
    /// Relative to the manifest.
    #[serde(deserialize_with = "relative")]
    pub file: PathBuf,
    #[serde(default = "LoraScale::one")]
    pub scale: LoraScale,
}

impl Modes {
    #[must_use]
    pub fn of(&self, mode: Mode) -> Option<&ModeWeights> {
        match mode {
            Mode::Base => self.base.as_ref(),
            Mode::Lora => self.lora.as_ref(),
            Mode::Fp8 => self.fp8.as_ref(),
        }
    }

    /// The weights of those of `asked` that there are.
    pub fn among(&self, asked: &[Mode]) -> impl Iterator<Item = &ModeWeights> {
        asked.iter().filter_map(|mode| self.of(*mode))
    }

    /// The names of those that there are, for messages.
    fn names(&self) -> String {
        let names = [Mode::Fp8, Mode::Lora, Mode::Base].into_iter().filter(|mode| self.of(*mode).is_some());
        names.map(Mode::as_str).collect::<Vec<_>>().join(", ")
    }
}

impl ModeWeights {
    /// Its files.
    pub fn files(&self) -> impl Iterator<Item = &PathBuf> {
        self.transformer.iter().chain(self.loras.iter().map(|lora| &lora.file))
    }

    #[must_use]
    pub fn is_distilled(&self, mode: Mode) -> bool {
        self.distilled.unwrap_or(mode != Mode::Base)
    }
}

impl Manifest {
    /// The directory of its file, which all its paths start from.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.file.parent().unwrap_or(Path::new(""))
    }

    /// Makes all paths start where `file`, the manifest's own, lies.
    pub(super) fn place(&mut self, file: PathBuf) {
        self.file = file;
        let directory = self.directory().to_owned();
        self.checkpoint = directory.join(&self.checkpoint);
        for file in [&mut self.weights, &mut self.text_encoder].into_iter().flatten() {
            *file = directory.join(&*file);
        }
        if let Some(checker) = &mut self.checker {
            checker.directory = directory.join(&checker.directory);
        }
        self.controlnets.iter_mut().for_each(|net| net.weights = directory.join(&net.weights));
        for adapter in &mut self.ip_adapters {
            adapter.weights = directory.join(&adapter.weights);
            adapter.image_encoder = directory.join(&adapter.image_encoder);
        }
        self.upscalers.iter_mut().for_each(|upscaler| upscaler.weights = directory.join(&upscaler.weights));
        if let Some(segmenter) = &mut self.segmenter {
            segmenter.directory = directory.join(&segmenter.directory);
        }
        let Modes { base, lora, fp8 } = &mut self.modes;
        for weights in [base, lora, fp8].into_iter().flatten() {
            weights.transformer = weights.transformer.take().map(|file| directory.join(file));
            weights.loras.iter_mut().for_each(|lora| lora.file = directory.join(&lora.file));
        }
    }

    /// `asked`: the try-on modes that are to be loaded.
    ///
    /// # Errors
    /// The key at fault and what is wrong with it.
    pub(super) fn check(&self, asked: &[Mode]) -> Result<(), (&'static str, String)> {
        if self.licence.as_ref().is_some_and(|licence| licence.trim().is_empty()) {
            return Err(("licence", "must name the licence of the weights, or be left out".into()));
        }
        check_upscalers(&self.upscalers).map_err(|problem| ("upscalers", problem))?;
        self.check_segmenter().map_err(|problem| ("segmenter", problem))?;
        let kind = self.family.kind();
        if kind != Kind::Qwen && !self.modes.names().is_empty() {
            return Err(("modes", "is for families qwen-image and qwen-image-edit; this one has none".into()));
        }
        self.check_gguf()?;
        if kind == Kind::StableDiffusion {
            return self.check_nets();
        }
        let nets = [("controlnets", self.controlnets.is_empty()), ("ip_adapters", self.ip_adapters.is_empty())];
        if let Some((key, _)) = nets.into_iter().find(|(_, is_empty)| !is_empty) {
            return Err((key, "is for family stable-diffusion-1 or stable-diffusion-xl; leave it out".into()));
        }
        if kind == Kind::Qwen && self.weights.is_some() {
            return Err(("weights", WEIGHTS.into()));
        }
        if self.timestep_spacing.is_some() {
            return Err(("timestep_spacing", "is for family stable-diffusion-1 or stable-diffusion-xl; leave it out".into()));
        }
        if self.family.is_flow_from_text() && self.defaults.scheduler != Scheduler::plain(Sampler::Euler) {
            let family = self.family.as_str();
            return Err(("defaults", format!("must be there, with `scheduler: euler`: the one that family {family} has")));
        }
        if kind == Kind::Flow {
            return self.check_flow();
        }
        for mode in asked {
            if self.modes.of(*mode).is_none() {
                let mode = mode.as_str();
                let known = self.modes.names();
                let known = if known.is_empty() { "none".to_owned() } else { known };
                return Err(("modes", format!("has no {mode}, which model.default_mode or model.modes asks for; has {known}")));
            }
        }
        let areas = [("reference_px", self.reference_px), ("condition_px", self.condition_px), ("edit_px", self.edit_px)];
        let sides = [("max_short_side_px", self.max_short_side_px, 16)];
        let limits = areas.map(|(key, px)| (key, px, 32 * 32)).into_iter().chain(sides);
        for (key, px, least) in limits {
            if px.is_some_and(|px| px < least) {
                return Err((key, format!("must be {least} or more")));
            }
        }
        Ok(())
    }

    fn check_segmenter(&self) -> Result<(), String> {
        let Some(segmenter) = &self.segmenter else { return Ok(()) };
        if self.family != Family::QwenImageEdit {
            return Err("is for family qwen-image-edit, which does try-ons; leave it out".into());
        }
        if segmenter.licence.as_ref().is_some_and(|licence| licence.trim().is_empty()) {
            return Err("licence must name the licence of the weights, or be left out".into());
        }
        Ok(())
    }

    /// Where GGUF files may stand, and where nothing else may.
    fn check_gguf(&self) -> Result<(), (&'static str, String)> {
        let is_flow = self.family.kind() == Kind::Flow;
        let is_gguf = |file: &PathBuf| file.extension().is_some_and(|extension| extension == "gguf");
        match &self.text_encoder {
            Some(_) if !is_flow => Err(("text_encoder", "is for families z-image, flux and flux2; leave it out".into())),
            Some(file) if !is_gguf(file) => Err(("text_encoder", "must be a .gguf file".into())),
            _ if !is_flow && self.weights.as_ref().is_some_and(is_gguf) => Err(("weights", GGUF_WEIGHTS.into())),
            _ => Ok(()),
        }
    }

    fn check_nets(&self) -> Result<(), (&'static str, String)> {
        let controlnets: Vec<&NetName> = self.controlnets.iter().map(|net| &net.name).collect();
        let ip_adapters: Vec<&NetName> = self.ip_adapters.iter().map(|adapter| &adapter.name).collect();
        for (key, names) in [("controlnets", controlnets), ("ip_adapters", ip_adapters)] {
            if let Some((_, twice)) = names.iter().enumerate().find(|(index, name)| names[..*index].contains(name)) {
                return Err((key, format!("has two of the name {}; a job could not say which", twice.as_str())));
            }
        }
        let weights = self.ip_adapters.iter().map(|adapter| &adapter.weights);
        let pickle = weights.into_iter().find(|file| file.extension().is_none_or(|extension| extension != "safetensors"));
        match pickle {
            None => Ok(()),
            Some(file) => {
                let file = file.file_name().unwrap_or_default().to_string_lossy();
                let problem = format!(
                    "weights must be one .safetensors file, got {file}; pickles (.bin) can run code when they are read: take the \
                     .safetensors file of the same repository, or convert it"
                );
                Err(("ip_adapters", problem))
            }
        }
    }

    /// What a flow without modes would leave out in silence.
    fn check_flow(&self) -> Result<(), (&'static str, String)> {
        let family = self.family.as_str();
        let unread = [
            ("prompt", self.prompt != PromptSyntax::Plain),
            ("reference_px", self.reference_px.is_some()),
            ("condition_px", self.condition_px.is_some()),
            ("max_short_side_px", self.max_short_side_px.is_some()),
            ("edit_px", self.edit_px.is_some() && self.family != Family::Flux2),
        ];
        match unread.into_iter().find(|(_, given)| *given) {
            Some((key, _)) => Err((key, format!("means nothing to family {family}; leave it out"))),
            None if self.defaults.guidance_scale.get() > 1.0 => Err((
                "defaults",
                format!("must have a guidance_scale of at most 1: family {family} generates without guidance"),
            )),
            None => Ok(()),
        }
    }
}
