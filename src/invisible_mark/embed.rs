//! Writes the mark: in every block the carrier is moved to the nearest number that says the right bit.

use super::block::{Band, Largest, Pixels, pixels};
use super::message::SDXL;
use super::{BLOCK_PX, STEP};

/// So near to its target a carrier is left: rounding to 8 bits moves it by as much.
const NEAR_ENOUGH: f64 = 3.0;
/// So far from its target a carrier is still safe; beyond a quarter of a step it says the other bit.
const SAFE: f64 = STEP / 6.0;
/// Times that a carrier is moved, for rounding and limits take away from it.
const ROUNDS: usize = 4;

/// A block on its way to a target, and how far from it the carrier is.
struct Moved {
    block: Pixels,
    off: f64,
}

/// Writes the message into an image with [`super::has_room`]. `rgb`: (height, width, 3). What does not fill a block, at the right and
/// below, stays as it is.
pub fn embed(rgb: &mut [u8], width_px: u32, height_px: u32) {
    let width_px = width_px as usize;
    let columns = width_px / BLOCK_PX;
    let rows = height_px as usize / BLOCK_PX;
    let bits = SDXL.bits();
    for (number, bit) in (0..rows * columns).zip(bits.iter().cycle()) {
        let left_px = number % columns * BLOCK_PX;
        let top_px = number / columns * BLOCK_PX;
        let marked = marked(&pixels(rgb, width_px, left_px, top_px), *bit);
        for (y, row) in marked.chunks_exact(3 * BLOCK_PX).enumerate() {
            let start = 3 * ((top_px + y) * width_px + left_px);
            rgb[start..start + row.len()].copy_from_slice(row);
        }
    }
}

/// The block with the bit in it; where the nearest target is out of reach, for a colour is as blue as can be, on its other side.
fn marked(block: &Pixels, bit: bool) -> Pixels {
    let carrier = Band::of(block).largest();
    let within = if bit { 0.75 * STEP } else { 0.25 * STEP };
    let nearest = ((carrier.value - within) / STEP).round() * STEP + within;
    let other = if nearest > carrier.value { nearest - STEP } else { nearest + STEP };
    let near = moved(block, &carrier, nearest);
    if near.off <= SAFE {
        return near.block;
    }
    let far = moved(block, &carrier, other);
    if far.off < near.off { far.block } else { near.block }
}

fn moved(block: &Pixels, carrier: &Largest, target: f64) -> Moved {
    let mut block = *block;
    let mut carrier = carrier.clone();
    for _ in 0..ROUNDS {
        let lacks = target - carrier.value;
        if lacks.abs() <= NEAR_ENOUGH {
            break;
        }
        carrier.raise(&mut block, lacks);
        carrier = Band::of(&block).largest();
    }
    Moved { block, off: (target - carrier.value).abs() }
}
