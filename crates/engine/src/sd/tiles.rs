//! Decoding in overlapping tiles, so that memory does not grow with the image: as `tiled_decode` of diffusers' `AutoencoderKL`.
//!
//! Every tile is normalized by itself, so that a tiled image is another one than a whole one; overlaps are blended, so that
//! there is no seam.

use candle_core::{Result, Tensor};

use super::vae::VaeDecoder;

/// A tile and the next have one latent in four in common.
const OVERLAP: usize = 4;

impl VaeDecoder {
    /// As [`Self::decode_in_bands`], with tiles of `side` by `side` latents, at least 4.
    ///
    /// # Errors
    /// When the shapes do not fit, or there is no memory.
    pub fn decode_in_tiles(&self, latents: &Tensor, side: usize) -> Result<Tensor> {
        let (_, _, height, width) = latents.dims4()?;
        if height <= side && width <= side {
            return self.decode_in_bands(latents);
        }
        let stride = side - side / OVERLAP;
        let mut above: Vec<Tensor> = Vec::new();
        let mut rows = Vec::new();
        for top in (0..height).step_by(stride) {
            let mut row: Vec<Tensor> = Vec::new();
            for (column, left) in (0..width).step_by(stride).enumerate() {
                let tile = latents.narrow(2, top, side.min(height - top))?.narrow(3, left, side.min(width - left))?;
                let mut tile = self.decode_in_bands(&tile)?;
                let pixels = tile.dim(2)? / side.min(height - top);
                let overlap = side * pixels / OVERLAP;
                if let Some(above) = above.get(column) {
                    tile = blended(above, &tile, 2, overlap)?;
                }
                if let Some(before) = row.last() {
                    tile = blended(before, &tile, 3, overlap)?;
                }
                row.push(tile);
            }
            rows.push(joined(&row, 2, stride * (row[0].dim(2)? / side.min(height - top)))?);
            above = row;
        }
        Tensor::cat(&rows, 2)
    }
}

/// The tiles of a row side by side without what the next ones repeat.
fn joined(row: &[Tensor], down: usize, stride_px: usize) -> Result<Tensor> {
    let kept = row.iter().map(|tile| {
        let height = tile.dim(down)?.min(stride_px);
        let width = tile.dim(down + 1)?.min(stride_px);
        tile.narrow(down, 0, height)?.narrow(down + 1, 0, width)
    });
    Tensor::cat(&kept.collect::<Result<Vec<_>>>()?, down + 1)
}

/// `tile` with its first pixels along `dim` mixed, more and more, out of the last ones of the tile `before`.
fn blended(before: &Tensor, tile: &Tensor, dim: usize, overlap: usize) -> Result<Tensor> {
    let overlap = overlap.min(before.dim(dim)?).min(tile.dim(dim)?);
    let ramp: Vec<f32> = (0..overlap).map(|place| place as f32 / overlap as f32).collect();
    let mut shape = [1; 4];
    shape[dim] = overlap;
    let ramp = Tensor::from_vec(ramp, &shape, tile.device())?;
    let ending = before.narrow(dim, before.dim(dim)? - overlap, overlap)?;
    // A tile at the edge is shorter than the one before it.
    let ending = narrow_like(&ending, tile, 5 - dim)?;
    let beginning = tile.narrow(dim, 0, overlap)?;
    let mixed = (ending.broadcast_mul(&(1.0 - &ramp)?)? + beginning.broadcast_mul(&ramp)?)?;
    match tile.dim(dim)? - overlap {
        0 => Ok(mixed),
        rest => Tensor::cat(&[mixed, tile.narrow(dim, overlap, rest)?], dim),
    }
}

fn narrow_like(tensor: &Tensor, like: &Tensor, dim: usize) -> Result<Tensor> {
    tensor.narrow(dim, 0, like.dim(dim)?)
}
