//! Special tokens of a tokenizer, by the rules with which transformers 5 reads its small JSON files.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use tokenizers::{AddedToken, Tokenizer};

use super::EngineError;
use super::json_config::read;

/// What transformers' `CLIPTokenizer` fills prompts up with where no file says it.
const CLIP_PAD: &str = "<|endoftext|>";

#[derive(Default, Deserialize)]
struct Config {
    pad_token: Option<SpecialToken>,
    added_tokens_decoder: Option<BTreeMap<u32, Added>>,
    model_max_length: Option<f64>,
    padding_side: Option<String>,
    truncation_side: Option<String>,
    split_special_tokens: Option<bool>,
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

/// A token that is added to a vocabulary, and how it is found in a text.
#[derive(Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "the file's own keys, which depend on each other in no way")]
pub(super) struct Added {
    pub(super) content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    special: bool,
    /// Whether it is looked for in the text after that was normalized; none: unless it is special.
    normalized: Option<bool>,
}

#[derive(Deserialize)]
struct Serialized {
    #[serde(default)]
    added_tokens: Vec<SerializedToken>,
}

#[derive(Deserialize)]
struct SerializedToken {
    id: u32,
    #[serde(flatten)]
    added: Added,
}

impl Added {
    /// What `added_tokens.json` says of a token: nothing but its text.
    fn plain(content: String) -> Self {
        Self { content, single_word: false, lstrip: false, rstrip: false, special: false, normalized: None }
    }

    pub(super) fn token(&self) -> AddedToken {
        let token = AddedToken::from(self.content.clone(), self.special);
        let token = token.single_word(self.single_word).lstrip(self.lstrip).rstrip(self.rstrip);
        token.normalized(self.normalized.unwrap_or(!self.special))
    }
}

impl SpecialToken {
    fn text(self) -> String {
        match self {
            Self::Text(text) | Self::Added(Added { content: text, .. }) => text,
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

/// Refuses what would have diffusers read prompts in another way than here.
///
/// # Errors
/// [`EngineError::Checkpoint`] names the setting of `tokenizer_config.json`. `positions`: of the text encoder.
pub(super) fn check_clip(directory: &Path, positions: usize) -> Result<(), EngineError> {
    let path = directory.join("tokenizer_config.json");
    let Config { model_max_length, padding_side, truncation_side, split_special_tokens, .. } = read_if_present(&path)?;
    let is_left = |side: &Option<String>| side.as_deref() == Some("left");
    let problem = match model_max_length {
        Some(length) if length < positions as f64 => {
            format!("model_max_length must be {positions}, the text encoder's positions, or be left out; got {length}")
        }
        _ if is_left(&padding_side) => "padding_side must be right".to_owned(),
        _ if is_left(&truncation_side) => "truncation_side must be right".to_owned(),
        _ if split_special_tokens == Some(true) => "split_special_tokens must be false".to_owned(),
        _ => return Ok(()),
    };
    Err(EngineError::Checkpoint { path, problem })
}

/// Refuses prompts that are filled up in front, where the model reads what they are filled up with as well.
///
/// # Errors
/// [`EngineError::Checkpoint`] names the setting of `tokenizer_config.json`.
pub(super) fn check_padding(directory: &Path) -> Result<(), EngineError> {
    let path = directory.join("tokenizer_config.json");
    let Config { padding_side, .. } = read_if_present(&path)?;
    if padding_side.as_deref() == Some("left") {
        return Err(EngineError::Checkpoint { path, problem: "padding_side must be right".to_owned() });
    }
    Ok(())
}

/// The tokens that the files in `directory` add to a vocabulary, by their number: those of `tokenizer_config.json`, or of `added_tokens.json`
/// and `tokenizer.json`, which older versions of transformers wrote.
///
/// # Errors
/// As [`pad_token`].
pub(super) fn added_tokens(directory: &Path) -> Result<BTreeMap<u32, Added>, EngineError> {
    let config: Config = read_if_present(&directory.join("tokenizer_config.json"))?;
    if let Some(tokens) = config.added_tokens_decoder {
        return Ok(tokens);
    }
    let older: BTreeMap<String, u32> = read_if_present(&directory.join("added_tokens.json"))?;
    let mut tokens: BTreeMap<u32, Added> = older.into_iter().map(|(token, id)| (id, Added::plain(token))).collect();
    let path = directory.join("tokenizer.json");
    if path.is_file() {
        let serialized: Serialized = read(&path, &[])?;
        tokens.extend(serialized.added_tokens.into_iter().map(|token| (token.id, token.added)));
    }
    Ok(tokens)
}

/// Adds a token that has this number in the checkpoint.
///
/// # Errors
/// When it would get another number here.
pub(super) fn add_token(tokenizer: &mut Tokenizer, id: u32, token: AddedToken) -> tokenizers::Result<()> {
    let text = token.content.clone();
    tokenizer.add_tokens([token])?;
    match tokenizer.token_to_id(&text) {
        Some(given) if given == id => Ok(()),
        given => Err(format!("adds {text} as token {id}, but it would be {given:?}: a token before it is missing").into()),
    }
}

fn read_if_present<T: Default + serde::de::DeserializeOwned>(path: &Path) -> Result<T, EngineError> {
    if path.is_file() { read(path, &[]) } else { Ok(T::default()) }
}
