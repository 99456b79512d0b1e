//! FLUX.2 klein from prompts and images to images, stage by stage and whole, with a random checkpoint, against diffusers' own pipeline
//! (`tests/oracle/flux2.py`).

use std::fs;

use atelier_engine::flow::engine::FlowEngine;
use atelier_engine::flow::flux2::Flux2;
use atelier_engine::qwen::packing::Grid;
use atelier_engine::qwen::references::Reference as Shown;
use atelier_engine::schedule::scheduler::{Sampler, Scheduler};
use atelier_engine::step_cache::StepCache;
use atelier_engine::{
    EditRequest, Engine as _, EngineError, GenerateRequest, Generated, InitImage, QueuedRequest, Request, Watch,
};
use candle_core::Tensor;
use image::RgbImage;

use super::flow::{
    SETTINGS, batch_is_as_alone, budget_keeps_the_image, cancelled, cases, compare_images, directory, edit, expected,
    graphs_keep_the_images, load, plain, refuses, refuses_both, refuses_checkpoints, refuses_loras, refuses_single_file,
    single_file_is_the_same,
};
use super::qwen_text::image;
use super::stages::largest_step;
use super::{PIXEL, RelativeError, SCHEDULE, STAGE, Stage, values};

const NAME: &str = "flux2";
/// Of a text's states the reference has every thirty-first.
const EVERY: usize = 31;
/// Steps and tokens of an image.
const LENGTHS: [(u32, usize); 6] = [(4, 4096), (4, 4300), (4, 4301), (1, 60), (8, 16), (50, 12_000)];

/// Latents of the loop as the transformer's tokens.
fn shown(latents: &Tensor) -> Shown {
    let (_, _, height, width) = latents.dims4().expect("latents");
    let tokens = latents.flatten_from(2).and_then(|tokens| tokens.transpose(1, 2)?.contiguous()).expect("tokens");
    Shown { tokens, grid: Grid { height, width } }
}

#[test]
fn parity_of_flux2_stages() {
    let expected = expected(NAME);
    let mut engine: FlowEngine<Flux2> = load(&directory(NAME), SETTINGS).expect("the fixture loads");
    let mut states = Stage::new("flux2 text");
    let mut velocity = Stage::new("flux2 velocity");
    let mut decoded = Stage::new("flux2 decoder");
    for (number, prompt) in cases(NAME).prompts.iter().enumerate() {
        let words = engine.encode_prompt(prompt).expect("encodes");
        let tokens = words.dim(1).expect("tokens");
        let some = (0..tokens).step_by(EVERY).map(|token| words.narrow(1, token, 1).expect("a token"));
        let ours = Tensor::cat(&some.collect::<Vec<_>>(), 1).expect("some of them");
        states.compare(&number.to_string(), &ours, expected.get(&format!("text/{number}")));
        if number == 3 {
            continue;
        }
        let latents = expected.get(&format!("latents/{number}"));
        let time = values(expected.get(&format!("time/{number}")))[0] as f32;
        let references = if number == 4 { vec!["reference/0", "reference/1"] } else { Vec::new() };
        let references: Vec<Shown> = references.into_iter().map(|name| shown(expected.get(name))).collect();
        let ours = engine.predict_over(latents, time, &words, &references).expect("predicts");
        velocity.compare(&number.to_string(), &ours, expected.get(&format!("velocity/{number}")));
        for is_banded in [false, true].into_iter().filter(|_| number < 2) {
            let ours = engine.decode(latents, is_banded).expect("decodes");
            decoded.compare(&format!("{number}, banded: {is_banded}"), &ours, expected.get(&format!("decoded/{number}")));
        }
    }
    states.finish(STAGE);
    velocity.finish(STAGE);
    decoded.finish(STAGE);
}

#[test]
fn parity_of_flux2_references() {
    let expected = expected(NAME);
    let engine: FlowEngine<Flux2> = load(&directory(NAME), SETTINGS).expect("the fixture loads");
    let Shown { tokens, grid } = engine.encode_reference(&image(expected.get("shown"))).expect("encodes");
    assert_eq!(tokens.dim(1).expect("tokens"), grid.tokens());
    let mut stage = Stage::new("flux2 encoder");
    stage.compare("77 by 70", &tokens, expected.get("encoded"));
    stage.finish(STAGE);
}

#[test]
fn parity_of_flux2_schedules() {
    let expected = expected(NAME);
    let engine: FlowEngine<Flux2> = load(&directory(NAME), SETTINGS).expect("the fixture loads");
    let mut stage = Stage::new("flux2 schedule");
    for (number, (steps, tokens)) in LENGTHS.into_iter().enumerate() {
        let ours = engine.schedule(steps, Grid { height: tokens, width: 1 }).sigmas;
        let theirs = expected.get(&format!("sigmas/{number}"));
        let ours = Tensor::from_vec(ours, steps as usize + 1, theirs.device()).expect("sigmas");
        stage.compare(&format!("{steps} steps, {tokens} tokens"), &ours, theirs);
    }
    stage.finish(SCHEDULE);
}

#[test]
fn parity_of_flux2_images() {
    compare_images::<Flux2>(NAME);
}

/// The request of an edit with the images and the LoRA of this case, in its size.
fn over(number: usize) -> EditRequest {
    let GenerateRequest { prompt, loras, steps, seeds, width_px, height_px, .. } = requests_of(number);
    let expected = expected(NAME);
    let images = (0..cases(NAME).images(number)).map(|place| image(expected.get(&format!("image/{number}/{place}"))));
    EditRequest {
        images: images.collect(),
        prompt,
        negative_prompt: String::new(),
        loras,
        steps,
        guidance_scale: 1.0,
        mode: None,
        seeds,
        width_px,
        height_px,
        step_cache: None,
    }
}

fn requests_of(number: usize) -> GenerateRequest {
    super::flow::requests(NAME).swap_remove(number)
}

fn edited(engine: &mut FlowEngine<Flux2>, request: EditRequest) -> Generated {
    let queued = QueuedRequest { request: Request::Edit(request), watch: Watch::new(|_| ()) };
    engine.generate_together(&[queued])?.remove(0)
}

#[test]
fn parity_of_flux2_edits() {
    let expected = expected(NAME);
    let mut engine: FlowEngine<Flux2> = load(&directory(NAME), SETTINGS).expect("the fixture loads");
    let mut stage = Stage::new("flux2 edits, 8 bit");
    let edits = cases(NAME).edits();
    let given: Vec<_> = edits.iter().map(|number| (over(*number).images.len(), over(*number).loras.len())).collect();
    assert_eq!(given, [(1, 0), (2, 0), (1, 1)]);
    for number in edits {
        let generated = edited(&mut engine, over(number)).expect("generates");
        let reference = expected.get(&format!("expected/{number}"));
        assert_eq!(generated.len(), reference.dim(0).expect("images"));
        for (place, ours) in generated.iter().enumerate() {
            let theirs = image(&reference.get(place).expect("one an image"));
            stage.note(&format!("{number}, image {place}"), f64::from(largest_step(&ours.rgb, theirs.as_raw())));
        }
    }
    stage.finish(RelativeError(f64::from(PIXEL)));
}

#[test]
fn an_edit_and_a_generation_come_one_after_the_other_on_one_engine() {
    let mut engine: FlowEngine<Flux2> = load(&directory(NAME), SETTINGS).expect("the fixture loads");
    let number = cases(NAME).edits()[0];
    let before = engine.generate(&plain(NAME), &Watch::new(|_| ())).expect("generates");
    let first = edited(&mut engine, over(number)).expect("generates");
    assert_eq!(engine.generate(&plain(NAME), &Watch::new(|_| ())).expect("generates"), before);
    assert_eq!(edited(&mut engine, over(number)).expect("generates"), first);
    let none = edited(&mut engine, EditRequest { images: Vec::new(), ..over(number) }).expect("generates");
    assert_ne!(none, first, "what it is shown counts");
    let refused = [
        ("images", "at least 64 pixels", EditRequest { images: vec![RgbImage::new(63, 80)], ..over(number) }),
        ("images", "at most 8 times", EditRequest { images: vec![RgbImage::new(64, 513)], ..over(number) }),
        ("guidance_scale", "at most 1", EditRequest { guidance_scale: 2.5, ..over(number) }),
        ("mode", "no modes", EditRequest { mode: Some("base".into()), ..over(number) }),
        ("steps", "1 or more", EditRequest { steps: 0, ..over(number) }),
        ("width", "multiple of 8", EditRequest { width_px: 100, ..over(number) }),
    ];
    for (name, says, request) in refused {
        match edited(&mut engine, request) {
            Err(EngineError::Request { field, problem }) => {
                assert!(field == name && problem.contains(says), "{field}: {problem}");
            }
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[test]
fn images_of_a_flux2_batch_are_what_they_are_alone() {
    batch_is_as_alone::<Flux2>(NAME);
}

#[test]
fn under_a_budget_flux2s_text_encoder_is_read_again_and_the_image_is_the_same() {
    budget_keeps_the_image::<Flux2>(NAME);
}

#[test]
fn flux2_refuses_by_name_what_it_does_not_read() {
    let request = plain(NAME);
    let start = InitImage { rgb: RgbImage::new(64, 64), mask: None };
    refuses::<Flux2>(
        NAME,
        vec![
            ("guidance_scale", "at most 1", GenerateRequest { guidance_scale: 4.0, ..request.clone() }),
            ("scheduler", "euler", GenerateRequest { scheduler: Scheduler::plain(Sampler::Heun), ..request.clone() }),
            ("init_image", "leave it out", GenerateRequest { start: Some(start), ..request.clone() }),
            ("height", "multiple of 8", GenerateRequest { height_px: 28, ..request.clone() }),
            ("prompt", "at most 500 tokens", GenerateRequest { prompt: "é".repeat(600), ..request.clone() }),
            // A template of fewer tokens than the real one's leaves more room than the pipeline has.
            ("prompt", "at most 512 tokens", GenerateRequest { prompt: "é".repeat(250), ..request }),
        ],
    );
}

#[test]
fn a_flux2_checkpoint_that_lacks_something_is_refused_in_words() {
    refuses_checkpoints::<Flux2>(
        NAME,
        &[
            (|path| fs::remove_dir_all(path.join("text_encoder")).expect("removes"), &["text_encoder/config.json"]),
            (|path| fs::remove_file(path.join("tokenizer/vocab.json")).expect("removes"), &["tokenizer"]),
            (|path| edit(&path.join("tokenizer/tokenizer_config.json"), "<think>", "<thought>"), &["has no token <think>"]),
            (
                |path| edit(&path.join("model_index.json"), "Flux2KleinPipeline", "Flux2Pipeline"),
                &["the manifest says family flux2", "\"Flux2Pipeline\"", "supported: \"Flux2KleinPipeline\""],
            ),
            (
                |path| edit(&path.join("model_index.json"), "\"is_distilled\": true", "\"is_distilled\": false"),
                &["is_distilled must be true", "take the distilled model"],
            ),
            (
                |path| edit(&path.join("transformer/config.json"), "\"guidance_embeds\": false", "\"guidance_embeds\": true"),
                &["guidance_embeds is true", "supported: false"],
            ),
            (
                |path| edit(&path.join("transformer/config.json"), "\"joint_attention_dim\": ", "\"joint_attention_dim\": 1"),
                &["joint_attention_dim must be 3 times the text encoder's hidden_size"],
            ),
            (
                |path| edit(&path.join("text_encoder/config.json"), "\"num_hidden_layers\": 4", "\"num_hidden_layers\": 6"),
                &["text_encoder/config.json", "num_hidden_layers must be a multiple of 4"],
            ),
            (
                |path| edit(&path.join("vae/config.json"), "\"AutoencoderKLFlux2\"", "\"AutoencoderKL\""),
                &["_class_name is \"AutoencoderKL\"", "supported: \"AutoencoderKLFlux2\""],
            ),
            (
                |path| edit(&path.join("transformer/config.json"), "\"num_layers\": ", "\"num_layers\": 1"),
                &["transformer_blocks.", "is missing"],
            ),
        ],
    );
}

#[test]
fn a_lora_of_another_family_is_refused_by_name_and_the_next_flux2_is_generated() {
    refuses_loras::<Flux2>(
        NAME,
        &[
            ("flux/kohya.safetensors", "is of FLUX.1, this model is of FLUX.2"),
            ("flux/diffusers.safetensors", "is of FLUX.1, this model is of FLUX.2"),
            ("qwen-family/image/kohya.safetensors", "is of Qwen-Image, this model is of FLUX.2"),
            ("z-image/comfyui.safetensors", "is of Z-Image, this model is of FLUX.2"),
        ],
    );
}

#[test]
fn a_flux2_lora_that_adapts_a_layer_as_a_whole_and_in_parts_is_refused() {
    refuses_both::<Flux2>(NAME, ["diffusers.safetensors", "kohya.safetensors"]);
}

/// The tensors of the checkpoint's own transformer under the names of the first release (`convert_flux2_transformer_checkpoint_to_diffusers`).
fn first_release() -> std::collections::HashMap<String, Tensor> {
    const RENAMED: [(&str, &str); 19] = [
        ("single_transformer_blocks.", "single_blocks."),
        ("transformer_blocks.", "double_blocks."),
        (".attn.to_qkv_mlp_proj.", ".linear1."),
        (".attn.to_out.0.", ".img_attn.proj."),
        (".attn.to_out.", ".linear2."),
        (".attn.to_add_out.", ".txt_attn.proj."),
        (".attn.norm_added_q.weight", ".txt_attn.norm.query_norm.scale"),
        (".attn.norm_added_k.weight", ".txt_attn.norm.key_norm.scale"),
        (".ff.linear_in.", ".img_mlp.0."),
        (".ff.linear_out.", ".img_mlp.2."),
        (".ff_context.linear_in.", ".txt_mlp.0."),
        (".ff_context.linear_out.", ".txt_mlp.2."),
        ("context_embedder.", "txt_in."),
        ("x_embedder.", "img_in."),
        ("time_guidance_embed.timestep_embedder.linear_1.", "time_in.in_layer."),
        ("time_guidance_embed.timestep_embedder.linear_2.", "time_in.out_layer."),
        ("_modulation_img.linear.", "_modulation_img.lin."),
        ("_modulation_txt.linear.", "_modulation_txt.lin."),
        ("single_stream_modulation.linear.", "single_stream_modulation.lin."),
    ];
    let own = directory(NAME).join("transformer/diffusion_pytorch_model.safetensors");
    let own = candle_core::safetensors::load(own, &candle_core::Device::Cpu).expect("reads");
    let mut tensors = std::collections::HashMap::new();
    for (name, tensor) in &own {
        let joint = [("to_q", "to_k", "to_v", "img_attn"), ("add_q_proj", "add_k_proj", "add_v_proj", "txt_attn")];
        let first = joint.iter().find_map(|parts| Some((name.strip_suffix(&format!("attn.{}.weight", parts.0))?, parts)));
        let is_other =
            joint.iter().any(|(_, key, value, _)| [key, value].iter().any(|part| name.contains(&format!(".{part}."))));
        if let Some((block, (query, key, value, old))) = first {
            let parts = [query, key, value].map(|part| &own[&format!("{block}attn.{part}.weight")]);
            let name = format!("{}{old}.qkv.weight", block.replace("transformer_blocks.", "double_blocks."));
            tensors.insert(name, Tensor::cat(&parts, 0).expect("joins"));
        } else if name == "norm_out.linear.weight" {
            let halves = tensor.chunk(2, 0).expect("scale and shift");
            let swapped = Tensor::cat(&[&halves[1], &halves[0]], 0).expect("joins");
            tensors.insert("final_layer.adaLN_modulation.1.weight".to_owned(), swapped);
        } else if !is_other {
            let norms = if name.starts_with("single") { "norm" } else { "img_attn.norm" };
            let old = RENAMED.iter().fold(name.clone(), |name, (ours, old)| name.replace(ours, old));
            let old = old.replace("attn.norm_q.weight", &format!("{norms}.query_norm.scale"));
            let old = old.replace("attn.norm_k.weight", &format!("{norms}.key_norm.scale"));
            tensors.insert(if old == "proj_out.weight" { "final_layer.linear.weight".into() } else { old }, tensor.clone());
        }
    }
    tensors.into_iter().map(|(name, tensor)| (format!("model.diffusion_model.{name}"), tensor)).collect()
}

#[test]
fn a_flux2_transformer_in_one_file_is_the_same() {
    let file = tempfile::NamedTempFile::with_suffix(".safetensors").expect("a file");
    let mut tensors = first_release();
    candle_core::safetensors::save(&tensors, file.path()).expect("writes");
    single_file_is_the_same::<Flux2>(NAME, file.path());
    tensors.retain(|name, _| !name.contains("double_blocks.0.img_attn.qkv.weight"));
    candle_core::safetensors::save(&tensors, file.path()).expect("writes");
    let bytes = fs::read(file.path()).expect("reads");
    refuses_single_file::<Flux2>(NAME, &bytes, "transformer.transformer_blocks.0.attn.to_q.weight");
    let other = fs::read(directory("flux/single_file.safetensors")).expect("reads");
    refuses_single_file::<Flux2>(NAME, &other, "transformer.single_stream_modulation.linear.weight");
}

/// diffusers' own first-block cache fails for this transformer, so there is no reference.
#[test]
fn a_cached_flux2_is_the_same_until_it_takes_something_over() {
    let mut engine: FlowEngine<Flux2> = load(&directory(NAME), SETTINGS).expect("the fixture loads");
    let number = cases(NAME).edits()[1];
    let [without, none, much] = [None, Some(1e-9), Some(1e9)].map(|threshold| {
        let step_cache = threshold.map(StepCache::Threshold);
        edited(&mut engine, EditRequest { steps: 4, step_cache, ..over(number) }).expect("generates")
    });
    assert_eq!(none, without);
    assert_ne!(much, without);
    let refused = edited(&mut engine, EditRequest { step_cache: Some(StepCache::Interval(2)), ..over(number) });
    assert!(matches!(refused, Err(EngineError::Request { field: "step_cache", .. })), "{refused:?}");
}

#[test]
fn a_cancelled_flux2_stops_between_two_steps() {
    cancelled::<Flux2>(NAME);
}

#[test]
fn graphs_of_flux2_give_the_same_images() {
    graphs_keep_the_images::<Flux2>(NAME);
}
