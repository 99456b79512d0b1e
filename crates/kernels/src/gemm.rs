//! Products of matrices, one of them in panels that are gathered while they are needed; and linear layers.

use std::ops::Range;

use rayon::prelude::*;

use crate::scratch::Scratch;
use crate::shared::Shared;
use crate::tile::{self, PANEL, ROWS};
use crate::transpose::transpose;

/// Depth of a block: its panels stay in the second-level cache. Fixed, so that sums are always split at the same places.
const DEPTH: usize = 384;
/// Columns of a task.
const COLUMNS: usize = 4 * PANEL;

/// Where there are as many tokens, the weights are what is turned into panels.
const MANY_TOKENS: usize = 192;

/// A linear layer.
#[derive(Clone, Copy)]
pub struct Linear<'a> {
    /// (out, in).
    pub weight: &'a [f32],
    /// (out).
    pub bias: Option<&'a [f32]>,
    pub in_features: usize,
}

impl Linear<'_> {
    /// `input`: (T, in); `residual`: (T, out), what the result is added to. Returns (T, out).
    #[must_use]
    pub fn run(&self, input: &[f32], residual: Option<&[f32]>) -> Vec<f32> {
        let depth = self.in_features;
        let tokens = input.len() / depth;
        let features = self.weight.len() / depth;
        let mut out = vec![0.0; tokens * features];
        let shared = Shared::new(&mut out);
        // Values of one token, of the features from `first` on.
        let put = |token: usize, first: usize, values: &[f32], is_first: bool| {
            let at = token * features + first;
            shared.with(at, values.len(), |out| {
                if !is_first {
                    out.iter_mut().zip(values).for_each(|(sum, number)| *sum += number);
                    return;
                }
                match self.bias.map(|bias| &bias[first..first + values.len()]) {
                    Some(bias) => out.iter_mut().zip(values).zip(bias).for_each(|((out, number), bias)| *out = bias + number),
                    None => out.copy_from_slice(values),
                }
                if let Some(residual) = residual {
                    out.iter_mut().zip(&residual[at..]).for_each(|(sum, before)| *sum += before);
                }
            });
        };
        if tokens >= MANY_TOKENS {
            let gemm = Gemm { weight: input, rows: tokens, depth, columns: features };
            gemm.run(
                1,
                &|_, first, columns, row, tile, is_first| {
                    for (index, values) in tile.chunks_exact(PANEL).enumerate().take(tokens - row) {
                        put(row + index, first, &values[..columns], is_first);
                    }
                },
                &|_, from, length, first, panel| {
                    transpose(self.weight, depth, first, PANEL.min(features - first), from, length, panel);
                },
            );
        } else {
            let gemm = Gemm { weight: self.weight, rows: features, depth, columns: tokens };
            gemm.run(
                1,
                &|_, first, columns, row, tile, is_first| {
                    let height = ROWS.min(features - row);
                    for column in 0..columns {
                        let values: [f32; ROWS] = std::array::from_fn(|index| tile[index * PANEL + column]);
                        put(first + column, row, &values[..height], is_first);
                    }
                },
                &|_, from, length, first, panel| transpose(input, depth, first, PANEL.min(tokens - first), from, length, panel),
            );
        }
        out
    }
}

/// How a product is shared among threads: in blocks of columns and, where these are few, in parts of the rows as well.
pub(crate) struct Share {
    blocks: usize,
    rows: usize,
    /// Rows of a part.
    pub(crate) height: usize,
}

impl Share {
    pub(crate) fn new(blocks: usize, rows: usize) -> Self {
        let wanted = (2 * rayon::current_num_threads()).div_ceil(blocks.max(1));
        Self { blocks, rows, height: rows.div_ceil(wanted).next_multiple_of(ROWS) }
    }

    fn parts(&self) -> usize {
        self.rows.div_ceil(self.height)
    }

    pub(crate) fn tasks(&self) -> usize {
        self.blocks * self.parts()
    }

    /// The block of a task, and its rows.
    pub(crate) fn of(&self, task: usize) -> (usize, Range<usize>) {
        let block = task / self.parts();
        let part = task % self.parts();
        (block, part * self.height..((part + 1) * self.height).min(self.rows))
    }
}

/// A matrix of weights (`rows` x `depth`) times one (`depth` x `columns`) an image.
pub(crate) struct Gemm<'a> {
    pub(crate) weight: &'a [f32],
    pub(crate) rows: usize,
    pub(crate) depth: usize,
    pub(crate) columns: usize,
}

/// Takes (image, first column, columns, first row, tile of 8 x 48, whether it is the first of its sum).
pub(crate) type Put<'a> = &'a (dyn Fn(usize, usize, usize, usize, &[f32], bool) + Sync);
/// Fills a panel for (image, from depth, depth, first column).
pub(crate) type Fill<'a> = &'a (dyn Fn(usize, usize, usize, usize, &mut [f32]) + Sync);

impl Gemm<'_> {
    pub(crate) fn run(&self, batch: usize, put: Put<'_>, fill: Fill<'_>) {
        let share = Share::new(batch * self.columns.div_ceil(COLUMNS), self.rows);
        (0..share.tasks()).into_par_iter().for_each_init(
            || Scratch::zeros(DEPTH * COLUMNS),
            |panels, task| {
                let (block, rows) = share.of(task);
                self.block(block % batch, block / batch * COLUMNS, rows, panels, put, fill);
            },
        );
    }

    fn block(&self, image: usize, first: usize, rows: Range<usize>, panels: &mut [f32], put: Put<'_>, fill: Fill<'_>) {
        let columns = COLUMNS.min(self.columns - first);
        let mut tile = [0.0; ROWS * PANEL];
        for from in (0..self.depth).step_by(DEPTH) {
            let depth = DEPTH.min(self.depth - from);
            for (start, panel) in (0..columns).step_by(PANEL).zip(panels.chunks_exact_mut(DEPTH * PANEL)) {
                fill(image, from, depth, first + start, &mut panel[..depth * PANEL]);
            }
            for row in rows.clone().step_by(ROWS) {
                // Rows past the end repeat the last one; their sums are not stored.
                let offsets = std::array::from_fn(|index| (row + index).min(self.rows - 1) * self.depth + from);
                for (start, panel) in (0..columns).step_by(PANEL).zip(panels.chunks_exact(DEPTH * PANEL)) {
                    let width = PANEL.min(columns - start);
                    tile::multiply(self.weight, offsets, depth, panel, width, &mut tile);
                    put(image, first + start, width, row, &tile, from == 0);
                }
            }
        }
    }
}
