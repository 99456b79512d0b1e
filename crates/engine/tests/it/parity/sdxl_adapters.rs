//! LoRAs, textual inversions, weighted prompts, one file of all weights and few steps of Stable Diffusion XL against diffusers
//! (`tests/oracle/sdxl_adapters.py`).

use std::fs;

use atelier_engine::schedule::config::TimestepSpacing;
use atelier_engine::schedule::scheduler::{Sampler, Scheduler};
use atelier_engine::sd::StableDiffusion;
use atelier_engine::sd::conditioning::Text;
use atelier_engine::sd::inversion::Inversions;
use atelier_engine::sd::settings::{PromptSyntax, Settings};
use atelier_engine::sd::sizes::Sizes;
use atelier_engine::sd::text::Encoding;
use atelier_engine::sd::tiling::Tiling;
use atelier_engine::{EmbeddingFile, Engine, GenerateRequest, Image, LoraFile, Sampling, Watch};
use candle_core::DType;

use super::sdxl::{bytes, directory, expected, load, pooled};
use super::stages::{NEGATIVE, PROMPT, largest_step};
use super::{PIXEL, Reference, RelativeError, STAGE, Stage};
use crate::device;
use crate::engine::copy_directory;

fn reference() -> Reference {
    Reference::open(&directory().join("adapters.safetensors"))
}

fn reading(prompts: PromptSyntax) -> StableDiffusion {
    let settings = Settings { prompts, ..Settings::new(directory(), DType::F32, device()) };
    StableDiffusion::load(&settings).expect("loads")
}

fn compare(stage: &mut Stage, name: &str, text: &Text, reference: &Reference) {
    stage.compare(name, &text.states, reference.get(&format!("{name}/text")));
    stage.compare(name, &pooled(text.added.as_ref().expect("pooled")), reference.get(&format!("{name}/pooled")));
}

/// Four steps at 104x72, as the reference has them.
pub(crate) fn request(steps: u32, guidance_scale: f64, negative_prompt: &str) -> GenerateRequest {
    GenerateRequest {
        prompt: PROMPT.into(),
        negative_prompt: negative_prompt.into(),
        loras: vec![],
        embeddings: vec![],
        start: None,
        controls: vec![],
        image_prompts: vec![],
        strength: 1.0,
        steps,
        guidance_scale,
        scheduler: Scheduler::plain(Sampler::Euler),
        sampling: Sampling::default(),
        mode: None,
        width_px: 104,
        height_px: 72,
        seeds: vec![42],
    }
}

fn generated(engine: &mut StableDiffusion, request: &GenerateRequest) -> Vec<u8> {
    let images = engine.generate(request, &Watch::new(|_| ())).expect("generates");
    images.into_iter().flat_map(|Image { rgb, .. }| rgb).collect()
}

#[test]
fn parity_of_sdxl_loras() {
    let mut engine = load(&directory());
    let reference = reference();
    let mixes: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(&fs::read(directory().join("loras/mixes.json")).expect("reads")).expect("mixes");
    let mut texts = Stage::new("sdxl, texts with LoRA");
    let mut unet = Stage::new("sdxl, unet with LoRA");
    for (mix, scales) in &mixes {
        let loras = scales.as_object().expect("scales").iter().map(|(name, scale)| {
            LoraFile::new(directory().join(format!("loras/{name}.safetensors")), scale.as_f64().expect("a scale"))
        });
        engine.use_loras(&loras.collect::<Vec<_>>()).unwrap_or_else(|error| panic!("{mix}: {error}"));
        let encoding = Encoding { clip_skip: 0, sizes: Sizes::of(104, 72) };
        let text = engine.encode_prompt_with(PROMPT, None, &Inversions::default(), encoding).expect("encodes");
        compare(&mut texts, &format!("lora/{mix}"), &text.positive, &reference);
        let noise = engine.predict_noise(reference.get("lora/latents"), 500.0, &text, 1.0, Tiling::default()).expect("noise");
        unet.compare(mix, &noise, reference.get(&format!("lora/{mix}/unet")));
    }
    texts.finish(STAGE);
    unet.finish(STAGE);
}

#[test]
fn parity_of_sdxl_textual_inversions() {
    let engine = load(&directory());
    let reference = reference();
    let files = [("mood", "<mood>"), ("mill", "<old-mill>"), ("uneven", "easydusk")].map(|(name, token)| EmbeddingFile {
        path: directory().join(format!("embeddings/{name}.safetensors")),
        token: token.into(),
    });
    let inversions = engine.read_embeddings(&files).expect("words");
    let mut stage = Stage::new("sdxl, textual inversions");
    for (name, prompt, negative) in [
        ("inverted/one", "a <mood> lighthouse", "storm"),
        ("inverted/several", "a <mood> cat over <old-mill>, and easydusk", "<old-mill> dog"),
    ] {
        let text = engine.encode_prompt(prompt, Some(negative), &inversions).expect("encodes");
        compare(&mut stage, name, &text.rows().expect("of one length"), &reference);
    }
    stage.finish(STAGE);
}

#[test]
fn parity_of_sdxl_weighted_prompts() {
    let reference = reference();
    let automatic = reading(PromptSyntax::Weighted);
    let mut stage = Stage::new("sdxl, weighted prompts");
    let two_chunks = format!("a bright (red: 1.5) {}(and a dog:0.25)", "cat ".repeat(80));
    for (name, prompt) in [
        ("weighted/blanks", "a (red: 1.4) cat, (dog :0.5)"),
        ("weighted/break", "a [red] cat BREAK (blue: 1.4) dog"),
        ("weighted/two_chunks", &two_chunks),
    ] {
        let text = automatic.encode_prompt(prompt, Some(""), &Inversions::default()).expect("encodes");
        compare(&mut stage, name, &text.positive, &reference);
        let negative = text.negative.expect("zeros");
        assert_eq!(negative.states.dims(), text.positive.states.dims(), "{name}: one batch holds both");
        let negative = automatic.encode_prompt("cat", Some(prompt), &Inversions::default()).expect("encodes").negative;
        compare(&mut stage, name, &negative.expect("a text"), &reference);
    }
    stage.finish(STAGE);
}

#[test]
fn parity_of_sdxl_prompts_by_the_rules_of_lpw() {
    let reference = reference();
    let lpw = reading(PromptSyntax::Lpw);
    let mut stage = Stage::new("sdxl, lpw's prompts");
    let long = format!("a bright (red:1.5) {}(and a dog:0.25)", "cat ".repeat(80));
    for (name, prompt, negative) in [
        ("lpw/weights", "a (small:1.3) [lighthouse] over (the sea)".to_owned(), "storm, dog".to_owned()),
        ("lpw/long", long, "storm, (dog:1.2)".to_owned()),
        ("lpw/full", "cat ".repeat(75), format!("({}:0.5)", "sea ".repeat(90))),
    ] {
        let text = lpw.encode_prompt(&prompt, Some(&negative), &Inversions::default()).expect("encodes");
        compare(&mut stage, name, &text.rows().expect("of one length"), &reference);
    }
    stage.finish(STAGE);
    let text = lpw.encode_prompt("", Some(""), &Inversions::default()).expect("no words at all");
    assert_eq!(text.positive.states.dim(1).expect("tokens"), 2, "start and end");
    let error = lpw.encode_prompt("a cat BREAK a dog", None, &Inversions::default()).expect_err("a word of weight -1");
    assert!(error.to_string().starts_with("prompt: BREAK ends no chunk"), "{error}");
}

/// The names of `generative-models`, without the weights of the directory.
#[test]
fn parity_of_one_sdxl_file() {
    let copy = tempfile::tempdir().expect("a directory");
    copy_directory(&directory(), copy.path());
    for weights in ["unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model", "text_encoder_2/model"]
    {
        fs::remove_file(copy.path().join(format!("{weights}.safetensors"))).expect("removes");
    }
    let file = directory().join("single_file.safetensors");
    let settings = Settings { single_file: Some(file), ..Settings::new(copy.path(), DType::F32, device()) };
    let mut engine = StableDiffusion::load(&settings).expect("loads");
    let request = request(4, 7.0, NEGATIVE);
    let ours = generated(&mut engine, &request);
    assert_eq!(ours, generated(&mut load(&directory()), &request), "the same values under other names");
    let mut stage = Stage::new("sdxl, one file, 8 bit");
    stage.note("euler", f64::from(largest_step(&ours, &bytes(reference().get("single_file")))));
    let first = expected();
    let first = first.get("image/euler").narrow(0, 0, 1).expect("the first seed's");
    stage.note("directory", f64::from(largest_step(&ours, &bytes(&first))));
    stage.finish(RelativeError(f64::from(PIXEL)));
}

#[test]
fn parity_of_few_trailing_steps() {
    let reference = reference();
    let settings =
        Settings { timestep_spacing: Some(TimestepSpacing::Trailing), ..Settings::new(directory(), DType::F32, device()) };
    let mut engine = StableDiffusion::load(&settings).expect("loads");
    let mut listed = load(&directory());
    let mut stage = Stage::new("sdxl, few trailing steps, 8 bit");
    for steps in [1, 2, 4, 8] {
        for guidance_scale in [0.0, 1.0] {
            let case = format!("trailing/{steps}/{guidance_scale:?}");
            let ours = generated(&mut engine, &request(steps, guidance_scale, ""));
            stage.note(&case, f64::from(largest_step(&ours, &bytes(reference.get(&case)))));
        }
    }
    // A job can say as much of a model that is laid out otherwise: a LoRA of Lightning or Hyper over SDXL itself.
    for timesteps in [vec![999], vec![999, 499], vec![999, 749, 499, 249]] {
        let case = format!("listed/{}", timesteps.len());
        let mut request = request(timesteps.len() as u32, 0.0, "");
        request.sampling.timesteps = Some(timesteps);
        stage.note(&case, f64::from(largest_step(&generated(&mut listed, &request), &bytes(reference.get(&case)))));
    }
    stage.finish(RelativeError(f64::from(PIXEL)));
}
