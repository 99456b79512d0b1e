//! FLUX.1 from prompts to images, stage by stage and whole, with a random checkpoint, against diffusers' own pipeline (`tests/oracle/flux.py`).

use std::fs;

use atelier_engine::GenerateRequest;
use atelier_engine::flow::engine::FlowEngine;
use atelier_engine::flow::flux::Flux;
use atelier_engine::schedule::scheduler::{Sampler, Scheduler};
use candle_core::Tensor;

use super::flow::{
    SETTINGS, batch_is_as_alone, budget_keeps_the_image, cancelled, cases, compare_images, directory, edit, expected,
    graphs_keep_the_images, load, plain, refuses, refuses_both, refuses_checkpoints, refuses_loras, refuses_single_file,
    single_file_is_the_same,
};
use super::{STAGE, Stage, values};

const NAME: &str = "flux";
/// Of T5's states the reference has every seventh.
const EVERY: usize = 7;

#[test]
fn parity_of_flux_stages() {
    let expected = expected(NAME);
    let mut engine: FlowEngine<Flux> = load(&directory(NAME), SETTINGS).expect("the fixture loads");
    let mut states = Stage::new("flux t5");
    let mut pooled = Stage::new("flux clip");
    let mut velocity = Stage::new("flux velocity");
    for (number, prompt) in cases(NAME).prompts.iter().enumerate() {
        let words = engine.encode_prompt(prompt).expect("encodes");
        let tokens = words.states.dim(1).expect("tokens");
        let some = (0..tokens).step_by(EVERY).map(|token| words.states.narrow(1, token, 1).expect("a token"));
        let ours = Tensor::cat(&some.collect::<Vec<_>>(), 1).expect("some of them");
        states.compare(&number.to_string(), &ours, expected.get(&format!("text/{number}")));
        pooled.compare(&number.to_string(), &words.pooled, expected.get(&format!("pooled/{number}")));
        if number < 3 {
            let latents = expected.get(&format!("latents/{number}"));
            let time = values(expected.get(&format!("time/{number}")))[0] as f32;
            let ours = engine.predict(latents, time, &words).expect("predicts");
            velocity.compare(&number.to_string(), &ours, expected.get(&format!("velocity/{number}")));
        }
    }
    states.finish(STAGE);
    pooled.finish(STAGE);
    velocity.finish(STAGE);
}

#[test]
fn parity_of_flux_images() {
    compare_images::<Flux>(NAME);
}

#[test]
fn images_of_a_flux_batch_are_what_they_are_alone() {
    batch_is_as_alone::<Flux>(NAME);
}

#[test]
fn under_a_budget_fluxs_text_encoder_is_read_again_and_the_image_is_the_same() {
    budget_keeps_the_image::<Flux>(NAME);
}

#[test]
fn flux_refuses_by_name_what_it_does_not_read() {
    let request = plain(NAME);
    refuses::<Flux>(
        NAME,
        vec![
            ("guidance_scale", "at most 1", GenerateRequest { guidance_scale: 3.5, ..request.clone() }),
            ("scheduler", "euler", GenerateRequest { scheduler: Scheduler::plain(Sampler::EulerAncestral), ..request.clone() }),
            ("height", "multiple of 16", GenerateRequest { height_px: 24, ..request.clone() }),
            ("prompt", "at most 255 tokens", GenerateRequest { prompt: "a red mug, ".repeat(150), ..request }),
        ],
    );
}

#[test]
fn a_flux_checkpoint_that_lacks_something_is_refused_in_words() {
    refuses_checkpoints::<Flux>(
        NAME,
        &[
            (
                |path| fs::remove_dir_all(path.join("text_encoder_2")).expect("removes"),
                &["text_encoder_2", "two text encoders"],
            ),
            (|path| fs::remove_dir_all(path.join("tokenizer_2")).expect("removes"), &["tokenizer_2", "two tokenizers"]),
            (
                |path| fs::remove_file(path.join("tokenizer_2/tokenizer.json")).expect("removes"),
                &["tokenizer_2/tokenizer.json"],
            ),
            (
                |path| edit(&path.join("model_index.json"), "FluxPipeline", "ZImagePipeline"),
                &["the manifest says family flux", "\"FluxPipeline\""],
            ),
            (
                |path| edit(&path.join("transformer/config.json"), "\"guidance_embeds\": false", "\"guidance_embeds\": true"),
                &["guidance_embeds is true", "supported: false"],
            ),
            (
                |path| edit(&path.join("text_encoder_2/config.json"), "\"d_model\": ", "\"d_model\": 1"),
                &["joint_attention_dim must be text_encoder_2's d_model"],
            ),
            (
                |path| edit(&path.join("transformer/config.json"), "\"num_layers\": ", "\"num_layers\": 1"),
                &["transformer_blocks.", "is missing"],
            ),
        ],
    );
}

#[test]
fn a_lora_of_another_family_is_refused_by_name_and_the_next_flux_is_generated() {
    refuses_loras::<Flux>(
        NAME,
        &[
            ("qwen-family/image/kohya.safetensors", "is of Qwen-Image, this model is of FLUX"),
            ("z-image/comfyui.safetensors", "is of Z-Image, this model is of FLUX"),
            ("sdxl/loras/kohya.safetensors", "is of Stable Diffusion XL, this model is of FLUX"),
        ],
    );
}

#[test]
fn a_flux_lora_that_adapts_a_layer_as_a_whole_and_in_parts_is_refused() {
    refuses_both::<Flux>(NAME, ["diffusers.safetensors", "kohya.safetensors"]);
}

/// The names of the first release, as diffusers converts them, with something of another model next to them.
#[test]
fn a_flux_transformer_in_one_file_is_the_same() {
    single_file_is_the_same::<Flux>(NAME, &directory(NAME).join("single_file.safetensors"));
}

#[test]
fn a_file_that_is_no_flux_transformer_is_refused_in_words() {
    let other = fs::read(directory("qwen-family/image/kohya.safetensors")).expect("reads");
    refuses_single_file::<Flux>(NAME, &other, "holds no tensor of this family's transformer");
    let whole = directory(NAME).join("single_file.safetensors");
    let mut tensors = candle_core::safetensors::load(whole, &candle_core::Device::Cpu).expect("reads");
    tensors.retain(|name, _| !name.contains("double_blocks.0.img_attn.qkv.weight"));
    let part = tempfile::NamedTempFile::new().expect("a file");
    candle_core::safetensors::save(&tensors, part.path()).expect("writes");
    let bytes = fs::read(part.path()).expect("reads");
    refuses_single_file::<Flux>(NAME, &bytes, "transformer.transformer_blocks.0.attn.to_q.weight");
}

#[test]
fn a_cancelled_flux_stops_between_two_steps() {
    cancelled::<Flux>(NAME);
}

#[test]
fn graphs_of_flux_give_the_same_images() {
    graphs_keep_the_images::<Flux>(NAME);
}
