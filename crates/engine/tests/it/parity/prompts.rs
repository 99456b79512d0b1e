//! Long and weighted prompts, and textual inversions, against the oracle's.

use atelier_engine::EmbeddingFile;
use atelier_engine::sd::StableDiffusion;
use atelier_engine::sd::conditioning::Conditioning;
use atelier_engine::sd::inversion::Inversions;
use atelier_engine::sd::settings::{PromptSyntax, Settings};
use candle_core::{DType, Tensor};

use super::stages::{NEGATIVE, PROMPT};
use super::{Reference, STAGE, Stage, engine, fixtures, values};

use crate::device;

fn reads(checkpoint: &str, prompts: PromptSyntax) -> StableDiffusion {
    let settings = Settings::new(fixtures().join(checkpoint), DType::F32, device());
    StableDiffusion::load(&Settings { prompts, ..settings }).expect("the fixture loads")
}

fn weighted() -> StableDiffusion {
    reads("sd15", PromptSyntax::Weighted)
}

fn embedding(token: &str, file: &str) -> EmbeddingFile {
    let path = fixtures().join(format!("embeddings/{file}.safetensors"));
    EmbeddingFile { path, token: token.to_owned() }
}

/// As `lpw_stable_diffusion`, and, where there is one chunk, as AUTOMATIC1111 as well.
#[test]
fn parity_of_weighted_prompts() {
    let lpw = reads("sd15", PromptSyntax::Lpw);
    let automatic = weighted();
    let reference = Reference::read("prompts");
    let mut stage = Stage::new("sd15, long and weighted prompts");
    let two_chunks = format!("a bright (red :1.5){}(and a dog:0.25)", "cat ".repeat(80));
    for (name, prompt) in [
        ("weights", "a (small:1.3) [lighthouse] over (the sea"),
        ("escaped", "a \\(red\\) cat: \\[old( dog:0.4)"),
        ("two_chunks", &two_chunks),
        ("long", &["paper sea over a storm"; 40].join(" ")),
    ] {
        let states = lpw.encode_prompt(prompt, Some(NEGATIVE), &Inversions::default()).expect("states");
        let states = states.rows().expect("of one length").states;
        stage.compare(name, &states, reference.get(name));
        if states.dim(1).expect("tokens") == 77 || name == "long" {
            let states = automatic.encode_prompt(prompt, Some(NEGATIVE), &Inversions::default()).expect("states");
            compare_lengths(&mut stage, name, &states, reference.get(name));
        }
    }
    stage.finish(STAGE);
}

/// Each text in its own length; `padded`: both, the negative one with empty chunks behind it.
fn compare_lengths(stage: &mut Stage, name: &str, states: &Conditioning, padded: &Tensor) {
    let negative = &states.negative.as_ref().expect("a negative prompt").states;
    assert_eq!(negative.dim(1).expect("tokens"), 77, "{name}: one chunk");
    let rows = |row: usize, tokens: usize| padded.narrow(0, row, 1).and_then(|row| row.narrow(1, 0, tokens)).expect("a row");
    stage.compare(name, negative, &rows(0, 77));
    stage.compare(name, &states.positive.states, &rows(1, padded.dim(1).expect("tokens")));
}

/// What is to be written for the chunks and weights in the oracle's script.
fn automatic_cases() -> [(&'static str, String); 6] {
    [
        ("blanks", "a (red: 1.4) cat, (dog :0.5)".to_owned()),
        ("break", "a [red] cat BREAK (blue: 1.4) dog".to_owned()),
        ("comma", format!("{}, (dog:1.2) {}", "cat ".repeat(60), "sea ".repeat(30))),
        ("far_comma", format!("{}, (dog:1.2) {}", "cat ".repeat(50), "sea ".repeat(30))),
        ("two_chunks", format!("a bright (red: 1.5) {}(and a dog:0.25)", "cat ".repeat(80))),
        ("word", format!("{}(<old-mill>:1.3) cat", "a ".repeat(73))),
    ]
}

/// By AUTOMATIC1111's formula, written down in `tests/oracle/weighted_prompts.py`; SD2 fills up with another token.
#[test]
fn parity_of_prompts_as_in_automatic1111() {
    let reference = Reference::read("weighted_prompts");
    for model in ["sd15", "sd2"] {
        let engine = reads(model, PromptSyntax::Weighted);
        let mut stage = Stage::new(format!("{model}, prompts as in AUTOMATIC1111"));
        for (name, prompt) in automatic_cases() {
            let inversions = match (name, model) {
                ("break" | "far_comma" | "two_chunks" | "word", "sd2") => continue,
                ("word", _) => engine.read_embeddings(&[embedding("<old-mill>", "mill")]).expect("reads"),
                _ => Inversions::default(),
            };
            let states = engine.encode_prompt(&prompt, Some("storm, (dog: 1.2)"), &inversions).expect("states");
            compare_lengths(&mut stage, name, &states, reference.get(&format!("{model}/{name}")));
        }
        stage.finish(STAGE);
    }
}

/// Up to three chunks, and the end behind the padding.
#[test]
fn parity_of_long_prompts_as_in_lpw() {
    let reference = Reference::read("weighted_prompts");
    let too_long = format!("{}{}{}", "cat ".repeat(100), "(dog:1.5) ".repeat(100), "sea ".repeat(60));
    for model in ["sd15", "sd2"] {
        let engine = reads(model, PromptSyntax::Lpw);
        let mut stage = Stage::new(format!("{model}, prompts as in lpw"));
        for (name, prompt) in [("lpw", &format!("a (red:1.4) cat {}", "sea ".repeat(90))), ("lpw_too_long", &too_long)] {
            if (name, model) == ("lpw_too_long", "sd2") {
                continue;
            }
            let states = engine.encode_prompt(prompt, None, &Inversions::default()).expect("states");
            stage.compare(name, &states.positive.states, reference.get(&format!("{model}/{name}")));
        }
        stage.finish(STAGE);
    }
}

/// Refused in the modes that would read brackets, and text in the one that does not.
#[test]
fn syntax_of_another_program_is_refused_with_its_field() {
    for prompt in ["a [cat:dog:0.5]", "a [cat|dog]", "a cat AND a dog", "a cat <lora:style:1>"] {
        for syntax in [PromptSyntax::Weighted, PromptSyntax::Lpw] {
            let engine = reads("sd15", syntax);
            let error = engine.encode_prompt(prompt, Some(""), &Inversions::default()).expect_err(prompt).to_string();
            assert!(error.starts_with("prompt: ") && error.contains("is not supported"), "{error}");
        }
        engine("sd15").encode_prompt(prompt, Some(prompt), &Inversions::default()).expect("plain text");
    }
    let error = weighted().encode_prompt("a cat", Some("[a|b]"), &Inversions::default()).expect_err("negative").to_string();
    assert!(error.starts_with("negative_prompt: "), "{error}");
    let error = weighted().encode_prompt("a cat", Some("(a:11)"), &Inversions::default()).expect_err("negative").to_string();
    assert!(error.starts_with("negative_prompt: the weight of"), "{error}");
}

/// A prompt without brackets gets the very tensors of the plain reading.
#[test]
fn short_prompt_without_brackets_is_the_same_in_both_syntaxes() {
    let plain = engine("sd15");
    let weighted = weighted();
    for (prompt, negative) in [(PROMPT, Some(NEGATIVE)), ("", Some("")), (&["cat"; 75].join(" ")[..], None)] {
        let states = |engine: &StableDiffusion| {
            let states = engine.encode_prompt(prompt, negative, &Inversions::default()).expect("states");
            values(&states.rows().expect("of one length").states)
        };
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
            stage.compare(name, &states.rows().expect("of one length").states, reference.get(&format!("inverted/{name}")));
        }
    }
    let plain = engine("sd15");
    let inversions = plain.read_embeddings(&files).expect("reads");
    let cut = format!("{}<old-mill>", "a ".repeat(73));
    let states = plain.encode_prompt(&cut, Some(""), &inversions).expect("states");
    stage.compare("cut", &states.rows().expect("of one length").states, reference.get("inverted/cut"));
    stage.finish(STAGE);
}
