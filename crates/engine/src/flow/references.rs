//! Reference images of an edit in the sizes in which FLUX.2 is shown them (diffusers' `Flux2ImageProcessor`).

use image::{RgbImage, imageops};

use crate::resample::{Filter, resize};

/// Pixels of a reference at most.
const MAX_PX: u64 = 1024 * 1024;
/// What a side has at least, and how often the longer one may be as long as the shorter.
const MIN_SIDE_PX: u32 = 64;
const MAX_RATIO: u32 = 8;

/// Width and height in which an image of `width_px` by `height_px` is shown, before its margins are cut: the same up to 1 MP, else of about 1 MP.
fn limited(width_px: u32, height_px: u32) -> (u32, u32) {
    let pixels = u64::from(width_px) * u64::from(height_px);
    if pixels <= MAX_PX {
        return (width_px, height_px);
    }
    let scale = (MAX_PX as f64 / pixels as f64).sqrt();
    ((f64::from(width_px) * scale) as u32, (f64::from(height_px) * scale) as u32)
}

/// Width and height in which an image of `width_px` by `height_px` is shown: about 1 MP at most, in steps of `token_px`, at least one. An edit without a
/// size of its own has that of its first image.
#[must_use]
pub fn size(width_px: u32, height_px: u32, token_px: u32) -> (u32, u32) {
    let (width, height) = limited(width_px, height_px);
    let side = |px: u32| (px / token_px * token_px).max(token_px);
    (side(width), side(height))
}

/// `image` in that size: made smaller where it has more than 1 MP, and cut in the middle.
///
/// # Errors
/// Says what is allowed where a side is too short, or one too long for the other.
pub(super) fn prepared(image: &RgbImage, token_px: u32) -> Result<RgbImage, String> {
    let (width, height) = image.dimensions();
    if width.min(height) < MIN_SIDE_PX {
        return Err(format!("must have at least {MIN_SIDE_PX} pixels a side with this model, one has {width} x {height}"));
    }
    if width.max(height) > MAX_RATIO * width.min(height) {
        return Err(format!("must be at most {MAX_RATIO} times as long as wide with this model, one has {width} x {height}"));
    }
    let (limited_width, limited_height) = limited(width, height);
    let image = if (limited_width, limited_height) == (width, height) {
        image.clone()
    } else {
        resize(image, limited_width, limited_height, Filter::Lanczos)
    };
    let (cut_width, cut_height) = size(width, height, token_px);
    let left = (limited_width - cut_width) / 2;
    let top = (limited_height - cut_height) / 2;
    Ok(imageops::crop_imm(&image, left, top, cut_width, cut_height).to_image())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every number is that of diffusers' `Flux2KleinPipeline`.
    #[test]
    fn images_get_the_sizes_that_diffusers_gives_them() {
        for (image, shown) in [
            ((1024, 1024), (1024, 1024)),
            ((1290, 891), (1232, 848)),
            ((875, 1313), (832, 1248)),
            ((959, 1198), (912, 1136)),
            ((1072, 1072), (1024, 1024)),
            ((682, 900), (672, 896)),
            ((64, 79), (64, 64)),
            ((4000, 500), (2896, 352)),
        ] {
            assert_eq!(size(image.0, image.1, 16), shown, "{image:?}");
        }
    }

    #[test]
    fn what_is_too_small_or_too_long_is_refused_and_margins_are_cut_alike() {
        assert!(prepared(&RgbImage::new(63, 90), 16).is_err_and(|problem| problem.contains("at least 64 pixels")));
        assert!(prepared(&RgbImage::new(64, 513), 16).is_err_and(|problem| problem.contains("at most 8 times")));
        let mut image = RgbImage::new(67, 70);
        image.put_pixel(1, 3, image::Rgb([9; 3]));
        let cut = prepared(&image, 16).expect("an image");
        assert_eq!((cut.dimensions(), cut.get_pixel(0, 0).0), ((64, 64), [9; 3]));
    }
}
