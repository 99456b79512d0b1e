//! Finds our mark in a part of an image: where its blocks began, and how many stood in a row, is tried out.

use super::block::{Band, pixels};
use super::found::Found;
use super::message::SDXL;
use super::{BLOCK_PX, Method};

/// The middle of a larger image is looked at: enough votes, and no more work than that.
const LARGEST_PX: usize = 512;
/// Of 48. Among 147,456 ways to lay the blocks chance finds as many right in 6 of 10^7 images.
const MAX_WRONG: usize = 2;

/// The blocks of one way to lay them: +1 for a bit that is set, -1 for one that is not.
struct Grid {
    columns: usize,
    votes: Vec<i32>,
}

pub(super) fn moved(rgb: &[u8], width_px: usize, height_px: usize) -> Option<Found> {
    let bits = SDXL.bits();
    let signs: Vec<i32> = bits.iter().map(|bit| if *bit { 1 } else { -1 }).collect();
    let phases = (0..BLOCK_PX).flat_map(|y| (0..BLOCK_PX).map(move |x| (x, y)));
    let wrong = phases.map(|(x, y)| Grid::at(rgb, [width_px, height_px], [x, y]).wrong_bits(&signs)).min()?;
    let found = Found { message: SDXL.name, method: Method::DwtDctSvd, bits: bits.len(), wrong_bits: wrong, cut: true };
    (wrong <= MAX_WRONG).then_some(found)
}

impl Grid {
    /// With the first block at so many pixels from where the looked-at part begins.
    fn at(rgb: &[u8], size_px: [usize; 2], phase_px: [usize; 2]) -> Self {
        let looked_px = size_px.map(|side| side.min(LARGEST_PX));
        let start_px = [0, 1].map(|axis| (size_px[axis] - looked_px[axis]) / 2 + phase_px[axis]);
        let columns = looked_px[0].saturating_sub(phase_px[0]) / BLOCK_PX;
        let rows = looked_px[1].saturating_sub(phase_px[1]) / BLOCK_PX;
        let votes = (0..rows * columns).map(|number| {
            let left_px = start_px[0] + number % columns * BLOCK_PX;
            let top_px = start_px[1] + number / columns * BLOCK_PX;
            let band = Band::of(&pixels(rgb, size_px[0], left_px, top_px));
            if band.bit(Method::DwtDctSvd) { 1 } else { -1 }
        });
        Self { columns, votes: votes.collect() }
    }

    /// Bits that read wrong where row length and first bit are as they fit best.
    fn wrong_bits(&self, signs: &[i32]) -> usize {
        let count = signs.len();
        // What each row is worth if it begins with each bit.
        // Of an image that is narrower than a block there are none.
        let rows = self.votes.chunks_exact(self.columns.max(1));
        let worth: Vec<Vec<i32>> = rows
            .map(|row| {
                (0..count).map(|first| row.iter().zip(signs.iter().cycle().skip(first)).map(|(a, b)| a * b).sum()).collect()
            })
            .collect();
        let ways = (0..count).flat_map(|first| (0..count).map(move |step| (first, step)));
        let best = ways.max_by_key(|(first, step)| {
            worth.iter().enumerate().map(|(row, worth)| worth[(first + row * step) % count]).sum::<i32>()
        });
        let Some((first, step)) = best else { return count };
        let mut sums = vec![0; count];
        for (number, vote) in self.votes.iter().enumerate() {
            sums[(first + number / self.columns * step + number % self.columns) % count] += vote;
        }
        sums.iter().zip(signs).filter(|(sum, sign)| *sum * *sign <= 0).count()
    }
}
