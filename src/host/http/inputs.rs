//! Images that come along with a request: looked at before anything is promised, then kept in the bucket.

use axum::http::StatusCode;
use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;

use super::Settings;
use super::draft::Place;
use super::problem::Problem;
use crate::image_file;

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
    aside(move || {
        let kind = image_file::open(&file, max_pixels).map_err(|problem| Problem::invalid(&field, problem))?.kind;
        let hash = base16ct::lower::encode_string(&Sha256::digest(&file));
        let what = match place {
            Place::Person => "person".to_owned(),
            Place::Garment(0) => "garment".to_owned(),
            Place::Garment(n) => format!("garment-{n}"),
            Place::Mask | Place::InitMask => "mask".to_owned(),
            Place::InitImage => "init".to_owned(),
            Place::Image(n) => format!("image-{n}"),
        };
        let name = format!("{what}-{}.{}", &hash[..16], kind.extension());
        Ok(Input { name, content_type: kind.content_type(), file })
    })
    .await
}

/// Unpacks images away from the threads that answer probes, a few at a time.
///
/// # Errors
/// Those of `looking`.
pub(super) async fn aside<T: Send + 'static>(
    looking: impl FnOnce() -> Result<T, Problem> + Send + 'static,
) -> Result<T, Problem> {
    // The semaphore is never closed. A turn lasts as long as the work: that goes on when the caller has gone.
    let turn = UNPACKING.acquire().await;
    let looked = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        looking()
    });
    looked.await.unwrap_or_else(|_| {
        Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the image could not be looked at"))
    })
}

pub(super) fn too_large(field: &str, settings: &Settings) -> Problem {
    Problem::too_large(&format!("{field}: must have at most {} bytes", settings.max_image_bytes)).field(field)
}

/// Whether an image is written out as a `data:` address.
pub(super) fn has_data_urls(message: &Map<String, Value>) -> bool {
    data_addresses(message).next().is_some()
}

/// The images that are written out as `data:` addresses, by place.
///
/// # Errors
/// When such an address is not in base64; `name` is what the caller calls its field.
pub(super) fn data_urls(message: &Map<String, Value>, name: impl Fn(Place) -> String) -> Result<Vec<(Place, Bytes)>, Problem> {
    const ALLOWED: &str = "must be data:image/png;base64, and the image in base64 (or an s3:// or https:// address)";
    let found = data_addresses(message).map(|(place, data)| {
        let bytes = data.split_once(',').filter(|(kind, _)| kind.trim_end().to_ascii_lowercase().ends_with(";base64"));
        let bytes = bytes.and_then(|(_, encoded)| decoded(encoded));
        let bytes = bytes.ok_or_else(|| Problem::invalid(&name(place), ALLOWED))?;
        Ok((place, bytes.into()))
    });
    found.collect()
}

/// What stands behind `data:` in such addresses.
fn data_addresses(message: &Map<String, Value>) -> impl Iterator<Item = (Place, &str)> {
    let listed = |field: &str, place: fn(usize) -> Place| {
        let values = message.get(field).and_then(Value::as_array).into_iter().flatten().enumerate();
        values.map(move |(n, value)| (place(n), Some(value)))
    };
    let places = [(Place::Person, message.get("person")), (Place::Mask, message.get("mask"))].into_iter();
    let places = places.chain(listed("garments", Place::Garment)).chain(listed("images", Place::Image));
    places.filter_map(|(place, value)| {
        let (scheme, data) = value?.as_str()?.trim_start().split_once(':')?;
        scheme.eq_ignore_ascii_case("data").then_some((place, data))
    })
}

/// Base64 as programs write it: in lines, with and without padding, in the alphabet for URLs, percent-encoded.
fn decoded(encoded: &str) -> Option<Vec<u8>> {
    const CONFIG: GeneralPurposeConfig = GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true);
    const ENGINE: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, CONFIG);
    // As nearly all do, and without a copy of what may be large.
    if let Ok(bytes) = ENGINE.decode(encoded) {
        return Some(bytes);
    }
    // `%2B` and the like, as RFC 2397 has them in a URL.
    let digits: Vec<u8> = percent_encoding::percent_decode_str(encoded)
        .filter(|byte| !byte.is_ascii_whitespace())
        .map(|byte| match byte {
            b'-' => b'+',
            b'_' => b'/',
            other => other,
        })
        .collect();
    ENGINE.decode(digits).ok()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn who_goes_away_keeps_its_turn_until_the_work_is_done() {
        let at_once = Arc::new(AtomicUsize::new(0));
        let most = Arc::new(AtomicUsize::new(0));
        for _ in 0..5 {
            let counted = Arc::clone(&at_once);
            let highest = Arc::clone(&most);
            let caller = tokio::spawn(aside(move || {
                highest.fetch_max(counted.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(200));
                counted.fetch_sub(1, Ordering::SeqCst);
                Ok(())
            }));
            tokio::time::sleep(Duration::from_millis(20)).await;
            caller.abort();
        }
        while at_once.load(Ordering::SeqCst) > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(most.load(Ordering::SeqCst), 2);
    }
}
