//! Z-Image and Z-Image-Turbo: a prompt through Qwen3, and one stream of image and text tokens through the transformer (diffusers' `ZImagePipeline`).

mod block;
pub mod config;
mod places;
mod text;
mod transformer;

use std::path::Path;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;

use self::config::Config;
use self::text::TextEncoder;
use self::transformer::{Conditioning, Context, Transformer};
use super::family::Family;
use crate::EngineError;
use crate::qwen::packing::Grid;
use crate::qwen::references::Reference;
use crate::step_cache::FirstBlock;

/// The transformer, which adapters may change.
pub struct ZImage {
    transformer: Transformer,
}

impl Family for ZImage {
    const NAME: &'static str = "z-image";
    const PIPELINE: &'static str = "ZImagePipeline";
    const ADAPTED: &'static [&'static str] = &["transformer"];
    const STARTS: bool = true;
    type Config = Config;
    type Encoder = TextEncoder;
    type Text = Tensor;
    type Context = Context;
    type Conditioning = Conditioning;

    fn read(directory: &Path) -> std::result::Result<Config, EngineError> {
        Config::read(directory)
    }

    fn latent_channels(config: &Config) -> usize {
        config.transformer.in_channels
    }

    fn build(config: &Config, vb: &VarBuilder) -> Result<Self> {
        Ok(Self { transformer: Transformer::new(&config.transformer, &vb.pp("transformer"))? })
    }

    fn read_encoder(
        directory: &Path,
        config: &Config,
        gguf: Option<&Path>,
        kept: (DType, &Device),
    ) -> std::result::Result<(TextEncoder, u64), EngineError> {
        TextEncoder::read(directory, &config.language, gguf, kept)
    }

    fn encode(&self, encoder: &mut TextEncoder, prompt: &str) -> std::result::Result<Tensor, EngineError> {
        encoder.encode(prompt)
    }

    fn context(&self, text: &Tensor, grid: Grid, _: &[Reference]) -> std::result::Result<Context, EngineError> {
        self.transformer.context(text, grid)
    }

    fn waves(&self, timestep: f32) -> Result<Tensor> {
        self.transformer.waves(timestep)
    }

    fn condition(&self, waves: &Tensor, _: &Context) -> Result<Conditioning> {
        self.transformer.condition(waves)
    }

    fn tensors(context: &Context) -> Vec<Tensor> {
        context.tensors()
    }

    fn with_tensors(context: &Context, tensors: &[Tensor]) -> Result<Context> {
        context.with_tensors(tensors)
    }

    fn first_block(&self, latents: &Tensor, context: &Context, conditioning: &Conditioning) -> Result<FirstBlock> {
        self.transformer.first_block(latents, context, conditioning)
    }

    fn last_block(&self, first: &FirstBlock, context: &Context, conditioning: &Conditioning) -> Result<Tensor> {
        self.transformer.last_block(first, context, conditioning)
    }

    fn velocity(&self, tokens: &Tensor, context: &Context, conditioning: &Conditioning) -> Result<Tensor> {
        self.transformer.velocity(tokens, context, conditioning)
    }

    fn values(text: &Tensor) -> Vec<&Tensor> {
        vec![text]
    }
}
