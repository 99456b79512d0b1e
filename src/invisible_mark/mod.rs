//! The invisible mark in an image's pixels: a constant message that says that a model made the image.
//!
//! - Blocks of 8x8 pixels, row by row, carry the bits of the message in turns. A reader takes the majority of each bit's blocks.
//! - A block is its U channel, as `OpenCV`'s `COLOR_RGB2YUV` has it, in the low band of one Haar wavelet step: 4x4 values.
//! - One number of a block carries the bit: modulo `STEP` it is a quarter for 0, and three quarters for 1.
//!   Which number it is makes the [`Method`].
//! - Both methods are those of `invisible-watermark` 0.2.0 on PyPI, which reads what stands here.
//!   docs/adr/0008 says what was measured, and why [`Method::DwtDctSvd`] is the one that is written.

mod block;
mod embed;
mod found;
mod message;
mod moved;
mod read;

use serde::Serialize;

pub use self::embed::embed;
pub use self::found::Found;
pub use self::read::read;

/// Pixels of a block's side.
const BLOCK_PX: usize = 8;
/// What the number that carries a bit is taken modulo.
const STEP: f64 = 36.0;
/// Fewer pixels are not marked; `invisible-watermark` reads no smaller images.
pub const MIN_PIXELS: u64 = 256 * 256;

/// Which number of a block carries its bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Method {
    /// The largest value but the first: what the reference code of Stable Diffusion 1, 2, XL and of FLUX writes.
    #[serde(rename = "dwtDct")]
    DwtDct,
    /// The largest singular value.
    #[serde(rename = "dwtDctSvd")]
    DwtDctSvd,
}

impl Method {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::DwtDct => "dwtDct",
            Self::DwtDctSvd => "dwtDctSvd",
        }
    }
}

/// Whether an image of this size can have the mark.
#[must_use]
pub fn has_room(width_px: u32, height_px: u32) -> bool {
    u64::from(width_px) * u64::from(height_px) >= MIN_PIXELS
}

#[cfg(test)]
mod tests;
