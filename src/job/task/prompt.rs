//! How prompts are read, and the words in them that stand for files.

use serde::{Deserialize, Deserializer, Serialize, de};

use super::text;
use crate::job::url::AssetUrl;
use crate::shown;

/// A textual inversion file and the word that stands for its vectors in the prompts.
#[derive(Debug, Clone, PartialEq)]
pub struct Embedding {
    pub url: AssetUrl,
    pub token: EmbeddingToken,
}

/// A word that a prompt may hold: 1 to 64 visible ASCII characters, none of them a bracket, a colon or a backslash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct EmbeddingToken(String);

impl EmbeddingToken {
    /// # Errors
    /// Says what is allowed when `text` is not such a word.
    pub fn new(text: &str) -> Result<Self, String> {
        let is_plain = text.chars().all(|c| c.is_ascii_graphic() && !matches!(c, '(' | ')' | '[' | ']' | ':' | '\\'));
        if (1..=64).contains(&text.len()) && is_plain {
            return Ok(Self(text.to_owned()));
        }
        let what = "must be 1 to 64 ASCII characters, none of them white space or one of ( ) [ ] : \\";
        Err(format!("{what}, got {}", shown::text(text)))
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for EmbeddingToken {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(&text(deserializer)?).map_err(de::Error::custom)
    }
}

/// How a model reads prompts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PromptSyntax {
    /// As they stand, up to the 75 words or so that the model was trained on; more are dropped, which the log says.
    #[default]
    Plain,
    /// As AUTOMATIC1111's web interface: `(word:1.2)`, `(word)`, `[word]`, `BREAK`, and any length.
    Weighted,
    /// As diffusers' community pipeline `lpw_stable_diffusion`: the same without `BREAK`, up to three times the model's length.
    Lpw,
}
