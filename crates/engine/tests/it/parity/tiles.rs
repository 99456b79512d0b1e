//! Decoding in tiles: diffusers' own values, and how far an image in tiles is from a whole one.

use std::path::Path;

use atelier_engine::pixels::to_pixels;
use atelier_engine::sd::StableDiffusion;
use atelier_engine::sd::settings::Settings;
use atelier_engine::sd::tiling::Tiling;
use candle_core::{DType, Tensor};

use super::{Reference, STAGE, Stage, engine, values};

use crate::device;

/// Of a trained toy VAE that normalizes every tile by itself, in steps of 8 bits: the mean over all channels of all pixels.
const MEAN_DIFFERENCE: f64 = 24.0;
/// How much more the difference changes from one pixel to the next where two tiles meet than it does elsewhere.
const SEAM: f64 = 1.25;

#[test]
fn parity_of_tiles() {
    let engine = engine("sd15");
    let latents = Reference::read("sd15");
    let reference = Reference::read("tiles");
    let mut stage = Stage::new("sd15, vae in tiles");
    for side in [8, 4] {
        let ours = engine
            .decode(latents.get("unet/1x9x13/latents"), Tiling { tile: Some(side), ..Tiling::default() })
            .expect("decodes");
        let key = format!("tiled/{side}");
        stage.compare(&key, &ours, reference.get(&key));
    }
    stage.finish(STAGE);
    let mut stage = Stage::new("sd15, vae in bands");
    for size in ["1x9x13", "1x8x8"] {
        let ours = engine
            .decode(latents.get(&format!("unet/{size}/latents")), Tiling { banded: true, ..Tiling::default() })
            .expect("decodes");
        stage.compare(size, &ours, latents.get(&format!("vae/{size}")));
    }
    stage.finish(STAGE);
}

#[test]
fn a_image_in_tiles_has_no_seams() {
    const SIDE: usize = 256;
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/tiny-sd");
    let engine = StableDiffusion::load(&Settings::new(&directory, DType::F32, device())).expect("the bundled model loads");
    let waves = (0..3 * SIDE * SIDE).map(|place| {
        let x = (place / 3 % SIDE) as f64;
        let y = (place / 3 / SIDE) as f64;
        let channel = (place % 3) as f64;
        (127.0 + 100.0 * (x / 9.0 + channel).sin() * (y / (7.0 + channel)).cos()) as u8
    });
    let image: Vec<u8> = waves.collect();
    let pixels = to_pixels(&image, SIDE, SIDE, &device()).expect("pixels");
    let latents = engine.encode_image(&pixels).expect("encodes").mean;
    let bytes = |decoded: Tensor| {
        let unit: Vec<f64> = values(&decoded).into_iter().map(|number| (number / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).collect();
        unit
    };
    let whole = bytes(engine.decode(&latents, Tiling::default()).expect("decodes"));
    let bands = bytes(engine.decode(&latents, Tiling { banded: true, ..Tiling::default() }).expect("decodes"));
    let largest = bands.iter().zip(&whole).map(|(bands, whole)| (bands - whole).abs()).fold(0.0, f64::max);
    assert!(largest < 0.1, "in bands the image is the same, got a difference of {largest}");
    for side in [16, 8] {
        let tiled = bytes(engine.decode(&latents, Tiling { tile: Some(side), ..Tiling::default() }).expect("decodes"));
        let difference: Vec<f64> = tiled.iter().zip(&whole).map(|(tiled, whole)| tiled - whole).collect();
        let mean = |values: &[f64]| values.iter().map(|number| number.abs()).sum::<f64>() / values.len() as f64;
        assert!(mean(&difference) > 0.0, "{side}: these are not tiles");
        assert!(mean(&difference) <= MEAN_DIFFERENCE, "{side}: {}", mean(&difference));
        let stride_px = side * 8 * 3 / 4;
        let steps = |at_seam: bool| -> Vec<f64> {
            let of_rows = difference.chunks(SIDE).flat_map(|row| -> Vec<f64> {
                let steps = row.windows(2).enumerate().filter(|(x, _)| !at_seam || (x + 1) % stride_px == 0);
                steps.map(|(_, pair)| pair[1] - pair[0]).collect()
            });
            of_rows.collect()
        };
        let seams = mean(&steps(true));
        let all = mean(&steps(false));
        assert!(seams <= SEAM * all, "{side}: {seams} where tiles meet, {all} on the whole");
    }
}
