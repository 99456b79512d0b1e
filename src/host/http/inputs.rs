//! Images that come along with a request: looked at before anything is promised, then kept in the bucket.

use std::io::Cursor;

use axum::http::StatusCode;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use image::{ImageFormat, ImageReader};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;

use super::Settings;
use super::draft::Place;
use super::problem::Problem;

/// An image that was looked at.
pub(super) struct Input {
    /// Says what it shows and, by its hash, what is in it: another image has another address, so that a second request
    /// under the same job id never changes the files of the first.
    pub(super) name: String,
    pub(super) content_type: &'static str,
    pub(super) file: Bytes,
}

/// Unpacked images are large: only so many at a time.
static UNPACKING: Semaphore = Semaphore::const_new(2);

/// Looks at an image: all of it is unpacked once, so that a broken one is refused here and not after it has waited.
///
/// # Errors
/// What is wrong with the image in `field`, and what is allowed.
pub(super) async fn check(place: Place, field: String, file: Bytes, settings: &Settings) -> Result<Input, Problem> {
    if file.len() > settings.max_image_bytes {
        return Err(too_large(&field, settings));
    }
    let max_pixels = settings.max_image_pixels;
    // The semaphore is never closed.
    let _turn = UNPACKING.acquire().await;
    let looking = tokio::task::spawn_blocking(move || {
        let format = unpack(&file, max_pixels).map_err(|problem| Problem::invalid(&field, problem))?;
        let hash = base16ct::lower::encode_string(&Sha256::digest(&file));
        let what = match place {
            Place::Person => "person".to_owned(),
            Place::Garment(0) => "garment".to_owned(),
            Place::Garment(n) => format!("garment-{n}"),
            Place::Mask => "mask".to_owned(),
        };
        let extension = format.extensions_str().first().copied().unwrap_or_default();
        Ok(Input { name: format!("{what}-{}.{extension}", &hash[..16]), content_type: format.to_mime_type(), file })
    });
    let broken = |_| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the image could not be looked at");
    looking.await.unwrap_or_else(|error| Err(broken(error)))
}

fn unpack(file: &[u8], max_pixels: u64) -> Result<ImageFormat, String> {
    const ALLOWED: &str = "must be a PNG, JPEG or WebP image";
    let format = image::guess_format(file).map_err(|_| format!("{ALLOWED}, and is none by its first bytes"))?;
    if !matches!(format, ImageFormat::Png | ImageFormat::Jpeg | ImageFormat::WebP) {
        return Err(format!("{ALLOWED}, got {}", format.to_mime_type()));
    }
    let damaged = |error: image::ImageError| format!("{ALLOWED}, and this one is truncated or damaged ({error})");
    let (width_px, height_px) = ImageReader::with_format(Cursor::new(file), format).into_dimensions().map_err(damaged)?;
    let pixels = u64::from(width_px) * u64::from(height_px);
    if pixels > max_pixels {
        return Err(format!("must have at most {max_pixels} pixels, got {width_px} x {height_px}"));
    }
    ImageReader::with_format(Cursor::new(file), format).decode().map_err(damaged)?;
    Ok(format)
}

pub(super) fn too_large(field: &str, settings: &Settings) -> Problem {
    Problem::too_large(&format!("{field}: must have at most {} bytes", settings.max_image_bytes)).field(field)
}

/// The images that are written out as `data:` addresses, by place.
///
/// # Errors
/// When such an address is not in base64; `name` is what the caller calls its field.
pub(super) fn data_urls(message: &Map<String, Value>, name: impl Fn(Place) -> String) -> Result<Vec<(Place, Bytes)>, Problem> {
    const ALLOWED: &str = "must be data:image/png;base64, and the image in base64 (or an s3:// or https:// address)";
    let garments = message.get("garments").and_then(Value::as_array);
    let garments = garments.into_iter().flatten().enumerate().map(|(n, garment)| (Place::Garment(n), Some(garment)));
    let places = [(Place::Person, message.get("person")), (Place::Mask, message.get("mask"))].into_iter().chain(garments);
    let mut found = Vec::new();
    for (place, value) in places {
        let Some(data) = value.and_then(Value::as_str).and_then(|address| address.strip_prefix("data:")) else { continue };
        let bytes = data.split_once(',').filter(|(kind, _)| kind.ends_with(";base64"));
        let bytes = bytes.and_then(|(_, encoded)| STANDARD.decode(encoded).ok());
        let bytes = bytes.ok_or_else(|| Problem::invalid(&name(place), ALLOWED))?;
        found.push((place, bytes.into()));
    }
    Ok(found)
}
