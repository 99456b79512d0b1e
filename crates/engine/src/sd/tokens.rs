//! Prompts to tokens, as CLIP was trained on them.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::replace::ReplacePattern;
use tokenizers::normalizers::{self, Lowercase, NFC, Replace};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::processors::roberta::RobertaProcessing;
use tokenizers::tokenizer::{AddedToken, SplitDelimiterBehavior, Tokenizer};

use super::chunks::{Chunk, Run};
use super::inversion::EncoderWords;
use super::weighting::{Emphasis, segments};
use crate::EngineError;
use crate::tokenizer_config::{add_token, added_tokens, check_clip};

const START: &str = "<|startoftext|>";
const END: &str = "<|endoftext|>";

/// Words, single digits and runs of anything else: CLIP's `simple_tokenizer.py`.
const WORDS: &str = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// Tokens of a weighted prompt at most: 2,000 characters of any alphabet are fewer.
const MAX_TOKENS: usize = 8_192;

/// A CLIP tokenizer that always gives `length` tokens, or several times as many.
#[derive(Clone)]
pub struct PromptTokenizer {
    tokenizer: Tokenizer,
    start: u32,
    end: u32,
    pad: u32,
    length: usize,
    /// Tokens that the text encoder has vectors of.
    vocabulary: u32,
    /// Tokens that stand for several, each for the vectors behind the vocabulary from the first on.
    learned: HashMap<u32, Range<u32>>,
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
    /// Reads `tokenizer.json` in `directory`, or `vocab.json` and `merges.txt` where there is none, and the tokens that other files add.
    /// `length` and `vocabulary`: positions and vectors of the text encoder.
    ///
    /// # Errors
    /// [`EngineError::Checkpoint`] when neither can be read, or CLIP's own tokens are not in them.
    pub fn read(directory: &Path, pad_token: &str, length: usize, vocabulary: usize) -> Result<Self, EngineError> {
        check_clip(directory, length)?;
        let file = directory.join("tokenizer.json");
        let tokenizer = if file.is_file() { from_serialized(&file, pad_token) } else { from_vocabulary(directory, pad_token) };
        let wrong = |problem: String| EngineError::Checkpoint { path: directory.to_owned(), problem };
        let mut tokenizer = tokenizer.map_err(|error| wrong(error.to_string()))?;
        add_tokens(&mut tokenizer, directory, pad_token).map_err(|error| wrong(error.to_string()))?;
        let id = |token: &str| tokenizer.token_to_id(token).ok_or_else(|| wrong(format!("has no token {token}")));
        let [start, end, pad] = [id(START)?, id(END)?, id(pad_token)?];
        Ok(Self { start, end, pad, tokenizer, length, vocabulary: vocabulary as u32, learned: HashMap::new() })
    }

    /// A tokenizer that knows these words as well: their vectors are tokens behind the vocabulary, as
    /// [`TextEncoder::forward`](super::clip::TextEncoder::forward) counts them.
    ///
    /// # Errors
    /// [`EngineError::Embedding`], or [`EngineError::Lora`] of a bundled word, when it is one of the model's own tokens.
    pub(super) fn learn(&self, words: &EncoderWords) -> Result<Self, EngineError> {
        let mut tokenizer = self.tokenizer.clone();
        let mut learned = HashMap::new();
        let mut next = self.vocabulary;
        for word in &words.learned_words {
            let text = &word.text;
            if tokenizer.token_to_id(text).is_some() {
                return Err(
                    word.error(format!("{text:?} is a token already, of the model or of another file: give it another name"))
                );
            }
            let added = tokenizer.add_tokens([AddedToken::from(text.as_str(), false)]);
            added.map_err(|error| word.error(error.to_string()))?;
            let id = tokenizer.token_to_id(text).ok_or_else(|| word.error(format!("{text:?} cannot be a token")))?;
            learned.insert(id, next..next + word.vectors as u32);
            next += word.vectors as u32;
        }
        Ok(Self { tokenizer, learned, ..*self })
    }

    /// Tokens of the text itself that fit into one chunk.
    #[must_use]
    pub fn room(&self) -> usize {
        self.length - 2
    }

    /// # Errors
    /// When the tokenizer's own rules fail on the text.
    pub fn tokens(&self, prompt: &str) -> Result<PromptTokens, EngineError> {
        let ids = self.encode_words(prompt)?;
        let fitting = ids.len().min(self.room());
        Ok(PromptTokens { ids: self.framed(&ids[..fitting]), dropped: ids.len() - fitting })
    }

    /// Reads the emphasis in `prompt` ([`segments`]); its runs of one weight are tokenized each by itself.
    ///
    /// # Errors
    /// When the tokenizer's own rules fail on the text, or a weight is out of range.
    pub fn runs(&self, prompt: &str, emphasis: Emphasis) -> Result<Vec<Run>, EngineError> {
        let mut runs = Vec::new();
        let mut count = 0;
        for segment in segments(prompt, emphasis)? {
            let tokens = if segment.is_break() { Vec::new() } else { self.token_groups(&segment.text)? };
            // A word of a textual inversion is many tokens, and may be written many times.
            count += tokens.iter().map(Vec::len).sum::<usize>();
            if count > MAX_TOKENS {
                let problem = format!("is more than {MAX_TOKENS} tokens, its textual inversions among them; shorten it");
                return Err(EngineError::Request { field: "prompt", problem });
            }
            runs.push(Run::new(&segment, tokens));
        }
        Ok(runs)
    }

    /// The token of a comma at a word's end.
    #[must_use]
    pub fn comma(&self) -> Option<u32> {
        self.tokenizer.token_to_id(",</w>")
    }

    /// Start, the chunk, and the end behind it, then padding: the model's length.
    #[must_use]
    pub fn padded(&self, chunk: &Chunk) -> Vec<u32> {
        self.framed(&chunk.ids)
    }

    /// Start, the chunk, padding, and the end at the very end, as lpw has it: the model's length.
    #[must_use]
    pub fn padded_before_end(&self, chunk: &Chunk) -> Vec<u32> {
        let mut ids = self.framed(&chunk.ids);
        ids[1 + chunk.ids.len()..].fill(self.pad);
        ids[self.length - 1] = self.end;
        ids
    }

    /// Start, the chunk, and the end.
    pub(super) fn unpadded(&self, chunk: &Chunk) -> Vec<u32> {
        [&[self.start], chunk.ids.as_slice(), &[self.end]].concat()
    }

    /// The token of a text's end.
    pub(super) fn end(&self) -> u32 {
        self.end
    }

    /// The weights of a chunk's places: start, end and padding have none of their own.
    #[must_use]
    pub fn place_weights(&self, chunk: &Chunk) -> Vec<f64> {
        let mut weights = [&[1.0], chunk.weights.as_slice()].concat();
        weights.resize(self.length, 1.0);
        weights
    }

    /// The tokens of a text, of any length, without start and end.
    ///
    /// # Errors
    /// When the tokenizer's own rules fail on the text.
    pub fn encode_words(&self, text: &str) -> Result<Vec<u32>, EngineError> {
        Ok(self.token_groups(text)?.concat())
    }

    /// The same, the vectors of a learned word being one element.
    fn token_groups(&self, text: &str) -> Result<Vec<Vec<u32>>, EngineError> {
        let encoding = self.tokenizer.encode(text, false);
        let encoding = encoding
            .map_err(|error| EngineError::Request { field: "prompt", problem: format!("cannot be tokenized: {error}") })?;
        encoding.get_ids().iter().map(|id| self.vectors_of(*id)).collect()
    }

    /// The places of a token's vectors: its own, or those of a learned word.
    fn vectors_of(&self, id: u32) -> Result<Vec<u32>, EngineError> {
        match self.learned.get(&id) {
            Some(vectors) => Ok(vectors.clone().collect()),
            None if id < self.vocabulary => Ok(vec![id]),
            None => {
                let token = self.tokenizer.id_to_token(id).unwrap_or_default();
                let problem = format!(
                    "{token:?} is token {id} of the model's tokenizer, and its text encoder has {} vectors: leave it out",
                    self.vocabulary
                );
                Err(EngineError::Request { field: "prompt", problem })
            }
        }
    }

    /// Start, text, end and padding: the model's length.
    fn framed(&self, text: &[u32]) -> Vec<u32> {
        let mut ids = [&[self.start], text, &[self.end]].concat();
        ids.resize(self.length, self.pad);
        ids
    }
}

/// `tokenizer.json` as transformers uses it: the padding and truncation of the program that saved it are another caller's, and the pad token is a
/// token of its own in a prompt, too.
fn from_serialized(file: &Path, pad_token: &str) -> tokenizers::Result<Tokenizer> {
    let mut tokenizer = Tokenizer::from_file(file)?;
    tokenizer.with_padding(None).with_truncation(None)?;
    if tokenizer.token_to_id(pad_token).is_none() {
        return Err(format!("has no token {pad_token}").into());
    }
    tokenizer.add_special_tokens([AddedToken::from(pad_token, true).normalized(false)])?;
    Ok(tokenizer)
}

/// Tokens that files beside the vocabulary add, such as the word that a textual inversion of the whole checkpoint was trained for.
fn add_tokens(tokenizer: &mut Tokenizer, directory: &Path, pad_token: &str) -> tokenizers::Result<()> {
    for (id, added) in added_tokens(directory)? {
        let text = &added.content;
        let is_known = tokenizer.get_added_vocabulary().get_vocab().contains_key(text);
        if is_known || [START, END, pad_token].contains(&text.as_str()) {
            continue;
        }
        add_token(tokenizer, id, added.token())?;
    }
    Ok(())
}

/// What transformers' converter makes of the slow tokenizer's files.
fn from_vocabulary(directory: &Path, pad_token: &str) -> tokenizers::Result<Tokenizer> {
    let path = |name: &str| directory.join(name).to_string_lossy().into_owned();
    let model = BPE::from_file(&path("vocab.json"), &path("merges.txt"))
        .unk_token(END.into())
        .end_of_word_suffix("</w>".into())
        .continuing_subword_prefix(String::new())
        .build()?;
    let mut tokenizer = Tokenizer::new(model);
    // A token that the model has no vector for would be counted behind the vocabulary.
    tokenizer.token_to_id(pad_token).ok_or_else(|| format!("vocab.json has no token {pad_token}"))?;
    let special = |token: &str| AddedToken::from(token, true).normalized(false);
    tokenizer.add_special_tokens([special(START), special(END), special(pad_token)])?;
    let spaces = Replace::new(ReplacePattern::Regex(r"\s+".into()), " ")?;
    tokenizer.with_normalizer(Some(normalizers::Sequence::new(vec![NFC.into(), spaces.into(), Lowercase.into()])))?;
    let words = Split::new(SplitPattern::Regex(WORDS.into()), SplitDelimiterBehavior::Removed, true)?;
    let bytes = ByteLevel::new(false, true, true);
    tokenizer.with_pre_tokenizer(Some(sequence::Sequence::new(vec![words.into(), bytes.into()])));
    let id = |token: &str| tokenizer.token_to_id(token).ok_or_else(|| format!("vocab.json has no token {token}"));
    let ends = RobertaProcessing::new((END.into(), id(END)?), (START.into(), id(START)?));
    tokenizer.with_post_processor(Some(ends.trim_offsets(false).add_prefix_space(false)));
    Ok(tokenizer)
}
