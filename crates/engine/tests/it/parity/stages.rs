//! Tokens, text states, UNet, VAE and noise, each from the oracle's own input.

use atelier_engine::noise::Noise;
use atelier_engine::pixels::to_rgb8;
use atelier_engine::sd::StableDiffusion;
use atelier_engine::sd::conditioning::Conditioning;
use atelier_engine::sd::inversion::Inversions;
use atelier_engine::sd::tiling::Tiling;
use atelier_engine::sd::tokens::PromptTokenizer;
use candle_core::{IndexOp, Tensor};

use super::{PIXEL, Reference, STAGE, Stage, engine, fixtures};

use crate::device;

/// As in the oracle's script.
pub(super) const PROMPT: &str = "a small lighthouse over the sea";
pub(super) const NEGATIVE: &str = "storm, dog";
const GUIDANCE_SCALE: f64 = 7.5;
/// (batch, height, width) of the latents.
const SIZES: [(usize, usize, usize); 3] = [(1, 9, 13), (4, 9, 13), (1, 8, 8)];

#[test]
fn parity_of_stages() {
    for checkpoint in ["sd15", "sd2"] {
        let engine = engine(checkpoint);
        let reference = Reference::read(checkpoint);
        tokens_and_text(checkpoint, &engine, &reference);
        unet(checkpoint, &engine, &reference);
        vae(checkpoint, &engine, &reference);
    }
}

#[test]
fn parity_of_noise() {
    let reference = Reference::read("sd15");
    let mut stage = Stage::new("noise, torch.randn");
    for (seed, height, width) in [(42, 9, 13), (3_000_000_000, 8, 8)] {
        let key = format!("noise/{seed}");
        let noise = Noise::new([seed], (4, height, width)).draw(&device()).expect("noise");
        stage.compare(&key, &noise, reference.get(&key));
    }
    stage.finish(STAGE);
}

pub(super) fn prompts() -> [(&'static str, String); 6] {
    let words = "a the of in red blue green cat dog lighthouse dusk paper sea over under small bright old storm and with \
                 it's 7";
    let words: Vec<&str> = words.split_whitespace().collect();
    let long: Vec<&str> = words.iter().copied().cycle().take(200).collect();
    [
        ("empty", String::new()),
        ("one_word", "cat".into()),
        ("mixed", "A  bright, OLD lighthouse over the sea; it's 7 o'clock — größe 東京 🎨!".into()),
        ("fits", ["cat"; 75].join(" ")),
        ("one_too_many", ["cat"; 76].join(" ")),
        ("long", long.join(" ")),
    ]
}

fn tokens_and_text(checkpoint: &str, engine: &StableDiffusion, reference: &Reference) {
    let pad_token = &engine.checkpoint().text_encoders[0].pad_token;
    let tokenizer =
        PromptTokenizer::read(&fixtures().join(checkpoint).join("tokenizer"), pad_token, 77, 49_408).expect("reads");
    let mut tokens = Stage::new(format!("{checkpoint}, tokens"));
    let mut text = Stage::new(format!("{checkpoint}, text states"));
    for (name, prompt) in prompts() {
        let ours = tokenizer.tokens(&prompt).expect("tokens");
        assert_eq!(ours.dropped > 0, ["one_too_many", "long"].contains(&name), "{name}");
        let ids = Tensor::new(ours.ids, &device()).and_then(|ids| ids.unsqueeze(0)).expect("ids");
        tokens.compare(name, &ids, reference.get(&format!("tokens/{name}")));
        let states = engine.encode_prompt(&prompt, None, &Inversions::default()).expect("states");
        text.compare(name, &states.positive.states, reference.get(&format!("text/{name}")));
    }
    tokens.finish(super::RelativeError(0.0));
    text.finish(STAGE);
}

fn unet(checkpoint: &str, engine: &StableDiffusion, reference: &Reference) {
    let plain = engine.encode_prompt(PROMPT, None, &Inversions::default()).expect("text");
    let guided = engine.encode_prompt(PROMPT, Some(NEGATIVE), &Inversions::default()).expect("text");
    let mut without = Stage::new(format!("{checkpoint}, unet, guidance 1"));
    let mut with = Stage::new(format!("{checkpoint}, unet, guidance {GUIDANCE_SCALE}"));
    for (batch, height, width) in SIZES {
        let latents = reference.get(&format!("unet/{batch}x{height}x{width}/latents"));
        let timesteps: &[&str] = if batch == 1 { &["1.0", "333.25", "999.0"] } else { &["500.0"] };
        for timestep in timesteps {
            let key = format!("unet/{batch}x{height}x{width}/{timestep}");
            let at: f64 = timestep.parse().expect("a timestep");
            let ours = engine.predict_noise(latents, at, &for_each(batch, &plain), 1.0, Tiling::default()).expect("noise");
            without.compare(&key, &ours, reference.get(&format!("{key}/plain")));
            let ours =
                engine.predict_noise(latents, at, &for_each(batch, &guided), GUIDANCE_SCALE, Tiling::default()).expect("noise");
            with.compare(&key, &ours, reference.get(&format!("{key}/guided")));
        }
    }
    without.finish(STAGE);
    with.finish(STAGE);
}

/// The same prompts for every image of a batch: (R, T, C) to (R·images, T, C).
pub(super) fn for_each(images: usize, text: &Conditioning) -> Conditioning {
    Conditioning::for_images(std::slice::from_ref(text), &[images]).expect("rows")
}

fn vae(checkpoint: &str, engine: &StableDiffusion, reference: &Reference) {
    let mut decoded = Stage::new(format!("{checkpoint}, vae"));
    let mut pixels = Stage::new(format!("{checkpoint}, vae, 8 bit"));
    for (batch, height, width) in SIZES.into_iter().filter(|(batch, ..)| *batch == 1) {
        let size = format!("{batch}x{height}x{width}");
        let latents = reference.get(&format!("unet/{size}/latents"));
        let ours = engine.decode(latents, Tiling::default()).expect("decodes");
        decoded.compare(&size, &ours, reference.get(&format!("vae/{size}")));
        let bytes = ours.i(0).and_then(|image| to_rgb8(&image)).expect("bytes");
        let expected = reference.get(&format!("pixels/{size}")).flatten_all().and_then(|flat| flat.to_vec1::<u8>());
        pixels.note(&size, f64::from(largest_step(&bytes, &expected.expect("bytes"))));
    }
    decoded.finish(STAGE);
    pixels.finish(super::RelativeError(f64::from(PIXEL)));
}

pub(crate) fn largest_step(ours: &[u8], reference: &[u8]) -> u8 {
    assert_eq!(ours.len(), reference.len(), "sizes differ");
    ours.iter().zip(reference).map(|(ours, reference)| ours.abs_diff(*reference)).max().unwrap_or(0)
}
