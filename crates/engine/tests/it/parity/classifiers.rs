//! Image classifiers against what transformers and diffusers say of the same images (`tests/oracle/classifiers.py`).

use std::path::PathBuf;

use atelier_engine::classifier::{Classifier, check};
use atelier_engine::resample::{Filter, resize};
use candle_core::{DType, Tensor};
use image::RgbImage;

use super::qwen_text::image;
use super::{Reference, RelativeError, Stage, values};
use crate::device;

/// As in the oracle's script.
const IMAGES: usize = 18;
const VITS: [(&str, &[&str]); 3] =
    [("vit", &["normal", "nsfw"]), ("vit-oblong", &["cat", "dog", "none of both"]), ("vit-padded", &["a", "b"])];
const CHECKERS: [&str; 2] = ["safety-checker", "safety-checker-2022"];
/// Of a score, whose reference is at most 1.
const SCORE: RelativeError = RelativeError(1e-5);

pub(crate) fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/classifiers")
}

fn expected() -> Reference {
    Reference::open(&directory().join("expected.safetensors"))
}

pub(crate) fn images() -> Vec<RgbImage> {
    let expected = expected();
    (0..IMAGES).map(|index| image(expected.get(&format!("input/{index}")))).collect()
}

fn classifier(name: &str, dtype: DType) -> Classifier {
    Classifier::load(&directory().join(name), dtype, &device()).expect("the fixture loads")
}

/// (images, labels).
fn scores(classifier: &Classifier, images: &[RgbImage]) -> Tensor {
    let scores = classifier.classify(images).expect("scores");
    assert_eq!(scores.len(), images.len());
    assert!(scores.iter().all(|scores| scores.len() == classifier.labels().len()));
    Tensor::new(scores, &candle_core::Device::Cpu).expect("a tensor")
}

fn largest_difference(ours: &Tensor, reference: &Tensor) -> f64 {
    assert_eq!(ours.dims(), reference.dims());
    let differences = values(ours).into_iter().zip(values(reference)).map(|(ours, reference)| (ours - reference).abs());
    differences.fold(0.0, |worst, error| if error > worst || error.is_nan() { error } else { worst })
}

fn mean_error(scores: &[f64], reference: &[f64]) -> f64 {
    assert_eq!(scores.len(), reference.len());
    scores.iter().zip(reference).map(|(score, reference)| (score - reference).abs()).sum::<f64>() / scores.len() as f64
}

#[test]
fn parity_of_classifiers() {
    let expected = expected();
    let images = images();
    let mut stage = Stage::new("classifiers, scores");
    for (name, labels) in VITS {
        let classifier = classifier(name, DType::F32);
        assert_eq!(classifier.labels(), labels);
        let checked = check(&directory().join(name)).expect("its files agree");
        assert_eq!(checked.scores, 0.0..1.0);
        assert_eq!(checked.labels, labels.iter().map(|label| ((*label).to_owned(), 0.5)).collect::<Vec<_>>());
        // More than fit into one forward pass, and each by itself.
        let together = scores(&classifier, &images);
        stage.note(name, largest_difference(&together, expected.get(&format!("{name}/scores"))));
        let alone: Vec<Tensor> = images.iter().map(|image| scores(&classifier, std::slice::from_ref(image))).collect();
        stage.note(name, largest_difference(&Tensor::cat(&alone, 0).expect("one tensor"), &together));
    }
    for name in CHECKERS {
        let classifier = classifier(name, DType::F32);
        assert_eq!(classifier.labels(), ["unsafe_content", "special_care"]);
        stage.note(name, largest_difference(&scores(&classifier, &images), expected.get("safety-checker/scores")));
    }
    stage.finish(SCORE);
}

#[test]
fn a_safety_checker_flags_what_diffusers_flags() {
    let flagged: Vec<bool> = values(expected().get("safety-checker/flagged")).into_iter().map(|flag| flag > 0.0).collect();
    assert!(flagged.contains(&true) && flagged.contains(&false));
    for name in CHECKERS {
        let checked = check(&directory().join(name)).expect("its files agree");
        let (label, threshold) = &checked.labels[0];
        assert_eq!(label, "unsafe_content");
        let scores = classifier(name, DType::F32).classify(&images()).expect("scores");
        let ours: Vec<bool> = scores.iter().map(|scores| scores[0] > *threshold).collect();
        assert_eq!(ours, flagged, "{name}: {scores:?}");
    }
}

/// On the whole no further from f32 than twice what transformers is: both round at every layer, each in its own order.
#[test]
fn parity_of_classifiers_in_half_precision() {
    let expected = expected();
    let images = images();
    let mut stage = Stage::new("classifiers, half / transformers'");
    for (name, _) in VITS {
        let whole = values(expected.get(&format!("{name}/scores")));
        for (key, dtype) in [("f16", DType::F16), ("bf16", DType::BF16)] {
            let ours = mean_error(&values(&scores(&classifier(name, dtype), &images)), &whole);
            let theirs = mean_error(&values(expected.get(&format!("{name}/{key}"))), &whole);
            stage.note(&format!("{name}, {key}"), ours / theirs);
        }
    }
    stage.finish(RelativeError(2.0));
}

#[test]
fn bilinear_images_are_pillows_byte_for_byte() {
    let expected = expected();
    for case in 0..11 {
        let input = image(expected.get(&format!("resize/{case}/input")));
        let pillows = image(expected.get(&format!("resize/{case}/bilinear")));
        let ours = resize(&input, pillows.width(), pillows.height(), Filter::Bilinear);
        assert!(ours == pillows, "case {case}: {:?} to {:?}", input.dimensions(), pillows.dimensions());
    }
}
