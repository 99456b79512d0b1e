//! f16: no further from diffusers' f32 than diffusers itself is in f16 (`tests/oracle/half.py`).

use atelier_engine::sd::StableDiffusion;
use atelier_engine::sd::inversion::Inversions;
use atelier_engine::sd::settings::Settings;
use atelier_engine::sd::tiling::Tiling;
use candle_core::{DType, Tensor};

use super::loras::mixes;
use super::stages::{NEGATIVE, PROMPT, for_each, prompts};
use super::{Reference, RelativeError, Stage, fixtures, relative_error, values};

use crate::device;

/// Both round at every layer, each in its own order: what is added up first, and where a sum is kept in f32, is no one's mistake.
const TWICE_AS_FAR: RelativeError = RelativeError(2.0);
const TIMESTEPS: [(&str, f64); 3] = [("1x9x13", 333.25), ("4x9x13", 500.0), ("1x8x8", 999.0)];

/// Our distance from the reference in f32, in distances of diffusers in f16.
struct Distance<'a> {
    whole: &'a Reference,
    half: &'a Reference,
    stage: Stage,
}

impl Distance<'_> {
    fn compare(&mut self, key: &str, ours: &Tensor) {
        let whole = values(self.whole.get(key));
        let theirs = values(self.half.get(key));
        assert_eq!(ours.dtype(), DType::F32, "{key}");
        self.stage.note(key, relative_error(&values(ours), &whole) / relative_error(&theirs, &whole));
    }
}

#[test]
fn parity_of_half_precision() {
    let whole = Reference::read("sd15");
    let half = Reference::read("half");
    let mut engine =
        StableDiffusion::load(&Settings::new(fixtures().join("sd15"), DType::F16, device())).expect("the fixture loads");
    let distance =
        |stage: &str| Distance { whole: &whole, half: &half, stage: Stage::new(format!("sd15, {stage}, f16 / diffusers'")) };
    texts(&engine, distance("text states"));
    unet(&engine, distance("unet, guidance 7.5"));
    vae(&engine, distance("vae"));
    loras(&mut engine, &half);
}

fn texts(engine: &StableDiffusion, mut distance: Distance<'_>) {
    for (name, prompt) in prompts().into_iter().filter(|(name, _)| ["mixed", "long"].contains(name)) {
        let ours = engine.encode_prompt(&prompt, None, &Inversions::default()).expect("states");
        distance.compare(&format!("text/{name}"), &ours.positive.states);
    }
    distance.stage.finish(TWICE_AS_FAR);
}

fn unet(engine: &StableDiffusion, mut distance: Distance<'_>) {
    let text = engine.encode_prompt(PROMPT, Some(NEGATIVE), &Inversions::default()).expect("text");
    for (size, timestep) in TIMESTEPS {
        let latents = distance.whole.get(&format!("unet/{size}/latents"));
        let text = for_each(latents.dim(0).expect("images"), &text);
        let ours = engine.predict_noise(latents, timestep, &text, 7.5, Tiling::default()).expect("noise");
        distance.compare(&format!("unet/{size}/{timestep:?}/guided"), &ours);
    }
    distance.stage.finish(TWICE_AS_FAR);
}

fn vae(engine: &StableDiffusion, mut distance: Distance<'_>) {
    for size in ["1x9x13", "1x8x8"] {
        let latents = distance.whole.get(&format!("unet/{size}/latents"));
        distance.compare(&format!("vae/{size}"), &engine.decode(latents, Tiling::default()).expect("decodes"));
        let bands = engine.decode(latents, Tiling { banded: true, ..Tiling::default() }).expect("decodes");
        distance.compare(&format!("vae/{size}"), &bands);
    }
    distance.stage.finish(TWICE_AS_FAR);
}

/// Several latents together: how much larger this UNet makes a rounding depends on them, so one alone says little.
fn loras(engine: &mut StableDiffusion, half: &Reference) {
    let latents = half.get("lora/latents");
    let mut stage = Stage::new("sd15, with LoRA, f16 / diffusers'");
    for (mix, loras) in mixes() {
        engine.use_loras(&loras).unwrap_or_else(|error| panic!("{mix}: {error}"));
        let states = engine.encode_prompt(PROMPT, None, &Inversions::default()).expect("states");
        let each = for_each(latents.dim(0).expect("images"), &states);
        let noise = engine.predict_noise(latents, 500.0, &each, 1.0, Tiling::default()).expect("noise");
        for (part, ours) in [("text", &states.positive.states), ("unet", &noise)] {
            let key = format!("lora/{mix}/{part}");
            let exact = values(half.get(&format!("{key}/whole")));
            let theirs = values(half.get(&format!("{key}/half")));
            stage.note(&key, mean_error(&values(ours), &exact) / mean_error(&theirs, &exact));
        }
    }
    stage.finish(TWICE_AS_FAR);
}

/// The root of the mean of squared differences.
fn mean_error(ours: &[f64], exact: &[f64]) -> f64 {
    assert_eq!(ours.len(), exact.len());
    let squares = ours.iter().zip(exact).map(|(ours, exact)| (ours - exact).powi(2));
    (squares.sum::<f64>() / exact.len() as f64).sqrt()
}
