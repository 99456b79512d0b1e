//! Long and weighted prompts, and textual inversions, against the oracle's.

use atelier_engine::EmbeddingFile;
use atelier_engine::sd::StableDiffusion;
use atelier_engine::sd::inversion::Inversions;
use atelier_engine::sd::settings::{PromptSyntax, Settings};
use candle_core::{DType, Device};

use super::stages::{NEGATIVE, PROMPT};
use super::{Reference, STAGE, Stage, engine, fixtures, values};

fn weighted() -> StableDiffusion {
    let settings = Settings::new(fixtures().join("sd15"), DType::F32, Device::Cpu);
    StableDiffusion::load(&Settings { prompts: PromptSyntax::Weighted, ..settings }).expect("the fixture loads")
}

fn embedding(token: &str, file: &str) -> EmbeddingFile {
    let path = fixtures().join(format!("embeddings/{file}.safetensors"));
    EmbeddingFile { path, token: token.to_owned() }
}

#[test]
fn parity_of_weighted_prompts() {
    let (engine, reference) = (weighted(), Reference::read("prompts"));
    let mut stage = Stage::new("sd15, long and weighted prompts");
    let two_chunks = format!("a bright (red :1.5){}(and a dog:0.25)", "cat ".repeat(80));
    for (name, prompt) in [
        ("weights", "a (small:1.3) [lighthouse] over (the sea"),
        ("escaped", "a \\(red\\) cat: \\[old( dog:0.4)"),
        ("two_chunks", &two_chunks),
        ("long", &["paper sea over a storm"; 40].join(" ")),
    ] {
        let states = engine.encode_prompt(prompt, Some(NEGATIVE), &Inversions::default()).expect("states");
        stage.compare(name, &states, reference.get(name));
    }
    stage.finish(STAGE);
}

/// Whoever writes no brackets gets the very tensors of the plain reading.
#[test]
fn short_prompt_without_brackets_is_the_same_in_both_syntaxes() {
    let (plain, weighted) = (engine("sd15"), weighted());
    for (prompt, negative) in [(PROMPT, Some(NEGATIVE)), ("", Some("")), (&["cat"; 75].join(" ")[..], None)] {
        let states =
            |engine: &StableDiffusion| values(&engine.encode_prompt(prompt, negative, &Inversions::default()).expect("states"));
        assert!(states(&plain) == states(&weighted), "{prompt}");
    }
}

#[test]
fn parity_of_textual_inversions() {
    let files = [embedding("<mood>", "mood"), embedding("<old-mill>", "mill"), embedding("easydusk", "a1111")];
    let reference = Reference::read("prompts");
    let mut stage = Stage::new("sd15, textual inversions");
    for engine in [engine("sd15"), weighted()] {
        let inversions = engine.read_embeddings(&files).expect("reads");
        for (name, prompt, negative) in [
            ("one", "a <mood> lighthouse", "storm"),
            ("several", "a <mood> cat over <old-mill>, and easydusk", "<old-mill> dog"),
        ] {
            let states = engine.encode_prompt(prompt, Some(negative), &inversions).expect("states");
            stage.compare(name, &states, reference.get(&format!("inverted/{name}")));
        }
    }
    let plain = engine("sd15");
    let inversions = plain.read_embeddings(&files).expect("reads");
    let cut = format!("{}<old-mill>", "a ".repeat(73));
    let states = plain.encode_prompt(&cut, Some(""), &inversions).expect("states");
    stage.compare("cut", &states, reference.get("inverted/cut"));
    stage.finish(STAGE);
}
