//! JPEG: decoded by zune-jpeg, once its markers show that nothing was cut off.
//!
//! zune-jpeg fills what a cut file lacks with grey and says nothing (zune-image#312). libjpeg, and so Pillow, reads on to the end-of-image
//! marker and refuses a file that has none.

use std::io::Cursor;

use image::codecs::jpeg::JpegDecoder;
use image::{DynamicImage, ImageDecoder as _};

use super::exif::Metadata;
use super::{Decoded, broken, check_pixels, damaged};

/// Start of image, end of image, start of scan, and an application's own segments (ITU-T T.81, table B.1).
const SOI: u8 = 0xd8;
const EOI: u8 = 0xd9;
const SOS: u8 = 0xda;
const APP1: u8 = 0xe1;

pub(super) fn decode(file: &[u8], max_pixels: u64) -> Result<Decoded, String> {
    let metadata = walk(file).ok_or_else(|| broken("it ends before its end-of-image marker"))?;
    let decoder = JpegDecoder::new(Cursor::new(file)).map_err(|error| damaged(&error))?;
    check_pixels(decoder.dimensions(), max_pixels)?;
    let image = DynamicImage::from_decoder(decoder).map_err(|error| damaged(&error))?;
    Ok(Decoded { image, metadata })
}

/// Walks from marker to marker up to the end of the image; None: it has no end. What follows the end is not looked at.
fn walk(file: &[u8]) -> Option<Metadata> {
    let mut metadata = Metadata::default();
    let mut at = 2;
    loop {
        let marker = next_marker(file, &mut at)?;
        // Restarts within a scan, and what else stands alone, have no length.
        if matches!(marker, 0x01 | SOI | 0xd0..=0xd7) {
            continue;
        }
        if marker == EOI {
            return Some(metadata);
        }
        let length = usize::from(u16::from_be_bytes(file.get(at..at + 2)?.try_into().ok()?));
        let segment = file.get(at + 2..at + length.max(2))?;
        if marker == APP1 {
            keep(&mut metadata, segment);
        }
        at += length.max(2);
        if marker == SOS {
            at = scan_end(file, at)?;
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
