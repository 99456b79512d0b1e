//! LoRA files of every format, alone, together and in turns, against PEFT.

use std::collections::BTreeMap;

use atelier_engine::sd::StableDiffusion;
use atelier_engine::sd::inversion::Inversions;
use atelier_engine::sd::tiling::Tiling;
use atelier_engine::{Engine, LoraFile};
use candle_core::Tensor;

use super::stages::PROMPT;
use super::{Reference, STAGE, Stage, engine, fixtures, values};

const TIMESTEP: f64 = 500.0;

#[test]
fn parity_of_loras() {
    let mut engine = engine("sd15");
    let reference = Reference::read("sd15");
    let mut text = Stage::new("sd15, text states with LoRA");
    let mut unet = Stage::new("sd15, unet with LoRA");
    for (mix, loras) in mixes() {
        engine.use_loras(&loras).unwrap_or_else(|error| panic!("{mix}: {error}"));
        let (states, noise) = look(&engine, &reference);
        text.compare(&mix, &states, reference.get(&format!("lora/{mix}/text")));
        unet.compare(&mix, &noise, reference.get(&format!("lora/{mix}/unet")));
    }
    text.finish(STAGE);
    unet.finish(STAGE);
}

/// Against `LyCORIS`, PEFT and diffusers' reading of the old names.
#[test]
fn parity_of_adapters_of_every_kind() {
    let mut engine = engine("sd15");
    let latents = Reference::read("sd15");
    let reference = Reference::read("adapters/expected");
    let scales = std::fs::read_to_string(fixtures().join("adapters/scales.json")).expect("scales");
    let scales: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&scales).expect("scales");
    let (plain, _) = look(&engine, &latents);
    let mut text = Stage::new("sd15, text states with adapters");
    let mut unet = Stage::new("sd15, unet with adapters");
    for (name, scale) in scales {
        let path = fixtures().join(format!("adapters/{name}.safetensors"));
        let scale = scale.as_f64().expect("a scale");
        engine.use_loras(&[LoraFile::new(path, scale)]).unwrap_or_else(|error| panic!("{name}: {error}"));
        let (states, noise) = look(&engine, &latents);
        let adapts_text = ["loha", "lokr", "dora"].contains(&name.as_str());
        assert_eq!(values(&states) != values(&plain), adapts_text, "{name} and the text encoder");
        text.compare(&name, &states, reference.get(&format!("{name}/text")));
        unet.compare(&name, &noise, reference.get(&format!("{name}/unet")));
    }
    text.finish(STAGE);
    unet.finish(STAGE);
}

#[test]
fn parity_of_loras_in_turns() {
    let reference = Reference::read("sd15");
    let turns: [&[LoraFile]; 6] =
        [&[lora("peft", 1.0)], &[lora("kohya", 0.8)], &[], &[lora("peft", 1.0)], &[lora("peft", 0.5)], &[]];
    let mut alternating = engine("sd15");
    let mut seen: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for loras in turns {
        alternating.use_loras(loras).expect("loads");
        let ours = values(&look(&alternating, &reference).1);
        let first = seen.entry(format!("{loras:?}")).or_insert_with(|| {
            let mut fresh = engine("sd15");
            fresh.use_loras(loras).expect("loads");
            values(&look(&fresh, &reference).1)
        });
        assert_eq!(&ours, first, "{loras:?} leaked from one turn into another");
    }
    assert_eq!(seen.len(), 4, "every LoRA generates something of its own");
}

#[test]
fn lora_that_fails_leaves_the_engine_as_it_was() {
    let reference = Reference::read("sd15");
    let mut engine = engine("sd15");
    engine.warm_up().expect("warms up");
    let before = values(&look(&engine, &reference).1);
    engine.use_loras(&[lora("peft", 1.0), lora("missing", 1.0)]).expect_err("there is no such file");
    assert_eq!(before, values(&look(&engine, &reference).1));
}

/// The oracle's mixes by name. The order of the LoRAs is part of the case.
pub(super) fn mixes() -> Vec<(String, Vec<LoraFile>)> {
    let mixes = std::fs::read_to_string(fixtures().join("loras/mixes.json")).expect("mixes");
    let mixes: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&mixes).expect("mixes");
    let mixes = mixes.iter().map(|(mix, scales)| {
        let scales = scales.as_object().expect("scales");
        let files = scales.iter().map(|(name, scale)| lora(name, scale.as_f64().expect("a scale")));
        (mix.clone(), files.collect())
    });
    mixes.collect()
}

fn lora(name: &str, scale: f64) -> LoraFile {
    let path = fixtures().join(format!("loras/{name}.safetensors"));
    LoraFile::new(path, scale)
}

/// Text states of the prompt, and what the UNet makes of fixed latents.
pub(super) fn look(engine: &StableDiffusion, reference: &Reference) -> (Tensor, Tensor) {
    let states = engine.encode_prompt(PROMPT, None, &Inversions::default()).expect("states");
    let noise =
        engine.predict_noise(reference.get("unet/1x9x13/latents"), TIMESTEP, &states, 1.0, Tiling::default()).expect("noise");
    (states.positive.states, noise)
}
