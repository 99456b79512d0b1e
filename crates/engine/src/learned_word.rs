//! What a word may be that stands for learned vectors, and for how many.

use candle_core::Tensor;

/// Vectors that one word may stand for: those in use have up to 75, which is all that a chunk of a prompt holds.
pub(crate) const MAX_VECTORS: usize = 128;

/// A word that came with a LoRA: `vectors` (vectors, hidden), f32, for each text encoder.
#[derive(Debug, Clone)]
pub(crate) struct Bundled {
    /// The LoRA's place in the request.
    pub(crate) lora: usize,
    pub(crate) text: String,
    pub(crate) vectors: Vec<Tensor>,
}

/// Checks that a prompt of any syntax may hold `word`; a job's own tokens follow the same rule.
///
/// # Errors
/// Says what is allowed.
pub(crate) fn check_word(word: &str) -> Result<(), String> {
    const MAX_CHARS: usize = 64;
    let is_plain = word.chars().all(|c| c.is_ascii_graphic() && !matches!(c, '(' | ')' | '[' | ']' | ':' | '\\'));
    if (1..=MAX_CHARS).contains(&word.len()) && is_plain {
        return Ok(());
    }
    let beginning: String = word.chars().take(MAX_CHARS).collect();
    Err(format!(
        "a word must be 1 to {MAX_CHARS} ASCII characters, none of them white space or one of ( ) [ ] : \\, got {beginning:?}"
    ))
}
