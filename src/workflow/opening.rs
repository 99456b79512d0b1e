//! Opens the image files that callers send: as they are meant to be seen, or a word on what is wrong with them.

use std::fs::File;
use std::io::{BufReader, Read as _, Seek as _, SeekFrom};
use std::path::Path;

use image::codecs::jpeg::JpegDecoder;
use image::codecs::png::PngDecoder;
use image::codecs::webp::WebPDecoder;
use image::{DynamicImage, GrayImage, ImageDecoder, ImageError, ImageFormat, RgbImage};

use crate::job::outcome::JobError;

const ALLOWED: &str = "must be a PNG, JPEG or WebP image";
/// Pixels of a side; less shows nothing.
const LEAST_SIDE_PX: u32 = 16;
/// Of the longer side over the shorter.
const MOST_RATIO: u32 = 4;

/// The image in a file as RGB: turned as its EXIF says, on white where it is transparent, 8 bits a channel.
///
/// # Errors
/// [`JobError::Input`] with `field` when it is no image of a sensible size with at most `max_pixels` pixels.
pub(super) fn image(path: &Path, field: &str, max_pixels: u64) -> Result<RgbImage, JobError> {
    let image = open(path, max_pixels).and_then(sensible).map_err(|problem| input(field, problem))?;
    Ok(on_white(&image))
}

/// A mask: grey values, 255 is generated.
///
/// # Errors
/// As [`image`].
pub(super) fn mask(path: &Path, field: &str, max_pixels: u64) -> Result<GrayImage, JobError> {
    Ok(DynamicImage::ImageRgb8(image(path, field, max_pixels)?).into_luma8())
}

fn input(field: &str, problem: String) -> JobError {
    JobError::Input { field: field.to_owned(), problem, cause: None }
}

fn open(path: &Path, max_pixels: u64) -> Result<DynamicImage, String> {
    let unreadable = |error: std::io::Error| format!("the downloaded file cannot be read ({error})");
    let mut file = File::open(path).map_err(unreadable)?;
    let mut first = Vec::with_capacity(32);
    file.by_ref().take(32).read_to_end(&mut first).map_err(unreadable)?;
    file.seek(SeekFrom::Start(0)).map_err(unreadable)?;
    let format = image::guess_format(&first).map_err(|_| format!("{ALLOWED}, and is none by its first bytes"))?;
    let file = BufReader::new(file);
    match format {
        ImageFormat::Png => {
            let decoder = PngDecoder::new(file).map_err(damaged)?;
            let animated = decoder.is_apng().map_err(damaged)?;
            decode(decoder, animated, max_pixels)
        }
        ImageFormat::WebP => {
            let decoder = WebPDecoder::new(file).map_err(damaged)?;
            let animated = decoder.has_animation();
            decode(decoder, animated, max_pixels)
        }
        ImageFormat::Jpeg => decode(JpegDecoder::new(file).map_err(damaged)?, false, max_pixels),
        other => Err(format!("{ALLOWED}, got {}", other.to_mime_type())),
    }
}

fn decode(mut decoder: impl ImageDecoder, animated: bool, max_pixels: u64) -> Result<DynamicImage, String> {
    let (width_px, height_px) = decoder.dimensions();
    if u64::from(width_px) * u64::from(height_px) > max_pixels {
        return Err(format!("must have at most {max_pixels} pixels, got {width_px} x {height_px}"));
    }
    if animated {
        return Err(format!("{ALLOWED} that stands still, and this one is an animation"));
    }
    // A file whose EXIF cannot be read is shown as it lies there, as every viewer does.
    let orientation = decoder.orientation().unwrap_or(image::metadata::Orientation::NoTransforms);
    let mut image = DynamicImage::from_decoder(decoder).map_err(damaged)?;
    image.apply_orientation(orientation);
    Ok(image)
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn damaged(error: ImageError) -> String {
    format!("{ALLOWED}, and this one is truncated or damaged ({error})")
}

fn sensible(image: DynamicImage) -> Result<DynamicImage, String> {
    let (shorter, longer) = (image.width().min(image.height()), image.width().max(image.height()));
    if shorter >= LEAST_SIDE_PX && longer <= shorter.saturating_mul(MOST_RATIO) {
        return Ok(image);
    }
    Err(format!(
        "must have sides of {LEAST_SIDE_PX} pixels or more, the longer one at most {MOST_RATIO} times the shorter, got {} x {}",
        image.width(),
        image.height()
    ))
}

fn on_white(image: &DynamicImage) -> RgbImage {
    if !image.color().has_alpha() {
        return image.to_rgb8();
    }
    let seen = image.to_rgba8();
    RgbImage::from_fn(seen.width(), seen.height(), |x, y| {
        let [red, green, blue, alpha] = seen.get_pixel(x, y).0.map(u32::from);
        image::Rgb([red, green, blue].map(|channel| ((channel * alpha + 255 * (255 - alpha) + 127) / 255) as u8))
    })
}
