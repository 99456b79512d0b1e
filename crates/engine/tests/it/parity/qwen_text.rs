//! The text encoder of Qwen-Image-Edit against what Pillow, transformers and diffusers computed (`tests/oracle/qwen_text.py`).

use std::fs;
use std::path::PathBuf;

use atelier_engine::EngineError;
use atelier_engine::qwen::precision::Precision;
use atelier_engine::qwen::text::TextEncoder;
use atelier_engine::qwen::text::positions::Run;
use atelier_engine::resample::{Filter, resize};
use candle_core::{Device, Tensor};
use image::RgbImage;

use super::{Reference, STAGE, Stage};
use crate::device;
use crate::engine::copy_directory;

/// As in the oracle's script.
const CONDITION_PX: u32 = 168 * 168;
const IMAGES: [&str; 3] = ["person", "garment", "shoes"];
const PROMPTS: [(&str, &str, &[&str]); 4] = [
    ("plain", "Dress the person in image 1 in the garment of image 2.", &["person", "garment"]),
    ("blank", " ", &["person", "garment"]),
    ("odd", "Größe XL's 衣服…\n\n  7, <|ok|>?", &["garment", "shoes", "person"]),
    ("alone", "put it on", &["shoes"]),
];

fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/qwen-text")
}

fn expected() -> Reference {
    Reference::open(&directory().join("expected.safetensors"))
}

fn encoder() -> TextEncoder {
    TextEncoder::load(&directory(), Some(CONDITION_PX), Precision::of(&Device::Cpu), device()).expect("the fixture loads")
}

pub(super) fn image(values: &Tensor) -> RgbImage {
    let (height, width, _) = values.dims3().expect("an image");
    let bytes = values.flatten_all().and_then(|flat| flat.to_vec1::<u8>()).expect("bytes");
    RgbImage::from_raw(width as u32, height as u32, bytes).expect("as many bytes")
}

fn copied() -> tempfile::TempDir {
    let copy = tempfile::tempdir().expect("a directory");
    copy_directory(&directory(), copy.path());
    copy
}

#[test]
fn resized_images_are_pillows_byte_for_byte() {
    let expected = expected();
    for case in 0..11 {
        let input = image(expected.get(&format!("resize/{case}/input")));
        for (name, filter) in [("lanczos", Filter::Lanczos), ("bicubic", Filter::Bicubic)] {
            let pillows = image(expected.get(&format!("resize/{case}/{name}")));
            let ours = resize(&input, pillows.width(), pillows.height(), filter);
            assert!(ours == pillows, "{name}, case {case}: {:?} to {:?}", input.dimensions(), pillows.dimensions());
        }
    }
}

#[test]
fn parity_of_the_vision_tower() {
    let expected = expected();
    let encoder = encoder();
    let mut patches = Stage::new("qwen, patches");
    let mut tokens = Stage::new("qwen, vision tower");
    for name in IMAGES {
        let input = image(expected.get(&format!("input/{name}")));
        let ours = encoder.sight().expect("it sees").patches(&input).expect("patches");
        let rows: Vec<u32> = (0..ours.values.dim(0).expect("rows") as u32).step_by(9).collect();
        let rows = Tensor::from_vec(rows.clone(), rows.len(), &device()).expect("rows");
        let some = ours.values.index_select(&rows, 0).expect("some rows");
        patches.compare(name, &some, expected.get(&format!("patches/{name}")));
        let seen = encoder.sight().expect("it sees").see(&input).expect("tokens");
        tokens.compare(name, &seen.tokens, expected.get(&format!("vision/{name}")));
    }
    patches.finish(STAGE);
    tokens.finish(STAGE);
}

#[test]
fn parity_of_hidden_states() {
    let expected = expected();
    let mut encoder = encoder();
    let mut stage = Stage::new("qwen, hidden states");
    for (key, prompt, images) in PROMPTS {
        let shown: Vec<RgbImage> = images.iter().map(|name| image(expected.get(&format!("input/{name}")))).collect();
        let ours = encoder.encode(prompt, &shown).expect("hidden states");
        stage.compare(key, &ours, expected.get(&format!("hidden/{key}")));
        let again = encoder.encode(prompt, &shown).expect("hidden states");
        let values = |tensor: &Tensor| tensor.flatten_all().and_then(|flat| flat.to_vec1::<f32>()).expect("values");
        assert!(values(&again) == values(&ours), "{key}: what is known is given as it was");
    }
    stage.finish(STAGE);
}

#[test]
fn vocabulary_and_merges_are_the_same_tokenizer() {
    let tokens = |encoder: &TextEncoder, prompt: &str| encoder.tokenizer().runs(prompt, 2).expect("tokens");
    let copy = copied();
    fs::remove_file(copy.path().join("processor/tokenizer.json")).expect("is there");
    let from_files = TextEncoder::load(copy.path(), Some(CONDITION_PX), Precision::of(&Device::Cpu), device()).expect("loads");
    let encoder = encoder();
    for (_, prompt, _) in PROMPTS {
        assert_eq!(tokens(&encoder, prompt), tokens(&from_files, prompt), "{prompt:?}");
    }
}

#[test]
fn special_tokens_in_a_prompt_are_words() {
    let encoder = encoder();
    let count = |prompt: &str| {
        let runs = encoder.tokenizer().runs(prompt, 1).expect("tokens");
        assert_eq!(runs.iter().filter(|run| matches!(run, Run::Image(_))).count(), 1);
        runs.iter().map(|run| if let Run::Text(tokens) = run { tokens.len() } else { 0 }).sum::<usize>()
    };
    assert!(count("<|image_pad|><|im_end|>") > count("") + 4);
}

#[test]
fn a_prompt_that_is_too_long_is_refused() {
    let mut encoder = encoder();
    let image = RgbImage::new(64, 64);
    assert!(encoder.encode(&"word ".repeat(200), std::slice::from_ref(&image)).is_ok());
    let refused = encoder.encode(&"7 ".repeat(600), &[image]);
    let Err(EngineError::Request { field: "prompt", problem }) = refused else { panic!("{refused:?}") };
    assert!(problem.starts_with("must have at most 1024 tokens, got 12"), "{problem}");
}

#[test]
fn what_is_missing_in_the_files_is_listed() {
    let load = |change: &dyn Fn(&std::path::Path)| {
        let copy = copied();
        change(copy.path());
        let loaded = TextEncoder::load(copy.path(), Some(CONDITION_PX), Precision::of(&Device::Cpu), device());
        loaded.err().expect("refused").to_string()
    };
    let config = |from: &str, to: &str| {
        let from = from.to_owned();
        let to = to.to_owned();
        load(&move |directory| {
            let path = directory.join("text_encoder/config.json");
            let text = fs::read_to_string(&path).expect("reads");
            assert!(text.contains(&from));
            fs::write(path, text.replace(&from, &to)).expect("writes");
        })
    };
    let wider = config("\"intermediate_size\": 40", "\"intermediate_size\": 41");
    assert!(wider.contains("config.json says [41, 48]") && wider.contains("; "), "{wider}");
    let deeper = config("\"depth\": 3", "\"depth\": 4");
    assert!(deeper.contains("visual.blocks.3.norm1.weight [24] is missing"), "{deeper}");
    let odd = config("\"num_key_value_heads\": 2", "\"num_key_value_heads\": 4");
    assert!(odd.ends_with("num_attention_heads must be a multiple of num_key_value_heads"), "{odd}");
    let silent = load(&|directory| fs::remove_file(directory.join("processor/preprocessor_config.json")).expect("is there"));
    assert!(silent.contains("preprocessor_config.json"), "{silent}");
}
