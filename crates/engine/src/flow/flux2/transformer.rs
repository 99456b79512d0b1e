//! The transformer: noisy latents, reference images and a text in, the velocity of the latents out.

use candle_core::{D, DType, Device, Error, Result, Tensor, bail};
use candle_nn::VarBuilder;
use candle_nn::ops::layer_norm;

use super::block::{DoubleBlock, DoubleModulation, SingleBlock};
use super::config::TransformerConfig;
use crate::activations::silu;
use crate::flow::rope::Rope;
use crate::layers::{Linear, linear_b};
use crate::qwen::modulated::Modulation;
use crate::qwen::packing::Grid;
use crate::qwen::references::Reference;
use crate::step_cache::FirstBlock;
use crate::timestep::{TIME_FREQUENCIES, TRAIN_TIMESTEPS, rounded, rounded_timestep, sinusoids};

/// How far apart images stand on the first axis: the output at 0, references from here on (`_prepare_image_ids`).
const BETWEEN_IMAGES: usize = 10;

/// diffusers' `Flux2Transformer2DModel`.
pub(super) struct Transformer {
    config: TransformerConfig,
    dtype: DType,
    device: Device,
    image_in: Linear,
    text_in: Linear,
    time_in: Linear,
    time_out: Linear,
    /// Of all blocks of a kind.
    image_modulation: Linear,
    text_modulation: Linear,
    single_modulation: Linear,
    double: Vec<DoubleBlock>,
    single: Vec<SingleBlock>,
    last_modulation: Linear,
    out: Linear,
}

/// A text and reference images, embedded, and the angles of all tokens: the same at every step.
pub struct Context {
    grid: Grid,
    /// (1, S, width).
    text: Tensor,
    /// (1, R, width), where there are some.
    references: Option<Tensor>,
    /// Of the text's tokens, the output's, then the references'.
    rope: Rope,
}

/// What the blocks get of time.
pub struct Conditioning {
    double: DoubleModulation,
    single: Modulation,
    /// 1 + scale and shift of the last norm, (width,) each.
    last: [Tensor; 2],
}

impl Context {
    pub(super) fn tensors(&self) -> Vec<Tensor> {
        let Self { text, references, rope, .. } = self;
        [text, &rope.cos, &rope.sin].into_iter().chain(references).cloned().collect()
    }

    pub(super) fn with_tensors(&self, tensors: &[Tensor]) -> Result<Self> {
        let [text, cos, sin, references @ ..] = tensors else { bail!("a text and two tables, not {}", tensors.len()) };
        let references = references.first().cloned();
        Ok(Self { grid: self.grid, text: text.clone(), references, rope: [cos, sin].into() })
    }
}

impl Transformer {
    /// `vb` stands at the transformer's own names (`x_embedder.weight`, ...).
    pub(super) fn new(config: &TransformerConfig, vb: &VarBuilder) -> Result<Self> {
        let width = config.width();
        let layer = |inputs: usize, outputs: usize, name: &str| linear_b(inputs, outputs, false, vb.pp(name));
        Ok(Self {
            dtype: vb.dtype(),
            device: vb.device().clone(),
            image_in: layer(config.in_channels, width, "x_embedder")?,
            text_in: layer(config.joint_attention_dim, width, "context_embedder")?,
            time_in: layer(TIME_FREQUENCIES, width, "time_guidance_embed.timestep_embedder.linear_1")?,
            time_out: layer(width, width, "time_guidance_embed.timestep_embedder.linear_2")?,
            image_modulation: layer(width, 6 * width, "double_stream_modulation_img.linear")?,
            text_modulation: layer(width, 6 * width, "double_stream_modulation_txt.linear")?,
            single_modulation: layer(width, 3 * width, "single_stream_modulation.linear")?,
            double: (0..config.num_layers)
                .map(|index| DoubleBlock::new(config, &vb.pp("transformer_blocks").pp(index)))
                .collect::<Result<_>>()?,
            single: (0..config.num_single_layers)
                .map(|index| SingleBlock::new(config, &vb.pp("single_transformer_blocks").pp(index)))
                .collect::<Result<_>>()?,
            last_modulation: layer(width, 2 * width, "norm_out.linear")?,
            out: layer(width, config.in_channels, "proj_out")?,
            config: config.clone(),
        })
    }

    /// `text`: (1, S, `joint_attention_dim`).
    pub(super) fn context(&self, text: &Tensor, grid: Grid, references: &[Reference]) -> Result<Context> {
        let text = self.text_in.forward(&text.to_dtype(self.dtype)?.contiguous()?)?;
        let mut places: Vec<[usize; 4]> = (0..text.dim(1)?).map(|place| [0, 0, 0, place]).collect();
        let grids = std::iter::once(grid).chain(references.iter().map(|reference| reference.grid));
        places.extend(grids.enumerate().flat_map(|(image, Grid { height, width })| {
            (0..height).flat_map(move |row| (0..width).map(move |column| [BETWEEN_IMAGES * image, row, column, 0]))
        }));
        let rope = Rope::new(self.config.axes_dims_rope, self.config.rope_theta, &places, &self.device)?;
        let references = match references {
            [] => None,
            some => {
                let tokens: Vec<&Tensor> = some.iter().map(|reference| &reference.tokens).collect();
                Some(self.image_in.forward(&Tensor::cat(&tokens, 1)?.to_dtype(self.dtype)?)?)
            }
        };
        Ok(Context { grid, text, references, rope })
    }

    /// `timestep`: 0 to 1000.
    pub(super) fn waves(&self, timestep: f32) -> Result<Tensor> {
        // Rounded where diffusers' pipeline rounds it.
        let time = rounded(rounded_timestep(timestep, self.dtype) * TRAIN_TIMESTEPS, self.dtype);
        Tensor::from_vec(sinusoids(time, 1.0), (1, TIME_FREQUENCIES), &self.device)?.to_dtype(self.dtype)
    }

    pub(super) fn condition(&self, waves: &Tensor) -> Result<Conditioning> {
        let time = silu(&self.time_out.forward(&silu(&self.time_in.forward(waves)?)?)?)?;
        let last = self.last_modulation.forward(&time)?.flatten_all()?.chunk(2, D::Minus1)?;
        let single = Modulation::of(&self.single_modulation, &time, 1)?.pop();
        Ok(Conditioning {
            double: DoubleModulation { text: both(&self.text_modulation, &time)?, image: both(&self.image_modulation, &time)? },
            single: single.ok_or_else(|| Error::msg("single blocks are modulated once"))?,
            // Scale before shift here, after it in the blocks.
            last: [(&last[0] + 1.0)?, last[1].clone()],
        })
    }

    /// `latents`: (1, C, H, W), f32. The image's tokens are the output's, then the references'.
    pub(super) fn first_block(&self, latents: &Tensor, context: &Context, conditioning: &Conditioning) -> Result<FirstBlock> {
        let tokens = latents.flatten_from(2)?.transpose(1, 2)?.to_dtype(self.dtype)?.contiguous()?;
        let output = self.image_in.forward(&tokens)?;
        let text_tokens = context.text.dim(1)?;
        let parts: Vec<&Tensor> = [&context.text, &output].into_iter().chain(&context.references).collect();
        let before = Tensor::cat(&parts, 1)?;
        let after = match self.double.first() {
            Some(block) => block.forward(&before, text_tokens, &conditioning.double, &context.rope)?,
            None => before.clone(),
        };
        let image = |all: &Tensor| all.narrow(1, text_tokens, all.dim(1)? - text_tokens);
        Ok(FirstBlock { before: image(&before)?, after: image(&after)?, text: Some(after.narrow(1, 0, text_tokens)?) })
    }

    /// The image's tokens, (1, T, width).
    pub(super) fn last_block(&self, first: &FirstBlock, context: &Context, conditioning: &Conditioning) -> Result<Tensor> {
        let text = first.text.as_ref().ok_or_else(|| Error::msg("a block without its text"))?;
        let text_tokens = text.dim(1)?;
        let mut all = Tensor::cat(&[text, &first.after], 1)?;
        for block in self.double.iter().skip(1) {
            all = block.forward(&all, text_tokens, &conditioning.double, &context.rope)?;
        }
        for block in &self.single {
            all = block.forward(&all, &conditioning.single, &context.rope)?;
        }
        all.narrow(1, text_tokens, all.dim(1)? - text_tokens)?.contiguous()
    }

    /// (1, C, H, W), f32.
    pub(super) fn velocity(&self, tokens: &Tensor, context: &Context, conditioning: &Conditioning) -> Result<Tensor> {
        let [scale, shift] = &conditioning.last;
        let Grid { height, width } = context.grid;
        let output = tokens.narrow(1, 0, context.grid.tokens())?.contiguous()?;
        let velocity = self.out.forward(&layer_norm(&output, scale, shift, self.config.eps as f32)?)?;
        velocity.to_dtype(DType::F32)?.transpose(1, 2)?.reshape((1, self.config.in_channels, height, width))
    }
}

/// Before attention, and before the feed-forward layer.
fn both(layer: &Linear, time: &Tensor) -> Result<[Modulation; 2]> {
    let modulations = Modulation::of(layer, time, 2)?;
    <[Modulation; 2]>::try_from(modulations).map_err(|_| Error::msg("double blocks are modulated twice"))
}
