//! What marking and signing an image costs next to encoding it: `cargo bench --bench credentials`.

use std::io::{Write as _, stdout};
use std::time::Instant;

use anyhow::{Context as _, Error, Result};
use atelier::content_credentials::manifest::Manifest;
use atelier::content_credentials::ready;
use atelier::content_credentials::settings::Settings;
use atelier::job::ImageFormat;
use atelier::workflow::encode::encode;
use atelier::workflow::mark::{DigitalSource, xmp};
use atelier_engine::Image;
use serde_json::json;

const SIDE_PX: u32 = 1_024;
/// Of which the median counts.
const ROUNDS: usize = 15;
const FORMATS: [(ImageFormat, &str); 3] =
    [(ImageFormat::Png, "image/png"), (ImageFormat::Jpeg, "image/jpeg"), (ImageFormat::Webp, "image/webp")];

/// Prints a line of JSON for each format: milliseconds of encoding, milliseconds of signing, their ratio, and the bytes of both.
fn main() -> Result<()> {
    let home = tempfile::tempdir()?;
    let settings = Settings { development_directory: Some(home.path().join("signer")), ..Settings::default() };
    let signing = ready::signing(&settings)?.context("a signer was named")?;
    let source = DigitalSource::TrainedAlgorithmicMedia;
    let mark = xmp(source, Some("https://cdn.example/generations/job/result.json"));
    let image = image();
    let mut out = stdout();
    for (format, content_type) in FORMATS {
        let encoding = median(|| Ok(encode(&image, format, &[], &mark)?))?;
        let manifest_and_signature = median(|| {
            let manifest = Manifest::new(&signing, Some("tiny-sd"), source.uri(), &[]).map_err(Error::msg)?;
            manifest.sign(&signing, &encoding.1, content_type, false).map(|signed| signed.file).map_err(Error::msg)
        })?;
        let row = json!({
            "what": format!("sign_{SIDE_PX}_{}", format.extension()),
            "encode_ms": encoding.0,
            "sign_ms": manifest_and_signature.0,
            "ratio": manifest_and_signature.0 / encoding.0,
            "bytes": encoding.1.len(),
            "signed_bytes": manifest_and_signature.1.len(),
        });
        writeln!(out, "{row}")?;
    }
    Ok(())
}

/// The median milliseconds of some rounds, and what the last one made.
fn median(mut round: impl FnMut() -> Result<Vec<u8>>) -> Result<(f64, Vec<u8>)> {
    let mut took_ms = Vec::with_capacity(ROUNDS);
    let mut made = Vec::new();
    for _ in 0..ROUNDS {
        let began = Instant::now();
        made = round()?;
        took_ms.push(began.elapsed().as_secs_f64() * 1e3);
    }
    took_ms.sort_by(f64::total_cmp);
    Ok((took_ms[ROUNDS / 2], made))
}

/// Smooth, with some noise: about as large, encoded, as a photo.
fn image() -> Image {
    let pixels = (0..SIDE_PX).flat_map(|y| (0..SIDE_PX).map(move |x| (x, y)));
    let rgb = pixels.flat_map(|(x, y)| {
        let noise = (x.wrapping_mul(2_654_435_761) ^ y.wrapping_mul(2_246_822_519)) >> 29;
        [x / 8 + noise, y / 8 + noise, (x + y) / 16 + noise].map(|value| value as u8)
    });
    Image { width_px: SIDE_PX, height_px: SIDE_PX, rgb: rgb.collect(), seed: 0 }
}
