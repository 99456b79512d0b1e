//! FLUX.1 from prompts to images, stage by stage and whole, with a random checkpoint, against diffusers' own pipeline (`tests/oracle/flux.py`).

use std::fs;

use atelier_engine::GenerateRequest;
use atelier_engine::flow::engine::FlowEngine;
use atelier_engine::flow::flux::Flux;
use atelier_engine::schedule::scheduler::{Sampler, Scheduler};
use candle_core::{DType, Device, Tensor};

use super::flow::{
    Change, SETTINGS, batch_is_as_alone, budget_keeps_the_image, cancelled, cases, change, compare_images, copied, directory,
    edit, expected, generate, graphs_keep_the_images, load, plain, refuses, refuses_both, refuses_checkpoints, refuses_loras,
    refuses_single_file, single_file_is_the_same,
};
use super::{STAGE, Stage, values};

const NAME: &str = "flux";
/// Of the transformer's names in its single file.
const PREFIX: &str = "model.diffusion_model.";
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
                |path| edit(&path.join("transformer/config.json"), "\"out_channels\": null", "\"out_channels\": 8"),
                &["out_channels must be in_channels, or null"],
            ),
            (
                |path| edit(&path.join("text_encoder_2/config.json"), "\"is_gated_act\": true", "\"is_gated_act\": false"),
                &["is_gated_act is false", "supported: true"],
            ),
            (
                |path| {
                    let settings = path.join("tokenizer_2/tokenizer_config.json");
                    fs::write(settings, r#"{"padding_side": "left"}"#).expect("writes");
                },
                &["tokenizer_2/tokenizer_config.json", "padding_side must be right"],
            ),
            (
                |path| {
                    change(&path.join("text_encoder_2/model.safetensors"), |tensors| {
                        let words = tensors["shared.weight"].to_dtype(DType::U8).expect("converts");
                        tensors.insert("shared.weight".into(), words);
                    });
                },
                &["shared.weight is stored as U8", "F64, F32"],
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
    let wrong: [(Change, &str); 6] = [
        (
            |tensors| tensors.retain(|name, _| !name.contains("double_blocks.0.img_attn.qkv.weight")),
            "transformer.transformer_blocks.0.attn.to_q.weight",
        ),
        // FLUX.1-dev.
        (
            |tensors| _ = tensors.insert(format!("{PREFIX}guidance_in.in_layer.weight"), zeros(&[32, 256])),
            "\"guidance_in.in_layer.weight\" is none of this model's",
        ),
        (
            |tensors| _ = tensors.insert(format!("{PREFIX}double_blocks.9.img_mod.lin.bias"), zeros(&[192])),
            "\"double_blocks.9.img_mod.lin.bias\" is none of this model's",
        ),
        (
            |tensors| {
                let name = format!("{PREFIX}double_blocks.0.img_attn.qkv.weight");
                let rows = tensors[&name].dims()[0];
                let more = Tensor::cat(&[&tensors[&name], &tensors[&name].narrow(0, 0, rows / 3).expect("rows")], 0);
                tensors.insert(name, more.expect("more rows"));
            },
            "\"double_blocks.0.img_attn.qkv.weight\" has the shape",
        ),
        (
            |tensors| {
                let own = tensors[&format!("{PREFIX}img_in.weight")].clone();
                tensors.insert("transformer.img_in.weight".into(), own);
            },
            "are one tensor of the model",
        ),
        (
            |tensors| {
                let name = format!("{PREFIX}img_in.weight");
                let in_8_bits = tensors[&name].to_dtype(DType::F8E4M3).expect("converts");
                tensors.insert(name.clone(), in_8_bits);
                tensors.insert(format!("{name}_scale_inv"), zeros(&[1]));
            },
            "img_in.weight_scale_inv scales 8-bit weights",
        ),
    ];
    for (change_of, says) in wrong {
        let file = tempfile::NamedTempFile::new().expect("a file");
        fs::copy(directory(NAME).join("single_file.safetensors"), file.path()).expect("copies");
        change(file.path(), change_of);
        refuses_single_file::<Flux>(NAME, &fs::read(file.path()).expect("reads"), says);
    }
}

fn zeros(shape: &[usize]) -> Tensor {
    Tensor::zeros(shape, DType::F32, &Device::Cpu).expect("zeros")
}

/// Text encoders and VAE as well.
#[test]
fn a_flux_checkpoint_in_f64_is_the_same_and_one_in_8_bits_loads() {
    let own = generate(&mut load::<Flux>(&directory(NAME), SETTINGS).expect("loads"), &plain(NAME)).expect("generates");
    for (dtype, is_same) in [(DType::F64, true), (DType::F8E4M3, false)] {
        let directory = copied(NAME);
        for file in ["text_encoder_2/model", "vae/diffusion_pytorch_model"] {
            let file = directory.path().join(format!("{file}.safetensors"));
            let mut tensors = candle_core::safetensors::load(&file, &Device::Cpu).expect("reads");
            for tensor in tensors.values_mut() {
                *tensor = tensor.to_dtype(dtype).expect("converts");
            }
            candle_core::safetensors::save(&tensors, file).expect("writes");
        }
        let images = generate(&mut load::<Flux>(directory.path(), SETTINGS).expect("loads"), &plain(NAME)).expect("generates");
        assert_eq!(images == own, is_same, "{dtype:?}");
    }
}

#[test]
fn a_cancelled_flux_stops_between_two_steps() {
    cancelled::<Flux>(NAME);
}

#[test]
fn graphs_of_flux_give_the_same_images() {
    graphs_keep_the_images::<Flux>(NAME);
}
