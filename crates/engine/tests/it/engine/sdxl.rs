//! Stable Diffusion XL: what is refused, what f16 is too narrow for, packs, batches.

use std::fs;
use std::path::Path;

use atelier_engine::sd::StableDiffusion;
use atelier_engine::sd::settings::Settings;
use atelier_engine::sd::tiling::Tiling;
use atelier_engine::{EmbeddingFile, Engine, EngineError, GenerateRequest, Image, LoraFile, QueuedRequest, Request, Watch};
use candle_core::{DType, Device, Tensor};

use super::checkpoints::edit;
use super::finite::scale;
use super::{copy_directory, fixtures};
use crate::device;
use crate::parity::sdxl::directory;
use crate::parity::sdxl_adapters::request;

fn copied() -> tempfile::TempDir {
    let copy = tempfile::tempdir().expect("a directory");
    copy_directory(&directory(), copy.path());
    copy
}

fn load(directory: &Path, dtype: DType) -> StableDiffusion {
    StableDiffusion::load(&Settings::new(directory, dtype, device())).expect("loads")
}

fn generate(engine: &mut StableDiffusion, request: &GenerateRequest) -> Result<Vec<Image>, EngineError> {
    engine.generate(request, &Watch::new(|_| ()))
}

/// Breaks a copy and returns what its load says.
fn refused(breaking: impl FnOnce(&Path)) -> String {
    let copy = copied();
    breaking(copy.path());
    StableDiffusion::load(&Settings::new(copy.path(), DType::F32, device())).err().expect("refused").to_string()
}

#[test]
fn a_checkpoint_that_cannot_be_sdxl_is_refused_in_words() {
    let unet = |from: &'static str, to: &'static str| refused(move |copy| edit(&copy.join("unet/config.json"), from, to));
    let second = refused(|copy| fs::remove_dir_all(copy.join("text_encoder_2")).expect("removes"));
    assert!(second.contains("text_encoder_2: is missing: Stable Diffusion XL has two text encoders"), "{second}");
    let tokenizer = refused(|copy| fs::remove_dir_all(copy.join("tokenizer_2")).expect("removes"));
    assert!(tokenizer.contains("tokenizer_2: is missing"), "{tokenizer}");
    let refiner = refused(|copy| {
        let index = copy.join("model_index.json");
        edit(&index, "StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline");
        edit(&index, "\"force_zeros_for_empty_prompt\": true", "\"requires_aesthetics_score\": true");
    });
    assert!(refiner.contains("Stable Diffusion XL's refiner") && refiner.contains("serve the base model"), "{refiner}");
    for (problem, words) in [
        (unet("\"text_time\"", "null"), "addition_embed_type must be \"text_time\""),
        (unet("\"addition_time_embed_dim\": 6", "\"addition_time_embed_dim\": 7"), "must be an even number above 0"),
        (unet("\"projection_class_embeddings_input_dim\": 54", "\"projection_class_embeddings_input_dim\": 48"), "6 times"),
        (unet("\"cross_attention_dim\": 32", "\"cross_attention_dim\": 24"), "the sum of both text encoders' hidden_size"),
        (refused(|copy| edit(&copy.join("model_index.json"), "DiffusionXLPipeline", "DiffusionPipeline")), "is SDXL's"),
    ] {
        assert!(problem.contains(words), "{problem}");
    }
}

#[test]
fn a_lora_or_a_word_of_another_family_is_refused_by_its_name() {
    let mut xl = load(&directory(), DType::F32);
    let sd15 = fixtures().join("loras/peft.safetensors");
    let error = xl.use_loras(&[LoraFile::new(sd15, 1.0)]).expect_err("of Stable Diffusion 1").to_string();
    assert!(error.contains("is of Stable Diffusion 1 or 2, this model is of Stable Diffusion XL"), "{error}");
    let mut sd15 = StableDiffusion::load(&Settings::new(fixtures().join("sd15"), DType::F32, device())).expect("loads");
    for name in ["peft", "kohya", "sgm"] {
        let lora = LoraFile::new(directory().join(format!("loras/{name}.safetensors")), 1.0);
        let error = sd15.use_loras(&[lora]).expect_err("of Stable Diffusion XL").to_string();
        assert!(error.contains("is of Stable Diffusion XL, this model is of Stable Diffusion 1 or 2"), "{name}: {error}");
    }
    let word = |path| [EmbeddingFile { path, token: "<word>".into() }];
    let error =
        xl.read_embeddings(&word(fixtures().join("embeddings/mood.safetensors"))).expect_err("for one encoder").to_string();
    assert!(error.contains("must hold clip_l and clip_g"), "{error}");
    let error = sd15.read_embeddings(&word(directory().join("embeddings/mood.safetensors"))).expect_err("for two").to_string();
    assert!(error.contains("two text encoders of Stable Diffusion XL (clip_l, clip_g)"), "{error}");
}

#[test]
fn sizes_are_refused_by_models_that_do_not_look_at_them() {
    let mut sd15 = StableDiffusion::load(&Settings::new(fixtures().join("sd15"), DType::F32, device())).expect("loads");
    let mut request = request(1, 1.0, "");
    request.sampling.target_size = Some([72, 104]);
    let error = generate(&mut sd15, &request).expect_err("not SDXL").to_string();
    assert!(error.starts_with("target_size: means something only to Stable Diffusion XL"), "{error}");
}

/// `force_upcast`: what f16 cannot hold is computed in f32 from the beginning, as SDXL's pipelines do, and not decoded twice.
#[test]
fn the_vae_computes_in_f32_where_its_settings_ask_for_it() {
    let copy = copied();
    scale(&copy.path().join("vae/diffusion_pytorch_model.safetensors"), |name| name.starts_with("decoder.conv_in."), 3e4);
    let latents = Tensor::randn(0.0_f32, 1.0, (1, 4, 9, 13), &Device::Cpu).and_then(|latents| latents.to_device(&device()));
    let latents = latents.expect("latents");
    let decoded = |dtype| load(copy.path(), dtype).decode(&latents, Tiling::default()).expect("decodes");
    let whole = decoded(DType::F32);
    // On a CPU, where the largest of values with NaN among them is NaN.
    let largest_difference = |half: &Tensor| {
        let difference = (half - &whole).and_then(|difference| difference.to_device(&Device::Cpu)?.abs()?.max_all());
        difference.and_then(|largest| largest.to_scalar::<f32>()).expect("a number")
    };
    assert!(largest_difference(&decoded(DType::F16)) < 1e-2, "{}", largest_difference(&decoded(DType::F16)));
    let mut engine = load(copy.path(), DType::F16);
    let image = generate(&mut engine, &request(1, 1.0, "")).expect("an image").remove(0);
    assert!(image.rgb.iter().any(|value| *value != image.rgb[0]), "a flat image");
    // Without it the decode overflows, is found, and is done once more: never a black image.
    edit(&copy.path().join("vae/config.json"), "\"force_upcast\": true", "\"force_upcast\": false");
    assert!(largest_difference(&decoded(DType::F16)).is_nan(), "it did overflow");
    let again = generate(&mut load(copy.path(), DType::F16), &request(1, 1.0, "")).expect("a second decode").remove(0);
    let pairs = again.rgb.iter().zip(&image.rgb);
    assert!(pairs.map(|(one, other)| one.abs_diff(*other)).max().expect("pixels") <= 1);
}

#[test]
fn a_pack_is_its_source() {
    let packed = tempfile::tempdir().expect("a directory");
    for dtype in [DType::F32, DType::F16] {
        let to = packed.path().join(dtype.as_str());
        load(&directory(), dtype).pack(&to).expect("packs");
        assert!(to.join("text_encoder_2/config.json").is_file() && to.join("tokenizer_2/merges.txt").is_file());
        let request = request(2, 7.0, "storm");
        assert_eq!(
            generate(&mut load(&to, dtype), &request).expect("generates"),
            generate(&mut load(&directory(), dtype), &request).expect("generates")
        );
    }
}

/// Each with its own pooled text and sizes.
#[test]
fn jobs_of_one_batch_are_the_images_they_are_alone() {
    let mut engine = load(&directory(), DType::F32);
    let requests = ["", "storm, dog"].map(|negative| {
        let mut request = request(3, 7.0, negative);
        request.prompt = format!("a red cat {negative}");
        request.seeds = vec![7, 8];
        request.sampling.original_size = Some([300, 200]);
        request
    });
    assert!(requests[0].agrees_with(&requests[1]));
    let alone = requests.each_ref().map(|request| generate(&mut engine, request).expect("generates"));
    let queued =
        requests.clone().map(|request| QueuedRequest { request: Request::Generate(request), watch: Watch::new(|_| ()) });
    let together = engine.generate_together(&queued).expect("generates");
    for (together, alone) in together.into_iter().zip(alone) {
        for (one, other) in together.expect("images").iter().zip(&alone) {
            let pairs = one.rgb.iter().zip(&other.rgb);
            assert!(pairs.map(|(one, other)| one.abs_diff(*other)).max().expect("pixels") <= 1);
        }
    }
    let mut other = requests[0].clone();
    other.sampling.original_size = None;
    assert!(!other.agrees_with(&requests[0]), "the sizes are the UNet's input");
    engine.warm_up().expect("the sides of its config.json");
}

/// Words that `OneTrainer` keeps in a LoRA file have vectors for both text encoders; the same words out of a file of their own, beside
/// the LoRA, are the same image.
#[test]
fn words_bundled_with_a_lora_are_words_of_both_text_encoders() {
    let mut xl = load(&directory(), DType::F32);
    let kohya = directory().join("loras/kohya.safetensors");
    let mood = directory().join("embeddings/mood.safetensors");
    let read = |path: &Path| candle_core::safetensors::load(path, &device()).expect("the fixture");
    let vectors = read(&mood);
    let other_files = tempfile::tempdir().expect("a directory");
    let bundled = |name: &str, keys: &[(&str, &str)]| {
        let mut tensors = read(&kohya);
        tensors.extend(keys.iter().map(|(from, to)| (format!("bundle_emb.<mood>.{to}"), vectors[*from].clone())));
        let path = other_files.path().join(name);
        candle_core::safetensors::save(&tensors, &path).expect("saves");
        LoraFile::new(path, 1.0)
    };
    let words = GenerateRequest { prompt: "a <mood> lighthouse".into(), ..request(2, 5.0, "storm") };
    let word = EmbeddingFile { path: mood.clone(), token: "<mood>".into() };
    let beside = GenerateRequest { loras: vec![LoraFile::new(kohya.clone(), 1.0)], embeddings: vec![word], ..words.clone() };
    let both = bundled("both.safetensors", &[("clip_l", "clip_l"), ("clip_g", "clip_g")]);
    let inside = GenerateRequest { loras: vec![both], ..words.clone() };
    let expected = generate(&mut xl, &beside).expect("generates");
    assert_eq!(generate(&mut xl, &inside).expect("generates"), expected);
    let without = GenerateRequest { loras: beside.loras.clone(), ..words };
    assert_ne!(generate(&mut xl, &without).expect("generates"), expected, "the word means something");
    for (name, keys, says) in [
        ("l", vec![("clip_l", "clip_l")], "\"<mood>\" has no clip_g"),
        ("g", vec![("clip_g", "clip_g")], "\"<mood>\" has no clip_l"),
        ("swapped", vec![("clip_g", "clip_l"), ("clip_l", "clip_g")], "belongs to another model"),
        ("third", vec![("clip_l", "clip_l"), ("clip_g", "clip_g"), ("clip_g", "t5")], "bundle_emb.<mood>.t5"),
    ] {
        let error = xl.use_loras(&[bundled(name, &keys)]).expect_err(name).to_string();
        assert!(error.contains(says), "{name}: {error}");
    }
}
