//! The transformer: noisy latents and a text in, the velocity of the latents out.

use candle_core::{DType, Device, Result, Tensor, bail};
use candle_nn::VarBuilder;
use candle_nn::ops::{layer_norm, rms_norm};

use super::block::{Block, Norms};
use super::config::TransformerConfig;
use super::places::{image_positions, padding, text_positions};
use crate::EngineError;
use crate::activations::silu;
use crate::flow::rope::Rope;
use crate::layers::{Linear, linear};
use crate::qwen::packing::Grid;
use crate::step_cache::FirstBlock;
use crate::timestep::{TIME_FREQUENCIES, TRAIN_TIMESTEPS, sinusoids};

/// Hidden width behind the sinusoids of time; diffusers has it in code, not in config.json.
const TIME_HIDDEN: usize = 1024;
/// Of the last norm; diffusers has it in code, not in config.json.
const LAST_NORM_EPS: f32 = 1e-6;

/// diffusers' `ZImageTransformer2DModel` for one image of one frame.
pub(super) struct Transformer {
    config: TransformerConfig,
    dtype: DType,
    device: Device,
    image_in: Linear,
    text_norm: Tensor,
    text_in: Linear,
    time_in: Linear,
    time_out: Linear,
    /// (1, dim) each.
    image_pad: Tensor,
    text_pad: Tensor,
    image_refiner: Vec<Block>,
    text_refiner: Vec<Block>,
    layers: Vec<Block>,
    last_modulation: Linear,
    out: Linear,
}

/// A text, refined and filled up, and the angles of all tokens: the same at every step.
pub struct Context {
    grid: Grid,
    /// (1, S, dim).
    text: Tensor,
    image_rope: Rope,
    /// Of image and text.
    rope: Rope,
}

/// What the layers get of time.
pub struct Conditioning {
    image_refiner: Vec<Norms>,
    layers: Vec<Norms>,
    /// Scale of the last norm, (dim,).
    last: Tensor,
}

impl Context {
    pub(super) fn tensors(&self) -> Vec<Tensor> {
        let Self { text, image_rope, rope, .. } = self;
        [text, &image_rope.cos, &image_rope.sin, &rope.cos, &rope.sin].map(Tensor::clone).to_vec()
    }

    pub(super) fn with_tensors(&self, tensors: &[Tensor]) -> Result<Self> {
        let [text, image_cos, image_sin, cos, sin] = tensors else { bail!("a text and four tables, not {}", tensors.len()) };
        let image_rope = [image_cos, image_sin].into();
        Ok(Self { grid: self.grid, text: text.clone(), image_rope, rope: [cos, sin].into() })
    }
}

impl Transformer {
    /// `vb` stands at the transformer's own names (`all_x_embedder.2-1.weight`, ...).
    pub(super) fn new(config: &TransformerConfig, vb: &VarBuilder) -> Result<Self> {
        let dim = config.dim;
        let time = config.time_width();
        let blocks = |name: &str, count: usize, is_modulated: bool| {
            let blocks = (0..count).map(|index| Block::new(config, is_modulated, &vb.pp(name).pp(index)));
            blocks.collect::<Result<Vec<_>>>()
        };
        Ok(Self {
            dtype: vb.dtype(),
            device: vb.device().clone(),
            image_in: linear(config.token_values(), dim, vb.pp("all_x_embedder.2-1"))?,
            text_norm: vb.get(config.cap_feat_dim, "cap_embedder.0.weight")?,
            text_in: linear(config.cap_feat_dim, dim, vb.pp("cap_embedder.1"))?,
            time_in: linear(TIME_FREQUENCIES, TIME_HIDDEN, vb.pp("t_embedder.mlp.0"))?,
            time_out: linear(TIME_HIDDEN, time, vb.pp("t_embedder.mlp.2"))?,
            image_pad: vb.get((1, dim), "x_pad_token")?,
            text_pad: vb.get((1, dim), "cap_pad_token")?,
            image_refiner: blocks("noise_refiner", config.n_refiner_layers, true)?,
            text_refiner: blocks("context_refiner", config.n_refiner_layers, false)?,
            layers: blocks("layers", config.n_layers, true)?,
            last_modulation: linear(time, dim, vb.pp("all_final_layer.2-1.adaLN_modulation.1"))?,
            out: linear(dim, config.token_values(), vb.pp("all_final_layer.2-1.linear"))?,
            config: config.clone(),
        })
    }

    /// `text`: (1, S, `cap_feat_dim`).
    pub(super) fn context(&self, text: &Tensor, grid: Grid) -> std::result::Result<Context, EngineError> {
        let tokens = text.dim(1)?;
        let places = text_positions(tokens);
        let [sequence, rows, columns] = self.config.axes_lens;
        let sides = [("height", grid.height, rows), ("width", grid.width, columns)];
        if let Some((field, tokens, most)) = sides.into_iter().find(|(_, tokens, most)| tokens > most) {
            let problem = format!("must be at most {most} tokens of this model, got {tokens}");
            return Err(EngineError::Request { field, problem });
        }
        if places.len() + 1 >= sequence {
            let problem = format!("must have fewer than {sequence} tokens, those of its template among them, got {tokens}");
            return Err(EngineError::Request { field: "prompt", problem });
        }
        let rope = |places: &[[usize; 3]]| Rope::new(self.config.axes_dims, self.config.rope_theta, places, &self.device);
        let image_rope = rope(&image_positions(grid, places.len()))?;
        let text_rope = rope(&places)?;
        let text = text.to_dtype(self.dtype)?.contiguous()?;
        let embedded = self.text_in.forward(&rms_norm(&text, &self.text_norm, self.config.norm_eps as f32)?)?;
        let mut text = filled_up(&embedded, &self.text_pad)?;
        for block in &self.text_refiner {
            text = block.forward(&text, block.own_norms(), &text_rope)?;
        }
        let rope = image_rope.before(&text_rope)?;
        Ok(Context { grid, text, image_rope, rope })
    }

    /// `timestep`: 0 to 1000, 1000 being noise; the model's own time runs the other way.
    pub(super) fn waves(&self, timestep: f32) -> Result<Tensor> {
        let time = (TRAIN_TIMESTEPS - timestep) / TRAIN_TIMESTEPS * self.config.t_scale as f32;
        Tensor::from_vec(sinusoids(time, 1.0), (1, TIME_FREQUENCIES), &self.device)?.to_dtype(self.dtype)
    }

    pub(super) fn condition(&self, waves: &Tensor) -> Result<Conditioning> {
        let time = self.time_out.forward(&silu(&self.time_in.forward(waves)?)?)?;
        let norms = |blocks: &[Block]| blocks.iter().map(|block| block.norms(&time)).collect::<Result<Vec<_>>>();
        Ok(Conditioning {
            image_refiner: norms(&self.image_refiner)?,
            layers: norms(&self.layers)?,
            last: (self.last_modulation.forward(&silu(&time)?)?.flatten_all()? + 1.0)?,
        })
    }

    /// `latents`: (1, C, H, W), f32. The tokens are those of image and text.
    pub(super) fn first_block(&self, latents: &Tensor, context: &Context, conditioning: &Conditioning) -> Result<FirstBlock> {
        let tokens = pack(latents)?.to_dtype(self.dtype)?;
        let mut image = filled_up(&self.image_in.forward(&tokens)?, &self.image_pad)?;
        for (block, norms) in self.image_refiner.iter().zip(&conditioning.image_refiner) {
            image = block.forward(&image, norms, &context.image_rope)?;
        }
        let before = Tensor::cat(&[&image, &context.text], 1)?;
        let after = match (self.layers.first(), conditioning.layers.first()) {
            (Some(block), Some(norms)) => block.forward(&before, norms, &context.rope)?,
            _ => before.clone(),
        };
        Ok(FirstBlock { before, after, text: None })
    }

    /// The tokens of image and text, (1, T, dim).
    pub(super) fn last_block(&self, first: &FirstBlock, context: &Context, conditioning: &Conditioning) -> Result<Tensor> {
        let mut all = first.after.clone();
        for (block, norms) in self.layers.iter().zip(&conditioning.layers).skip(1) {
            all = block.forward(&all, norms, &context.rope)?;
        }
        Ok(all)
    }

    /// (1, C, H, W), f32.
    pub(super) fn velocity(&self, tokens: &Tensor, context: &Context, conditioning: &Conditioning) -> Result<Tensor> {
        let image = tokens.narrow(1, 0, context.grid.tokens())?.contiguous()?;
        let normed = layer_norm(&image, &conditioning.last, &conditioning.last.zeros_like()?, LAST_NORM_EPS)?;
        // The model predicts the way from noise to image.
        unpack(&self.out.forward(&normed)?.to_dtype(DType::F32)?, context.grid)?.neg()
    }
}

/// `tokens` (1, T, dim) and behind them `pad` (1, dim), as often as it takes.
fn filled_up(tokens: &Tensor, pad: &Tensor) -> Result<Tensor> {
    let (_, count, dim) = tokens.dims3()?;
    match padding(count) {
        0 => Ok(tokens.clone()),
        more => Tensor::cat(&[tokens, &pad.unsqueeze(0)?.broadcast_as((1, more, dim))?], 1),
    }
}

/// `latents`: (1, C, H, W), both sides even. Returns (1, H/2·W/2, 4·C), the row before the column before the channel.
fn pack(latents: &Tensor) -> Result<Tensor> {
    let (batch, channels, height, width) = latents.dims4()?;
    latents.reshape(&[batch, channels, height / 2, 2, width / 2, 2])?.permute([0, 2, 4, 3, 5, 1])?.reshape((
        batch,
        height / 2 * (width / 2),
        4 * channels,
    ))
}

/// The inverse of [`pack`].
fn unpack(tokens: &Tensor, grid: Grid) -> Result<Tensor> {
    let (batch, _, values) = tokens.dims3()?;
    tokens.reshape(&[batch, grid.height, grid.width, 2, 2, values / 4])?.permute([0, 5, 1, 3, 2, 4])?.reshape((
        batch,
        values / 4,
        2 * grid.height,
        2 * grid.width,
    ))
}
