//! The blocks that ggml packs weights in, as values.
//!
//! Their layouts are the structures of `ggml-common.h`, their arithmetic that of `dequantize_row_*` in `ggml-quants.c` (ggml-org/ggml). PyPI's `gguf`
//! has the same in `quants.py`. Every product and sum is rounded to f32 by itself, as there.

use half::f16;
use rayon::prelude::*;

/// How the values of a weight's row are packed, so many to a block; `d` and `m` are f16.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BlockFormat {
    /// 32 values d·(q − 8), q of 4 bits.
    Q4_0,
    /// 32 values d·q + m, q of 4 bits.
    Q4_1,
    /// 32 values d·(q − 16), q of 5 bits.
    Q5_0,
    /// 32 values d·q + m, q of 5 bits.
    Q5_1,
    /// 32 values d·q, q of 8 bits.
    Q8_0,
    /// 256 values d·s·q − m·t, q of 4 bits; s and t of 6 bits for each 32.
    Q4K,
    /// 256 values d·s·q − m·t, q of 5 bits; s and t of 6 bits for each 32.
    Q5K,
    /// 256 values d·s·(q − 32), q of 6 bits; s of 8 bits for each 16.
    Q6K,
}

/// Blocks that a thread makes whole at once.
const SHARE: usize = 256;

impl BlockFormat {
    pub const ALL: [Self; 8] = [Self::Q4_0, Self::Q4_1, Self::Q5_0, Self::Q5_1, Self::Q8_0, Self::Q4K, Self::Q5K, Self::Q6K];

    /// As ggml and file names have it, in small letters: `q4_k`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Q4_0 => "q4_0",
            Self::Q4_1 => "q4_1",
            Self::Q5_0 => "q5_0",
            Self::Q5_1 => "q5_1",
            Self::Q8_0 => "q8_0",
            Self::Q4K => "q4_k",
            Self::Q5K => "q5_k",
            Self::Q6K => "q6_k",
        }
    }

    /// Its number in `ggml_type`, which files have.
    #[must_use]
    pub const fn number(self) -> u32 {
        match self {
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q5_0 => 6,
            Self::Q5_1 => 7,
            Self::Q8_0 => 8,
            Self::Q4K => 12,
            Self::Q5K => 13,
            Self::Q6K => 14,
        }
    }

    /// Values of a block.
    #[must_use]
    pub const fn values(self) -> usize {
        match self {
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => 32,
            Self::Q4K | Self::Q5K | Self::Q6K => 256,
        }
    }

    /// Bytes of a block.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }

    /// Makes `blocks` whole: [`Self::values`] for each [`Self::bytes`].
    ///
    /// # Panics
    /// When these are no whole blocks.
    #[must_use]
    pub fn unpack(self, blocks: &[u8]) -> Vec<f32> {
        let values = self.values();
        let bytes = self.bytes();
        assert!(blocks.len().is_multiple_of(bytes), "whole blocks");
        let one = match self {
            Self::Q4_0 => q4_0,
            Self::Q4_1 => q4_1,
            Self::Q5_0 => q5_0,
            Self::Q5_1 => q5_1,
            Self::Q8_0 => q8_0,
            Self::Q4K => q4_k,
            Self::Q5K => q5_k,
            Self::Q6K => q6_k,
        };
        let mut out = vec![0.0; blocks.len() / bytes * values];
        out.par_chunks_mut(SHARE * values).zip(blocks.par_chunks(SHARE * bytes)).for_each(|(out, blocks)| {
            out.chunks_exact_mut(values).zip(blocks.chunks_exact(bytes)).for_each(|(out, block)| one(block, out));
        });
        out
    }
}

/// The f16 at `at`.
fn number(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

fn q4_0(block: &[u8], out: &mut [f32]) {
    let d = number(block, 0);
    for (place, pair) in block[2..18].iter().enumerate() {
        out[place] = d * (f32::from(pair & 15) - 8.0);
        out[place + 16] = d * (f32::from(pair >> 4) - 8.0);
    }
}

fn q4_1(block: &[u8], out: &mut [f32]) {
    let d = number(block, 0);
    let m = number(block, 2);
    for (place, pair) in block[4..20].iter().enumerate() {
        out[place] = d * f32::from(pair & 15) + m;
        out[place + 16] = d * f32::from(pair >> 4) + m;
    }
}

/// Values of 5 bits: the fifth ones lie apart.
fn five_bits(high: &[u8], low: &[u8], mut each: impl FnMut(usize, f32)) {
    let high = u32::from_le_bytes([high[0], high[1], high[2], high[3]]);
    for (place, pair) in low.iter().enumerate() {
        let fifth = |place: usize| ((high >> place & 1) << 4) as u8;
        each(place, f32::from(pair & 15 | fifth(place)));
        each(place + 16, f32::from(pair >> 4 | fifth(place + 16)));
    }
}

fn q5_0(block: &[u8], out: &mut [f32]) {
    let d = number(block, 0);
    five_bits(&block[2..6], &block[6..22], |place, q| out[place] = d * (q - 16.0));
}

fn q5_1(block: &[u8], out: &mut [f32]) {
    let d = number(block, 0);
    let m = number(block, 2);
    five_bits(&block[4..8], &block[8..24], |place, q| out[place] = d * q + m);
}

fn q8_0(block: &[u8], out: &mut [f32]) {
    let d = number(block, 0);
    for (out, q) in out.iter_mut().zip(&block[2..34]) {
        *out = d * f32::from(q.cast_signed());
    }
}

/// Scale and offset of the `part`th 32 of 256 values, 6 bits each out of 12 bytes.
fn scale_and_offset(bytes: &[u8], part: usize) -> (f32, f32) {
    let (scale, offset) = if part < 4 {
        (bytes[part] & 63, bytes[part + 4] & 63)
    } else {
        (bytes[part + 4] & 15 | bytes[part - 4] >> 6 << 4, bytes[part + 4] >> 4 | bytes[part] >> 6 << 4)
    };
    (f32::from(scale), f32::from(offset))
}

fn q4_k(block: &[u8], out: &mut [f32]) {
    for (part, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, offset) = scale_and_offset(&block[4..16], part);
        let scale = number(block, 0) * scale;
        let offset = number(block, 2) * offset;
        let pairs = &block[16 + part / 2 * 32..][..32];
        for (out, pair) in out.iter_mut().zip(pairs) {
            *out = scale * f32::from(pair >> (part % 2 * 4) & 15) - offset;
        }
    }
}

fn q5_k(block: &[u8], out: &mut [f32]) {
    for (part, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, offset) = scale_and_offset(&block[4..16], part);
        let scale = number(block, 0) * scale;
        let offset = number(block, 2) * offset;
        let pairs = &block[48 + part / 2 * 32..][..32];
        for ((out, pair), high) in out.iter_mut().zip(pairs).zip(&block[16..48]) {
            let q = pair >> (part % 2 * 4) & 15 | (high >> part & 1) << 4;
            *out = scale * f32::from(q) - offset;
        }
    }
}

fn q6_k(block: &[u8], out: &mut [f32]) {
    let d = number(block, 208);
    for (part, out) in out.chunks_exact_mut(32).enumerate() {
        // Of 128 values four parts share their bytes of high bits, and two and two those of low ones.
        let half = part / 4;
        let quarter = part % 4;
        let low = &block[half * 64 + quarter % 2 * 32..][..32];
        let high = &block[128 + half * 32..][..32];
        for (place, out) in out.iter_mut().enumerate() {
            let scale = block[192 + part * 2 + place / 16].cast_signed();
            let q = low[place] >> (quarter / 2 * 4) & 15 | (high[place] >> (quarter * 2) & 3) << 4;
            *out = d * f32::from(scale) * (f32::from(q) - 32.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_of_each_format_is_what_its_bytes_say() {
        let half = |value: f32| f16::from_f32(value).to_le_bytes();
        // Q4_0: d = 0.5, the first byte has 3 and 12.
        let mut block = [&half(0.5)[..], &[0xC3], &[0x88; 15]].concat();
        let values = BlockFormat::Q4_0.unpack(&block);
        assert_eq!((values[0], values[16], values[1], values.len()), (-2.5, 2.0, 0.0, 32));
        block.extend_from_within(..);
        assert_eq!(BlockFormat::Q4_0.unpack(&block)[32..], values, "block by block");
        let block = [&half(2.0)[..], &[0x81], &[3; 31]].concat();
        assert_eq!(BlockFormat::Q8_0.unpack(&block)[..2], [-254.0, 6.0]);
        // Q5_0: the fifth bit of value 17 is bit 17.
        let block = [&half(1.0)[..], &[0, 0, 2, 0], &[0; 16]].concat();
        let values = BlockFormat::Q5_0.unpack(&block);
        assert_eq!((values[16], values[17]), (-16.0, 0.0));
        // Q6_K: the last value has its low bits in the last byte of `ql`, its high ones at the top of the last of `qh`.
        let mut block = vec![0; 210];
        block[127] = 0xF0;
        block[191] = 0b1100_0000;
        block[207] = 2;
        block[208..].copy_from_slice(&half(0.25));
        let values = BlockFormat::Q6K.unpack(&block);
        assert_eq!((values[255], values[254], values[239]), (15.5, -16.0, -0.0));
    }

    #[test]
    fn rows_are_whole_blocks() {
        for format in BlockFormat::ALL {
            assert_eq!(format.unpack(&vec![0; 3 * format.bytes()]).len(), 3 * format.values(), "{}", format.name());
            assert!(std::panic::catch_unwind(|| format.unpack(&vec![0; format.bytes() + 1])).is_err());
        }
    }
}
