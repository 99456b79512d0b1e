//! The sizes that SDXL looks at: micro-conditioning (Podell et al. 2023, arXiv 2307.01952, section 2.2).

use candle_core::{Device, Result, Tensor};

use super::config::UnetConfig;
use super::time_embedding::Waves;

/// Of one image, in pixels.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Height and width that a training image with such details had before it was scaled.
    pub original: [u32; 2],
    /// Top and left of what was cut out of it.
    pub crops_top_left: [u32; 2],
    /// Height and width that it was scaled to.
    pub target: [u32; 2],
}

impl Sizes {
    /// An image that was neither scaled nor cut, as diffusers' pipelines have it by default.
    #[must_use]
    pub fn of(width_px: u32, height_px: u32) -> Self {
        let size = [height_px, width_px];
        Self { original: size, crops_top_left: [0, 0], target: size }
    }

    /// (1, 6 · `addition_time_embed_dim`), f32: `add_time_ids` of diffusers' pipelines through the UNet's `add_time_proj`.
    pub(super) fn waves(self, config: &UnetConfig, device: &Device) -> Result<Tensor> {
        let waves = Waves::new(config, config.addition_time_embed_dim.unwrap_or_default(), device)?;
        let numbers: Vec<f64> =
            [self.original, self.crops_top_left, self.target].into_iter().flatten().map(f64::from).collect();
        waves.of(&numbers)?.reshape((1, ()))
    }
}
