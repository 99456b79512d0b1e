//! Z-Image from prompts to images, stage by stage and whole, with a random checkpoint, against diffusers' own pipeline (`tests/oracle/z_image.py`).

use std::fs;

use atelier_engine::flow::engine::FlowEngine;
use atelier_engine::flow::z_image::ZImage;
use atelier_engine::schedule::scheduler::{Sampler, Scheduler};
use atelier_engine::{GenerateRequest, Sampling};
use candle_core::{IndexOp as _, Tensor};

use super::flow::{
    SETTINGS, batch_is_as_alone, budget_keeps_the_image, cancelled, cases, compare_images, directory, edit, expected,
    graphs_keep_the_images, load, plain, refuses, refuses_both, refuses_checkpoints, refuses_loras, single_file_is_the_same,
};
use super::{STAGE, Stage, values};

const NAME: &str = "z-image";

#[test]
fn parity_of_z_image_stages() {
    let expected = expected(NAME);
    let mut engine: FlowEngine<ZImage> = load(&directory(NAME), SETTINGS).expect("the fixture loads");
    let mut texts = Vec::new();
    let mut stage = Stage::new("z-image text");
    for (number, prompt) in cases(NAME).prompts.iter().enumerate() {
        let text = engine.encode_prompt(prompt).expect("encodes");
        stage.compare(&number.to_string(), &text.i(0).expect("one row"), expected.get(&format!("text/{number}")));
        texts.push(text);
    }
    stage.finish(STAGE);
    let mut velocity = Stage::new("z-image velocity");
    let mut decoded = Stage::new("z-image decoder");
    for (number, text) in texts.iter().take(3).enumerate() {
        let latents = expected.get(&format!("latents/{number}"));
        let time = values(expected.get(&format!("time/{number}")))[0] as f32;
        let ours = engine.predict(latents, time, text).expect("predicts");
        velocity.compare(&number.to_string(), &ours, expected.get(&format!("velocity/{number}")));
        if number < 2 {
            for is_banded in [false, true] {
                let ours = engine.decode(latents, is_banded).expect("decodes");
                decoded.compare(&format!("{number}, banded: {is_banded}"), &ours, expected.get(&format!("decoded/{number}")));
            }
        }
    }
    velocity.finish(STAGE);
    decoded.finish(STAGE);
}

#[test]
fn parity_of_z_image_images() {
    compare_images::<ZImage>(NAME);
}

#[test]
fn images_of_a_z_image_batch_are_what_they_are_alone() {
    batch_is_as_alone::<ZImage>(NAME);
}

#[test]
fn under_a_budget_z_images_text_encoder_is_read_again_and_the_image_is_the_same() {
    budget_keeps_the_image::<ZImage>(NAME);
}

#[test]
fn z_image_refuses_by_name_what_it_does_not_read() {
    let request = plain(NAME);
    let sampling = Sampling { clip_skip: 1, ..Sampling::default() };
    refuses::<ZImage>(
        NAME,
        vec![
            ("guidance_scale", "at most 1", GenerateRequest { guidance_scale: 3.5, ..request.clone() }),
            ("scheduler", "euler", GenerateRequest { scheduler: Scheduler::plain(Sampler::Ddim), ..request.clone() }),
            ("clip_skip", "leave it out", GenerateRequest { sampling, ..request.clone() }),
            ("mode", "no modes", GenerateRequest { mode: Some("base".into()), ..request.clone() }),
            ("steps", "1 or more", GenerateRequest { steps: 0, ..request.clone() }),
            ("width", "multiple of 16", GenerateRequest { width_px: 72, ..request.clone() }),
            ("height", "multiple of 16", GenerateRequest { height_px: 0, ..request.clone() }),
            ("height", "at most 16 tokens", GenerateRequest { height_px: 16 * 17, ..request.clone() }),
            ("prompt", "at most 504 tokens", GenerateRequest { prompt: "é".repeat(600), ..request.clone() }),
            ("prompt", "fewer than 224 tokens", GenerateRequest { prompt: "é".repeat(140), ..request }),
        ],
    );
}

#[test]
fn a_z_image_checkpoint_that_lacks_something_is_refused_in_words() {
    refuses_checkpoints::<ZImage>(
        NAME,
        &[
            (|path| fs::remove_dir_all(path.join("text_encoder")).expect("removes"), &["text_encoder/config.json"]),
            (
                |path| fs::remove_file(path.join("text_encoder/model.safetensors")).expect("removes"),
                &["text_encoder", "safetensors"],
            ),
            (|path| fs::remove_file(path.join("tokenizer/vocab.json")).expect("removes"), &["tokenizer"]),
            (
                |path| edit(&path.join("model_index.json"), "ZImagePipeline", "FluxPipeline"),
                &["model_index.json", "the manifest says family z-image", "\"ZImagePipeline\""],
            ),
            (
                |path| edit(&path.join("text_encoder/config.json"), "\"qwen3\"", "\"llama\""),
                &["model_type", "supported: \"qwen3\""],
            ),
            (
                |path| edit(&path.join("transformer/config.json"), "\"cap_feat_dim\": ", "\"cap_feat_dim\": 1"),
                &["cap_feat_dim must be the text encoder's hidden_size"],
            ),
            (
                |path| edit(&path.join("vae/config.json"), "\"latent_channels\": ", "\"latent_channels\": 1"),
                &["latent_channels must be"],
            ),
            (
                |path| edit(&path.join("transformer/config.json"), "\"n_layers\": ", "\"n_layers\": 1"),
                &["layers.", "is missing"],
            ),
        ],
    );
}

#[test]
fn a_lora_of_another_family_is_refused_by_name_and_the_next_z_image_is_generated() {
    refuses_loras::<ZImage>(
        NAME,
        &[
            ("qwen-family/image/kohya.safetensors", "is of Qwen-Image, this model is of Z-Image"),
            ("sdxl/loras/kohya.safetensors", "is of Stable Diffusion XL, this model is of Z-Image"),
            ("z-image/none.safetensors", "cannot be read"),
        ],
    );
}

/// Queries, keys and values adapted as one layer and one by one: not both.
#[test]
fn a_lora_that_adapts_a_layer_as_a_whole_and_in_parts_is_refused() {
    refuses_both::<ZImage>(NAME, ["fused.safetensors", "kohya.safetensors"]);
}

/// The names of the first release (`convert_z_image_transformer_checkpoint_to_diffusers`).
#[test]
fn a_z_image_transformer_in_one_file_is_the_same() {
    let own = directory(NAME).join("transformer/diffusion_pytorch_model.safetensors");
    let own = candle_core::safetensors::load(own, &candle_core::Device::Cpu).expect("reads");
    let renamed = [
        (".attention.to_out.0.", ".attention.out."),
        (".norm_q.", ".q_norm."),
        (".norm_k.", ".k_norm."),
        ("all_x_embedder.2-1.", "x_embedder."),
        ("all_final_layer.2-1.", "final_layer."),
    ];
    let mut tensors = std::collections::HashMap::new();
    for (name, tensor) in &own {
        if let Some(block) = name.strip_suffix("to_q.weight") {
            let parts = ["to_q", "to_k", "to_v"].map(|part| &own[&format!("{block}{part}.weight")]);
            tensors.insert(format!("model.diffusion_model.{block}qkv.weight"), Tensor::cat(&parts, 0).expect("joins"));
        } else if !name.ends_with("to_k.weight") && !name.ends_with("to_v.weight") {
            let old = renamed.iter().fold(name.clone(), |name, (ours, old)| name.replace(ours, old));
            tensors.insert(format!("model.diffusion_model.{old}"), tensor.clone());
        }
    }
    let file = tempfile::NamedTempFile::with_suffix(".safetensors").expect("a file");
    candle_core::safetensors::save(&tensors, file.path()).expect("writes");
    single_file_is_the_same::<ZImage>(NAME, file.path());
}

#[test]
fn a_cancelled_z_image_stops_between_two_steps() {
    cancelled::<ZImage>(NAME);
}

#[test]
fn graphs_of_z_image_give_the_same_images() {
    graphs_keep_the_images::<ZImage>(NAME);
}
