//! Transformers in GGUF files against PyPI's gguf and diffusers with the weights that the blocks stand for (`tests/oracle/gguf_files.py`).

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use atelier_engine::flow::engine::{FlowEngine, Settings};
use atelier_engine::flow::family::Family;
use atelier_engine::flow::flux::Flux;
use atelier_engine::flow::flux2::Flux2;
use atelier_engine::flow::z_image::ZImage;
use atelier_engine::{EngineError, GenerateRequest, LoraFile};
use atelier_kernels::gguf::BlockFormat;
use candle_core::quantized::GgmlDType;
use candle_core::quantized::ggml_file::qtensor_from_ggml;
use candle_core::{Device, IndexOp as _, Tensor};

use super::flow::{SETTINGS, copied, directory, edit, expected, generate, load, plain, requests};
use super::qwen_text::image;
use super::stages::largest_step;
use super::{PIXEL, RelativeError, Stage};
use crate::engine::gguf::language_model;
use crate::own_device;

const TRANSFORMER: &str = "transformer/diffusion_pytorch_model.safetensors";

/// The checkpoint of a family whose transformer and large text encoder are in GGUF files, and the settings that name them.
fn checkpoint(base: &str) -> (tempfile::TempDir, Settings) {
    let copy = copied(base);
    let own = directory(&format!("gguf/{base}"));
    fs::copy(own.join("config.json"), copy.path().join("transformer/config.json")).expect("copies");
    let encoder = copy.path().join(if base == "flux" { "text_encoder_2" } else { "text_encoder" });
    fs::copy(own.join("text_encoder.json"), encoder.join("config.json")).expect("copies");
    for file in [copy.path().join(TRANSFORMER), encoder.join("model.safetensors")] {
        fs::remove_file(file).expect("removes");
    }
    let files = ["transformer.gguf", "text_encoder.gguf"].map(|file| Some(own.join(file)));
    let [transformer, text_encoder] = files;
    (copy, Settings { transformer, text_encoder, ..SETTINGS })
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().expect("values").to_vec1().expect("values")
}

#[test]
fn blocks_are_what_gguf_and_candle_make_of_them_bit_by_bit() {
    let file = directory("gguf").join("blocks.safetensors");
    let tensors = candle_core::safetensors::load(file, &Device::Cpu).expect("the fixture loads");
    let candles = [
        GgmlDType::Q4_0,
        GgmlDType::Q4_1,
        GgmlDType::Q5_0,
        GgmlDType::Q5_1,
        GgmlDType::Q8_0,
        GgmlDType::Q4K,
        GgmlDType::Q5K,
        GgmlDType::Q6K,
    ];
    for (format, candles) in BlockFormat::ALL.into_iter().zip(candles) {
        let name = format.name();
        let blocks: Vec<u8> = tensors[&format!("{name}/blocks")].flatten_all().expect("bytes").to_vec1().expect("bytes");
        let values = values(&tensors[&format!("{name}/values")]);
        let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        let ours = format.unpack(&blocks);
        assert_eq!(ours.len(), values.len(), "{name}");
        assert_eq!(bits(&ours), bits(&values), "{name}: gguf");
        let candles = qtensor_from_ggml(candles, &blocks, vec![values.len()], &Device::Cpu).expect("reads");
        let candles = self::values(&candles.dequantize(&Device::Cpu).expect("values"));
        // A zero may have another sign.
        assert!(ours.iter().zip(&candles).all(|(ours, candles)| (ours - candles).abs() <= 0.0), "{name}: candle");
    }
}

/// With and without a LoRA beside the blocks; then once more without.
fn compare_images<F: Family>(base: &str) {
    let name = format!("gguf/{base}");
    let expected = expected(&name);
    let (directory, settings) = checkpoint(base);
    let mut engine = load::<F>(directory.path(), settings).expect("the fixture loads");
    let mut stage = Stage::new(format!("{name}, 8 bit"));
    let requests = requests(&name);
    let mut all = Vec::new();
    for (number, request) in requests.iter().enumerate() {
        let ours = generate(&mut engine, request).expect("generates");
        let theirs = image(&expected.get(&format!("expected/{number}")).i(0).expect("an image"));
        stage.note(&number.to_string(), f64::from(largest_step(&ours[0].rgb, theirs.as_raw())));
        all.push(ours);
    }
    stage.finish(RelativeError(f64::from(PIXEL)));
    assert!(largest_step(&all[0][0].rgb, &all[1][0].rgb) > PIXEL, "prompt and LoRA change the image");
    assert_eq!(generate(&mut engine, &requests[0]).expect("generates"), all[0], "nothing is left of a LoRA");
}

#[test]
fn parity_of_flux_in_blocks() {
    compare_images::<Flux>("flux");
}

/// A joint layer is cut by rows, blocks and the LoRA's matrices beside them alike.
#[test]
fn parity_of_flux2_in_blocks() {
    compare_images::<Flux2>("flux2");
}

#[test]
fn parity_of_z_image_in_blocks() {
    compare_images::<ZImage>("z-image");
}

/// On a GPU blocks are made whole within a graph, at an address that stays.
#[test]
fn graphs_over_blocks_give_the_same_images() {
    let device = own_device();
    let (directory, settings) = checkpoint("z-image");
    let [mut with, mut without] = [true, false].map(|graphs| {
        let settings = Settings { graphs, ..settings.clone() };
        FlowEngine::<ZImage>::load(directory.path(), settings, device.clone()).expect("loads")
    });
    for request in requests("gguf/z-image") {
        assert_eq!(generate(&mut with, &request).expect("generates"), generate(&mut without, &request).expect("generates"));
    }
    let counts = with.graph_counts();
    assert!(counts.refused == 0 && (!device.is_cuda() || counts.launched > counts.captured), "{counts:?}");
}

/// In f32 the weights themselves would take more than four times what their blocks do; the table of words is whole.
#[test]
fn weights_stay_in_blocks() {
    let (directory, settings) = checkpoint("flux");
    let length = |file: &Path| fs::metadata(file).expect("a file").len();
    let others = ["text_encoder/model.safetensors", "vae/diffusion_pytorch_model.safetensors"];
    // Their files are bf16.
    let others: u64 = others.into_iter().map(|file| 2 * length(&directory.path().join(file))).sum();
    let blocks: u64 = [&settings.transformer, &settings.text_encoder].into_iter().flatten().map(|file| length(file)).sum();
    let [above, below] = [blocks * 5 / 4, blocks / 2].map(|bytes| {
        let settings = Settings { memory_budget: Some(others + bytes), ..settings.clone() };
        load::<Flux>(directory.path(), settings).expect("loads").keeps_encoder()
    });
    assert!(above && !below);
}

#[test]
fn a_lora_that_is_more_than_two_matrices_is_refused_over_blocks_by_the_name_of_its_layer() {
    let (directory, settings) = checkpoint("flux");
    let mut engine = load::<Flux>(directory.path(), settings).expect("loads");
    let module = "lora_unet_double_blocks_0_img_mlp_0";
    let parts = [("hada_w1_a", [256, 2]), ("hada_w1_b", [2, 64]), ("hada_w2_a", [256, 2]), ("hada_w2_b", [2, 64])];
    let ones = |shape| Tensor::ones(&shape, candle_core::DType::F32, &Device::Cpu).expect("ones");
    let mut tensors: HashMap<String, Tensor> =
        parts.into_iter().map(|(part, shape): (_, [usize; 2])| (format!("{module}.{part}"), ones(shape))).collect();
    tensors.insert(format!("{module}.alpha"), ones([1, 1]).flatten_all().expect("one").i(0).expect("one"));
    let file = tempfile::NamedTempFile::with_suffix(".safetensors").expect("a file");
    candle_core::safetensors::save(&tensors, file.path()).expect("writes");
    let plain = plain("gguf/flux");
    let lora = GenerateRequest { loras: vec![LoraFile::new(file.path().to_owned(), 1.0)], ..plain.clone() };
    let refused = generate(&mut engine, &lora).expect_err("a LoHa");
    let EngineError::Lora { index: 0, problem } = &refused else { panic!("{refused}") };
    assert!(
        problem.contains("transformer_blocks.0.ff.net.0.proj") && problem.contains("in GGUF blocks cannot be"),
        "{problem}"
    );
    generate(&mut engine, &plain).expect("goes on");
}

/// The words of a refusal, which is one error with the file's name.
fn refused<F: Family>(directory: &Path, file: &Path, settings: &Settings) -> String {
    let settings = Settings { transformer: Some(file.to_owned()), ..settings.clone() };
    let refused = load::<F>(directory, settings).err().expect("another model").to_string();
    assert!(refused.contains(&file.display().to_string()), "{refused}");
    refused
}

#[test]
fn a_gguf_of_another_model_is_refused_in_words() {
    let file = |base: &str| directory(&format!("gguf/{base}")).join("transformer.gguf");
    let (flux, settings) = checkpoint("flux");
    let other = tempfile::NamedTempFile::new().expect("a file");
    fs::write(other.path(), language_model()).expect("writes");
    let says = refused::<Flux>(flux.path(), other.path(), &settings);
    let all = [
        "is GGUF of \"qwen3\"",
        "no tensor of this family's transformer: it has \"blk.0.attn_q.weight\"",
        "expected are double_blocks",
    ];
    assert!(all.iter().all(|part| says.contains(part)), "{says}");

    // Both families call some of their layers the same.
    let says = refused::<Flux>(flux.path(), &file("z-image"), &settings);
    let all = [
        "is GGUF of \"lumina2\", and not of this model: transformer.context_embedder.bias [64] is missing",
        "has the shape",
        "more",
    ];
    assert!(all.iter().all(|part| says.contains(part)), "{says}");

    edit(&flux.path().join("transformer/config.json"), "\"num_single_layers\": 1", "\"num_single_layers\": 2");
    let says = refused::<Flux>(flux.path(), &file("flux"), &settings);
    assert!(says.contains("is GGUF of \"flux\"") && says.contains("single_transformer_blocks.1.attn.to_k.bias"), "{says}");
    assert!(says.contains("is missing") && says.contains("more"), "{says}");

    edit(&flux.path().join("transformer/config.json"), "\"num_single_layers\": 2", "\"num_single_layers\": 1");
    edit(&flux.path().join("transformer/config.json"), "\"num_layers\": 1", "\"num_layers\": 0");
    let says = refused::<Flux>(flux.path(), &file("flux"), &settings);
    assert!(says.contains("is none of this model's"), "{says}");

    let (z_image, of_z_image) = checkpoint("z-image");
    edit(&z_image.path().join("transformer/config.json"), "\"dim\": 32", "\"dim\": 64");
    edit(&z_image.path().join("transformer/config.json"), "\"n_heads\": 2", "\"n_heads\": 4");
    let says = refused::<ZImage>(z_image.path(), &file("z-image"), &of_z_image);
    assert!(says.contains("\"x_embedder.weight\" has the shape [32, 16], config.json says [64, 16]"), "{says}");
}

#[test]
fn a_gguf_of_another_text_encoder_is_refused_in_words() {
    let (flux, settings) = checkpoint("flux");
    let (_, of_z_image) = checkpoint("z-image");
    let wrong = Settings { text_encoder: of_z_image.text_encoder, ..settings.clone() };
    let says = load::<Flux>(flux.path(), wrong).err().expect("Qwen3 is no T5").to_string();
    let all = [
        "text_encoder.gguf",
        "is GGUF of \"qwen3\", and not of this model",
        "encoder.block.0.layer.0.layer_norm.weight [32] is missing",
    ];
    assert!(all.iter().all(|part| says.contains(part)), "{says}");
    edit(&flux.path().join("text_encoder_2/config.json"), "\"d_ff\": 64", "\"d_ff\": 96");
    let says = load::<Flux>(flux.path(), settings).err().expect("another width").to_string();
    assert!(says.contains("DenseReluDense.wi_0.weight has the shape [64, 32], config.json says [96, 32]"), "{says}");
}
