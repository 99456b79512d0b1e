//! 3x3 convolutions by Winograd's F(2x2, 3x3): each tile of 2x2 values takes 16 multiplications a channel in place of 36.
//!
//! Matrices: Lavin and Gray 2016, "Fast algorithms for convolutional neural networks" (arXiv 1509.09308). Where every number of the
//! image counts for 2x2 (nearest neighbours, doubled), the two middle ones of four in a row are the same, so that 7 of the 16 products are
//! of nothing and left out.

use std::ops::Range;

use rayon::prelude::*;

use crate::convolution::{Begin, Convolution};
use crate::gemm::Share;
use crate::scratch::Scratch;
use crate::shared::Shared;
use crate::tile::{self, PANEL, ROWS};
use crate::vectors::vectorised;

/// Products of a tile: 4x4.
const POINTS: usize = 16;
/// Those that are not always zero where images are doubled: rows and columns 0, 1 and 3.
const DOUBLED_POINTS: [usize; 9] = [0, 1, 3, 4, 5, 7, 12, 13, 15];
const ALL_POINTS: [usize; POINTS] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
/// Values of a vector.
const LANES: usize = 16;
/// Values of one point of a task's tiles: they stay in the second-level cache while all rows of weights go over them.
const POINT_VALUES: usize = 96 << 10;
const MAX_PANELS: usize = 4;

/// See [`Convolution::run`].
pub(crate) fn run(c: &Convolution, images: &[f32], weight: &[f32], begin: Begin<'_>) -> Vec<f32> {
    let (height, width) = c.given_sides();
    let image_len = c.in_channels * height * width;
    let batch = images.len() / image_len;
    let mut out = vec![0.0; batch * c.out_channels * c.height * c.width];
    let work = Work {
        c,
        images,
        image_len,
        factors: &factors(weight, c.in_channels, c.out_channels),
        points: if c.doubled { &DOUBLED_POINTS } else { &ALL_POINTS },
        begin,
        shared: Shared::new(&mut out),
    };
    let panels = panels(c.height.div_ceil(2) * c.width.div_ceil(2));
    let together = (POINT_VALUES / (c.in_channels * PANEL)).clamp(1, MAX_PANELS);
    let blocks: Vec<&[Range<usize>]> = panels.chunks(together).collect();
    let share = Share::new(batch * blocks.len(), c.out_channels);
    (0..share.tasks()).into_par_iter().for_each_init(
        || {
            let zeros = |channels: usize| Scratch::zeros(together * POINTS * channels * PANEL);
            (zeros(c.in_channels), zeros(share.height))
        },
        |(seen, sums), task| {
            let (block, rows) = share.of(task);
            work.block(block % batch, blocks[block / batch], rows, seen, sums);
        },
    );
    out
}

/// Ranges of up to 48 tiles, of about as many vectors each.
fn panels(tiles: usize) -> Vec<Range<usize>> {
    let vectors = tiles.div_ceil(LANES);
    let count = vectors.div_ceil(PANEL / LANES);
    let start = |panel: usize| (panel * vectors / count * LANES).min(tiles);
    (0..count).map(|panel| start(panel)..start(panel + 1)).collect()
}

/// The weights as the tiles' products see them: (out, 16, in).
fn factors(weight: &[f32], in_channels: usize, out_channels: usize) -> Vec<f32> {
    const TAPS: usize = 9;
    let mut factors = vec![0.0; out_channels * POINTS * in_channels];
    factors.par_chunks_mut(POINTS * in_channels).zip(weight.par_chunks(TAPS * in_channels)).for_each(|(factors, weight)| {
        vectorised!(|_| {
            for (chunk, weight) in weight.chunks(TAPS * LANES).enumerate() {
                let count = weight.len() / TAPS;
                let mut taps = [[0.0; LANES]; TAPS];
                for (lane, weight) in weight.chunks_exact(TAPS).enumerate() {
                    for (tap, number) in taps.iter_mut().zip(weight) {
                        tap[lane] = *number;
                    }
                }
                let [a, b, c, d, e, f, g, h, i] = taps;
                let [left, middle, right] = [spread([a, d, g]), spread([b, e, h]), spread([c, f, i])];
                for (row, ((left, middle), right)) in left.into_iter().zip(middle).zip(right).enumerate() {
                    let points = spread([left, middle, right]);
                    for (column, values) in points.iter().enumerate() {
                        let at = (4 * row + column) * in_channels + chunk * LANES;
                        factors[at..at + count].copy_from_slice(&values[..count]);
                    }
                }
            }
        });
    });
    factors
}

/// (a, (a + b + c)/2, (a - b + c)/2, c).
#[inline(always)]
fn spread([a, b, c]: [[f32; LANES]; 3]) -> [[f32; LANES]; 4] {
    let outer: [f32; LANES] = std::array::from_fn(|lane| 0.5 * (a[lane] + c[lane]));
    let sum = std::array::from_fn(|lane| outer[lane] + 0.5 * b[lane]);
    let difference = std::array::from_fn(|lane| outer[lane] - 0.5 * b[lane]);
    [a, sum, difference, c]
}

struct Work<'a> {
    c: &'a Convolution,
    images: &'a [f32],
    image_len: usize,
    factors: &'a [f32],
    points: &'static [usize],
    begin: Begin<'a>,
    shared: Shared,
}

impl Work<'_> {
    /// `rows` of the result in all tiles of `panels`. `seen` and `sums` have a panel for each of these, of each of the 16 points, of each channel.
    fn block(&self, image: usize, panels: &[Range<usize>], rows: Range<usize>, seen: &mut [f32], sums: &mut [f32]) {
        let channels = self.c.in_channels;
        let height = rows.len();
        let seen_len = channels * PANEL;
        let sums_len = height.next_multiple_of(ROWS) * PANEL;
        let (given_height, given_width) = self.c.given_sides();
        let planes = self.images[image * self.image_len..][..self.image_len].chunks_exact(given_height * given_width);
        for (channel, plane) in planes.enumerate() {
            for (panel, seen) in panels.iter().zip(seen.chunks_exact_mut(POINTS * seen_len)) {
                for (tiles, column) in self.lines(panel) {
                    self.transform(plane, &tiles, &mut seen[channel * PANEL + column..], seen_len);
                }
            }
        }
        for point in self.points {
            for row in (0..height).step_by(ROWS) {
                // Rows past the end repeat the last one; their sums are not stored.
                let offsets =
                    std::array::from_fn(|index| ((rows.start + (row + index).min(height - 1)) * POINTS + point) * channels);
                for (index, panel) in panels.iter().enumerate() {
                    let seen = &seen[(index * POINTS + point) * seen_len..][..seen_len];
                    let sums = &mut sums[(index * POINTS + point) * sums_len + row * PANEL..];
                    tile::multiply(self.factors, offsets, channels, seen, panel.len(), sums);
                }
            }
        }
        for (index, panel) in panels.iter().enumerate() {
            for row in rows.clone() {
                let sums = &sums[index * POINTS * sums_len + (row - rows.start) * PANEL..];
                for (tiles, column) in self.lines(panel) {
                    self.put(image * self.c.out_channels + row, &tiles, &sums[column..], sums_len);
                }
            }
        }
    }

    /// Tiles that lie next to each other, and the column of the first of them.
    fn lines(&self, panel: &Range<usize>) -> impl Iterator<Item = (Line, usize)> + use<> {
        let first = panel.start;
        let mut next = panel.start;
        let end = panel.end;
        let in_line = self.c.width.div_ceil(2);
        std::iter::from_fn(move || {
            let line = Line { down: next / in_line, right: next % in_line, count: (in_line - next % in_line).min(end - next) };
            let column = next - first;
            next += line.count;
            (line.count > 0).then_some((line, column))
        })
    }

    /// Bᵀ·d·B of each tile's 4x4 values d, a number to each point of `out`, which are `stride` apart.
    fn transform(&self, plane: &[f32], line: &Line, out: &mut [f32], stride: usize) {
        // Values of even and odd columns, the first one being the column before the first tile.
        let mut rows = [[[0.0_f32; PANEL + 1]; 2]; 4];
        let (_, width) = self.c.given_sides();
        let count = line.count;
        vectorised!(|_| {
            for (index, [even, odd]) in rows.iter_mut().enumerate() {
                let Some(y) = (2 * line.down + index).checked_sub(1).filter(|y| *y < self.c.height) else { continue };
                if self.c.doubled {
                    let row = &plane[y / 2 * width..][..width];
                    copy(row, line.right, 1, &mut even[..=count]);
                    copy(row, line.right, 0, &mut odd[..=count]);
                } else {
                    let mut both = [0.0; 2 * PANEL + 2];
                    copy(&plane[y * width..][..width], 2 * line.right, 1, &mut both[..2 * count + 2]);
                    for ((even, odd), both) in even.iter_mut().zip(odd).zip(both.chunks_exact(2)).take(count + 1) {
                        (*even, *odd) = (both[0], both[1]);
                    }
                }
            }
            let [a, b, c, d] = &rows;
            let mut mixed = [[0.0; PANEL + 1]; 2];
            let sum = |x: f32, y: f32| x + y;
            let difference = |x: f32, y: f32| x - y;
            for row in 0..4 {
                for ((((mixed, a), b), c), d) in mixed.iter_mut().zip(a).zip(b).zip(c).zip(d) {
                    match row {
                        0 => join(mixed, a, c, count + 1, difference),
                        1 => join(mixed, b, c, count + 1, sum),
                        2 => join(mixed, c, b, count + 1, difference),
                        _ => join(mixed, b, d, count + 1, difference),
                    }
                }
                let [even, odd] = &mixed;
                let at = |column: usize| (4 * row + column) * stride;
                join(&mut out[at(0)..], even, &even[1..], count, difference);
                join(&mut out[at(1)..], odd, &even[1..], count, sum);
                join(&mut out[at(2)..], &even[1..], odd, count, difference);
                join(&mut out[at(3)..], odd, &odd[1..], count, difference);
            }
        });
    }

    /// Aᵀ·m·A of each tile's 16 sums m: 2x2 values of the result's `channel`. `sums`: a number of each point, `stride` apart.
    fn put(&self, channel: usize, line: &Line, sums: &[f32], stride: usize) {
        let count = line.count;
        let top = 2 * line.down;
        let left = 2 * line.right;
        let columns = (2 * count).min(self.c.width - left);
        let mut rows = [[0.0; 2 * PANEL]; 2];
        vectorised!(|_| {
            // Two columns of each of the four rows of points.
            let mut mixed = [[[0.0_f32; PANEL]; 2]; 4];
            for (row, [left, right]) in mixed.iter_mut().enumerate() {
                let [a, b, c, d] = std::array::from_fn(|column| &sums[(4 * row + column) * stride..][..count]);
                for at in 0..count {
                    left[at] = a[at] + b[at] + c[at];
                    right[at] = b[at] - c[at] - d[at];
                }
            }
            let [a, b, c, d] = &mixed;
            for at in 0..count {
                for side in 0..2 {
                    rows[0][2 * at + side] = a[side][at] + b[side][at] + c[side][at];
                    rows[1][2 * at + side] = b[side][at] - c[side][at] - d[side][at];
                }
            }
            for (y, row) in (top..self.c.height).zip(&rows) {
                let at = (channel * self.c.height + y) * self.c.width + left;
                self.shared.with(at, columns, |out| self.begin.put(out, row, channel, at));
            }
        });
    }
}

/// Tiles next to each other.
struct Line {
    /// Which line of tiles it is in.
    down: usize,
    /// The first of them in its line.
    right: usize,
    count: usize,
}

#[inline(always)]
fn join(out: &mut [f32], x: &[f32], y: &[f32], count: usize, function: impl Fn(f32, f32) -> f32) {
    out[..count].iter_mut().zip(&x[..count]).zip(&y[..count]).for_each(|((out, x), y)| *out = function(*x, *y));
}

/// The values of `line` from `start - border` on; zero outside.
#[inline(always)]
fn copy(line: &[f32], start: usize, border: usize, out: &mut [f32]) {
    let before = border.saturating_sub(start).min(out.len());
    let from = (start + before - border).min(line.len());
    let copied = (out.len() - before).min(line.len() - from);
    out[..before].fill(0.0);
    out[before..before + copied].copy_from_slice(&line[from..from + copied]);
    out[before + copied..].fill(0.0);
}
