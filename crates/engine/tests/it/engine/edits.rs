//! How Qwen-Image-Edit takes what it cannot load or generate, and what it keeps between generations.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use atelier_engine::qwen::packing::Grid;
use atelier_engine::qwen::pipeline::Edit;
use atelier_engine::qwen::precision::Precision;
use atelier_engine::qwen::{QwenImage, Variant};
use atelier_engine::{EngineError, LoraFile, Progress, Watch};
use candle_core::{DType, Device, Tensor};
use image::RgbImage;

use super::checkpoints::edit as edit_file;
use super::copy_directory;

use crate::device;

const TRANSFORMER: &str = "transformer/config.json";
const GRIDS: [Grid; 2] = [Grid { height: 2, width: 3 }, Grid { height: 3, width: 3 }];

fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/qwen")
}

fn load(directory: &Path, variant: &Variant) -> Result<QwenImage, EngineError> {
    QwenImage::load(directory, variant, Precision::of(&Device::Cpu), device())
}

fn engine() -> QwenImage {
    load(&directory().join("edit"), &Variant::default()).expect("the fixture loads")
}

fn text(seed: u64) -> Tensor {
    let values = (0..5 * 24).map(|index| ((index as f32 + seed as f32) * 0.7).sin()).collect::<Vec<_>>();
    Tensor::from_vec(values, (1, 5, 24), &device()).expect("a text")
}

fn edit(seeds: Vec<u64>) -> Edit {
    let positive = text(1);
    let negative = Some(text(2));
    Edit { positive, negative, guidance_scale: 2.0, steps: 3, step_cache: None, seeds, width_px: 48, height_px: 32 }
}

fn image(shade: u8) -> RgbImage {
    RgbImage::from_fn(48, 48, |x, y| image::Rgb([shade, (5 * x) as u8, (5 * y) as u8]))
}

/// Copies the fixture, breaks it, loads it, and returns the error's file and message.
fn refused(breaking: impl FnOnce(&Path)) -> (PathBuf, String) {
    let copied = tempfile::tempdir().expect("a directory");
    copy_directory(&directory().join("edit"), copied.path());
    breaking(copied.path());
    match load(copied.path(), &Variant::default()).err() {
        Some(EngineError::Checkpoint { path, problem }) => {
            (path.strip_prefix(copied.path()).unwrap_or(&path).to_owned(), problem)
        }
        other => panic!("{other:?}"),
    }
}

/// A file, what is changed in it to what, the file that is to blame and words of the error.
type Contradiction = (&'static str, (&'static str, &'static str), &'static str, &'static [&'static str]);

const CONTRADICTIONS: &[Contradiction] = &[
    (
        TRANSFORMER,
        ("\"num_layers\": 2", "\"num_layers\": 3"),
        "transformer",
        &["transformer.transformer_blocks.2.attn.add_k_proj.bias [32] is missing", "and 24 more"],
    ),
    (
        TRANSFORMER,
        ("\"joint_attention_dim\": 24", "\"joint_attention_dim\": 25"),
        "transformer",
        &["transformer.txt_in.weight has the shape [32, 24], config.json says [32, 25]", "txt_norm"],
    ),
    (
        TRANSFORMER,
        ("\"attention_head_dim\": 16", "\"attention_head_dim\": 8"),
        "transformer",
        &["axes_dims_rope must add up to attention_head_dim"],
    ),
    (
        TRANSFORMER,
        ("\"guidance_embeds\": false", "\"guidance_embeds\": true"),
        TRANSFORMER,
        &["guidance_embeds is true; supported: false"],
    ),
    ("vae/config.json", ("\"z_dim\": 4", "\"z_dim\": 8"), "transformer", &["in_channels must be 4 times the VAE's z_dim"]),
    (
        "vae/config.json",
        ("\"num_res_blocks\": 1", "\"num_res_blocks\": 2"),
        "vae",
        &["vae.encoder.down_blocks.1.norm1.gamma [4, 1, 1, 1] is missing", "more"],
    ),
    (
        "scheduler/scheduler_config.json",
        ("\"exponential\"", "\"linear\""),
        "scheduler/scheduler_config.json",
        &["time_shift_type is \"linear\"; supported: \"exponential\""],
    ),
    (
        "model_index.json",
        ("QwenImageEditPlusPipeline", "QwenImageEditPipeline"),
        "model_index.json",
        &["supported: \"QwenImagePipeline\", \"QwenImageEditPlusPipeline\""],
    ),
];

#[test]
fn a_checkpoint_that_contradicts_itself_is_refused_in_words() {
    for (file, (from, to), blamed, words) in CONTRADICTIONS {
        let (path, problem) = refused(|directory| edit_file(&directory.join(file), from, to));
        assert_eq!(path, Path::new(blamed), "{problem}");
        for word in *words {
            assert!(problem.contains(word), "{word:?} is not in {problem:?}");
        }
    }
}

#[test]
fn a_broken_weight_file_is_refused_in_words() {
    let shard = "transformer/diffusion_pytorch_model-00002-of-00003.safetensors";
    let whole = fs::read(directory().join("edit").join(shard)).expect("reads");
    let endless = u64::MAX.to_le_bytes();
    let cases: [(&[u8], &str); 6] = [
        (&whole[..whole.len() - 1], "is not a whole safetensors file"),
        (&whole[..40], "is not a whole safetensors file"),
        (b"PK\x03\x04pickled", "is a pickle"),
        (b"1234", "is not a whole safetensors file"),
        (&endless, "is not a whole safetensors file"),
        (b"", "is not a whole safetensors file"),
    ];
    for (bytes, word) in cases {
        let (path, problem) = refused(|directory| fs::write(directory.join(shard), bytes).expect("writes"));
        assert!(path == Path::new(shard) && problem.contains(word), "{}: {problem}", path.display());
    }
}

/// An 8-bit file of the fixture with tensors changed.
fn fp8(change: impl FnOnce(&mut HashMap<String, Tensor>)) -> (tempfile::TempDir, Variant) {
    let file = directory().join("fp8/channel.safetensors");
    let mut tensors = candle_core::safetensors::load(file, &device()).expect("loads");
    change(&mut tensors);
    let kept = tempfile::tempdir().expect("a directory");
    let file = kept.path().join("changed.safetensors");
    candle_core::safetensors::save(&tensors, &file).expect("saves");
    (kept, Variant { file: Some(file), ..Variant::default() })
}

#[test]
fn fp8_weights_that_do_not_fit_are_refused_in_words() {
    let query = "transformer_blocks.0.attn.to_q";
    let zeros = |shape: &[usize], dtype| Tensor::zeros(shape, dtype, &device()).expect("zeros");
    let scale = zeros(&[3, 1], DType::F32);
    let integers = zeros(&[32, 32], DType::U8);
    let cases: [(&str, Option<Tensor>, &str); 3] = [
        ("weight_scale", Some(scale), "to_q.weight_scale has the shape [3, 1]; supported are one number, [32] and [32, 1]"),
        ("weight", Some(integers), "to_q.weight is kept as U8; supported are F32, F16, BF16 and, of matrices, F8_E4M3"),
        ("weight", None, "transformer.transformer_blocks.0.attn.to_q.weight [32, 32] is missing"),
    ];
    for (tensor, value, word) in cases {
        let (kept, variant) = fp8(|tensors| {
            let name = format!("{query}.{tensor}");
            tensors.remove(&name);
            tensors.extend(value.map(|value| (name, value)));
        });
        let error = load(&directory().join("edit"), &variant).err().expect("refused").to_string();
        assert!(error.contains(word) && error.contains("changed.safetensors"), "{word:?} is not in {error:?}");
        drop(kept);
    }
}

#[test]
fn loras_that_do_not_fit_are_refused_by_their_place() {
    let lora = |path: PathBuf| LoraFile::new(path, 1.0);
    let good = lora(directory().join("loras/lightning.safetensors"));
    let other = lora(super::fixtures().join("loras/peft.safetensors"));
    let load_with = |variant: &Variant, precision| QwenImage::load(&directory().join("edit"), variant, precision, device());
    let refused = |variant: &Variant, precision| match load_with(variant, precision).err() {
        Some(EngineError::Lora { index, problem }) => (index, problem),
        other => panic!("{other:?}"),
    };
    let whole = Precision::of(&Device::Cpu);
    let (index, problem) = refused(&Variant { loras: vec![good, other], ..Variant::default() }, whole);
    assert!(index == 1 && problem.contains("was it trained on another model?"), "{index}: {problem}");

    let kept = tempfile::tempdir().expect("a directory");
    let difference = Tensor::zeros((32, 32), DType::F32, &device()).expect("zeros");
    let name = "diffusion_model.transformer_blocks.1.attn.to_k.diff".to_owned();
    let path = kept.path().join("difference.safetensors");
    candle_core::safetensors::save(&HashMap::from([(name, difference)]), &path).expect("saves");
    let file = Some(directory().join("fp8/tensor.safetensors"));
    let variant = Variant { file, loras: vec![lora(path)], distilled: false };
    assert!(load_with(&variant, whole).is_ok(), "whole weights take any change");
    let (index, problem) = refused(&variant, Precision { compute: DType::F32, keep_fp8: true });
    assert!(index == 0 && problem.contains("transformer_blocks.1.attn.to_k would be changed by more than"), "{problem}");
}

#[test]
fn what_cannot_be_generated_is_refused_by_field() {
    let mut engine = engine();
    let watch = Watch::new(|_| ());
    for (change, expected) in [
        (Edit { width_px: 40, ..edit(vec![1]) }, "width: must be a multiple of 16, got 40"),
        (Edit { height_px: 0, ..edit(vec![1]) }, "height: must be a multiple of 16, got 0"),
        (Edit { steps: 0, ..edit(vec![1]) }, "steps: must be 1 or more, got 0"),
    ] {
        let error = engine.generate(&change, &[image(9)], &watch).expect_err("refused");
        assert_eq!(error.to_string(), expected);
    }
    let error = engine.generate(&edit(vec![1]), &[RgbImage::new(50, 48)], &watch).expect_err("a reference of another size");
    assert_eq!(error.to_string(), "width: must be a multiple of 16, got 50");
}

#[test]
fn an_edit_reports_each_step_and_stops_between_two() {
    let mut engine = engine();
    let seen: Arc<Mutex<Vec<u32>>> = Arc::default();
    let steps = Arc::clone(&seen);
    let watch = Watch::new(move |progress: Progress| steps.lock().expect("a lock").push(progress.step));
    let generated = engine.generate(&edit(vec![3, 4]), &[image(9)], &watch).expect("images");
    assert_eq!((generated.len(), seen.lock().expect("a lock").as_slice()), (2, &[1, 2, 3][..]));

    let stopped: Arc<Mutex<Option<Watch>>> = Arc::default();
    let handle = Arc::clone(&stopped);
    let watch = Watch::new(move |progress: Progress| {
        assert!(progress.step < 3, "a step after the cancel");
        if let (2, Some(watch)) = (progress.step, handle.lock().expect("a lock").as_ref()) {
            watch.cancel();
        }
    });
    *stopped.lock().expect("a lock") = Some(watch.clone());
    let ended = engine.generate(&edit(vec![3]), &[image(9)], &watch);
    assert!(matches!(ended, Err(EngineError::Cancelled)), "{ended:?}");
}

#[test]
fn an_edit_is_the_same_alone_again_and_beside_others() {
    let watch = Watch::new(|_| ());
    let mut together = engine();
    let images = [image(9), image(200)];
    let generated = together.generate(&edit(vec![3, 4]), &images, &watch).expect("images");
    let again = together.generate(&edit(vec![4]), &images, &watch).expect("an image");
    let alone = engine().generate(&edit(vec![4]), &images, &watch).expect("an image");
    assert_eq!((&again[0], &alone[0]), (&generated[1], &generated[1]));
    assert_ne!(generated[0].rgb, generated[1].rgb);
    let turned = engine().generate(&edit(vec![4]), &[image(200), image(9)], &watch).expect("an image");
    assert_ne!(turned[0].rgb, alone[0].rgb, "which reference is which matters");
}

#[test]
fn what_depends_on_time_alone_is_worked_out_ahead_to_the_bit_and_not_kept() {
    let copied = tempfile::tempdir().expect("a directory");
    copy_directory(&directory().join("edit"), copied.path());
    let mut engine = load(copied.path(), &Variant::default()).expect("loads");
    let tokens = Tensor::ones((1, 15, 16), DType::F32, &device()).expect("tokens");
    let velocity = |engine: &mut QwenImage, timesteps: &[f32], index: usize| {
        let conditionings = engine.conditionings(timesteps).expect("conditionings");
        let look = engine.predict(&tokens, &text(1), &GRIDS, &conditionings[index]).expect("a forward pass");
        look.velocity.flatten_all().and_then(|flat| flat.to_vec1::<f32>()).expect("values")
    };
    let schedule = [1000.0, 761.1, 20.0];
    let ahead = velocity(&mut engine, &schedule, 1);
    assert_eq!(ahead, velocity(&mut engine, &[761.1], 0), "its neighbours do not matter");
    assert_ne!(ahead, velocity(&mut engine, &schedule, 2));

    // The weights are gone now: what was worked out goes on, what was not cannot.
    for entry in fs::read_dir(copied.path().join("transformer")).expect("a directory") {
        fs::write(entry.expect("an entry").path(), b"").expect("writes");
    }
    assert_eq!(ahead, velocity(&mut engine, &schedule, 1));
    assert!(engine.conditionings(&[500.0]).is_err());
}
