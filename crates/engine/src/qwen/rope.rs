//! Rotary positions over three axes: which image, which row, which column.

use candle_core::{Device, Result, Tensor};

use super::config::TransformerConfig;
use super::packing::Grid;
use crate::rotary::Angles;

const THETA: f32 = 10_000.0;

/// Angles of every token, text before images, as cosine and sine.
pub struct Rope {
    /// (tokens, head width / 2), f32.
    pub(super) cos: Tensor,
    pub(super) sin: Tensor,
}

impl Rope {
    /// `grids`: of the output, then of the references, in their order. Rows and columns are counted from an image's middle; text goes
    /// on from the largest half side of all images, on all axes alike (diffusers' `QwenEmbedRope` with `scale_rope`).
    ///
    /// # Errors
    /// When the device has no room for it.
    pub fn new(config: &TransformerConfig, grids: &[Grid], text_tokens: usize, device: &Device) -> Result<Self> {
        let frequencies = config.axes_dims_rope.map(frequencies);
        let half = grids.iter().map(|grid| (grid.height / 2).max(grid.width / 2)).max().unwrap_or(0);
        let mut angles: Vec<f32> = Vec::new();
        let mut add = |positions: [f32; 3]| {
            for (position, frequencies) in positions.iter().zip(&frequencies) {
                angles.extend(frequencies.iter().map(|frequency| position * frequency));
            }
        };
        for position in half..half + text_tokens {
            add([position as f32; 3]);
        }
        for (index, grid) in grids.iter().enumerate() {
            for row in centred(grid.height) {
                for column in centred(grid.width) {
                    add([index as f32, row, column]);
                }
            }
        }
        let width = config.attention_head_dim / 2;
        let table = |of: fn(f32) -> f32| {
            let values: Vec<f32> = angles.iter().map(|angle| of(*angle)).collect();
            Tensor::from_vec(values, (angles.len() / width, width), device)
        };
        Ok(Self { cos: table(f32::cos)?, sin: table(f32::sin)? })
    }

    /// Of all tokens.
    pub(super) fn angles(&self) -> Angles<'_> {
        (&self.cos, &self.sin)
    }
}

/// 1/θ^(2i/d) for i below d/2.
fn frequencies(width: usize) -> Vec<f32> {
    (0..width).step_by(2).map(|index| 1.0 / THETA.powf(index as f32 / width as f32)).collect()
}

/// -(n - n/2) to n/2 - 1.
fn centred(count: usize) -> impl Iterator<Item = f32> {
    let before = count - count / 2;
    (0..count).map(move |index| index as f32 - before as f32)
}
