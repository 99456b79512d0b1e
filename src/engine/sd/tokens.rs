//! Prompts to tokens, as CLIP was trained on them.

use std::path::Path;

use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::replace::ReplacePattern;
use tokenizers::normalizers::{Lowercase, NFC, Replace, Sequence as Normalizers};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::processors::roberta::RobertaProcessing;
use tokenizers::tokenizer::{AddedToken, SplitDelimiterBehavior, Tokenizer};

use crate::engine::EngineError;

const START: &str = "<|startoftext|>";
const END: &str = "<|endoftext|>";

/// Words, single digits and runs of anything else: CLIP's `simple_tokenizer.py`.
const WORDS: &str = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// A CLIP tokenizer that always gives `length` tokens.
pub struct PromptTokenizer {
    tokenizer: Tokenizer,
    pad: u32,
    end: u32,
    length: usize,
}

/// The tokens of one prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PromptTokens {
    /// Start, text, end and padding: always the model's length.
    pub ids: Vec<u32>,
    /// Tokens of the text that did not fit.
    pub dropped: usize,
}

impl PromptTokenizer {
    /// Reads `tokenizer.json` in `folder`, or `vocab.json` and `merges.txt` where there is none.
    ///
    /// # Errors
    /// [`EngineError::Checkpoint`] when neither can be read, or CLIP's own tokens are not in them.
    pub fn read(folder: &Path, pad_token: &str, length: usize) -> Result<Self, EngineError> {
        let file = folder.join("tokenizer.json");
        let tokenizer = if file.is_file() { Tokenizer::from_file(&file) } else { from_vocabulary(folder, pad_token) };
        let wrong = |problem: String| EngineError::Checkpoint { path: folder.to_owned(), problem };
        let tokenizer = tokenizer.map_err(|error| wrong(error.to_string()))?;
        let id = |token: &str| tokenizer.token_to_id(token).ok_or_else(|| wrong(format!("has no token {token}")));
        id(START)?;
        Ok(Self { pad: id(pad_token)?, end: id(END)?, tokenizer, length })
    }

    /// # Errors
    /// When the tokenizer's own rules fail on the text.
    pub fn tokens(&self, prompt: &str) -> Result<PromptTokens, EngineError> {
        let failed = |error| EngineError::Request { field: "prompt", problem: format!("cannot be tokenized: {error}") };
        let mut ids = self.tokenizer.encode(prompt, true).map_err(failed)?.get_ids().to_vec();
        let dropped = ids.len().saturating_sub(self.length);
        if dropped > 0 {
            ids.truncate(self.length - 1);
            ids.push(self.end);
        }
        ids.resize(self.length, self.pad);
        Ok(PromptTokens { ids, dropped })
    }
}

/// What transformers' converter makes of the slow tokenizer's files.
fn from_vocabulary(folder: &Path, pad_token: &str) -> tokenizers::Result<Tokenizer> {
    let path = |name: &str| folder.join(name).to_string_lossy().into_owned();
    let model = BPE::from_file(&path("vocab.json"), &path("merges.txt"))
        .unk_token(END.into())
        .end_of_word_suffix("</w>".into())
        .continuing_subword_prefix(String::new())
        .build()?;
    let mut tokenizer = Tokenizer::new(model);
    let special = |token: &str| AddedToken::from(token, true).normalized(false);
    tokenizer.add_special_tokens([special(START), special(END), special(pad_token)])?;
    let spaces = Replace::new(ReplacePattern::Regex(r"\s+".into()), " ")?;
    tokenizer.with_normalizer(Some(Normalizers::new(vec![NFC.into(), spaces.into(), Lowercase.into()])))?;
    let words = Split::new(SplitPattern::Regex(WORDS.into()), SplitDelimiterBehavior::Removed, true)?;
    let bytes = ByteLevel::new(false, true, true);
    tokenizer.with_pre_tokenizer(Some(PreTokenizers::new(vec![words.into(), bytes.into()])));
    let id = |token: &str| tokenizer.token_to_id(token).ok_or_else(|| format!("vocab.json has no token {token}"));
    let ends = RobertaProcessing::new((END.into(), id(END)?), (START.into(), id(START)?));
    tokenizer.with_post_processor(Some(ends.trim_offsets(false).add_prefix_space(false)));
    Ok(tokenizer)
}
