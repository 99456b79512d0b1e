//! Segmenters that cannot be loaded, or give nothing of use, say so.

use std::fs;
use std::path::Path;

use atelier_engine::EngineError;
use atelier_engine::segmenter::{Segmenter, check};
use candle_core::{Device, Tensor};
use image::RgbImage;

use crate::device;
use crate::parity::segmenter::directory;

/// A copy of a fixture, in which `change` may do what it likes.
fn changed(name: &str, change: impl FnOnce(&Path)) -> tempfile::TempDir {
    let copy = tempfile::tempdir().expect("a directory");
    for file in fs::read_dir(directory().join(name)).expect("a fixture") {
        let file = file.expect("a file").path();
        fs::copy(&file, copy.path().join(file.file_name().expect("a name"))).expect("copies");
    }
    change(copy.path());
    copy
}

fn replaced(directory: &Path, file: &str, from: &str, to: &str) {
    let path = directory.join(file);
    let text = fs::read_to_string(&path).expect("reads");
    assert!(text.contains(from), "{file} has no {from}");
    fs::write(path, text.replace(from, to)).expect("writes");
}

fn with_tensors(directory: &Path, change: impl FnOnce(&mut std::collections::HashMap<String, Tensor>)) {
    let path = directory.join("model.safetensors");
    let mut tensors = candle_core::safetensors::load(&path, &Device::Cpu).expect("tensors");
    tensors.retain(|_, tensor| tensor.dtype().is_float());
    change(&mut tensors);
    candle_core::safetensors::save(&tensors, path).expect("writes");
}

fn refusal(copy: &tempfile::TempDir) -> String {
    match Segmenter::load(copy.path(), &device()) {
        Ok(_) => panic!("it was loaded"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn what_is_no_segmenter_is_refused_in_words() {
    let config = |from: &str, to: &str| changed("oblong", |copy| replaced(copy, "config.json", from, to));
    for (copy, words) in [
        (config("SegformerForSemanticSegmentation", "SegformerForImageClassification"), "a segmenter is [\"SegformerForSem"),
        (config("\"gelu\"", "\"relu\""), "hidden_act is \"relu\"; supported: \"gelu\""),
        (config("\"reshape_last_stage\": true", "\"reshape_last_stage\": false"), "reshape_last_stage is false"),
        (
            config("\"num_encoder_blocks\": 3", "\"num_encoder_blocks\": 4"),
            "must have num_encoder_blocks, 4, numbers from 1 on",
        ),
        (config("\"coat\",", "\"hat\","), "id2label has one label twice"),
        (changed("oblong", |copy| replaced(copy, "preprocessor_config.json", "45", "9")), "fewer than its sr_ratios"),
        (
            changed("oblong", |copy| replaced(copy, "preprocessor_config.json", "\"do_resize\": true", "\"do_resize\": false")),
            "makes images of several sizes",
        ),
    ] {
        let error = refusal(&copy);
        assert!(error.contains(words), "{error}");
        assert!(check(copy.path()).is_err_and(|error| error.to_string().contains(words)), "{words}");
    }
    let missing = changed("oblong", |copy| with_tensors(copy, |tensors| drop(tensors.remove("decode_head.classifier.bias"))));
    assert!(refusal(&missing).contains("decode_head.classifier.bias [5] is missing"), "{}", refusal(&missing));
    let more = changed("oblong", |copy| {
        with_tensors(copy, |tensors| {
            let other = tensors["decode_head.classifier.bias"].clone();
            tensors.insert("decode_head.second.bias".into(), other);
        });
    });
    assert!(refusal(&more).contains("config.json knows nothing of: decode_head.second.bias"), "{}", refusal(&more));
}

#[test]
fn an_image_without_pixels_and_scores_that_are_no_numbers_are_errors() {
    let broken = changed("oblong", |copy| {
        with_tensors(copy, |tensors| {
            let nothing = Tensor::new(&[f32::NAN, 0.0, 0.0, 0.0, 0.0], &Device::Cpu).expect("a tensor");
            tensors.insert("decode_head.classifier.bias".into(), nothing);
        });
    });
    let broken = Segmenter::load(broken.path(), &device()).expect("it loads");
    assert!(matches!(broken.segment(&RgbImage::new(20, 30)), Err(EngineError::NotFinite { .. })));
    assert!(matches!(broken.segment(&RgbImage::new(0, 30)), Err(EngineError::Request { .. })));
}
