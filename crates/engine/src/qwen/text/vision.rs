//! The vision tower of Qwen2.5-VL: patches of one image to tokens of the text model's width.

use atelier_kernels::elementwise::Gate;
use candle_core::{DType, IndexOp, Result, Tensor};
use candle_nn::rotary_emb::rope;
use candle_nn::{Module, RmsNorm, VarBuilder, rms_norm};

use super::patches::Patches;
use crate::activations::gated;
use crate::attention::attend;
use crate::layers::{Linear, linear, linear_b};
use crate::qwen::packing::Grid;
use crate::qwen::text_config::VisionConfig;

/// Of every norm; transformers has it in code, not in config.json.
const NORM_EPS: f64 = 1e-6;
/// Base of the rotary frequencies.
const THETA: f32 = 10_000.0;

/// transformers' `Qwen2_5_VisionTransformerPretrainedModel`.
pub struct VisionTower {
    config: VisionConfig,
    patch_embed: Linear,
    blocks: Vec<Block>,
    norm: RmsNorm,
    merge_in: Linear,
    merge_out: Linear,
}

impl VisionTower {
    /// `vb` stands at the tower's own names (`patch_embed.proj...`).
    pub(super) fn new(config: &VisionConfig, vb: &VarBuilder) -> Result<Self> {
        let hidden = config.hidden_size;
        let frames = config.temporal_patch_size;
        let side = config.patch_size;
        // A convolution whose kernel is as large as its step is one product a patch.
        let kernel = vb.get((hidden, 3, frames, side, side), "patch_embed.proj.weight")?;
        let wide = hidden * config.merged();
        Ok(Self {
            patch_embed: Linear::of(kernel.flatten_from(1)?, None),
            blocks: (0..config.depth).map(|index| Block::new(config, &vb.pp("blocks").pp(index))).collect::<Result<_>>()?,
            norm: rms_norm(hidden, NORM_EPS, vb.pp("merger.ln_q"))?,
            merge_in: linear(wide, wide, vb.pp("merger.mlp.0"))?,
            merge_out: linear(wide, config.out_hidden_size, vb.pp("merger.mlp.2"))?,
            config: config.clone(),
        })
    }

    /// Returns (tokens, text width), tokens row by row, in the weights' format.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn forward(&self, patches: &Patches, dtype: DType) -> Result<Tensor> {
        let grid = patches.grid;
        let merged = self.config.merged();
        let device = patches.values.device();
        let windows = Windows::new(grid, self.config.window());
        let permutation = Tensor::from_vec(windows.permutation.clone(), grid.tokens(), device)?;
        let hidden = self.patch_embed.forward(&patches.values.to_dtype(dtype)?)?;
        // A token's patches stay together when tokens change places.
        let by_token = hidden.reshape((grid.tokens(), merged, self.config.hidden_size))?;
        let mut hidden =
            by_token.index_select(&permutation, 0)?.reshape((1, grid.tokens() * merged, self.config.hidden_size))?;
        let angles = self.angles(grid, &windows.permutation);
        let patch_count = grid.tokens() * merged;
        let table = |of: fn(f32) -> f32| {
            let values: Vec<f32> = angles.iter().map(|angle| of(*angle)).collect();
            Tensor::from_vec(values, (patch_count, angles.len() / patch_count), device)
        };
        let cos = table(f32::cos)?;
        let sin = table(f32::sin)?;
        let whole = [patch_count];
        let cut: Vec<usize> = windows.lengths.iter().map(|tokens| tokens * merged).collect();
        for (index, block) in self.blocks.iter().enumerate() {
            let segments = if self.config.fullatt_block_indexes.contains(&index) { &whole[..] } else { &cut };
            hidden = block.forward(&hidden, segments, (&cos, &sin))?;
        }
        let wide = self.norm.forward(&hidden)?.reshape((grid.tokens(), merged * self.config.hidden_size))?;
        let tokens = self.merge_out.forward(&self.merge_in.forward(&wide)?.gelu_erf()?)?;
        let back = Tensor::from_vec(windows.back(), grid.tokens(), device)?;
        tokens.index_select(&back, 0)
    }

    /// Half a head's angles for each patch, rows before columns, the tokens in this permutation.
    fn angles(&self, grid: Grid, permutation: &[u32]) -> Vec<f32> {
        let merge = self.config.spatial_merge_size;
        let quarter = self.config.hidden_size / self.config.num_heads / 4;
        let frequencies: Vec<f32> = (0..quarter).map(|index| 1.0 / THETA.powf(index as f32 / quarter as f32)).collect();
        let mut angles = Vec::with_capacity(permutation.len() * merge * merge * 2 * quarter);
        for token in permutation {
            let token = *token as usize;
            for part in 0..merge * merge {
                let row = token / grid.width * merge + part / merge;
                let column = token % grid.width * merge + part % merge;
                for position in [row, column] {
                    angles.extend(frequencies.iter().map(|frequency| position as f32 * frequency));
                }
            }
        }
        angles
    }
}

/// How tokens are put together by window, windows row by row, and tokens in each row by row.
#[derive(Debug, PartialEq, Eq)]
struct Windows {
    /// The token at each place.
    permutation: Vec<u32>,
    /// Tokens of each window.
    lengths: Vec<usize>,
}

impl Windows {
    /// `side`: tokens of a window's side; windows at the right and lower border are what is left.
    fn new(grid: Grid, side: usize) -> Self {
        let side = side.max(1);
        let mut permutation = Vec::with_capacity(grid.tokens());
        let mut lengths = Vec::new();
        for top in (0..grid.height).step_by(side) {
            for left in (0..grid.width).step_by(side) {
                let before = permutation.len();
                for row in top..(top + side).min(grid.height) {
                    permutation.extend((left..(left + side).min(grid.width)).map(|column| (row * grid.width + column) as u32));
                }
                lengths.push(permutation.len() - before);
            }
        }
        Self { permutation, lengths }
    }

    /// The place of each token.
    fn back(&self) -> Vec<u32> {
        let mut back = vec![0; self.permutation.len()];
        for (place, token) in self.permutation.iter().enumerate() {
            back[*token as usize] = place as u32;
        }
        back
    }
}

struct Block {
    norm1: RmsNorm,
    qkv: Linear,
    proj: Linear,
    norm2: RmsNorm,
    gate: Linear,
    up: Linear,
    down: Linear,
    heads: usize,
}

impl Block {
    fn new(config: &VisionConfig, vb: &VarBuilder) -> Result<Self> {
        let hidden = config.hidden_size;
        let inner = config.intermediate_size;
        Ok(Self {
            norm1: rms_norm(hidden, NORM_EPS, vb.pp("norm1"))?,
            qkv: linear_b(hidden, 3 * hidden, true, vb.pp("attn.qkv"))?,
            proj: linear(hidden, hidden, vb.pp("attn.proj"))?,
            norm2: rms_norm(hidden, NORM_EPS, vb.pp("norm2"))?,
            gate: linear(hidden, inner, vb.pp("mlp.gate_proj"))?,
            up: linear(hidden, inner, vb.pp("mlp.up_proj"))?,
            down: linear(inner, hidden, vb.pp("mlp.down_proj"))?,
            heads: config.num_heads,
        })
    }

    /// `hidden`: (1, patches, width); patches look at those of their own segment.
    fn forward(&self, hidden: &Tensor, segments: &[usize], angles: (&Tensor, &Tensor)) -> Result<Tensor> {
        let hidden = (hidden + self.attend(&self.norm1.forward(hidden)?, segments, angles)?)?;
        let inner = self.norm2.forward(&hidden)?;
        hidden + self.down.forward(&gated(Gate::Silu, [&self.up, &self.gate], &inner)?)?
    }

    fn attend(&self, hidden: &Tensor, segments: &[usize], (cos, sin): (&Tensor, &Tensor)) -> Result<Tensor> {
        let (_, patches, width) = hidden.dims3()?;
        let all = self.qkv.forward(hidden)?.reshape((patches, 3, self.heads, width / self.heads))?;
        let turned = |index: usize| {
            let by_head = all.i((.., index))?.transpose(0, 1)?.unsqueeze(0)?.contiguous()?.to_dtype(DType::F32)?;
            rope(&by_head, cos, sin)?.to_dtype(hidden.dtype())?.transpose(1, 2)?.reshape((1, patches, width))
        };
        let query = turned(0)?;
        let key = turned(1)?;
        let value = all.i((.., 2))?.reshape((1, patches, width))?;
        let mut attended = Vec::with_capacity(segments.len());
        let mut first = 0;
        // Segments of one length that follow each other are a batch: all of them, where no window is cut off.
        for alike in segments.chunk_by(|one, next| one == next) {
            let count = alike.len();
            let length = alike[0];
            let part = |tensor: &Tensor| tensor.narrow(1, first, count * length)?.reshape((count, length, width));
            let looked = attend(&part(&query)?, &part(&key)?, &part(&value)?, self.heads)?;
            attended.push(looked.reshape((1, count * length, width))?);
            first += count * length;
        }
        self.proj.forward(&Tensor::cat(&attended, 1)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_at_the_border_are_what_is_left() {
        let windows = Windows::new(Grid { height: 3, width: 5 }, 2);
        assert_eq!(windows.permutation, [0, 1, 5, 6, 2, 3, 7, 8, 4, 9, 10, 11, 12, 13, 14]);
        assert_eq!(windows.lengths, [4, 4, 2, 2, 2, 1]);
        let back = windows.back();
        assert!(windows.permutation.iter().enumerate().all(|(place, token)| back[*token as usize] as usize == place));
    }
}
