//! The bundled segmenter finds the clothes of people that it was not trained on (`models/train/segmenter.py people`).

use std::path::{Path, PathBuf};

use atelier_engine::segmenter::Segmenter;
use image::imageops::crop_imm;

use crate::device;

/// Of one person.
const WIDTH_PX: u32 = 96;
/// Of labels that people of this world have on them; the model reaches more.
const LEAST_MEAN: f64 = 0.9;
const LEAST: f64 = 0.85;

fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/tiny-segmenter")
}

fn sheet(file: &str) -> image::DynamicImage {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/tiny-segmenter");
    image::open(directory.join(file)).unwrap()
}

#[test]
fn clothes_are_found_on_people_that_no_training_saw() {
    let device = device();
    let segmenter = Segmenter::load(&model(), &device).unwrap();
    let people = sheet("people.png").into_rgb8();
    let labels = sheet("labels.png").into_luma8();
    // A simulated device takes a hundred times as long.
    let count = if device.is_cpu() { people.width() / WIDTH_PX } else { 2 };
    let mut both = vec![0_u32; segmenter.labels().len()];
    let mut either = both.clone();
    for person in 0..count {
        let left = person * WIDTH_PX;
        let right = crop_imm(&labels, left, 0, WIDTH_PX, labels.height()).to_image();
        let found = segmenter.segment(&crop_imm(&people, left, 0, WIDTH_PX, people.height()).to_image()).unwrap();
        for (found, right) in found.pixels().zip(right.pixels()) {
            let [found, right] = [found, right].map(|label| usize::from(label.0[0]));
            both[found] += u32::from(found == right);
            either[found] += 1;
            either[right] += u32::from(found != right);
        }
    }
    let each: Vec<(&String, f64)> = segmenter
        .labels()
        .iter()
        .zip(both.iter().zip(&either))
        .filter(|(_, (_, either))| **either > 0)
        .map(|(label, (both, either))| (label, f64::from(*both) / f64::from(*either)))
        .collect();
    let mean = each.iter().map(|(_, part)| part).sum::<f64>() / each.len() as f64;
    println!("of {count} people, intersection over union: mean {mean:.3}, {each:.3?}");
    assert!(mean >= LEAST_MEAN && each.iter().all(|(_, part)| *part >= LEAST), "{each:?}");
    assert!(!device.is_cpu() || each.len() == segmenter.labels().len(), "every label is there");
}
