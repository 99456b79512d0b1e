//! Attention over blocks of 48 queries: the scores of a block stay in the cache, the whole matrix is never made.

use rayon::prelude::*;

use crate::elementwise;
use crate::scratch::Scratch;
use crate::tile::{self, PANEL, ROWS};
use crate::transpose::transpose;
use crate::vectors::{Rounding, exp, vectorised};

/// Measures of queries (B, T, channels), keys and values (B, S, channels), channels being those of all heads, one after the other.
#[derive(Clone, Copy)]
pub struct Attention {
    pub batch: usize,
    pub channels: usize,
    pub heads: usize,
    /// Whether a query sees only the keys up to its own place; then there are as many of both.
    pub causal: bool,
}

impl Attention {
    /// softmax(query·keyᵀ/√D)·value for each head. Returns (B, T, channels).
    #[must_use]
    pub fn run(&self, query: &[f32], key: &[f32], value: &[f32]) -> Vec<f32> {
        let Self { batch, channels, heads, .. } = *self;
        let tokens = query.len() / batch / channels;
        let places = key.len() / batch / channels;
        let width = channels / heads;
        let values = elementwise::transpose(value, places, channels);
        let mut out = vec![0.0; query.len()];
        let blocks: Vec<_> =
            out.chunks_mut(tokens * channels).flat_map(|image| image.chunks_mut(PANEL * channels)).enumerate().collect();
        let per_image = tokens.div_ceil(PANEL);
        blocks.into_par_iter().for_each_init(
            || (Scratch::zeros(width * PANEL), Scratch::zeros(places.next_multiple_of(ROWS) * PANEL)),
            |(queries, scores), (block, out)| {
                let image = block / per_image;
                let first = block % per_image * PANEL;
                for head in 0..heads {
                    let count = out.len() / channels;
                    transpose(query, channels, image * tokens + first, count, head * width, width, queries);
                    let head = Head { key, values: &values, image, first: head * width, places };
                    self.head(&head, first, queries, scores, out);
                }
            },
        );
        out
    }

    /// The results of one block of queries, from place `from` on, in the channels of one head. `queries`: (width, 48).
    fn head(&self, head: &Head<'_>, from: usize, queries: &mut [f32], scores: &mut [f32], out: &mut [f32]) {
        let channels = self.channels;
        let width = self.channels / self.heads;
        let Head { image, first, places, .. } = *head;
        let columns = out.len() / channels;
        // No query of the block sees what is behind its last one.
        let seen = if self.causal { from + columns } else { places };
        let scale = (width as f32).sqrt().recip();
        for number in queries.iter_mut() {
            *number *= scale;
        }
        for place in (0..seen).step_by(ROWS) {
            tile::multiply(
                head.key,
                std::array::from_fn(|index| (image * places + (place + index).min(places - 1)) * channels + first),
                width,
                queries,
                columns,
                &mut scores[place * PANEL..],
            );
        }
        if self.causal {
            for (place, row) in scores.chunks_exact_mut(PANEL).enumerate().take(seen).skip(from) {
                row[..place - from].fill(f32::NEG_INFINITY);
            }
        }
        let sums = vectorised!(|rounding| exponentials(&mut scores[..seen * PANEL], rounding));
        let mut sum = [0.0; ROWS * PANEL];
        for channel in (0..width).step_by(ROWS) {
            tile::multiply(
                head.values,
                std::array::from_fn(|index| (image * channels + first + (channel + index).min(width - 1)) * places),
                seen,
                scores,
                columns,
                &mut sum,
            );
            let height = ROWS.min(width - channel);
            for (column, out) in out.chunks_exact_mut(channels).enumerate() {
                for (index, out) in out[first + channel..][..height].iter_mut().enumerate() {
                    *out = sum[index * PANEL + column] / sums[column];
                }
            }
        }
    }
}

/// What a head's queries look at.
struct Head<'a> {
    /// (B, S, channels).
    key: &'a [f32],
    /// (B, channels, S).
    values: &'a [f32],
    image: usize,
    /// Its first channel.
    first: usize,
    places: usize,
}

/// Each column's values to e to the (number - the column's largest); returns the columns' sums.
#[inline(always)]
fn exponentials(scores: &mut [f32], rounding: Rounding) -> [f32; PANEL] {
    let mut largest = [f32::NEG_INFINITY; PANEL];
    let mut sums = [0.0; PANEL];
    for row in scores.chunks_exact(PANEL) {
        for (largest, number) in largest.iter_mut().zip(row) {
            *largest = if *number > *largest { *number } else { *largest };
        }
    }
    for row in scores.chunks_exact_mut(PANEL) {
        for ((number, largest), sum) in row.iter_mut().zip(&largest).zip(&mut sums) {
            *number = exp(*number - largest, rounding);
            *sum += *number;
        }
    }
    sums
}
