//! FLUX.1: a prompt through T5 and CLIP, and two streams of text and image tokens, joined in the end, through the transformer (diffusers' `FluxPipeline`).

mod block;
pub mod config;
mod stream;
pub mod t5;
mod text;
mod transformer;

use std::path::Path;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;

use self::config::Config;
use self::text::{TextEncoder, TextStates};
use self::transformer::{Conditioning, Context, Transformer};
use super::family::Family;
use crate::EngineError;
use crate::qwen::packing::Grid;
use crate::qwen::references::Reference;
use crate::sd::clip::{self, TextOutput};
use crate::step_cache::FirstBlock;

/// The transformer and CLIP, which adapters may change.
pub struct Flux {
    clip: clip::TextEncoder,
    transformer: Transformer,
    device: Device,
}

impl Family for Flux {
    const NAME: &'static str = "flux";
    const PIPELINE: &'static str = "FluxPipeline";
    const ADAPTED: &'static [&'static str] = &["text_encoder", "transformer"];
    const STARTS: bool = true;
    type Config = Config;
    type Encoder = TextEncoder;
    type Text = TextStates;
    type Context = Context;
    type Conditioning = Conditioning;

    fn read(directory: &Path) -> std::result::Result<Config, EngineError> {
        Config::read(directory)
    }

    fn latent_channels(config: &Config) -> usize {
        config.transformer.in_channels / 4
    }

    fn build(config: &Config, vb: &VarBuilder) -> Result<Self> {
        Ok(Self {
            clip: clip::TextEncoder::new(&config.clip, TextOutput::Pooled, &vb.pp("text_encoder"))?,
            transformer: Transformer::new(&config.transformer, &vb.pp("transformer"))?,
            device: vb.device().clone(),
        })
    }

    fn read_encoder(
        directory: &Path,
        config: &Config,
        gguf: Option<&Path>,
        kept: (DType, &Device),
    ) -> std::result::Result<(TextEncoder, u64), EngineError> {
        TextEncoder::read(directory, config, gguf, kept)
    }

    fn encode(&self, encoder: &mut TextEncoder, prompt: &str) -> std::result::Result<TextStates, EngineError> {
        encoder.encode(&self.clip, prompt, &self.device)
    }

    fn context(&self, text: &TextStates, grid: Grid, _: &[Reference]) -> std::result::Result<Context, EngineError> {
        Ok(self.transformer.context(text, grid)?)
    }

    fn waves(&self, timestep: f32) -> Result<Tensor> {
        self.transformer.waves(timestep)
    }

    fn condition(&self, waves: &Tensor, context: &Context) -> Result<Conditioning> {
        self.transformer.condition(waves, context)
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

    fn values(text: &TextStates) -> Vec<&Tensor> {
        vec![&text.states, &text.pooled]
    }
}
