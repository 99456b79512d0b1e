//! What an image file says of itself next to its pixels: XMP, and the texts and chunks of a PNG.

use std::io::Cursor;
use std::num::NonZeroUsize;

use image::ImageDecoder as _;
use image::codecs::webp::WebPDecoder;
use png::{DecodeOptions, Decoder};
use serde::Serialize;

use super::kind::Kind;
use super::xmp::XMP_IN_PNG;
use super::{broken, damaged, jpeg, png as png_file};

/// What a file says of itself.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Notes {
    /// The file's media type.
    pub format: &'static str,
    pub xmp: Option<String>,
    /// Of a PNG: its text chunks.
    pub texts: Vec<Text>,
    /// Of a PNG: texts that are not among them, for all of them together are too long.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub texts_left_out: Option<NonZeroUsize>,
    /// Of a PNG: its chunks in their order.
    pub chunks: Vec<Chunk>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Text {
    pub keyword: String,
    pub text: String,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Chunk {
    pub name: String,
    pub bytes: usize,
}

/// # Errors
/// Says why the file is none that is read here.
pub fn read(file: &[u8]) -> Result<Notes, String> {
    match Kind::of(file)? {
        Kind::Png => of_png(file),
        Kind::Jpeg => {
            let xmp = jpeg::xmp(file)?;
            Ok(Notes { format: "image/jpeg", xmp: xmp.map(text), texts: Vec::new(), texts_left_out: None, chunks: Vec::new() })
        }
        Kind::WebP => {
            let mut decoder = WebPDecoder::new(Cursor::new(file)).map_err(|error| damaged(&error))?;
            let xmp = decoder.xmp_metadata().map_err(|error| damaged(&error))?;
            Ok(Notes { format: "image/webp", xmp: xmp.map(text), texts: Vec::new(), texts_left_out: None, chunks: Vec::new() })
        }
    }
}

fn of_png(file: &[u8]) -> Result<Notes, String> {
    let mut options = DecodeOptions::default();
    options.set_ignore_crc(true);
    let decoder = Decoder::new_with_options(Cursor::new(file), options);
    let mut reader = decoder.read_info().map_err(|error| broken(&error.to_string()))?;
    // Texts may lie behind the image's data.
    reader.finish().map_err(|error| broken(&error.to_string()))?;
    let (texts, left_out) = png_file::texts(reader.info());
    let xmp = texts.iter().find(|(keyword, _)| keyword == XMP_IN_PNG).map(|(_, text)| text.clone());
    let texts = texts.into_iter().filter(|(keyword, _)| keyword != XMP_IN_PNG);
    let texts = texts.map(|(keyword, text)| Text { keyword, text }).collect();
    let chunks = png_file::chunks(file).map(|(name, bytes)| Chunk { name, bytes }).collect();
    Ok(Notes { format: "image/png", xmp, texts, texts_left_out: NonZeroUsize::new(left_out), chunks })
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}
