//! Images as the vision tower's patches (transformers' `Qwen2VLImageProcessor`).

use candle_core::{Device, Result, Tensor};
use image::RgbImage;

use crate::qwen::packing::Grid;
use crate::qwen::sizes::fitting;
use crate::qwen::text_config::{ProcessorConfig, VisionConfig};
use crate::resample::{Filter, resize};

/// Brings an image to about `area_px` as diffusers' pipeline does, then to the tower's multiples as the processor does: an image is
/// resampled twice.
pub(super) fn condition(image: &RgbImage, area_px: u32, vision: &VisionConfig, processor: &ProcessorConfig) -> RgbImage {
    let (width, height) = fitting(area_px, image.width(), image.height());
    let shown = resize(image, width, height, Filter::Lanczos);
    let (width, height) = whole_tokens(width, height, vision.multiple_px(), processor);
    resize(&shown, width, height, Filter::Bicubic)
}

/// Sides as multiples of `multiple`, within the processor's pixels (its `smart_resize`).
fn whole_tokens(width_px: u32, height_px: u32, multiple: u32, processor: &ProcessorConfig) -> (u32, u32) {
    let step = f64::from(multiple);
    let width = f64::from(width_px);
    let height = f64::from(height_px);
    let nearest = |side: f64| (side / step).round_ties_even().max(1.0) * step;
    let mut wide = nearest(width);
    let mut high = nearest(height);
    let least = processor.min_pixels as f64;
    let most = processor.max_pixels as f64;
    if wide * high > most {
        let beta = (width * height / most).sqrt();
        let side = |side: f64| ((side / beta / step).floor() * step).max(step);
        (wide, high) = (side(width), side(height));
    } else if wide * high < least {
        let beta = (least / (width * height)).sqrt();
        let side = |side: f64| (side * beta / step).ceil() * step;
        (wide, high) = (side(width), side(height));
    }
    (wide as u32, high as u32)
}

/// An image's patches.
pub struct Patches {
    /// (patches, 3·frames·side·side), f32: the patches of a token behind each other, tokens row by row.
    pub values: Tensor,
    /// In tokens.
    pub grid: Grid,
}

/// `image`: sides in whole tokens.
pub(super) fn patches(
    image: &RgbImage,
    vision: &VisionConfig,
    processor: &ProcessorConfig,
    device: &Device,
) -> Result<Patches> {
    let side = vision.patch_size;
    let merge = vision.spatial_merge_size;
    let width = image.width() as usize;
    let height = image.height() as usize;
    let grid = Grid { height: height / (side * merge), width: width / (side * merge) };
    let bytes = image.as_raw();
    let mut values = Vec::with_capacity(grid.tokens() * vision.merged() * vision.patch_values());
    for token in 0..grid.tokens() {
        for part in 0..vision.merged() {
            let row = (token / grid.width * merge + part / merge) * side;
            let column = (token % grid.width * merge + part % merge) * side;
            for channel in 0..3 {
                let mean = processor.image_mean[channel];
                let deviation = processor.image_std[channel];
                for _ in 0..vision.temporal_patch_size {
                    for y in row..row + side {
                        values.extend((column..column + side).map(|x| {
                            let byte = bytes[(y * width + x) * 3 + channel];
                            (f32::from(byte) / 255.0 - mean) / deviation
                        }));
                    }
                }
            }
        }
    }
    let count = grid.tokens() * vision.merged();
    Ok(Patches { values: Tensor::from_vec(values, (count, vision.patch_values()), device)?, grid })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_get_the_sizes_that_the_processor_gives_them() {
        let processor = ProcessorConfig { image_mean: [0.0; 3], image_std: [1.0; 3], min_pixels: 3136, max_pixels: 12_845_056 };
        for (input, shown) in [
            ((320, 448), (308, 448)),
            ((384, 384), (392, 392)),
            ((288, 512), (280, 504)),
            ((320, 480), (308, 476)),
            ((32, 32), (56, 56)),
            ((8000, 4000), (5068, 2520)),
        ] {
            assert_eq!(whole_tokens(input.0, input.1, 28, &processor), shown, "{input:?}");
        }
    }
}
