//! JPEG: decoded by zune-jpeg, once its markers show that nothing was cut off.
//!
//! Left alone, zune-jpeg fills what a cut or corrupt file lacks with grey and says nothing (zune-image#312), as browsers do. libjpeg, and so
//! Pillow, reads on to the end-of-image marker and refuses a file that has none; what it makes up for wrong codes is another image than
//! zune-jpeg's. So the decoder is strict here, and gets the file without the bytes between its segments, which libjpeg skips. What its
//! colours are is decided here as libjpeg does (`default_decompress_parms` in jdapimin.c), and said in a way that leaves no other reading.

use image::{DynamicImage, GrayImage, RgbImage};
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::exif::Metadata;
use super::kind::ALLOWED;
use super::xmp::XMP_IN_JPEG;
use super::{Decoded, broken, check_pixels};

/// Start of image, end of image, start of scan, and an application's own segments (ITU-T T.81, table B.1).
const SOI: u8 = 0xd8;
const EOI: u8 = 0xd9;
const SOS: u8 = 0xda;
const APP0: u8 = 0xe0;
const APP1: u8 = 0xe1;
const APP14: u8 = 0xee;
const DHT: u8 = 0xc4;
/// Adobe's segment with a transform: of RGB it says 0, of YCCK 2.
const ADOBE: &[u8] = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00";
const ADOBE_BYTES: usize = 12;
/// Components of one scan (ITU-T T.81, B.2.3).
const MAX_COMPONENTS: usize = 4;
/// A progressive file has some ten. Each goes over the image once more: more of them are made to take time (libjpeg-turbo's fuzzers stop there).
const MAX_SCANS: usize = 500;

pub(super) fn decode(file: &[u8], max_pixels: u64) -> Result<Decoded, String> {
    let walked = walk(file).ok_or_else(|| broken("it ends before its end-of-image marker"))?;
    walked.check()?;
    let segments = walked.with_clear_colours();
    let metadata = walked.metadata;
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

/// The XMP packet of a file; none: it has none.
pub(super) fn xmp(file: &[u8]) -> Result<Option<Vec<u8>>, String> {
    let walked = walk(file).ok_or_else(|| broken("it ends before its end-of-image marker"))?;
    Ok(walked.metadata.xmp)
}

/// What a walk from marker to marker finds.
#[derive(Default)]
struct Walked {
    metadata: Metadata,
    /// The file without Adobe's segments, what lies between its segments, and what is behind its end.
    segments: Vec<u8>,
    is_jfif: bool,
    /// The transform that Adobe's segment names.
    adobe: Option<u8>,
    is_baseline: bool,
    has_tables: bool,
    /// Id and sampling factors (horizontal, vertical) of each component, and where the frame has its id in `segments`.
    components: Vec<(u8, (u8, u8), usize)>,
    /// Where scans have the ids of their components in `segments`: of each scan up to [`MAX_SCANS`].
    scan_ids: Vec<usize>,
    scans: usize,
    /// Components of the scan that has the fewest.
    fewest: Option<usize>,
}

impl Walked {
    /// What the decoder would make another image of.
    fn check(&self) -> Result<(), String> {
        let sampling = self.components.iter().map(|(_, sampling, _)| *sampling);
        let largest = self.components.first().map_or((1, 1), |(_, sampling, _)| *sampling);
        let is_sampled = sampling.clone().any(|factors| factors != largest);
        let unread = |what: &str| Err(format!("{ALLOWED}, and this JPEG {what}, which is not read here: save it again"));
        if sampling.clone().any(|(across, down)| across > largest.0 || down > largest.1) {
            return unread("has colours that are finer than its brightness");
        }
        if sampling.clone().any(|(across, down)| !across.is_power_of_two() || !down.is_power_of_two()) {
            return unread("samples its colours by a factor of 3");
        }
        if self.scans > MAX_SCANS {
            return unread(&format!("has {} scans, more than {MAX_SCANS}", self.scans));
        }
        if self.is_baseline && is_sampled && self.fewest.is_some_and(|fewest| fewest < self.components.len()) {
            return unread("is a baseline one with its colours in scans of their own");
        }
        if !self.has_tables {
            return unread("has no Huffman tables, as frames of Motion JPEG");
        }
        Ok(())
    }

    /// The segments with one reading of their colours: ids from 1 on, and Adobe's segment where it is RGB or YCCK.
    fn with_clear_colours(&self) -> Vec<u8> {
        let ids: Vec<u8> = self.components.iter().map(|(id, ..)| *id).collect();
        let transform = match (ids.len(), self.adobe) {
            // JFIF before Adobe, and Adobe before the ids; Adobe's 1 and what it does not know are YCbCr.
            (3, _) if self.is_jfif => None,
            (3, Some(transform)) => (transform == 0).then_some(0),
            (3, None) => (ids == *b"RGB").then_some(0),
            (4, Some(transform)) => Some(if transform == 0 { 0 } else { 2 }),
            _ => None,
        };
        let mut segments = self.segments.clone();
        if ids.len() == 3 {
            for place in self.components.iter().map(|(.., place)| *place).chain(self.scan_ids.iter().copied()) {
                if let Some(number) = ids.iter().position(|id| *id == segments[place]) {
                    segments[place] = number as u8 + 1;
                }
            }
        }
        if let Some(transform) = transform {
            segments.splice(2..2, ADOBE.iter().copied().chain([transform]));
        }
        segments
    }

    /// Keeps what a segment says, and the segment itself.
    fn keep(&mut self, marker: u8, segment: &[u8]) -> Option<()> {
        let data = segment.get(2..)?;
        // Behind the marker, which is in `segments` already, and the length.
        let start = self.segments.len() + 2;
        match marker {
            APP0 => self.is_jfif |= data.starts_with(b"JFIF\0"),
            APP1 => keep(&mut self.metadata, data),
            APP14 => {
                if data.starts_with(b"Adobe") && data.len() >= ADOBE_BYTES {
                    self.adobe = Some(data[ADOBE_BYTES - 1]);
                }
                self.segments.truncate(self.segments.len() - 2);
                return Some(());
            }
            DHT => self.has_tables = true,
            SOS => {
                let count = usize::from(*data.first()?);
                // All of them lie within the segment.
                if count > MAX_COMPONENTS || data.len() < 1 + 2 * count {
                    return None;
                }
                self.scans += 1;
                self.fewest = Some(self.fewest.map_or(count, |fewest| fewest.min(count)));
                if self.scans <= MAX_SCANS {
                    self.scan_ids.extend((0..count).map(|n| start + 1 + 2 * n));
                }
            }
            // Frames, of which 0 and 1 are coded in one pass; 4, 8 and 12 are other segments.
            0xc0..=0xcf if !matches!(marker, 0xc8 | 0xcc) => {
                self.is_baseline = marker <= 0xc1;
                let count = usize::from(*data.get(5)?);
                let components = data.get(6..6 + 3 * count)?.chunks_exact(3).enumerate();
                self.components =
                    components.map(|(n, part)| (part[0], (part[1] >> 4, part[1] & 15), start + 6 + 3 * n)).collect();
            }
            _ => {}
        }
        self.segments.extend_from_slice(segment);
        Some(())
    }
}

/// Walks from marker to marker up to the end of the image; None: it has no end. What follows the end is not looked at.
fn walk(file: &[u8]) -> Option<Walked> {
    let mut walked = Walked { segments: vec![0xff, SOI], ..Walked::default() };
    let mut at = 2;
    loop {
        let marker = next_marker(file, &mut at)?;
        // Restarts within a scan, and what else stands alone, have no length.
        if matches!(marker, 0x01 | SOI | 0xd0..=0xd7) {
            continue;
        }
        walked.segments.extend([0xff, marker]);
        if marker == EOI {
            return Some(walked);
        }
        let length = usize::from(u16::from_be_bytes(file.get(at..at + 2)?.try_into().ok()?)).max(2);
        let segment = file.get(at..at + length)?;
        walked.keep(marker, segment)?;
        at += length;
        if marker == SOS {
            let end = scan_end(file, at)?;
            walked.segments.extend_from_slice(&file[at..end]);
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
    } else if let Some(xmp) = segment.strip_prefix(XMP_IN_JPEG) {
        metadata.xmp = Some(xmp.to_vec());
    }
}
