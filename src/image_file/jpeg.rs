//! JPEG: decoded by zune-jpeg, once its markers show that nothing was cut off.
//!
//! Left alone, zune-jpeg fills what a cut or corrupt file lacks with grey and says nothing (zune-image#312), as browsers do. libjpeg, and so
//! Pillow, reads on to the end-of-image marker and refuses a file that has none; what it makes up for wrong codes is another image than
//! zune-jpeg's. So the decoder is strict here, and gets the file without the bytes between its segments, which libjpeg skips.

use image::{DynamicImage, GrayImage, RgbImage};
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::exif::Metadata;
use super::{Decoded, broken, check_pixels};

/// Start of image, end of image, start of scan, and an application's own segments (ITU-T T.81, table B.1).
const SOI: u8 = 0xd8;
const EOI: u8 = 0xd9;
const SOS: u8 = 0xda;
const APP1: u8 = 0xe1;

pub(super) fn decode(file: &[u8], max_pixels: u64) -> Result<Decoded, String> {
    let Walked { metadata, segments } = walk(file).ok_or_else(|| broken("it ends before its end-of-image marker"))?;
    let options = DecoderOptions::default().set_strict_mode(true).set_max_width(usize::MAX).set_max_height(usize::MAX);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(&*segments), options);
    decoder.decode_headers().map_err(|error| broken(&error.to_string()))?;
    let header = decoder.info().ok_or_else(|| broken("it has no frame"))?;
    let width_px = u32::from(header.width);
    let height_px = u32::from(header.height);
    check_pixels((width_px, height_px), max_pixels)?;
    let grey = decoder.input_colorspace() == Some(ColorSpace::Luma);
    decoder.set_options(options.jpeg_set_out_colorspace(if grey { ColorSpace::Luma } else { ColorSpace::RGB }));
    let pixels = decoder.decode().map_err(|error| broken(&error.to_string()))?;
    let image = if grey {
        GrayImage::from_raw(width_px, height_px, pixels).map(DynamicImage::ImageLuma8)
    } else {
        RgbImage::from_raw(width_px, height_px, pixels).map(DynamicImage::ImageRgb8)
    };
    let image = image.ok_or_else(|| broken("its rows do not have the length that its header says"))?;
    Ok(Decoded { image, metadata })
}

/// What a walk from marker to marker finds.
struct Walked {
    metadata: Metadata,
    /// The file without what lies between its segments and behind its end.
    segments: Vec<u8>,
}

/// Walks from marker to marker up to the end of the image; None: it has no end. What follows the end is not looked at.
fn walk(file: &[u8]) -> Option<Walked> {
    let mut metadata = Metadata::default();
    let mut segments = vec![0xff, SOI];
    let mut at = 2;
    loop {
        let marker = next_marker(file, &mut at)?;
        // Restarts within a scan, and what else stands alone, have no length.
        if matches!(marker, 0x01 | SOI | 0xd0..=0xd7) {
            continue;
        }
        segments.extend([0xff, marker]);
        if marker == EOI {
            return Some(Walked { metadata, segments });
        }
        let length = usize::from(u16::from_be_bytes(file.get(at..at + 2)?.try_into().ok()?)).max(2);
        let segment = file.get(at..at + length)?;
        if marker == APP1 {
            keep(&mut metadata, &segment[2..]);
        }
        segments.extend_from_slice(segment);
        at += length;
        if marker == SOS {
            let end = scan_end(file, at)?;
            segments.extend_from_slice(&file[at..end]);
            at = end;
        }
    }
}

/// The code of the next marker; `at` is behind it then. Bytes that belong to no segment are skipped, as libjpeg does.
fn next_marker(file: &[u8], at: &mut usize) -> Option<u8> {
    loop {
        *at += file.get(*at..)?.iter().position(|byte| *byte == 0xff)?;
        while file.get(*at) == Some(&0xff) {
            *at += 1;
        }
        let code = *file.get(*at)?;
        *at += 1;
        if code != 0 {
            return Some(code);
        }
    }
}

/// Where the marker lies that ends the compressed data at `at`: in the data 0xff is followed by 0 or a restart's code.
fn scan_end(file: &[u8], at: usize) -> Option<usize> {
    let pairs = file.get(at..)?.windows(2);
    pairs
        .into_iter()
        .position(|pair| pair[0] == 0xff && !matches!(pair[1], 0x00 | 0xff | 0xd0..=0xd7))
        .map(|offset| at + offset)
}

/// EXIF that is longer than a segment goes on in the next one.
fn keep(metadata: &mut Metadata, segment: &[u8]) {
    if let Some(exif) = segment.strip_prefix(b"Exif\0\0") {
        metadata.exif.extend_from_slice(exif);
    } else if let Some(xmp) = segment.strip_prefix(b"http://ns.adobe.com/xap/1.0/\0") {
        metadata.xmp = Some(xmp.to_vec());
    }
}
