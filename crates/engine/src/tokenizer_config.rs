//! Special tokens of a tokenizer, by the rules with which transformers 5 reads its small JSON files.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use super::EngineError;
use super::json_config::read;

/// What transformers' `CLIPTokenizer` fills prompts up with where no file says it.
const CLIP_PAD: &str = "<|endoftext|>";

#[derive(Default, Deserialize)]
struct Config {
    pad_token: Option<SpecialToken>,
    added_tokens_decoder: Option<BTreeMap<u32, Added>>,
}

#[derive(Default, Deserialize)]
struct SpecialTokensMap {
    pad_token: Option<SpecialToken>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum SpecialToken {
    Text(String),
    Added(Added),
}

#[derive(Deserialize)]
struct Added {
    content: String,
}

#[derive(Deserialize)]
struct Serialized {
    #[serde(default)]
    added_tokens: Vec<SerializedToken>,
}

#[derive(Deserialize)]
struct SerializedToken {
    id: u32,
    content: String,
}

impl SpecialToken {
    fn text(self) -> String {
        match self {
            Self::Text(text) | Self::Added(Added { content: text }) => text,
        }
    }
}

/// What a CLIP tokenizer in `directory` fills short prompts up with.
///
/// `special_tokens_map.json` comes before `tokenizer_config.json`, unless that has `added_tokens_decoder`: then the former is a file that
/// transformers reads no more (`PreTrainedTokenizerBase._from_pretrained`). Stable Diffusion 2 says `!` in the former alone.
///
/// # Errors
/// [`EngineError::Checkpoint`] when one of the files is there and cannot be read.
pub(super) fn pad_token(directory: &Path) -> Result<String, EngineError> {
    let config: Config = read_if_present(&directory.join("tokenizer_config.json"))?;
    let mut token = config.pad_token;
    if config.added_tokens_decoder.is_none() {
        let map: SpecialTokensMap = read_if_present(&directory.join("special_tokens_map.json"))?;
        token = map.pad_token.or(token);
    }
    Ok(token.map_or_else(|| CLIP_PAD.to_owned(), SpecialToken::text))
}

/// The tokens that the files in `directory` add to a vocabulary, by their number: those of `tokenizer_config.json`, or of `added_tokens.json`
/// and `tokenizer.json`, which older versions of transformers wrote.
///
/// # Errors
/// As [`pad_token`].
pub(super) fn added_tokens(directory: &Path) -> Result<BTreeMap<u32, String>, EngineError> {
    let config: Config = read_if_present(&directory.join("tokenizer_config.json"))?;
    if let Some(tokens) = config.added_tokens_decoder {
        return Ok(tokens.into_iter().map(|(id, token)| (id, token.content)).collect());
    }
    let older: BTreeMap<String, u32> = read_if_present(&directory.join("added_tokens.json"))?;
    let mut tokens: BTreeMap<u32, String> = older.into_iter().map(|(token, id)| (id, token)).collect();
    let path = directory.join("tokenizer.json");
    if path.is_file() {
        let serialized: Serialized = read(&path, &[])?;
        tokens.extend(serialized.added_tokens.into_iter().map(|token| (token.id, token.content)));
    }
    Ok(tokens)
}

fn read_if_present<T: Default + serde::de::DeserializeOwned>(path: &Path) -> Result<T, EngineError> {
    if path.is_file() { read(path, &[]) } else { Ok(T::default()) }
}
