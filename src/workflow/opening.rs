//! Opens the image files that `fetch` brought, as RGB or as a mask in grey.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use image::{DynamicImage, GrayImage, Luma, RgbImage};
use serde::Deserialize;

use crate::image_file::{self, kind};
use crate::job::outcome::JobError;

/// What becomes of an image's transparent parts, for the models know none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Alpha {
    /// They are composited on white, as a viewer shows them.
    White,
    /// The alpha channel is dropped, and the colours below it show: what diffusers' `load_image` does.
    Drop,
}

/// Greys that show below what is transparent.
const WHITE: u32 = 255;
const BLACK: u32 = 0;

/// How input images are opened.
#[derive(Debug, Clone, Copy)]
pub(super) struct Opening {
    pub(super) max_pixels: u64,
    pub(super) alpha: Alpha,
}

impl Opening {
    /// The image in a file as RGB, upright, 8 bits a channel.
    ///
    /// # Errors
    /// [`JobError::Input`] with `field` when it is no image of a sensible size with at most `max_pixels` pixels.
    pub(super) fn image(self, path: &Path, field: &str) -> Result<RgbImage, JobError> {
        self.opened(path, field, WHITE)
    }

    /// A mask before it is made grey: what is transparent in it was not marked, so it is kept.
    ///
    /// # Errors
    /// As [`Self::image`].
    pub(super) fn mask(self, path: &Path, field: &str) -> Result<RgbImage, JobError> {
        self.opened(path, field, BLACK)
    }

    fn opened(self, path: &Path, field: &str, below: u32) -> Result<RgbImage, JobError> {
        let opened = self.read(path).and_then(|file| image_file::open(&file, self.max_pixels));
        match opened {
            Ok(opened) => Ok(self.rgb(&opened.image, below)),
            Err(problem) => Err(JobError::Input { field: field.to_owned(), problem, cause: None }),
        }
    }

    /// What cannot be an image within the limits is refused by its beginning or its length, before it fills the memory.
    fn read(self, path: &Path) -> Result<Vec<u8>, String> {
        /// Of 16 bits in four channels, not compressed; and room for metadata.
        const BYTES_PER_PIXEL: u64 = 8;
        const METADATA_BYTES: u64 = 16 << 20;
        let unreadable = |error: io::Error| format!("the downloaded file cannot be read ({error})");
        let mut file = File::open(path).map_err(unreadable)?;
        let mut bytes = Vec::new();
        file.by_ref().take(kind::FIRST_BYTES as u64).read_to_end(&mut bytes).map_err(unreadable)?;
        kind::Kind::of(&bytes)?;
        let max_bytes = self.max_pixels.saturating_mul(BYTES_PER_PIXEL).saturating_add(METADATA_BYTES);
        let length_bytes = file.metadata().map_err(unreadable)?.len();
        if length_bytes > max_bytes {
            return Err(format!("must have at most {max_bytes} bytes, got {length_bytes}"));
        }
        file.read_to_end(&mut bytes).map_err(unreadable)?;
        Ok(bytes)
    }

    /// `below`: the grey that shows where the image is transparent.
    fn rgb(self, image: &DynamicImage, below: u32) -> RgbImage {
        if self.alpha == Alpha::Drop { image.to_rgb8() } else { composited(image, below) }
    }
}

/// An image as a viewer shows it, on white.
pub(super) fn on_white(image: &DynamicImage) -> RgbImage {
    composited(image, WHITE)
}

/// `below`: the grey that shows where the image is transparent.
fn composited(image: &DynamicImage, below: u32) -> RgbImage {
    if !image.color().has_alpha() {
        return image.to_rgb8();
    }
    let seen = image.to_rgba8();
    RgbImage::from_fn(seen.width(), seen.height(), |x, y| {
        let [red, green, blue, alpha] = seen.get_pixel(x, y).0.map(u32::from);
        image::Rgb([red, green, blue].map(|channel| ((channel * alpha + below * (255 - alpha) + 127) / 255) as u8))
    })
}

/// A mask's grey values, 255 is generated: ITU-R BT.601 luma with Pillow's rounding (`libImaging/Convert.c`, mode `L`).
pub(super) fn grey(mask: &RgbImage) -> GrayImage {
    GrayImage::from_fn(mask.width(), mask.height(), |x, y| {
        let [red, green, blue] = mask.get_pixel(x, y).0.map(u32::from);
        Luma([((red * 19_595 + green * 38_470 + blue * 7_471 + 0x8000) >> 16) as u8])
    })
}

#[cfg(test)]
mod tests {
    use image::{Rgb, Rgba, RgbaImage};

    use super::*;

    /// As Pillow 13's `convert("L")` has them.
    #[test]
    fn a_mask_is_made_grey_as_pillow_does() {
        let colours = [
            ([121, 66, 189], 96),
            ([242, 33, 6], 92),
            ([240, 132, 119], 163),
            ([98, 240, 243], 198),
            ([203, 77, 118], 119),
            ([77, 199, 7], 141),
            ([32, 81, 21], 60),
            ([154, 15, 137], 70),
            ([242, 198, 218], 213),
            ([0, 0, 255], 29),
            ([255, 255, 255], 255),
        ];
        for (colour, expected) in colours {
            assert_eq!(grey(&RgbImage::from_pixel(1, 1, Rgb(colour))).as_raw(), &[expected], "{colour:?}");
        }
    }

    #[test]
    fn transparent_parts_are_white_or_what_lies_below() {
        let image = DynamicImage::ImageRgba8(RgbaImage::from_fn(3, 1, |x, _| Rgba([200, 100, 0, [0, 128, 255][x as usize]])));
        let opened = |alpha| Opening { max_pixels: 9, alpha }.rgb(&image, WHITE).into_raw();
        assert_eq!(opened(Alpha::White), [255, 255, 255, 227, 177, 127, 200, 100, 0]);
        let mask = Opening { max_pixels: 9, alpha: Alpha::White }.rgb(&image, BLACK).into_raw();
        assert_eq!(mask[..3], [0, 0, 0], "what is transparent is kept");
        assert_eq!(opened(Alpha::Drop), [200, 100, 0, 200, 100, 0, 200, 100, 0]);
    }
}
