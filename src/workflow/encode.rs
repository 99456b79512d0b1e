//! Step `encode`: turns a generated image into the bytes of a file.

use std::io::Cursor;
use std::sync::Arc;

use async_trait::async_trait;
use image::ExtendedColorType::Rgb8;
use image::ImageEncoder;
use image::codecs::jpeg::JpegEncoder;
use image_webp::{ColorType, WebPEncoder};
use serde::Deserialize;

use super::context::JobContext;
use super::invisible::Marked;
use super::mark::{self, DigitalSource};
use super::{Step, StepName, png_texts};
use crate::image_file::xmp::{XMP_IN_JPEG, XMP_IN_PNG};
use crate::job::outcome::JobError;
use crate::job::{ImageFormat, Job, MetadataLevel};
use crate::store::Store;
use atelier_engine::Image;

/// High enough that the blocks of 8x8 do not show on flat colours.
const JPEG_QUALITY: u8 = 92;

/// Settings of section `workflow.encode`.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Encode {
    /// What a file says of how it was made, of a job that says nothing about it.
    pub metadata: MetadataLevel,
    /// Which images have a mark in their pixels that says that a model made them.
    pub invisible_mark: Marked,
}

/// Step `encode`.
pub struct EncodeStep {
    pub settings: Encode,
    pub store: Arc<Store>,
}

#[async_trait]
impl Step for EncodeStep {
    fn name(&self) -> StepName {
        StepName::Encode
    }

    async fn run(&self, context: &mut JobContext<'_>) -> Result<(), JobError> {
        let job = context.job;
        for (number, image) in context.images.iter_mut().enumerate() {
            check_buffer(image)?;
            let has_own_pixels = context.own_pixels.contains(&number);
            context.invisible_marks.push(Some(self.settings.invisible_mark.write(image, has_own_pixels)));
        }
        let level = self.settings.level(job);
        let record_url = self.store.public_record_url(job).filter(|_| level != MetadataLevel::None);
        let xmp = mark::xmp(DigitalSource::of(&job.task), record_url.as_deref());
        for image in &context.images {
            let texts = png_texts::of(job, image, level);
            context.files.push(encode(image, job.output.format, &texts, &xmp)?.into());
        }
        Ok(())
    }
}

impl Encode {
    /// What the files of this job say of how they were made.
    #[must_use]
    pub fn level(self, job: &Job) -> MetadataLevel {
        job.output.metadata.unwrap_or(self.metadata)
    }
}

/// Encodes `image`: PNG and WebP without loss, JPEG at quality 92 with full colour resolution (4:4:4).
/// Only PNG carries `texts`, as chunks of (keyword, text); every format carries the XMP packet `xmp`.
///
/// # Errors
/// [`JobError::Internal`] when the image's buffer does not match its size, or a keyword is none.
pub fn encode(image: &Image, format: ImageFormat, texts: &[(&str, String)], xmp: &str) -> Result<Vec<u8>, JobError> {
    check_buffer(image)?;
    match format {
        ImageFormat::Png => png(image, texts, xmp).map_err(|error| failed(&error.to_string())),
        ImageFormat::Jpeg => jpeg(image, xmp).map_err(|problem| failed(&problem)),
        ImageFormat::Webp => webp(image, xmp).map_err(|error| failed(&error.to_string())),
    }
}

fn failed(problem: &str) -> JobError {
    JobError::Internal { problem: format!("cannot encode an image: {problem}") }
}

fn check_buffer(image: &Image) -> Result<(), JobError> {
    let Image { width_px, height_px, rgb, .. } = image;
    if rgb.len() as u64 == u64::from(*width_px) * u64::from(*height_px) * 3 {
        return Ok(());
    }
    Err(failed(&format!("{width_px}x{height_px} px do not have {} bytes", rgb.len())))
}

fn jpeg(image: &Image, xmp: &str) -> Result<Vec<u8>, String> {
    const APP1: [u8; 2] = [0xFF, 0xE1];
    /// Bytes of a segment's length, which counts them as well.
    const LENGTH_BYTES: usize = 2;
    let mut bytes = Vec::new();
    // This encoder never subsamples colour, so that thin coloured lines and the watermark's edges stay sharp.
    let encoder = JpegEncoder::new_with_quality(&mut bytes, JPEG_QUALITY);
    encoder.write_image(&image.rgb, image.width_px, image.height_px, Rgb8).map_err(|error| error.to_string())?;
    let length = u16::try_from(LENGTH_BYTES + XMP_IN_JPEG.len() + xmp.len());
    let length = length.map_err(|_| format!("{} bytes of XMP do not fit a segment", xmp.len()))?;
    let behind_jfif = match bytes[..] {
        [0xFF, 0xD8, 0xFF, 0xE0, high, low, ..] => 4 + usize::from(u16::from_be_bytes([high, low])),
        _ => return Err("the encoder wrote no JFIF file".into()),
    };
    let segment = [&APP1[..], &length.to_be_bytes(), XMP_IN_JPEG, xmp.as_bytes()].concat();
    bytes.splice(behind_jfif..behind_jfif, segment);
    Ok(bytes)
}

fn webp(image: &Image, xmp: &str) -> Result<Vec<u8>, image_webp::EncodingError> {
    let mut bytes = Vec::new();
    let mut encoder = WebPEncoder::new(&mut bytes);
    encoder.set_xmp_metadata(xmp.as_bytes().to_vec());
    encoder.encode(&image.rgb, image.width_px, image.height_px, ColorType::Rgb8)?;
    Ok(bytes)
}

fn png(image: &Image, texts: &[(&str, String)], xmp: &str) -> Result<Vec<u8>, png::EncodingError> {
    let mut bytes = Cursor::new(Vec::new());
    let mut encoder = png::Encoder::new(&mut bytes, image.width_px, image.height_px);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    // Half of Fast's bytes on flat images for 1 ms more; High takes 10 times as long for 3 % less.
    encoder.set_compression(png::Compression::Balanced);
    encoder.add_itxt_chunk(XMP_IN_PNG.to_owned(), xmp.to_owned())?;
    for (keyword, text) in texts {
        // The standard forbids NUL in text chunks, and what is not Latin-1 belongs in an iTXt chunk.
        let text = text.replace('\0', "\u{FFFD}");
        if text.is_ascii() {
            encoder.add_text_chunk((*keyword).to_owned(), text)?;
        } else {
            encoder.add_itxt_chunk((*keyword).to_owned(), text)?;
        }
    }
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&image.rgb)?;
    writer.finish()?;
    Ok(bytes.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::image_file::notes;

    const XMP: &str = "<x:xmpmeta/>";

    fn image() -> Image {
        let pixels = (0..48_u32).flat_map(|y| (0..80_u32).map(move |x| (x, y)));
        let rgb = pixels.flat_map(|(x, y)| [(x * 3) as u8, (y * 5) as u8, ((x + y) * 2) as u8]).collect();
        Image { width_px: 80, height_px: 48, rgb, seed: 43 }
    }

    fn decoded(bytes: &[u8]) -> Vec<u8> {
        image::load_from_memory(bytes).unwrap().into_rgb8().into_raw()
    }

    #[test]
    fn png_and_webp_keep_every_pixel_and_jpeg_comes_close() {
        let image = image();
        for format in [ImageFormat::Png, ImageFormat::Webp] {
            assert_eq!(decoded(&encode(&image, format, &[], XMP).unwrap()), image.rgb, "{format:?}");
        }
        let jpeg = decoded(&encode(&image, ImageFormat::Jpeg, &[], XMP).unwrap());
        let furthest = jpeg.iter().zip(&image.rgb).map(|(after, before)| after.abs_diff(*before)).max();
        assert!(furthest.unwrap() <= 12, "{furthest:?}");
    }

    #[test]
    fn jpeg_keeps_the_full_colour_resolution() {
        let bytes = encode(&image(), ImageFormat::Jpeg, &[], XMP).unwrap();
        let frame = bytes.windows(2).position(|marker| marker == [0xFF, 0xC0]).unwrap();
        // Marker, length, precision, height, width, count, then (id, sampling, table) a component.
        assert_eq!([11, 14, 17].map(|at| bytes[frame + at]), [0x11; 3]);
    }

    #[test]
    fn a_png_carries_texts_in_every_script() {
        let texts = [("parameters", "Füchschen 🦊\0".to_owned()), ("Software", "atelier".to_owned())];
        let bytes = encode(&image(), ImageFormat::Png, &texts, XMP).unwrap();
        let reader = png::Decoder::new(Cursor::new(&bytes)).read_info().unwrap();
        let latin: Vec<_> = reader.info().uncompressed_latin1_text.iter().map(|chunk| chunk.keyword.as_str()).collect();
        assert_eq!(latin, ["Software"]);
        let utf8 = reader.info().utf8_text.iter().map(|chunk| (chunk.keyword.as_str(), chunk.get_text().unwrap()));
        let expected = [(XMP_IN_PNG, XMP.to_owned()), ("parameters", "Füchschen 🦊\u{FFFD}".to_owned())];
        assert_eq!(utf8.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn every_format_carries_the_xmp() {
        for format in [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::Webp] {
            let bytes = encode(&image(), format, &[], XMP).unwrap();
            assert_eq!(notes::read(&bytes).unwrap().xmp.as_deref(), Some(XMP), "{format:?}");
        }
    }

    #[test]
    fn a_buffer_of_another_size_is_our_own_error() {
        for format in [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::Webp] {
            let short = Image { rgb: vec![0; 5], ..image() };
            let error = encode(&short, format, &[], XMP).unwrap_err().to_string();
            assert_eq!(error, "internal error: cannot encode an image: 80x48 px do not have 5 bytes");
        }
    }
}
