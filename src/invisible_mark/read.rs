//! Reads the mark: ours, and what `invisible-watermark` writes with the messages that are known.

use super::block::{Band, pixels};
use super::found::Found;
use super::message::{KNOWN, Message};
use super::moved::moved;
use super::{BLOCK_PX, Method};

/// Of so many bits one may be wrong. Chance finds a message of 48 bits so in 5 of 10^8 images.
const BITS_AN_ERROR: usize = 8;

/// The known message that an image has, if it has one. `rgb`: (height, width, 3).
#[must_use]
pub fn read(rgb: &[u8], width_px: u32, height_px: u32) -> Option<Found> {
    let votes = votes(rgb, width_px as usize, height_px as usize);
    let found = [Method::DwtDctSvd, Method::DwtDct].into_iter().flat_map(|method| {
        let votes = &votes;
        KNOWN.iter().map(move |message| found(message, method, votes))
    });
    let best = found.min_by_key(|found| found.wrong_bits * 1_000 / found.bits);
    best.filter(|found| found.wrong_bits * BITS_AN_ERROR <= found.bits)
        .or_else(|| moved(rgb, width_px as usize, height_px as usize))
}

/// What one block says by either method.
struct Vote {
    dwt_dct: bool,
    dwt_dct_svd: bool,
}

fn votes(rgb: &[u8], width_px: usize, height_px: usize) -> Vec<Vote> {
    let rows = (0..height_px / BLOCK_PX).map(|row| row * BLOCK_PX);
    let places = rows.flat_map(|top_px| (0..width_px / BLOCK_PX).map(move |column| (column * BLOCK_PX, top_px)));
    let votes = places.map(|(left_px, top_px)| {
        let band = Band::of(&pixels(rgb, width_px, left_px, top_px));
        Vote { dwt_dct: band.bit(Method::DwtDct), dwt_dct_svd: band.bit(Method::DwtDctSvd) }
    });
    votes.collect()
}

fn found(message: &Message, method: Method, votes: &[Vote]) -> Found {
    let bits = message.bits();
    let mut ones = vec![0_u32; bits.len()];
    let mut blocks = vec![0_u32; bits.len()];
    for (number, vote) in votes.iter().enumerate() {
        let bit = match method {
            Method::DwtDct => vote.dwt_dct,
            Method::DwtDctSvd => vote.dwt_dct_svd,
        };
        ones[number % bits.len()] += u32::from(bit);
        blocks[number % bits.len()] += 1;
    }
    // As `invisible-watermark` rounds the mean.
    let read = ones.iter().zip(&blocks).map(|(ones, blocks)| 255 * ones > 127 * blocks);
    let wrong_bits = read.zip(&bits).filter(|(read, bit)| read != *bit).count();
    Found { message: message.name, method, bits: bits.len(), wrong_bits, cut: false }
}
