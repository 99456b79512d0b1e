//! One block of pixels, and the numbers in it that can carry a bit.

use super::{BLOCK_PX, Method, STEP};

/// Bytes of a block.
const BLOCK_BYTES: usize = 3 * BLOCK_PX * BLOCK_PX;
/// Values of a band's side.
const BAND: usize = 4;
/// Of the power iteration; it ends before, unless two singular values are almost equal, and then either will do.
const MAX_ROUNDS: usize = 64;
/// What the largest singular value, hundreds, may still grow by.
const SETTLED: f64 = 1e-3;
/// Of Haar's low-pass filter, each of two.
const TAP: f64 = std::f64::consts::FRAC_1_SQRT_2;

/// 8x8 pixels, RGB, row by row.
pub(super) type Pixels = [u8; BLOCK_BYTES];

/// The low band of a block's U channel: (4, 4), row by row, each 34 to 478.
pub(super) struct Band([f64; BAND * BAND]);

/// The largest singular value with its vectors, of length 1.
#[derive(Clone)]
pub(super) struct Largest {
    pub(super) value: f64,
    left: [f64; BAND],
    right: [f64; BAND],
}

/// Reads the block whose left top pixel is (`left_px`, `top_px`) of an RGB image.
pub(super) fn pixels(rgb: &[u8], width_px: usize, left_px: usize, top_px: usize) -> Pixels {
    let mut block = [0; BLOCK_BYTES];
    for (y, row) in block.chunks_exact_mut(3 * BLOCK_PX).enumerate() {
        let start = 3 * ((top_px + y) * width_px + left_px);
        row.copy_from_slice(&rgb[start..start + 3 * BLOCK_PX]);
    }
    block
}

impl Band {
    pub(super) fn of(block: &Pixels) -> Self {
        let value = |y: usize, x: usize| f64::from(chroma(&block[3 * (y * BLOCK_PX + x)..][..3])) * TAP;
        // Half the sum of 2x2 values, in PyWavelets' order of operations: values lie on the border between bits, and rounding decides.
        let low = |x: usize, y: usize| (value(2 * y, x) + value(2 * y + 1, x)) * TAP;
        Self(std::array::from_fn(|at| {
            let y = at / BAND;
            let x = at % BAND;
            low(2 * x, y) + low(2 * x + 1, y)
        }))
    }

    /// The bit that stands in the block.
    pub(super) fn bit(&self, method: Method) -> bool {
        let carrier = match method {
            Method::DwtDct => self.0[1..].iter().fold(0.0, |largest: f64, value| largest.max(*value)),
            Method::DwtDctSvd => self.largest().value,
        };
        carrier % STEP > STEP / 2.0
    }

    /// By power iteration: U is never below 17, so all values are positive, and the start is not orthogonal to the vector sought.
    pub(super) fn largest(&self) -> Largest {
        let mut right = [0.5; BAND];
        let mut left = [0.5; BAND];
        let mut value = 0.0;
        for _ in 0..MAX_ROUNDS {
            left = std::array::from_fn(|y| (0..BAND).map(|x| self.0[y * BAND + x] * right[x]).sum());
            normalise(&mut left);
            right = std::array::from_fn(|x| (0..BAND).map(|y| self.0[y * BAND + x] * left[y]).sum());
            let grown = normalise(&mut right);
            if grown - value < SETTLED {
                value = grown;
                break;
            }
            value = grown;
        }
        Largest { value, left, right }
    }
}

impl Largest {
    /// Adds so much to the singular value, as far as 8 bits and their limits let it: Y stays, U moves by at most 5 for half a step.
    pub(super) fn raise(&self, block: &mut Pixels, by: f64) {
        // What U is worth in green and in blue, as in OpenCV's COLOR_YUV2RGB; a half more, so that the cast rounds.
        let colours: [[f64; 2]; BAND * BAND] = std::array::from_fn(|place| {
            let chroma = by * self.left[place / BAND] * self.right[place % BAND] / 2.0;
            [0.5 - 0.395 * chroma, 0.5 + 2.032 * chroma]
        });
        for (at, pixel) in block.chunks_exact_mut(3).enumerate() {
            let [green, blue] = colours[place(at)];
            pixel[1] = (f64::from(pixel[1]) + green) as u8;
            pixel[2] = (f64::from(pixel[2]) + blue) as u8;
        }
    }
}

/// Where in the band the pixel at `at` of a block counts.
fn place(at: usize) -> usize {
    let y = at / BLOCK_PX;
    let x = at % BLOCK_PX;
    y / 2 * BAND + x / 2
}

/// U of `OpenCV`'s `COLOR_RGB2YUV` for 8 bits: 0.492 (B - Y) + 128 in fixed point of 14 bits, Y rounded before.
fn chroma(pixel: &[u8]) -> i32 {
    const HALF: i32 = 1 << 13;
    let luma = (i32::from(pixel[0]) * 4_899 + i32::from(pixel[1]) * 9_617 + i32::from(pixel[2]) * 1_868 + HALF) >> 14;
    ((i32::from(pixel[2]) - luma) * 8_061 + (128 << 14) + HALF) >> 14
}

fn normalise(vector: &mut [f64; BAND]) -> f64 {
    let length = vector.iter().map(|value| value * value).sum::<f64>().sqrt();
    for value in vector {
        *value /= length;
    }
    length
}
