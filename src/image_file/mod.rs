//! Image files that callers send: opened as they are meant to be seen, or refused for what is wrong with them.
//!
//! - PNG, JPEG and WebP are read; a file is accepted when Pillow, which diffusers opens files with, accepts it. Two exceptions: an
//!   animation is refused, for no one can say which frame is meant, and so is a JPEG whose compressed data has wrong codes.
//! - An image is turned as its EXIF (or XMP) says, and has 8 bits a channel: of 16 bits the high byte stays, as with Pillow. Pillow
//!   alone clips 16-bit grey at 255; here it is scaled like the others.
//! - PNG and lossless WebP give Pillow's bytes. A JPEG's may differ by a few of 255: the inverse DCT and the chroma upsampling are
//!   those of zune-jpeg, not of libjpeg-turbo, and the standard leaves their rounding open. docs/inputs.md has the figures.

mod exif;
mod jpeg;
pub mod kind;
pub mod notes;
mod png;
pub mod xmp;

use std::io::Cursor;

use image::codecs::webp::WebPDecoder;
use image::{DynamicImage, ImageDecoder as _, ImageError};

use self::exif::Metadata;
use self::kind::{ALLOWED, Kind};

/// Pixels of a side; less shows nothing.
const MIN_SIDE_PX: u32 = 16;
/// Of the longer side over the shorter.
const MAX_RATIO: u32 = 4;

/// An image file that was opened.
#[derive(Debug)]
pub struct Opened {
    pub kind: Kind,
    /// Upright, 8 bits a channel, grey or RGB, with alpha where the file has it.
    pub image: DynamicImage,
}

/// What a decoder made of a file, before it is turned.
struct Decoded {
    image: DynamicImage,
    metadata: Metadata,
}

/// Opens a file with at most `max_pixels` pixels, and in a shape that a model can do something with.
///
/// # Errors
/// Says what is wrong with the file and what is allowed, to follow the name of a field.
pub fn open(file: &[u8], max_pixels: u64) -> Result<Opened, String> {
    let Opened { kind, image } = open_any(file, max_pixels)?;
    sensible(image).map(|image| Opened { kind, image })
}

/// The same, of whatever shape.
///
/// # Errors
/// As [`open`].
pub fn open_any(file: &[u8], max_pixels: u64) -> Result<Opened, String> {
    let kind = Kind::of(file)?;
    let decoded = match kind {
        Kind::Png => png::decode(file, max_pixels),
        Kind::Jpeg => jpeg::decode(file, max_pixels),
        Kind::WebP => webp(file, max_pixels),
    };
    let Decoded { mut image, metadata } = decoded?;
    image.apply_orientation(metadata.orientation());
    Ok(Opened { kind, image })
}

fn webp(file: &[u8], max_pixels: u64) -> Result<Decoded, String> {
    // The container says how long it is, behind these eight bytes.
    let said = file.get(4..8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_le_bytes);
    if (file.len() as u64) < 8 + u64::from(said) {
        return Err(broken("it is shorter than it says"));
    }
    let mut decoder = WebPDecoder::new(Cursor::new(file)).map_err(|error| damaged(&error))?;
    check_pixels(decoder.dimensions(), max_pixels)?;
    if decoder.has_animation() {
        return Err(animated());
    }
    // Metadata that cannot be read turns nothing, and is no reason to refuse the image: so it is with Pillow.
    let exif = decoder.exif_metadata().ok().flatten().unwrap_or_default();
    let xmp = decoder.xmp_metadata().ok().flatten();
    let image = DynamicImage::from_decoder(decoder).map_err(|error| damaged(&error))?;
    Ok(Decoded { image, metadata: Metadata { exif, xmp } })
}

/// Before anything is unpacked: a small file can hold a large image.
fn check_pixels((width_px, height_px): (u32, u32), max_pixels: u64) -> Result<(), String> {
    if u64::from(width_px) * u64::from(height_px) <= max_pixels {
        return Ok(());
    }
    Err(format!("must have at most {max_pixels} pixels, got {width_px} x {height_px}"))
}

fn animated() -> String {
    format!("{ALLOWED} that stands still, and this one is an animation")
}

fn damaged(error: &ImageError) -> String {
    broken(&error.to_string())
}

fn broken(problem: &str) -> String {
    format!("{ALLOWED}, and this one is truncated or damaged ({problem})")
}

fn sensible(image: DynamicImage) -> Result<DynamicImage, String> {
    let shorter = image.width().min(image.height());
    let longer = image.width().max(image.height());
    if shorter >= MIN_SIDE_PX && longer <= shorter.saturating_mul(MAX_RATIO) {
        return Ok(image);
    }
    Err(format!(
        "must have sides of {MIN_SIDE_PX} pixels or more, the longer one at most {MAX_RATIO} times the shorter, got {} x {}",
        image.width(),
        image.height()
    ))
}
