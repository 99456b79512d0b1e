//! Property: what is generated is finite. NaN, infinity and overflow anywhere end in an error that says where, or in a second decode.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use atelier_engine::qwen::pipeline::Edit;
use atelier_engine::qwen::precision::Precision;
use atelier_engine::qwen::{QwenImage, Variant};
use atelier_engine::sd::StableDiffusion;
use atelier_engine::sd::settings::Settings;
use atelier_engine::{Engine, EngineError, GenerateRequest, Image, InitImage, LoraFile, QueuedRequest, Request, Watch};
use candle_core::{DType, Device, Tensor};
use image::RgbImage;

use super::checkpoints::copied;
use super::{copy_directory, fixtures, lora, request};

use crate::device;

const UNET: &str = "unet/diffusion_pytorch_model.safetensors";
const VAE: &str = "vae/diffusion_pytorch_model.safetensors";
const TEXT: &str = "text_encoder/model.safetensors";

fn load(directory: &Path, dtype: DType) -> StableDiffusion {
    StableDiffusion::load(&Settings::new(directory, dtype, device())).expect("a bad value is no reason not to load")
}

/// One step is enough for a bad weight to show.
fn one_step(loras: Vec<LoraFile>) -> GenerateRequest {
    let mut request = request(loras);
    request.steps = 1;
    request
}

fn generate(engine: &mut StableDiffusion, request: &GenerateRequest) -> Result<Vec<Image>, EngineError> {
    engine.generate(request, &Watch::new(|_| ()))
}

fn tensors(file: &Path) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(file, &device()).expect("loads")
}

/// The file again with the first value of tensor `name` replaced.
fn plant(file: &Path, name: &str, value: f32) {
    let mut tensors = tensors(file);
    let shape = tensors[name].shape().clone();
    let dtype = tensors[name].dtype();
    let flat = tensors[name].flatten_all().and_then(|flat| flat.to_dtype(DType::F32)?.to_vec1::<f32>());
    let mut values = flat.expect("values");
    values[0] = value;
    let planted = Tensor::from_vec(values, shape, &device()).and_then(|tensor| tensor.to_dtype(dtype)).expect("a tensor");
    tensors.insert(name.to_owned(), planted);
    candle_core::safetensors::save(&tensors, file).expect("saves");
}

pub(super) fn scale(file: &Path, chosen: impl Fn(&str) -> bool, factor: f64) {
    let mut tensors = tensors(file);
    for (name, tensor) in &mut tensors {
        if chosen(name) {
            *tensor = tensor.to_dtype(DType::F32).and_then(|tensor| tensor * factor).expect("scales");
        }
    }
    candle_core::safetensors::save(&tensors, file).expect("saves");
}

fn assert_not_finite(result: Result<Vec<Image>, EngineError>, words: &[&str], case: &str) {
    match result {
        Err(EngineError::NotFinite { problem }) => {
            for word in words {
                assert!(problem.contains(word), "{case}: {word:?} is not in {problem:?}");
            }
        }
        other => panic!("{case}: {:?}", other.map(|images| images.len())),
    }
}

/// A NaN in any one tensor of the UNet, of the text encoder or of the VAE's decoder: never an image. The kernels must let it through.
#[test]
fn a_nan_in_any_tensor_is_found_with_its_stage_and_its_name() {
    for (file, component, stage) in
        [(UNET, "unet", "the UNet"), (TEXT, "text_encoder", "text encoder"), (VAE, "vae", "VAE's decoder")]
    {
        let mut names: Vec<String> = tensors(&fixtures().join("sd15").join(file)).into_keys().collect();
        names.retain(|name| !name.starts_with("encoder.") && !name.starts_with("quant_conv."));
        // A token and a place that the prompt does not use are read by no one.
        names.retain(|name| !name.contains("token_embedding"));
        names.sort();
        for name in names {
            let directory = copied();
            plant(&directory.path().join(file), &name, f32::NAN);
            let name = if component == "text_encoder" && !name.starts_with("text_model.") {
                format!("text_model.{name}")
            } else {
                name
            };
            let result = generate(&mut load(directory.path(), DType::F32), &one_step(vec![]));
            assert_not_finite(result, &[stage, &format!("{component}.{name}"), "download the model again"], &name);
        }
    }
}

#[test]
fn infinity_is_found_as_well() {
    for (file, name) in [(UNET, "conv_out.bias"), (VAE, "decoder.conv_out.bias")] {
        let directory = copied();
        plant(&directory.path().join(file), name, f32::INFINITY);
        assert_not_finite(generate(&mut load(directory.path(), DType::F32), &one_step(vec![])), &[name], name);
    }
}

/// What would fail every job fails the start.
#[test]
fn a_broken_model_does_not_get_through_its_warm_up() {
    let directory = copied();
    plant(&directory.path().join(VAE), "decoder.conv_in.weight", f32::NAN);
    let error = load(directory.path(), DType::F32).warm_up().expect_err("a NaN");
    assert!(error.to_string().contains("vae.decoder.conv_in.weight"), "{error}");
}

/// f16 ends at 65504; the same weights in f32 are what the image should be.
#[test]
fn a_decode_that_overflows_f16_is_done_again_in_f32() {
    let directory = copied();
    // The next norm takes the factor out again, so the image is an ordinary one.
    scale(&directory.path().join(VAE), |name| name.starts_with("decoder.conv_in."), 3e4);
    let half = generate(&mut load(directory.path(), DType::F16), &one_step(vec![])).expect("a second decode");
    let whole = generate(&mut load(directory.path(), DType::F32), &one_step(vec![])).expect("an image");
    let pairs = half[0].rgb.iter().zip(&whole[0].rgb);
    let largest = pairs.map(|(one, other)| one.abs_diff(*other)).max().expect("pixels");
    assert!(largest <= 16, "f16 latents through an f32 decoder: {largest}");
    assert!(half[0].rgb.iter().any(|value| *value != half[0].rgb[0]), "a flat image");
    let alone = half[0].clone();
    let again = generate(&mut load(directory.path(), DType::F16), &one_step(vec![])).expect("again");
    assert_eq!(again[0], alone, "the same image each time");
}

#[test]
fn a_start_that_overflows_f16_is_encoded_again_in_f32() {
    let directory = copied();
    scale(&directory.path().join(VAE), |name| name.starts_with("encoder.conv_in."), 6e4);
    let mut start = one_step(vec![]);
    start.start = Some(InitImage { rgb: RgbImage::from_fn(64, 64, |x, y| image::Rgb([x as u8, y as u8, 90])), mask: None });
    generate(&mut load(directory.path(), DType::F16), &start).expect("a second encode");
    plant(&directory.path().join(VAE), "encoder.conv_out.weight", f32::NAN);
    let result = generate(&mut load(directory.path(), DType::F16), &start);
    assert_not_finite(result, &["VAE's encoder", "vae.encoder.conv_out.weight", "init_image"], "encoder");
}

#[test]
fn an_overflow_outside_of_the_decoder_says_what_to_set() {
    let directory = copied();
    scale(&directory.path().join(UNET), |name| name == "conv_out.weight", 1.5e5);
    let result = generate(&mut load(directory.path(), DType::F16), &one_step(vec![]));
    assert_not_finite(result, &["the UNet", "engine.dtype"], "f16");
}

/// A LoRA is at fault only for its own job.
#[test]
fn a_lora_beyond_the_range_is_named_and_the_next_job_is_unharmed() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("huge.safetensors");
    fs::copy(fixtures().join("loras/peft.safetensors"), &path).expect("copies");
    scale(&path, |_| true, 1e3);
    let mut engine = load(&fixtures().join("sd15"), DType::F16);
    let before = generate(&mut engine, &one_step(vec![])).expect("an image");
    let good = LoraFile::new(fixtures().join("loras/kohya.safetensors"), 0.1);
    let result = generate(&mut engine, &one_step(vec![good, lora(path)]));
    assert_not_finite(result, &["lora[1] at scale 1 makes ", "use a smaller scale"], "a LoRA");
    assert_eq!(generate(&mut engine, &one_step(vec![])).expect("an image"), before);
}

/// Of jobs in one batch only those with a bad image fail: here all, each with its own error and none twice.
#[test]
fn every_job_of_a_batch_gets_its_own_answer() {
    let directory = copied();
    plant(&directory.path().join(VAE), "decoder.conv_out.bias", f32::NAN);
    let mut engine = load(directory.path(), DType::F32);
    let order = || QueuedRequest { request: Request::Generate(one_step(vec![])), watch: Watch::new(|_| ()) };
    let answers = engine.generate_together(&[order(), order()]).expect("an answer for each");
    assert_eq!(answers.len(), 2);
    for answer in answers {
        assert_not_finite(answer, &["VAE's decoder"], "batch");
    }
}

/// `path`, or the shard in it that has tensor `name`.
fn file_of(path: &Path, name: &str) -> PathBuf {
    if path.is_file() {
        return path.to_owned();
    }
    let files = fs::read_dir(path).expect("a directory").map(|entry| entry.expect("an entry").path());
    let mut files = files.filter(|file| file.extension().is_some_and(|extension| extension == "safetensors"));
    files.find(|file| tensors(file).contains_key(name)).expect("a shard")
}

fn edit_directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/qwen/edit")
}

fn edited(directory: &Path, bad_text: bool) -> Result<Vec<Image>, EngineError> {
    let mut engine = QwenImage::load(directory, &Variant::default(), Precision::of(&Device::Cpu), device()).expect("loads");
    let values = (0..5 * 24).map(|index| if bad_text && index == 7 { f32::NAN } else { (index as f32 * 0.7).sin() });
    let positive = Tensor::from_vec(values.collect::<Vec<_>>(), (1, 5, 24), &device()).expect("a text");
    let edit = Edit {
        positive,
        negative: None,
        guidance_scale: 1.0,
        steps: 1,
        step_cache: None,
        seeds: vec![3, 4],
        width_px: 48,
        height_px: 32,
    };
    let image = RgbImage::from_fn(48, 48, |x, y| image::Rgb([90, (5 * x) as u8, (5 * y) as u8]));
    engine.generate(&edit, &[image], &Watch::new(|_| ()))
}

/// The clamp at the decoder's end hides neither NaN nor infinity.
#[test]
fn an_edit_that_is_not_finite_says_in_which_stage() {
    assert!(edited(&edit_directory(), false).is_ok());
    assert_not_finite(edited(&edit_directory(), true), &["the text encoder of model edit"], "text");
    let vae = "vae/diffusion_pytorch_model.safetensors";
    for (file, name, value, words) in [
        (vae, "decoder.conv_out.bias", f32::INFINITY, ["VAE's decoder", "vae/"]),
        (vae, "decoder.conv_in.bias", f32::NAN, ["VAE's decoder", "vae/"]),
        (vae, "encoder.conv_in.bias", f32::NAN, ["VAE's encoder", "vae/"]),
        ("transformer", "proj_out.weight", f32::NAN, ["the transformer", "its own transformer"]),
        ("transformer", "img_in.bias", f32::INFINITY, ["the transformer", "its own transformer"]),
    ] {
        let directory = tempfile::tempdir().expect("a directory");
        copy_directory(&edit_directory(), directory.path());
        plant(&file_of(&directory.path().join(file), name), name, value);
        assert_not_finite(edited(directory.path(), false), &words, name);
    }
}
