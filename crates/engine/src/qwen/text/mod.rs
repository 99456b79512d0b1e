//! The text encoder of Qwen-Image and Qwen-Image-Edit: a prompt, and the images it speaks of, to hidden states (Qwen2.5-VL).

pub mod language;
pub mod patches;
pub mod positions;
pub mod prompt;
pub mod vision;

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use image::RgbImage;

use self::language::{HiddenState, LanguageModel};
use self::patches::{Patches, condition, patches};
use self::positions::{Run, positions};
use self::prompt::{EDIT, PromptTokenizer, TEXT};
use self::vision::VisionTower;
use super::fingerprint::{Fingerprint, fingerprint};
use super::packing::Grid;
use super::precision::Precision;
use super::text_config::{ProcessorConfig, VisionConfig};
use crate::EngineError;
use crate::qwen::checkpoint::TextCheckpoint;
use crate::recent::Recent;
use crate::weights::{build_from, component_files};

/// Images and prompts that are kept: some 1 MiB and 4 MiB each at full size.
const IMAGES_KEPT: usize = 32;
const PROMPTS_KEPT: usize = 16;

/// A loaded text encoder. Images and prompts that came last are not encoded again.
pub struct TextEncoder {
    tokenizer: PromptTokenizer,
    /// None of a model that is shown no images.
    sight: Option<Sight>,
    language: LanguageModel,
    bytes: u64,
    seen: Recent<Fingerprint, Seen>,
    said: Recent<(String, Vec<Fingerprint>), Tensor>,
}

/// The half that looks at images.
pub struct Sight {
    config: VisionConfig,
    processor: ProcessorConfig,
    tower: VisionTower,
    condition_px: u32,
    dtype: DType,
    device: Device,
}

/// An image as the text model's tokens.
#[derive(Debug, Clone)]
pub struct Seen {
    /// (tokens, hidden), row by row.
    pub tokens: Tensor,
    pub grid: Grid,
}

impl TextEncoder {
    /// Reads tokenizer, image processor, vision tower and text model under `directory`. Images are looked at in about `condition_px`
    /// pixels; none: a model that is shown none (Qwen-Image), of which neither processor nor tower is read. Resident are 8.3 billion values
    /// at full size (15.5 GB in bf16 without the head that predicts words), 7.6 billion without the tower.
    ///
    /// # Errors
    /// [`EngineError::Checkpoint`] names the file and lists what is missing in it or not supported.
    pub fn load(
        directory: &Path,
        condition_px: Option<u32>,
        precision: Precision,
        device: Device,
    ) -> Result<Self, EngineError> {
        let TextCheckpoint { language, vision } = TextCheckpoint::read(directory, condition_px.is_some())?;
        let tokenizer = PromptTokenizer::read(directory, if condition_px.is_some() { EDIT } else { TEXT })?;
        let files = component_files(&directory.join("text_encoder"))?;
        let dtype = precision.compute;
        let ((tower, language), bytes) = build_from(&files, (dtype, &device), our_name, |vb| {
            let tower = vision.as_ref().map(|(config, _)| VisionTower::new(config, &vb.pp("visual"))).transpose()?;
            Ok((tower, LanguageModel::new(&language, HiddenState::Last, &vb.pp("language"))?))
        })?;
        let sight = vision.zip(tower).zip(condition_px).map(|(((config, processor), tower), condition_px)| Sight {
            config,
            processor,
            tower,
            condition_px,
            dtype,
            device,
        });
        let seen = Recent::new(IMAGES_KEPT, |_, _| 1);
        let said = Recent::new(PROMPTS_KEPT, |_, _| 1);
        Ok(Self { tokenizer, sight, language, bytes, seen, said })
    }

    /// The hidden states of `prompt` over `images`, in the order in which it values them: (1, tokens, hidden).
    ///
    /// # Errors
    /// [`EngineError::Request`] when the prompt is too long, or there is no memory.
    pub fn encode(&mut self, prompt: &str, images: &[RgbImage]) -> Result<Tensor, EngineError> {
        let prints: Vec<Fingerprint> = images.iter().map(fingerprint).collect();
        let Self { tokenizer, sight, language, seen, said, .. } = self;
        let seen = images.iter().zip(&prints).map(|(image, print)| match sight {
            Some(sight) => seen.of(*print, || sight.see(image)),
            None => Err(EngineError::Request { field: "images", problem: "this model is shown none".into() }),
        });
        let seen = seen.collect::<Result<Vec<_>, _>>()?;
        said.of((prompt.to_owned(), prints), || {
            read(language, &tokenizer.runs(prompt, images.len())?, &seen, tokenizer.dropped())
        })
    }

    /// Bytes of the tensors that stay on the device.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What looks at images, where the model is shown any.
    #[must_use]
    pub fn sight(&self) -> Option<&Sight> {
        self.sight.as_ref()
    }

    #[must_use]
    pub fn tokenizer(&self) -> &PromptTokenizer {
        &self.tokenizer
    }

    /// Forgets images and prompts.
    pub fn forget(&mut self) {
        self.seen.forget();
        self.said.forget();
    }
}

impl Sight {
    /// What the tower is shown of an image.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn patches(&self, image: &RgbImage) -> Result<Patches, EngineError> {
        let shown = condition(image, self.condition_px, &self.config, &self.processor);
        Ok(patches(&shown, &self.config, &self.processor, &self.device)?)
    }

    /// What the tower makes of an image.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn see(&self, image: &RgbImage) -> Result<Seen, EngineError> {
        let patches = self.patches(image)?;
        Ok(Seen { tokens: self.tower.forward(&patches, self.dtype)?, grid: patches.grid })
    }
}

/// The text model over the runs of a prompt, less what stands in front of the user's turn.
pub(crate) fn read(language: &LanguageModel, runs: &[Run], seen: &[Seen], dropped: usize) -> Result<Tensor, EngineError> {
    let embedded = runs.iter().map(|run| match run {
        Run::Text(tokens) => language.embed(tokens),
        Run::Image(index) => Ok(seen[*index].tokens.clone()),
    });
    let embedded = Tensor::cat(&embedded.collect::<candle_core::Result<Vec<_>>>()?, 0)?;
    let grids: Vec<Grid> = seen.iter().map(|seen| seen.grid).collect();
    let hidden = language.forward(&embedded, &positions(runs, &grids))?;
    Ok(hidden.narrow(1, dropped, hidden.dim(1)?.saturating_sub(dropped))?.contiguous()?)
}

/// `visual…` and `language…`, by what transformers called them at different times; the head that predicts words has no name.
pub(crate) fn our_name(name: &str) -> Option<String> {
    let name = name.strip_prefix("model.").unwrap_or(name);
    if name.starts_with("visual.") {
        return Some(name.to_owned());
    }
    let name = name.strip_prefix("language_model.").unwrap_or(name);
    (!name.starts_with("lm_head")).then(|| format!("language.{name}"))
}
