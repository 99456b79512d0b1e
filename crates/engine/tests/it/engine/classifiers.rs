//! Every image classifier that must be refused, and what its error must say; and images that are hard to look at.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use atelier_engine::EngineError;
use atelier_engine::classifier::{Classifier, check};
use candle_core::{DType, Device, Tensor};
use image::{Rgb, RgbImage};

use super::checkpoints::edit;
use super::copy_directory;
use crate::device;
use crate::parity::classifiers::directory;

/// A copy of a fixture that may be broken, in a directory of its own.
fn copied(name: &str) -> tempfile::TempDir {
    let parent = tempfile::tempdir().expect("a directory");
    copy_directory(&directory().join(name), &parent.path().join("checker"));
    parent
}

fn load(parent: &tempfile::TempDir) -> Result<Classifier, EngineError> {
    Classifier::load(&parent.path().join("checker"), DType::F32, &device())
}

/// Breaks a copy and loads it; the error must name the file and have these words. What only looks at the JSON files must refuse what is in them.
fn assert_refused(name: &str, breaking: impl FnOnce(&Path), file: &str, words: &[&str]) {
    let parent = copied(name);
    let checker = parent.path().join("checker");
    breaking(&checker);
    let checked = check(&checker).err().map(|error| error.to_string());
    let Some(EngineError::Checkpoint { path, problem }) = load(&parent).err() else { panic!("{name}, {words:?} is taken") };
    assert_eq!(path.strip_prefix(&checker).expect("in its directory"), Path::new(file), "{problem}");
    for word in words {
        assert!(problem.contains(word), "{word:?} is not in {problem:?}");
    }
    let is_json = Path::new(file).extension().is_some_and(|extension| extension == "json");
    assert_eq!(checked.is_some_and(|checked| checked.contains(&problem)), is_json, "{problem}");
}

fn edit_config(from: &str, to: &str) -> impl FnOnce(&Path) {
    move |checker| edit(&checker.join("config.json"), from, to)
}

fn edit_preprocessor(from: &str, to: &str) -> impl FnOnce(&Path) {
    move |checker| edit(&checker.join("preprocessor_config.json"), from, to)
}

fn edit_tensors(change: impl FnOnce(&mut HashMap<String, Tensor>)) -> impl FnOnce(&Path) {
    move |checker| {
        let file = checker.join("model.safetensors");
        let mut tensors = candle_core::safetensors::load(&file, &Device::Cpu).expect("the fixture loads");
        change(&mut tensors);
        candle_core::safetensors::save(&tensors, file).expect("writes");
    }
}

fn zeros(shape: &[usize]) -> Tensor {
    Tensor::zeros(shape, DType::F32, &Device::Cpu).expect("a tensor")
}

/// Of green.
fn without_spread(checker: &Path) {
    let file = checker.join("preprocessor_config.json");
    let text = fs::read_to_string(&file).expect("reads");
    let start = text.find("\"image_std\"").expect("a spread");
    let end = start + text[start..].find(']').expect("its end");
    fs::write(&file, format!("{}\"image_std\": [0.5, 0, 0.5{}", &text[..start], &text[end..])).expect("writes");
}

#[test]
fn classifier_whose_files_are_missing() {
    for file in ["config.json", "preprocessor_config.json"] {
        assert_refused("vit", |checker| fs::remove_file(checker.join(file)).expect("removes"), file, &["No such file"]);
    }
    assert_refused(
        "vit",
        |checker| fs::remove_file(checker.join("model.safetensors")).expect("removes"),
        "",
        &["model.safetensors", "pickles"],
    );
}

#[test]
fn classifier_of_another_architecture() {
    let words = ["ConvNextForImageClassification", "[\"ViTForImageClassification\"]", "[\"StableDiffusionSafetyChecker\"]"];
    assert_refused("vit", edit_config("ViTForImageClassification", "ConvNextForImageClassification"), "config.json", &words);
    assert_refused("vit", edit_config("\"architectures\"", "\"architecture\""), "config.json", &["architectures is []"]);
    assert_refused(
        "vit",
        edit_config("\"qkv_bias\": true", "\"problem_type\": \"multi_label_classification\", \"qkv_bias\": true"),
        "config.json",
        &["problem_type is \"multi_label_classification\"", "single_label_classification"],
    );
    assert_refused("vit", edit_config("\"qkv_bias\": true", "\"qkv_bias\": false"), "config.json", &["qkv_bias is false"]);
}

#[test]
fn classifier_whose_labels_are_no_list() {
    let config = "config.json";
    assert_refused("vit", edit_config("\"1\": \"nsfw\"", "\"2\": \"nsfw\""), config, &["keys 0, 2", "must be 0 to 1"]);
    assert_refused("vit", edit_config("\"1\": \"nsfw\"", "\"1\": \"normal\""), config, &["one label twice", "normal, normal"]);
    assert_refused("vit", edit_config(",\n    \"1\": \"nsfw\"", ""), config, &["has 1 labels", "2 or more"]);
    assert_refused(
        "vit",
        edit_config("\"id2label\"", "\"num_labels\": 3,\n  \"id2label\""),
        config,
        &["num_labels is 3, but id2label has 2"],
    );
}

#[test]
fn classifier_with_more_labels_than_scores() {
    assert_refused(
        "vit",
        edit_config("\"1\": \"nsfw\"", "\"1\": \"nsfw\", \"2\": \"gore\""),
        "",
        &["classifier.weight has the shape [2, 32], config.json says [3, 32]", "classifier.bias"],
    );
}

#[test]
fn classifier_without_names_of_its_labels() {
    let parent = copied("vit");
    let config = parent.path().join("checker/config.json");
    edit(&config, "id2label", "unread");
    let labels = ["LABEL_0", "LABEL_1"];
    assert_eq!(check(&parent.path().join("checker")).expect("allowed").labels, labels.map(|label| (label.to_owned(), 0.5)));
    assert_eq!(load(&parent).expect("loads").labels(), labels);
}

#[test]
fn classifier_with_sizes_that_cannot_be() {
    let config = "config.json";
    assert_refused(
        "vit",
        edit_config("\"num_attention_heads\": 4", "\"num_attention_heads\": 0"),
        config,
        &["num_attention_heads 0"],
    );
    assert_refused("vit", edit_config("\"num_attention_heads\": 4", "\"num_attention_heads\": 5"), config, &["multiple"]);
    assert_refused("vit", edit_config("\"patch_size\": 8", "\"patch_size\": 0"), config, &["patch_size [0, 0]"]);
    assert_refused(
        "vit",
        edit_config("\"patch_size\": 8", "\"patch_size\": 7"),
        config,
        &["image_size [32, 32]", "patch_size [7, 7]"],
    );
    assert_refused("vit", edit_config("\"num_channels\": 3", "\"num_channels\": 4"), config, &["num_channels is 4"]);
    assert_refused("vit", edit_config("\"gelu\"", "\"relu\""), config, &["relu", "gelu"]);
    let nested = edit_config("\"num_channels\": 3", "\"num_channels\": 1");
    assert_refused("safety-checker", nested, config, &["vision_config: num_channels is 1"]);
}

#[test]
fn classifier_whose_images_are_not_prepared_for_it() {
    let file = "preprocessor_config.json";
    assert_refused("vit", edit_preprocessor("\"height\": 32", "\"height\": 48"), file, &["48 high and 32 wide", "[32, 32]"]);
    assert_refused("vit", edit_preprocessor("\"height\": 32", "\"height\": 0"), file, &["size", "1 or more"]);
    assert_refused(
        "vit",
        edit_preprocessor("\"do_resize\": true", "\"do_resize\": false"),
        file,
        &["several sizes", "do_resize"],
    );
    assert_refused("vit", edit_preprocessor("\"resample\": 2", "\"resample\": 0"), file, &["resample is 0", "2 (bilinear)"]);
    assert_refused(
        "vit",
        edit_preprocessor("ViTImageProcessor", "BlipImageProcessor"),
        file,
        &["BlipImageProcessor", "\"ViTImageProcessor\""],
    );
    assert_refused("vit", edit_preprocessor("\"height\": 32", "\"longest_edge\": 32"), file, &["size", "shortest_edge"]);
    assert_refused("vit", edit_preprocessor("\"do_resize\"", "\"do_pad\": true, \"do_resize\""), file, &["do_pad is true"]);
    assert_refused("vit", without_spread, file, &["image_std", "above 0"]);
    let crop = edit_preprocessor("\"crop_size\": {\n    \"height\": 32", "\"crop_size\": {\n    \"height\": 16");
    assert_refused("safety-checker", crop, file, &["16 high and 32 wide"]);
}

#[test]
fn classifier_with_tensors_missing_or_of_another_shape() {
    let key = "vit.encoder.layer.1.attention.attention.key.weight";
    assert_refused("vit", edit_tensors(|tensors| drop(tensors.remove(key))), "", &[&format!("{key} [32, 32] is missing")]);
    let turned = edit_tensors(|tensors| drop(tensors.insert(key.into(), zeros(&[32, 16]))));
    assert_refused("vit", turned, "", &[&format!("{key} has the shape [32, 16], config.json says [32, 32]")]);
    let fewer = edit_tensors(|tensors| drop(tensors.insert("concept_embeds".into(), zeros(&[16, 24]))));
    assert_refused("safety-checker", fewer, "", &["concept_embeds has the shape [16, 24]", "[17, 24]"]);
    let none = edit_tensors(|tensors| drop(tensors.remove("special_care_embeds_weights")));
    assert_refused("safety-checker", none, "", &["special_care_embeds_weights [3] is missing"]);
}

#[test]
fn classifier_with_tensors_that_nothing_reads() {
    let more = edit_tensors(|tensors| drop(tensors.insert("vit.encoder.layer.2.layernorm_after.bias".into(), zeros(&[32]))));
    assert_refused("vit", more, "", &["vit.encoder.layer.2.layernorm_after.bias", "config.json knows nothing of"]);
    // ViTs from before 2021 bring a pooler, which a classifier never looks at.
    let parent = copied("vit");
    edit_tensors(|tensors| drop(tensors.insert("vit.pooler.dense.bias".into(), zeros(&[32]))))(&parent.path().join("checker"));
    assert!(load(&parent).is_ok());
}

#[test]
fn safety_checker_of_a_pipeline_shares_its_preprocessor() {
    let parent = copied("safety-checker");
    let own = parent.path().join("checker/preprocessor_config.json");
    let shared = parent.path().join("feature_extractor");
    fs::create_dir(&shared).expect("a directory");
    fs::rename(own, shared.join("preprocessor_config.json")).expect("moves");
    let whole = Classifier::load(&directory().join("safety-checker"), DType::F32, &device()).expect("loads");
    let image = [RgbImage::from_pixel(50, 40, Rgb([200, 90, 30]))];
    let scores = load(&parent).expect("loads").classify(&image).expect("scores");
    assert_eq!(scores, whole.classify(&image).expect("scores"));
}

#[test]
fn scores_that_are_no_numbers_are_an_error_and_never_low() {
    for (name, tensor, shape) in [("vit", "classifier.bias", 2), ("safety-checker", "concept_embeds_weights", 17)] {
        let parent = copied(name);
        let broken = Tensor::full(f32::NAN, shape, &Device::Cpu).expect("a tensor");
        edit_tensors(|tensors| drop(tensors.insert(tensor.into(), broken)))(&parent.path().join("checker"));
        let found = load(&parent).expect("loads").classify(&[RgbImage::new(40, 40)]);
        let Err(EngineError::NotFinite { problem }) = found else { panic!("{name}: {found:?}") };
        assert!(problem.contains("no numbers"), "{problem}");
    }
}

#[test]
fn images_that_are_hard_to_look_at() {
    let classifier = Classifier::load(&directory().join("safety-checker"), DType::F32, &device()).expect("loads");
    assert_eq!(classifier.classify(&[]).expect("nothing"), Vec::<Vec<f32>>::new());
    let empty = classifier.classify(&[RgbImage::new(8, 8), RgbImage::new(0, 8)]);
    let Err(EngineError::Request { field, problem }) = empty else { panic!("{empty:?}") };
    assert_eq!((field, problem.as_str()), ("images", "image 1 has no pixels"));
    // Made as long as it asks for, it would have two million columns and 192 MB.
    let strip = RgbImage::from_pixel(65_000, 1, Rgb([9, 9, 9]));
    let plain = RgbImage::from_pixel(32, 32, Rgb([9, 9, 9]));
    let scores = classifier.classify(&[strip, plain]).expect("scores");
    assert_eq!(scores[0], scores[1], "its middle is as plain as all of it");
}
