//! Latents as the transformer's tokens and back: 2x2 latents of all channels are one token.

use candle_core::{Result, Tensor};

use crate::EngineError;
use crate::pixels::sides;

/// Sides of an image in tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Grid {
    pub height: usize,
    pub width: usize,
}

impl Grid {
    /// Of an image whose tokens have `token_px` pixels a side.
    ///
    /// # Errors
    /// [`EngineError::Request`] when a side is no multiple of a token's.
    pub fn of_image(width_px: u32, height_px: u32, token_px: usize) -> std::result::Result<Self, EngineError> {
        let [width, height] = sides(width_px, height_px, token_px)?;
        Ok(Self { height, width })
    }

    #[must_use]
    pub fn tokens(self) -> usize {
        self.height * self.width
    }
}

/// `latents`: (1, C, H, W), both sides even. Returns (1, H/2·W/2, 4·C), the channel before the row before the column.
///
/// # Errors
/// When the shape is another, or there is no memory.
pub fn pack(latents: &Tensor) -> Result<Tensor> {
    let (batch, channels, height, width) = latents.dims4()?;
    latents.reshape(&[batch, channels, height / 2, 2, width / 2, 2])?.permute([0, 2, 4, 1, 3, 5])?.reshape((
        batch,
        height / 2 * (width / 2),
        channels * 4,
    ))
}

/// The inverse of [`pack`]. `tokens`: (1, T, 4·C). Returns (1, C, H, W).
///
/// # Errors
/// As [`pack`].
pub fn unpack(tokens: &Tensor, grid: Grid) -> Result<Tensor> {
    let (batch, _, values) = tokens.dims3()?;
    tokens.reshape(&[batch, grid.height, grid.width, values / 4, 2, 2])?.permute([0, 3, 1, 4, 2, 5])?.reshape((
        batch,
        values / 4,
        2 * grid.height,
        2 * grid.width,
    ))
}
