//! Every textual inversion that must be refused, and the good job after it.

use std::collections::HashMap;
use std::path::Path;

use atelier_engine::sd::StableDiffusion;
use atelier_engine::sd::settings::{PromptSyntax, Settings};
use atelier_engine::{EmbeddingFile, Engine, EngineError, GenerateRequest, Watch};
use candle_core::{DType, Tensor};

use super::{engine, fixtures, request};

use crate::device;

const HIDDEN: usize = 24;

fn with(path: &Path, token: &str) -> GenerateRequest {
    GenerateRequest { embeddings: vec![EmbeddingFile { path: path.to_owned(), token: token.to_owned() }], ..request(vec![]) }
}

/// Name, tensors, and what its error must say.
type BadFile = (&'static str, Vec<(&'static str, Tensor)>, &'static str);

fn bad_files() -> Vec<BadFile> {
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &device()).expect("zeros");
    let nan = Tensor::full(f32::NAN, (1, HIDDEN), &device()).expect("a tensor");
    vec![
        ("no tensors", vec![], "holds no tensors"),
        ("a LoRA", vec![("a.lora_A", zeros(&[4, HIDDEN])), ("a.lora_B", zeros(&[HIDDEN, 4]))], "is it a textual inversion?"),
        ("another model's", vec![("<word>", zeros(&[2, 768]))], "vectors of 24 floats"),
        ("no vectors", vec![("emb_params", zeros(&[0, HIDDEN]))], "vectors of 24 floats"),
        ("integers", vec![("<word>", zeros(&[HIDDEN]).to_dtype(DType::U32).expect("integers"))], "of U32"),
        ("a NaN", vec![("<word>", nan)], "holds NaN"),
        ("a thousand vectors", vec![("<word>", zeros(&[1000, HIDDEN]))], "has 1000 vectors; a word may stand for 128 at most"),
    ]
}

#[test]
fn bad_embeddings_are_refused_and_the_next_job_is_generated() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut engine = engine();
    let mut refuse = |name: &str, request: &GenerateRequest, problem: &str| {
        let error = engine.generate(request, &Watch::new(|_| ())).expect_err(name);
        let last = request.embeddings.len() - 1;
        assert!(matches!(error, EngineError::Embedding { index, .. } if index == last), "{name}: {error}");
        assert!(error.to_string().contains(problem), "{name}: {error}");
    };
    for (name, tensors, problem) in bad_files() {
        let tensors: HashMap<&str, Tensor> = tensors.into_iter().collect();
        let path = directory.path().join("embedding.safetensors");
        candle_core::safetensors::save(&tensors, &path).expect("saves");
        refuse(name, &with(&path, "<word>"), problem);
    }
    let good = fixtures().join("embeddings/mood.safetensors");
    refuse("a word of the model", &with(&good, "lighthouse</w>"), "is a token already");
    let mut twice = with(&good, "<word>");
    twice.embeddings.push(twice.embeddings[0].clone());
    refuse("the same word twice", &twice, "of another file");
    refuse("no file", &with(&directory.path().join("none"), "<word>"), "cannot be read");
    let generated = engine.generate(&with(&good, "lighthouse"), &Watch::new(|_| ())).expect("generates");
    let without = engine.generate(&request(vec![]), &Watch::new(|_| ())).expect("generates");
    assert!(generated != without, "the word stands for its vector");
}

/// A word of many vectors, written many times in a prompt of any length, asked for gigabytes.
#[test]
fn prompt_of_too_many_tokens_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("wide.safetensors");
    let vectors = Tensor::full(0.25_f32, (70, HIDDEN), &device()).expect("a tensor");
    candle_core::safetensors::save(&HashMap::from([("<w>", vectors)]), &path).expect("saves");
    let settings = Settings::new(fixtures().join("sd15"), DType::F32, device());
    let settings = Settings { prompts: PromptSyntax::Weighted, ..settings };
    let mut engine = StableDiffusion::load(&settings).expect("the fixture loads");
    let mut asked = with(&path, "<w>");
    asked.prompt = "<w> ".repeat(118);
    let error = engine.generate(&asked, &Watch::new(|_| ())).expect_err("8260 tokens").to_string();
    assert!(error.starts_with("prompt: is more than 8192 tokens"), "{error}");
    asked.prompt = "<w> ".repeat(2);
    engine.generate(&asked, &Watch::new(|_| ())).expect("140 tokens are two chunks");
}
