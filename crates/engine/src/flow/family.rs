//! What the families of flow models differ in: their text encoders and their transformers.

use std::path::Path;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;

use super::autoencoder::Kind;
use crate::EngineError;
use crate::qwen::packing::Grid;
use crate::qwen::references::Reference;
use crate::schedule::flow::{FlowConfig, FlowSchedule};
use crate::step_cache::FirstBlock;

/// A family of flow models. A value of it is what adapters may change, built over a checkpoint's tensors.
pub trait Family: Sized + 'static {
    /// As a manifest has it.
    const NAME: &'static str;
    /// What `_class_name` in `model_index.json` is.
    const PIPELINE: &'static str;
    /// The components whose tensors adapters may change.
    const ADAPTED: &'static [&'static str];
    const AUTOENCODER: Kind = Kind::Plain;
    /// Whether it can be shown images.
    const EDITS: bool = false;
    /// Whether it can start from an image, also under a mask. Its autoencoder is plain then.
    const STARTS: bool = false;
    /// What the checkpoint's files say of it.
    type Config: Clone + Send + 'static;
    /// The text encoders that no adapter changes. They may be read again for every job.
    type Encoder;
    /// What the text encoders make of a prompt.
    type Text: Clone;
    /// A text next to an image of one size, and perhaps to others that are shown.
    type Context;
    /// What the transformer gets of time.
    type Conditioning;

    /// Reads the JSON files under `directory`, but those of the autoencoder and the schedule.
    ///
    /// # Errors
    /// [`EngineError::Checkpoint`] with the file and what is missing in it or not supported.
    fn read(directory: &Path) -> std::result::Result<Self::Config, EngineError>;

    /// Latent channels of the autoencoder that belongs to it.
    fn latent_channels(config: &Self::Config) -> usize;

    /// Builds the parts that adapters may change; `vb` stands above the components.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape than `config` says.
    fn build(config: &Self::Config, vb: &VarBuilder) -> Result<Self>;

    /// Reads the text encoders that no adapter changes, and says how many bytes they take. `gguf`: the file of the large one's weights, in place of those
    /// under `directory`.
    ///
    /// # Errors
    /// [`EngineError::Checkpoint`] names the file and lists what is missing in it or not supported.
    fn read_encoder(
        directory: &Path,
        config: &Self::Config,
        gguf: Option<&Path>,
        kept: (DType, &Device),
    ) -> std::result::Result<(Self::Encoder, u64), EngineError>;

    /// The noise levels of `steps` steps, 1 or more, of an image of so many tokens.
    #[must_use]
    fn schedule(config: &FlowConfig, steps: u32, output_tokens: usize) -> FlowSchedule {
        FlowSchedule::new(config, steps, output_tokens)
    }

    /// # Errors
    /// [`EngineError::Request`] when the prompt is too long, or there is no memory.
    fn encode(&self, encoder: &mut Self::Encoder, prompt: &str) -> std::result::Result<Self::Text, EngineError>;

    /// `references`: the images that are shown; none of a family without [`Self::EDITS`].
    ///
    /// # Errors
    /// [`EngineError::Request`] when the image is larger than the model has positions for, or there is no memory.
    fn context(
        &self,
        text: &Self::Text,
        grid: Grid,
        references: &[Reference],
    ) -> std::result::Result<Self::Context, EngineError>;

    /// The sinusoids that the transformer is told the time by, in the format it computes in; `timestep`: 0 to 1000, as the schedule has it.
    ///
    /// # Errors
    /// When there is no memory.
    fn waves(&self, timestep: f32) -> Result<Tensor>;

    /// `waves`: [`Self::waves`] of a timestep.
    ///
    /// # Errors
    /// When there is no memory.
    fn condition(&self, waves: &Tensor, context: &Self::Context) -> Result<Self::Conditioning>;

    /// All tensors of a context, in an order of its own.
    fn tensors(context: &Self::Context) -> Vec<Tensor>;

    /// `context` with other values: as many `tensors` as [`Self::tensors`] gives, in that order.
    ///
    /// # Errors
    /// When they are fewer or more.
    fn with_tensors(context: &Self::Context, tensors: &[Tensor]) -> Result<Self::Context>;

    /// `latents`: (1, C, H, W), f32. Returns the velocity from the image towards the noise in the same shape, f32.
    ///
    /// # Errors
    /// When the shapes do not fit, or there is no memory.
    fn predict(&self, latents: &Tensor, context: &Self::Context, conditioning: &Self::Conditioning) -> Result<Tensor> {
        let first = self.first_block(latents, context, conditioning)?;
        self.velocity(&self.last_block(&first, context, conditioning)?, context, conditioning)
    }

    /// The beginning of [`Self::predict`]: up to the first block that sees all tokens.
    ///
    /// # Errors
    /// When the shapes do not fit, or there is no memory.
    fn first_block(&self, latents: &Tensor, context: &Self::Context, conditioning: &Self::Conditioning) -> Result<FirstBlock>;

    /// All other blocks: tokens in the shape of [`FirstBlock::after`].
    ///
    /// # Errors
    /// When the shapes do not fit, or there is no memory.
    fn last_block(&self, first: &FirstBlock, context: &Self::Context, conditioning: &Self::Conditioning) -> Result<Tensor>;

    /// The end of [`Self::predict`]: `tokens` as [`Self::last_block`] gives them.
    ///
    /// # Errors
    /// When the shapes do not fit, or there is no memory.
    fn velocity(&self, tokens: &Tensor, context: &Self::Context, conditioning: &Self::Conditioning) -> Result<Tensor>;

    /// The values of a text, to look for those that are not finite.
    fn values(text: &Self::Text) -> Vec<&Tensor>;
}
