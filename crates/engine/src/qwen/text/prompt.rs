//! The words around a prompt, and its tokens (diffusers' pipelines of Qwen-Image, Z-Image and FLUX.2 klein).

use std::path::Path;

use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::{AddedToken, SplitDelimiterBehavior, Tokenizer};

use super::positions::Run;
use crate::EngineError;
use crate::tokenizer_config::{Added, add_token, added_tokens};

/// What the model is told before the user's turn.
pub struct Template {
    /// None: the user's turn is the first.
    system: Option<&'static str>,
    /// Tokens in front of what the user said: the transformer does not see their hidden states.
    pub(super) dropped: usize,
    /// Of a prompt: as many as the pipeline allows.
    max_tokens: usize,
    /// Whether the assistant has thought already, of nothing (Qwen3's chat template without `enable_thinking`).
    has_thought: bool,
}

/// Around a prompt about images.
pub const EDIT: Template = Template { system: Some(EDIT_SYSTEM), dropped: 64, max_tokens: 1024, has_thought: false };
/// Around a prompt alone.
pub const TEXT: Template = Template { system: Some(TEXT_SYSTEM), dropped: 34, max_tokens: 1024, has_thought: false };
/// Around a prompt alone that an assistant is to think about (Qwen3's chat template with `enable_thinking`). The pipeline cuts it off at 512 tokens, 8
/// of which are the template's.
pub const CHAT: Template = Template { system: None, dropped: 0, max_tokens: 504, has_thought: false };
/// Around a prompt alone that an assistant is to answer at once: 12 tokens of 512 are the template's.
pub const ANSWER: Template = Template { system: None, dropped: 0, max_tokens: 500, has_thought: true };

const TEXT_SYSTEM: &str = "Describe the image by detailing the color, shape, size, texture, quantity, text, spatial relationships of the \
                           objects and background:";
const EDIT_SYSTEM: &str = "Describe the key features of the input image (color, shape, size, texture, objects, background), then explain how the \
                      user's text instruction should alter or modify the image. Generate a new image that meets the user's requirements \
                      while maintaining consistency with the original input where appropriate.";
const START: &str = "<|im_start|>";
const END: &str = "<|im_end|>";
const IMAGE_START: &str = "<|vision_start|>";
const IMAGE_END: &str = "<|vision_end|>";
const THOUGHT_START: &str = "<think>";
const THOUGHT_END: &str = "</think>";
/// How Qwen2's tokenizer cuts a text before its merges.
const WORDS: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

pub struct PromptTokenizer {
    tokenizer: Tokenizer,
    template: Template,
    specials: Vec<(&'static str, u32)>,
}

/// A part of the template.
enum Part<'a> {
    Special(&'a str),
    Text(String),
    Image(usize),
}

impl PromptTokenizer {
    /// Reads `processor/tokenizer.json` or `tokenizer/tokenizer.json` under `directory`, or `tokenizer/vocab.json`, `merges.txt` and the
    /// added tokens of `tokenizer_config.json` or `added_tokens.json` where there is neither.
    ///
    /// # Errors
    /// [`EngineError::Checkpoint`] when neither can be read, or Qwen's own tokens are not in them.
    pub fn read(directory: &Path, template: Template) -> Result<Self, EngineError> {
        let serialized = ["processor/tokenizer.json", "tokenizer/tokenizer.json"].map(|name| directory.join(name));
        let serialized = serialized.into_iter().find(|file| file.is_file());
        let path = serialized.clone().unwrap_or_else(|| directory.join("tokenizer"));
        let wrong = |problem: String| EngineError::Checkpoint { path: path.clone(), problem };
        let tokenizer = match &serialized {
            Some(file) => from_serialized(file).map_err(|error| wrong(error.to_string()))?,
            None => from_vocabulary(&path)?,
        };
        let thought = [THOUGHT_START, THOUGHT_END].into_iter().filter(|_| template.has_thought);
        let specials = [START, END, IMAGE_START, IMAGE_END].into_iter().chain(thought);
        let specials = specials.map(|token| {
            let id = tokenizer.token_to_id(token).ok_or_else(|| wrong(format!("has no token {token}")))?;
            Ok::<_, EngineError>((token, id))
        });
        let specials = specials.collect::<Result<_, _>>()?;
        let mut tokenizer = tokenizer;
        // What a caller writes is text, whatever it looks like.
        tokenizer.set_encode_special_tokens(true);
        Ok(Self { tokenizer, template, specials })
    }

    /// How many of the first tokens the transformer does not see.
    pub(crate) fn dropped(&self) -> usize {
        self.template.dropped
    }

    /// The template around `prompt`, with so many images before it.
    ///
    /// # Errors
    /// [`EngineError::Request`] when the prompt is too long, or the tokenizer's own rules fail on it.
    pub fn runs(&self, prompt: &str, images: usize) -> Result<Vec<Run>, EngineError> {
        let wrong = |problem| EngineError::Request { field: "prompt", problem };
        let own = self.tokens(prompt).map_err(|error| wrong(format!("cannot be tokenized: {error}")))?.len();
        let max = self.template.max_tokens;
        if own > max {
            return Err(wrong(format!("must have at most {max} tokens, got {own}; shorten it")));
        }
        let mut runs = vec![Run::Text(Vec::new())];
        for part in parts(&self.template, prompt, images) {
            let tokens = match part {
                Part::Image(index) => {
                    runs.extend([Run::Image(index), Run::Text(Vec::new())]);
                    continue;
                }
                Part::Special(token) => vec![self.special(token)],
                Part::Text(text) => self.tokens(&text).map_err(|error| wrong(format!("cannot be tokenized: {error}")))?,
            };
            if let Some(Run::Text(run)) = runs.last_mut() {
                run.extend(tokens);
            }
        }
        Ok(runs)
    }

    /// The number of a token.
    pub(crate) fn id(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token)
    }

    fn special(&self, token: &str) -> u32 {
        self.specials.iter().find(|(known, _)| *known == token).map_or(0, |(_, id)| *id)
    }

    fn tokens(&self, text: &str) -> tokenizers::Result<Vec<u32>> {
        Ok(self.tokenizer.encode(text, false)?.get_ids().to_vec())
    }
}

/// Special tokens cut the text, so what lies between them has its tokens by itself.
fn parts(template: &Template, prompt: &str, images: usize) -> Vec<Part<'static>> {
    let text = |text: &str| Part::Text(text.to_owned());
    let mut parts = Vec::new();
    if let Some(system) = template.system {
        parts.extend([Part::Special(START), Part::Text(format!("system\n{system}")), Part::Special(END), text("\n")]);
    }
    parts.push(Part::Special(START));
    let mut said = "user\n".to_owned();
    for index in 0..images {
        parts.push(Part::Text(format!("{said}Picture {}: ", index + 1)));
        parts.extend([Part::Special(IMAGE_START), Part::Image(index), Part::Special(IMAGE_END)]);
        said.clear();
    }
    parts.extend([Part::Text(said + prompt), Part::Special(END), text("\n"), Part::Special(START), text("assistant\n")]);
    if template.has_thought {
        parts.extend([Part::Special(THOUGHT_START), text("\n\n"), Part::Special(THOUGHT_END), text("\n\n")]);
    }
    parts
}

/// Without the padding and truncation of the program that saved it: transformers resets both for every call.
fn from_serialized(file: &Path) -> tokenizers::Result<Tokenizer> {
    let mut tokenizer = Tokenizer::from_file(file)?;
    tokenizer.with_padding(None).with_truncation(None)?;
    Ok(tokenizer)
}

/// What transformers' `Qwen2Tokenizer` makes of its files.
fn from_vocabulary(directory: &Path) -> Result<Tokenizer, EngineError> {
    let wrong = |error: tokenizers::Error| EngineError::Checkpoint { path: directory.to_owned(), problem: error.to_string() };
    let path = |name: &str| directory.join(name).to_string_lossy().into_owned();
    let model = BPE::from_file(&path("vocab.json"), &path("merges.txt")).build().map_err(wrong)?;
    let mut tokenizer = Tokenizer::new(model);
    let words = Split::new(SplitPattern::Regex(WORDS.into()), SplitDelimiterBehavior::Isolated, false).map_err(wrong)?;
    let bytes = ByteLevel::new(false, true, false);
    tokenizer.with_pre_tokenizer(Some(Sequence::new(vec![words.into(), bytes.into()])));
    tokenizer.with_normalizer(Some(NFC)).map_err(wrong)?;
    for (id, Added { content: token, .. }) in added_tokens(directory)? {
        add_token(&mut tokenizer, id, AddedToken::from(token, true).normalized(false)).map_err(wrong)?;
    }
    Ok(tokenizer)
}
