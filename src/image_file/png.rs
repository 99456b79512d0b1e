//! PNG: forgiven what Pillow forgives, which is what lies behind the image's data, and refused where that itself is cut.

use std::borrow::Cow;
use std::io::Cursor;

use image::{DynamicImage, GrayAlphaImage, GrayImage, RgbImage, RgbaImage};
use png::text_metadata::{ITXtChunk, TEXtChunk, ZTXtChunk};
use png::{BitDepth, ColorType, DecodeOptions, Decoder, Info, Transformations};

use super::exif::Metadata;
use super::xmp::XMP_IN_PNG;
use super::{Decoded, animated, broken, check_pixels};

const SIGNATURE_BYTES: usize = 8;
/// Of a chunk besides its data: length, name and checksum.
const FRAME_BYTES: usize = 12;
/// A last chunk, complete with its checksum.
const IEND: &[u8] = b"\0\0\0\0IEND\xae\x42\x60\x82";
/// Where `ImageMagick` keeps EXIF in a PNG.
const RAW_EXIF: &str = "Raw profile type exif";
/// Of a text, unpacked; as much as Pillow takes.
const MAX_TEXT_BYTES: usize = 1 << 20;
/// Of all texts of a file.
const MAX_TEXTS_BYTES: usize = 8 << 20;
/// What the decoder says where data ends before its checksum, and where that is of other data; it has no type for either.
const TOO_SHORT: &str = "InsufficientInput";
const OTHER_DATA: &str = "WrongChecksum";

pub(super) fn decode(file: &[u8], max_pixels: u64) -> Result<Decoded, String> {
    let file = with_end(file)?;
    match unpacked(&file, max_pixels, Adler::Checked) {
        // The data ends before its checksum: with all of its pixels, it is an image to Pillow as well.
        Err(problem) if problem.contains(TOO_SHORT) => unpacked(&file, max_pixels, Adler::Absent),
        decoded => decoded,
    }
}

/// The checksum of the unpacked data, at its end (RFC 1950).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Adler {
    Checked,
    Absent,
}

fn unpacked(file: &[u8], max_pixels: u64, adler: Adler) -> Result<Decoded, String> {
    let mut options = DecodeOptions::default();
    // Chunks before the image's data were checked; Pillow checks no others.
    options.set_ignore_crc(true);
    options.set_ignore_adler32(adler == Adler::Absent);
    // Colours are taken as they are: a profile is not applied, and a broken one is no reason to refuse.
    options.set_ignore_iccp_chunk(true);
    let mut decoder = Decoder::new_with_options(Cursor::new(file), options);
    decoder.set_transformations(Transformations::normalize_to_color8());
    let header = decoder.read_header_info().map_err(|error| broken(&error.to_string()))?;
    check_pixels(header.size(), max_pixels)?;
    let mut reader = decoder.read_info().map_err(|error| broken(&error.to_string()))?;
    if reader.info().animation_control.is_some_and(|control| control.num_frames > 1) {
        return Err(animated());
    }
    let bytes = reader.output_buffer_size().ok_or_else(|| broken("it is too large"))?;
    let mut pixels = vec![0; bytes];
    let output = reader.next_frame(&mut pixels).map_err(|error| broken(&error.to_string()))?;
    pixels.truncate(output.buffer_size());
    // EXIF may lie behind the image's data; what cannot be read there is left out. The data's own end is read there as well.
    if let Err(error) = reader.finish()
        && error.to_string().contains(OTHER_DATA)
    {
        return Err(broken(&error.to_string()));
    }
    let metadata = metadata(reader.info());
    let image = image(output.width, output.height, (output.color_type, output.bit_depth), pixels)
        .ok_or_else(|| broken("its rows do not have the length that its header says"))?;
    Ok(Decoded { image, metadata })
}

fn image(width: u32, height: u32, form: (ColorType, BitDepth), pixels: Vec<u8>) -> Option<DynamicImage> {
    match form {
        (ColorType::Grayscale, BitDepth::Eight) => GrayImage::from_raw(width, height, pixels).map(DynamicImage::ImageLuma8),
        (ColorType::GrayscaleAlpha, BitDepth::Eight) => {
            GrayAlphaImage::from_raw(width, height, pixels).map(DynamicImage::ImageLumaA8)
        }
        (ColorType::Rgb, BitDepth::Eight) => RgbImage::from_raw(width, height, pixels).map(DynamicImage::ImageRgb8),
        (ColorType::Rgba, BitDepth::Eight) => RgbaImage::from_raw(width, height, pixels).map(DynamicImage::ImageRgba8),
        _ => None,
    }
}

fn metadata(info: &Info<'_>) -> Metadata {
    let raw = info.compressed_latin1_text.iter().find(|text| text.keyword == RAW_EXIF);
    let raw = raw
        .and_then(unpacked_text)
        .or_else(|| info.uncompressed_latin1_text.iter().find(|text| text.keyword == RAW_EXIF).map(|text| text.text.clone()));
    let exif = info.exif_metadata.as_deref().map(<[u8]>::to_vec).or_else(|| raw.as_deref().and_then(hex_profile));
    let xmp = info.utf8_text.iter().find(|text| text.keyword == XMP_IN_PNG).and_then(international);
    let xmp = xmp.map(String::into_bytes);
    Metadata { exif: exif.unwrap_or_default(), xmp }
}

fn unpacked_text(text: &ZTXtChunk) -> Option<String> {
    let mut text = text.clone();
    text.decompress_text_with_limit(MAX_TEXT_BYTES).ok()?;
    text.get_text().ok()
}

fn international(text: &ITXtChunk) -> Option<String> {
    let mut text = text.clone();
    text.decompress_text_with_limit(MAX_TEXT_BYTES).ok()?;
    text.get_text().ok()
}

/// (keyword, text) of each text that can be unpacked, and how many more there are than [`MAX_TEXTS_BYTES`] holds.
pub(super) fn texts(info: &Info<'_>) -> (Vec<(String, String)>, usize) {
    let plain = info.uncompressed_latin1_text.iter().map(|text| (&text.keyword, Packed::No(text)));
    let packed = info.compressed_latin1_text.iter().map(|text| (&text.keyword, Packed::Latin1(text)));
    let utf8 = info.utf8_text.iter().map(|text| (&text.keyword, Packed::Utf8(text)));
    let mut texts = Vec::new();
    let mut bytes = 0;
    let mut left_out = 0;
    // The one that says how the image was made comes first, wherever it stands.
    let mut all: Vec<_> = plain.chain(packed).chain(utf8).collect();
    all.sort_by_key(|(keyword, _)| keyword.as_str() != XMP_IN_PNG);
    for (keyword, text) in all {
        if bytes >= MAX_TEXTS_BYTES {
            left_out += 1;
            continue;
        }
        let unpacked = text.unpacked();
        // One that is too long has been unpacked up to there.
        bytes += unpacked.as_ref().map_or(MAX_TEXT_BYTES, String::len);
        texts.extend(unpacked.map(|text| (keyword.clone(), text)));
    }
    (texts, left_out)
}

/// A text as a chunk has it.
enum Packed<'a> {
    No(&'a TEXtChunk),
    Latin1(&'a ZTXtChunk),
    Utf8(&'a ITXtChunk),
}

impl Packed<'_> {
    fn unpacked(&self) -> Option<String> {
        match self {
            Self::No(text) => Some(text.text.clone()),
            Self::Latin1(text) => unpacked_text(text),
            Self::Utf8(text) => international(text),
        }
    }
}

/// (name, bytes of data) of each chunk, in their order.
pub(super) fn chunks(file: &[u8]) -> impl Iterator<Item = (String, usize)> {
    let mut at = SIGNATURE_BYTES;
    std::iter::from_fn(move || {
        let chunk = Chunk::read(file, at)?;
        at = at.checked_add(FRAME_BYTES + chunk.data_bytes)?;
        Some((String::from_utf8_lossy(&chunk.name).into_owned(), chunk.data_bytes))
    })
}

/// An empty line, the profile's name, its length, and then its bytes in hex.
fn hex_profile(text: &str) -> Option<Vec<u8>> {
    let hex: String = text.split('\n').skip(3).flat_map(str::chars).filter(|c| !c.is_whitespace()).collect();
    base16ct::mixed::decode_vec(hex).ok()
}

/// The file with its last chunk, which some writers leave out and some transfers cut off.
///
/// # Errors
/// When a chunk before the image's data is cut or does not have its checksum.
fn with_end(file: &[u8]) -> Result<Cow<'_, [u8]>, String> {
    let mut at = SIGNATURE_BYTES;
    let mut has_image_data = false;
    while let Some(chunk) = Chunk::read(file, at) {
        let end = at + FRAME_BYTES + chunk.data_bytes;
        let whole = end <= file.len() && (chunk.name == *b"IDAT" || chunk.has_its_checksum(file, at));
        if chunk.name == *b"IDAT" && end > file.len() {
            return Ok(Cow::Owned(cut_in_the_data(file, at)));
        }
        if !whole {
            break;
        }
        if chunk.name == *b"IEND" {
            return Ok(Cow::Borrowed(file));
        }
        at = end;
        if chunk.name == *b"IDAT" {
            has_image_data = true;
        }
    }
    if !has_image_data {
        let name = Chunk::read(file, at).map(|chunk| String::from_utf8_lossy(&chunk.name).into_owned());
        let name = name.filter(|name| name.chars().all(|c| c.is_ascii_alphabetic()));
        return Err(broken(&name.map_or("it ends before its pixels".to_owned(), |name| format!("its chunk {name} is broken"))));
    }
    Ok(Cow::Owned([&file[..at], IEND].concat()))
}

/// What there is of the last chunk of data, made a chunk: whether it is enough shows when it is unpacked.
fn cut_in_the_data(file: &[u8], at: usize) -> Vec<u8> {
    let data = &file[at + 8..];
    let data = &data[..data.len().min(Chunk::read(file, at).map_or(0, |chunk| chunk.data_bytes))];
    let length = (data.len() as u32).to_be_bytes();
    [&file[..at], &length, b"IDAT", data, &[0; 4], IEND].concat()
}

struct Chunk {
    data_bytes: usize,
    name: [u8; 4],
}

impl Chunk {
    fn read(file: &[u8], at: usize) -> Option<Self> {
        let header = file.get(at..at.checked_add(8)?)?;
        let data_bytes = u32::from_be_bytes(header[..4].try_into().ok()?) as usize;
        Some(Self { data_bytes, name: header[4..].try_into().ok()? })
    }

    /// The whole chunk lies in `file`.
    fn has_its_checksum(&self, file: &[u8], at: usize) -> bool {
        let data_end = at + 8 + self.data_bytes;
        crc32fast::hash(&file[at + 4..data_end]).to_be_bytes() == file[data_end..data_end + 4]
    }
}
