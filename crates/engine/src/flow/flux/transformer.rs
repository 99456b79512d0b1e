//! The transformer: noisy latents, a text and its summary in, the velocity of the latents out.

use candle_core::{D, DType, Device, Error, Result, Tensor, bail};
use candle_nn::VarBuilder;
use candle_nn::ops::layer_norm;

use super::block::{DoubleBlock, DoubleModulation, SingleBlock};
use super::config::TransformerConfig;
use super::stream::NORM_EPS;
use super::text::TextStates;
use crate::activations::silu;
use crate::flow::rope::Rope;
use crate::layers::{Linear, linear};
use crate::qwen::modulated::Modulation;
use crate::qwen::packing::{Grid, pack, unpack};
use crate::step_cache::FirstBlock;
use crate::timestep::{TIME_FREQUENCIES, TRAIN_TIMESTEPS, rounded, rounded_timestep, sinusoids};

/// Base of the rotary frequencies; diffusers has it in code, not in config.json.
const THETA: f64 = 10_000.0;

/// diffusers' `FluxTransformer2DModel`.
pub(super) struct Transformer {
    config: TransformerConfig,
    dtype: DType,
    device: Device,
    image_in: Linear,
    text_in: Linear,
    time: Embedder,
    pooled: Embedder,
    double: Vec<DoubleBlock>,
    single: Vec<SingleBlock>,
    last_modulation: Linear,
    out: Linear,
}

/// Two layers with a silu between them.
struct Embedder {
    first: Linear,
    second: Linear,
}

/// A text, embedded, its summary, and the angles of all tokens: the same at every step.
pub struct Context {
    grid: Grid,
    /// (1, S, width).
    text: Tensor,
    /// (1, width).
    pooled: Tensor,
    /// Of the text's tokens, then the image's.
    rope: Rope,
}

/// What the blocks get of time and of the text's summary.
pub struct Conditioning {
    double: Vec<DoubleModulation>,
    single: Vec<Vec<Modulation>>,
    /// Scale and shift of the last norm, (width,) each.
    last: [Tensor; 2],
}

impl Context {
    pub(super) fn tensors(&self) -> Vec<Tensor> {
        let Self { text, pooled, rope, .. } = self;
        [text, pooled, &rope.cos, &rope.sin].into_iter().cloned().collect()
    }

    pub(super) fn with_tensors(&self, tensors: &[Tensor]) -> Result<Self> {
        let [text, pooled, cos, sin] = tensors else { bail!("a text, its summary and two tables, not {}", tensors.len()) };
        Ok(Self { grid: self.grid, text: text.clone(), pooled: pooled.clone(), rope: [cos, sin].into() })
    }
}

impl Embedder {
    fn new(inputs: usize, width: usize, vb: &VarBuilder) -> Result<Self> {
        Ok(Self { first: linear(inputs, width, vb.pp("linear_1"))?, second: linear(width, width, vb.pp("linear_2"))? })
    }

    fn forward(&self, input: &Tensor) -> Result<Tensor> {
        self.second.forward(&silu(&self.first.forward(input)?)?)
    }
}

impl Transformer {
    /// `vb` stands at the transformer's own names (`x_embedder.weight`, ...).
    pub(super) fn new(config: &TransformerConfig, vb: &VarBuilder) -> Result<Self> {
        let width = config.width();
        let embedders = vb.pp("time_text_embed");
        Ok(Self {
            dtype: vb.dtype(),
            device: vb.device().clone(),
            image_in: linear(config.in_channels, width, vb.pp("x_embedder"))?,
            text_in: linear(config.joint_attention_dim, width, vb.pp("context_embedder"))?,
            time: Embedder::new(TIME_FREQUENCIES, width, &embedders.pp("timestep_embedder"))?,
            pooled: Embedder::new(config.pooled_projection_dim, width, &embedders.pp("text_embedder"))?,
            double: (0..config.num_layers)
                .map(|index| DoubleBlock::new(config, &vb.pp("transformer_blocks").pp(index)))
                .collect::<Result<_>>()?,
            single: (0..config.num_single_layers)
                .map(|index| SingleBlock::new(config, &vb.pp("single_transformer_blocks").pp(index)))
                .collect::<Result<_>>()?,
            last_modulation: linear(width, 2 * width, vb.pp("norm_out.linear"))?,
            out: linear(width, config.in_channels, vb.pp("proj_out"))?,
            config: config.clone(),
        })
    }

    pub(super) fn context(&self, words: &TextStates, grid: Grid) -> Result<Context> {
        let text = self.text_in.forward(&words.states.to_dtype(self.dtype)?.contiguous()?)?;
        let pooled = self.pooled.forward(&words.pooled.to_dtype(self.dtype)?)?;
        // All of a text stands at one place.
        let mut places = vec![[0; 3]; text.dim(1)?];
        places.extend((0..grid.height).flat_map(|row| (0..grid.width).map(move |column| [0, row, column])));
        let rope = Rope::new(self.config.axes_dims_rope, THETA, &places, &self.device)?;
        Ok(Context { grid, text, pooled, rope })
    }

    /// `timestep`: 0 to 1000.
    pub(super) fn waves(&self, timestep: f32) -> Result<Tensor> {
        // Rounded where diffusers' pipeline rounds it.
        let time = rounded(rounded_timestep(timestep, self.dtype) * TRAIN_TIMESTEPS, self.dtype);
        Tensor::from_vec(sinusoids(time, 1.0), (1, TIME_FREQUENCIES), &self.device)?.to_dtype(self.dtype)
    }

    pub(super) fn condition(&self, waves: &Tensor, context: &Context) -> Result<Conditioning> {
        let time = silu(&(self.time.forward(waves)? + &context.pooled)?)?;
        let last = self.last_modulation.forward(&time)?.flatten_all()?.chunk(2, D::Minus1)?;
        Ok(Conditioning {
            double: self.double.iter().map(|block| block.modulation(&time)).collect::<Result<_>>()?,
            single: self.single.iter().map(|block| block.modulation(&time)).collect::<Result<_>>()?,
            // Scale before shift here, after it in the blocks.
            last: [(&last[0] + 1.0)?, last[1].clone()],
        })
    }

    /// `latents`: (1, C, H, W), f32.
    pub(super) fn first_block(&self, latents: &Tensor, context: &Context, conditioning: &Conditioning) -> Result<FirstBlock> {
        let before = self.image_in.forward(&pack(latents)?.to_dtype(self.dtype)?)?;
        let (Some(block), Some(modulation)) = (self.double.first(), conditioning.double.first()) else {
            return Ok(FirstBlock { after: before.clone(), before, text: Some(context.text.clone()) });
        };
        let (text, after) = block.forward(&context.text, &before, modulation, &context.rope)?;
        Ok(FirstBlock { before, after, text: Some(text) })
    }

    /// The image's tokens, (1, T, width).
    pub(super) fn last_block(&self, first: &FirstBlock, context: &Context, conditioning: &Conditioning) -> Result<Tensor> {
        let mut image = first.after.clone();
        let mut text = first.text.clone().ok_or_else(|| Error::msg("a block without its text"))?;
        for (block, modulation) in self.double.iter().zip(&conditioning.double).skip(1) {
            (text, image) = block.forward(&text, &image, modulation, &context.rope)?;
        }
        let text_tokens = text.dim(1)?;
        let mut all = Tensor::cat(&[&text, &image], 1)?;
        for (block, modulation) in self.single.iter().zip(&conditioning.single) {
            all = block.forward(&all, modulation, &context.rope)?;
        }
        all.narrow(1, text_tokens, context.grid.tokens())?.contiguous()
    }

    /// (1, C, H, W), f32.
    pub(super) fn velocity(&self, tokens: &Tensor, context: &Context, conditioning: &Conditioning) -> Result<Tensor> {
        let [scale, shift] = &conditioning.last;
        let normed = layer_norm(tokens, scale, shift, NORM_EPS)?;
        unpack(&self.out.forward(&normed)?.to_dtype(DType::F32)?, context.grid)
    }
}
