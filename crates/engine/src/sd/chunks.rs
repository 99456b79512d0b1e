//! Prompts of any length: their tokens, each with a weight, in chunks of as many as the text encoder takes.
//!
//! Where a chunk ends is AUTOMATIC1111's rule (`tokenize_line` in `modules/sd_hijack_clip.py`, with its own defaults), or that of diffusers'
//! community pipeline `lpw_stable_diffusion` (`get_weighted_text_embeddings` with its own defaults).

use super::weighting::Segment;
use crate::EngineError;

/// So far from its end a chunk may end after a comma instead: AUTOMATIC1111's `comma_padding_backtrack`.
const COMMA_BACKTRACK: usize = 20;
/// More chunks than these are dropped: `max_embeddings_multiples` of lpw.
const LPW_CHUNKS: usize = 3;

/// Tokens of the text in one chunk, without start, end and padding, and one weight each.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Chunk {
    pub ids: Vec<u32>,
    pub weights: Vec<f64>,
}

impl Chunk {
    pub(super) fn extend(&mut self, ids: &[u32], weight: f64) {
        self.ids.extend(ids);
        self.weights.resize(self.ids.len(), weight);
    }

    pub(super) fn split_off(&mut self, place: usize) -> Self {
        Self { ids: self.ids.split_off(place), weights: self.weights.split_off(place) }
    }
}

/// A run of text of one weight: its tokens, a learned word's vectors being one element.
pub struct Run {
    pub tokens: Vec<Vec<u32>>,
    pub weight: f64,
    /// Ends the chunk instead of being text.
    pub is_break: bool,
}

impl Run {
    /// `tokens`: those of `segment`.
    #[must_use]
    pub fn new(segment: &Segment, tokens: Vec<Vec<u32>>) -> Self {
        Self { tokens, weight: segment.weight, is_break: segment.is_break() }
    }
}

/// AUTOMATIC1111's chunks of `room` tokens at most, at least one chunk. `comma`: the token of a comma that ends a word, if there is one.
///
/// # Errors
/// [`EngineError::Request`] when a learned word has more vectors than a chunk has room for.
pub fn automatic_chunks(runs: &[Run], room: usize, comma: Option<u32>) -> Result<Vec<Chunk>, EngineError> {
    let mut chunker = Chunker { room, chunks: Vec::new(), open: Chunk::default(), after_comma: None };
    for run in runs {
        if run.is_break {
            chunker.close();
            continue;
        }
        for token in &run.tokens {
            if token.len() > room {
                let problem = format!("one of their words has {} vectors, a chunk has room for {room}", token.len());
                return Err(EngineError::Request { field: "embeddings", problem });
            }
            let is_comma = matches!((token.as_slice(), comma), ([id], Some(comma)) if *id == comma);
            chunker.push(token, run.weight, is_comma);
        }
    }
    if !chunker.open.ids.is_empty() || chunker.chunks.is_empty() {
        chunker.close();
    }
    Ok(chunker.chunks)
}

struct Chunker {
    room: usize,
    chunks: Vec<Chunk>,
    open: Chunk,
    /// The place behind the last comma of the open chunk.
    after_comma: Option<usize>,
}

impl Chunker {
    fn close(&mut self) {
        self.after_comma = None;
        self.chunks.push(std::mem::take(&mut self.open));
    }

    fn push(&mut self, token: &[u32], weight: f64, is_comma: bool) {
        let length = self.open.ids.len();
        let near = self.after_comma.filter(|place| length + 1 - place <= COMMA_BACKTRACK);
        if is_comma {
            self.after_comma = Some(length + 1);
        } else if let Some(place) = near.filter(|_| length == self.room) {
            let moved = self.open.split_off(place);
            self.close();
            self.open = moved;
        }
        if self.open.ids.len() + token.len() > self.room {
            self.close();
        }
        self.open.extend(token, weight);
    }
}

/// lpw's chunks of `room` tokens, at least one chunk, and how many tokens did not fit into three of them.
#[must_use]
pub fn lpw_chunks(runs: &[Run], room: usize) -> (Vec<Chunk>, usize) {
    let mut all = Chunk::default();
    for run in runs {
        run.tokens.iter().for_each(|token| all.extend(token, run.weight));
    }
    let dropped = all.ids.len().saturating_sub(LPW_CHUNKS * room);
    let mut chunks = Vec::new();
    while chunks.len() < LPW_CHUNKS && (chunks.is_empty() || !all.ids.is_empty()) {
        let rest = all.split_off(room.min(all.ids.len()));
        chunks.push(std::mem::replace(&mut all, rest));
    }
    (chunks, dropped)
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMA: u32 = 9;

    fn run(tokens: &[u32], weight: f64) -> Run {
        Run { tokens: tokens.iter().map(|id| vec![*id]).collect(), weight, is_break: false }
    }

    fn lengths(runs: &[Run], room: usize) -> Vec<usize> {
        automatic_chunks(runs, room, Some(COMMA)).expect("chunks").iter().map(|chunk| chunk.ids.len()).collect()
    }

    #[test]
    fn a_chunk_ends_after_a_comma_that_is_near_its_end() {
        let text = |before: usize, after: usize| [vec![1; before], vec![COMMA], vec![1; after]].concat();
        assert_eq!(lengths(&[run(&text(60, 14), 1.0)], 75), [75], "it fits");
        assert_eq!(lengths(&[run(&text(60, 15), 1.0)], 75), [61, 15]);
        assert_eq!(lengths(&[run(&text(55, 25), 1.0)], 75), [56, 25], "20 tokens with the comma");
        assert_eq!(lengths(&[run(&text(54, 25), 1.0)], 75), [75, 5], "21 are too far");
        assert_eq!(lengths(&[run(&text(75, 3), 1.0)], 75), [75, 4], "a comma itself begins the next one");
        assert_eq!(lengths(&[run(&text(74, 3), 1.0)], 75), [75, 3]);
        let without = automatic_chunks(&[run(&text(60, 15), 1.0)], 75, None).expect("chunks");
        assert_eq!(without[0].ids.len(), 75, "a vocabulary without a comma");
    }

    #[test]
    fn a_break_ends_a_chunk_and_one_at_the_end_adds_none() {
        let end = || Run { tokens: vec![], weight: -1.0, is_break: true };
        assert_eq!(lengths(&[run(&[1, 2], 1.0), end(), run(&[3], 1.2)], 75), [2, 1]);
        assert_eq!(lengths(&[run(&[1, 2], 1.0), end()], 75), [2]);
        assert_eq!(lengths(&[end(), end(), run(&[1], 1.0)], 75), [0, 0, 1]);
        assert_eq!(lengths(&[], 75), [0]);
    }

    #[test]
    fn weights_move_with_their_tokens_and_a_word_of_many_vectors_is_not_cut() {
        let word = Run { tokens: vec![vec![50, 51, 52]], weight: 1.5, is_break: false };
        let chunks = automatic_chunks(&[run(&[1; 4], 0.5), word, run(&[2], 2.0)], 6, None).expect("chunks");
        assert_eq!(chunks[0], Chunk { ids: vec![1; 4], weights: vec![0.5; 4] });
        assert_eq!(chunks[1], Chunk { ids: vec![50, 51, 52, 2], weights: vec![1.5, 1.5, 1.5, 2.0] });
        let huge = Run { tokens: vec![vec![50; 7]], weight: 1.0, is_break: false };
        let error = automatic_chunks(&[huge], 6, None).expect_err("no chunk has room").to_string();
        assert_eq!(error, "embeddings: one of their words has 7 vectors, a chunk has room for 6");
    }

    #[test]
    fn lpw_fills_three_chunks_and_drops_the_rest() {
        let (chunks, dropped) = lpw_chunks(&[run(&[1; 4], 0.5), run(&[COMMA; 17], 2.0)], 6);
        assert_eq!((chunks.len(), dropped), (3, 3));
        assert_eq!(chunks[0].weights, [0.5, 0.5, 0.5, 0.5, 2.0, 2.0]);
        assert_eq!(lpw_chunks(&[], 6), (vec![Chunk::default()], 0));
        assert_eq!(lpw_chunks(&[run(&[1; 6], 1.0)], 6).0.len(), 1);
    }
}
