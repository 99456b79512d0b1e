//! Tokenizers as they come in the wild: the same tokens as transformers (`tests/oracle/clip_tokens.py`).

use std::fs;
use std::path::{Path, PathBuf};

use atelier_engine::qwen::text::prompt;
use atelier_engine::sd::checkpoint::Checkpoint;
use atelier_engine::sd::tokens::PromptTokenizer;
use serde_json::{Value, json};

use super::checkpoints::{copied, edit};
use super::copy_directory;

/// Of the text encoder: of the fixture's tokens and one more.
const VECTORS: usize = 570;

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures")
}

fn read_json(file: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(file).expect("reads")).expect("JSON")
}

/// `file` with these sections replaced.
fn patch(file: &Path, sections: &Value) {
    let mut content = read_json(file);
    for (name, section) in sections.as_object().expect("sections") {
        content[name] = section.clone();
    }
    fs::write(file, content.to_string()).expect("writes");
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).expect("tokens")
}

#[test]
fn tokens_are_those_of_transformers_whichever_files_are_there() {
    let expected = read_json(&fixtures().join("tokenizers.json"));
    let cases = expected["cases"].as_array().expect("cases");
    assert!(cases.len() > 10);
    for case in cases {
        let directory = copied();
        let files = directory.path().join("tokenizer");
        for file in case["remove"].as_array().expect("files") {
            fs::remove_file(files.join(file.as_str().expect("a name"))).expect("removes");
        }
        for (file, content) in case["write"].as_object().expect("files") {
            fs::write(files.join(file), content.to_string()).expect("writes");
        }
        if files.join("tokenizer.json").is_file() {
            patch(&files.join("tokenizer.json"), &case["patch"]);
        }
        let checkpoint = Checkpoint::read(directory.path()).expect("reads");
        let tokenizer = PromptTokenizer::read(&files, &checkpoint.text_encoders[0].pad_token, 77, VECTORS).expect("reads");
        for (index, prompt) in expected["prompts"].as_array().expect("prompts").iter().enumerate() {
            let prompt = prompt.as_str().expect("a prompt");
            let name = &case["name"];
            assert_eq!(tokenizer.tokens(prompt).expect("tokens").ids, ids(&case["ids"][index]), "{name}: {prompt}");
            assert_eq!(tokenizer.encode_words(prompt).expect("tokens"), ids(&case["bare"][index]), "{name}: {prompt}, bare");
        }
    }
}

#[test]
fn a_word_that_the_text_encoder_has_no_vector_of_is_refused_where_it_is_written() {
    let directory = copied();
    let files = directory.path().join("tokenizer");
    fs::write(files.join("added_tokens.json"), json!({ "<sks>": 569 }).to_string()).expect("writes");
    let tokenizer = PromptTokenizer::read(&files, "<|endoftext|>", 77, VECTORS - 1).expect("reads");
    assert!(tokenizer.tokens("a cat").is_ok());
    let error = tokenizer.tokens("a <sks> cat").expect_err("no vector").to_string();
    assert!(error.contains("prompt") && error.contains("\"<sks>\" is token 569") && error.contains("569 vectors"), "{error}");
    fs::write(files.join("added_tokens.json"), json!({ "<sks>": 600 }).to_string()).expect("writes");
    let error = PromptTokenizer::read(&files, "<|endoftext|>", 77, VECTORS).err().expect("a gap").to_string();
    assert!(error.contains("adds <sks> as token 600"), "{error}");
}

/// diffusers would read prompts in another way by them.
#[test]
fn settings_of_a_tokenizer_that_are_not_followed_are_refused() {
    for (setting, says) in [
        (json!({ "model_max_length": 60 }), "model_max_length must be 77"),
        (json!({ "truncation_side": "left" }), "truncation_side must be right"),
        (json!({ "padding_side": "left" }), "padding_side must be right"),
        (json!({ "split_special_tokens": true }), "split_special_tokens must be false"),
    ] {
        let directory = copied();
        let files = directory.path().join("tokenizer");
        patch(&files.join("tokenizer_config.json"), &setting);
        let error = PromptTokenizer::read(&files, "<|endoftext|>", 77, VECTORS).err().expect("refused").to_string();
        assert!(error.contains("tokenizer_config.json") && error.contains(says), "{error}");
    }
}

#[test]
fn a_pad_token_without_a_vector_is_refused() {
    let directory = copied();
    let files = directory.path().join("tokenizer");
    edit(&files.join("tokenizer_config.json"), "\"pad_token\": \"<|endoftext|>\"", "\"pad_token\": \"[PAD]\"");
    let pad = Checkpoint::read(directory.path()).expect("reads").text_encoders[0].pad_token.clone();
    for file in ["tokenizer.json", "vocab.json"] {
        let error = PromptTokenizer::read(&files, &pad, 77, VECTORS).err().expect(file).to_string();
        assert!(error.contains("has no token [PAD]"), "{file}: {error}");
        let _ = fs::remove_file(files.join("tokenizer.json"));
    }
}

fn edit_tokens(directory: &Path) -> String {
    let tokenizer = prompt::PromptTokenizer::read(directory, prompt::EDIT).expect("reads");
    format!("{:?}", tokenizer.runs(&"a red dress, ".repeat(40), 2).expect("runs"))
}

/// Transformers leaves them there after every padded call; a prompt of an edit is never padded.
#[test]
fn an_edit_models_padding_and_truncation_are_reset() {
    let directory = tempfile::tempdir().expect("a directory");
    copy_directory(
        &PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../models/tiny-edit/processor"),
        &directory.path().join("processor"),
    );
    let plain = edit_tokens(directory.path());
    let padding = json!({
        "strategy": {"Fixed": 900}, "direction": "Left", "pad_to_multiple_of": null, "pad_id": 1, "pad_type_id": 0, "pad_token": "!"
    });
    let truncation = json!({"direction": "Right", "max_length": 9, "strategy": "LongestFirst", "stride": 0});
    patch(&directory.path().join("processor/tokenizer.json"), &json!({"padding": padding, "truncation": truncation}));
    assert_eq!(edit_tokens(directory.path()), plain);
    fs::rename(directory.path().join("processor"), directory.path().join("tokenizer")).expect("renames");
    assert_eq!(edit_tokens(directory.path()), plain, "next to the vocabulary");
}

/// Older versions of transformers kept the added tokens in a file of their own.
#[test]
fn added_tokens_are_read_wherever_they_stand() {
    let directory = tempfile::tempdir().expect("a directory");
    let files = directory.path().join("tokenizer");
    copy_directory(&fixtures().join("qwen-text/tokenizer"), &files);
    let _ = fs::remove_file(files.join("tokenizer.json"));
    let config = read_json(&files.join("tokenizer_config.json"));
    let plain = edit_tokens(directory.path());
    let added = config["added_tokens_decoder"].as_object().expect("added tokens");
    let older: Value = added
        .iter()
        .map(|(id, token)| (token["content"].as_str().expect("a token"), id.parse::<u32>().expect("an id")))
        .collect();
    fs::write(files.join("added_tokens.json"), older.to_string()).expect("writes");
    fs::remove_file(files.join("tokenizer_config.json")).expect("removes");
    assert_eq!(edit_tokens(directory.path()), plain);
    fs::remove_file(files.join("added_tokens.json")).expect("removes");
    let error = prompt::PromptTokenizer::read(directory.path(), prompt::EDIT).err().expect("no special tokens").to_string();
    assert!(error.contains("has no token <|im_start|>"), "{error}");
}
