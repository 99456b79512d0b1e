//! The two formats of 8-bit floats that weights are kept in (Micikevicius et al. 2022, arXiv 2209.05433).

use half::f16;

/// One sign, 4 bits of exponent, 3 of mantissa; no infinity, and a NaN in place of the largest.
#[derive(Clone, Copy)]
pub(super) struct E4M3(pub(super) u8);

/// One sign, 5 bits of exponent, 2 of mantissa: the upper half of an f16.
#[derive(Clone, Copy)]
pub(super) struct E5M2(pub(super) u8);

impl E4M3 {
    pub(super) fn to_f32(self) -> f32 {
        /// An f16's exponents are biased by 15, these by 7.
        const REBIASED: f32 = 256.0;
        const NAN: u8 = 0x7f;
        let sign = u16::from(self.0 & 0x80) << 8;
        let rest = self.0 & 0x7f;
        if rest == NAN {
            return f32::NAN;
        }
        // Exponent and mantissa in an f16's places: exact, subnormal values as well.
        f16::from_bits(sign | u16::from(rest) << 7).to_f32() * REBIASED
    }
}

impl E5M2 {
    pub(super) fn to_f32(self) -> f32 {
        f16::from_bits(u16::from(self.0) << 8).to_f32()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eight_bits_are_the_values_that_torch_reads() {
        for (byte, number) in [
            (0x00, 0.0),
            (0x01, 0.001_953_125),
            (0x07, 0.013_671_875),
            (0x08, 0.015_625),
            (0x38, 1.0),
            (0x3d, 1.625),
            (0x7e, 448.0),
            (0xb9, -1.125),
            (0xfe, -448.0),
        ] {
            assert_eq!(E4M3(byte).to_f32().to_bits(), f32::to_bits(number), "E4M3 {byte:#04x}");
        }
        assert!(E4M3(0x7f).to_f32().is_nan() && E4M3(0xff).to_f32().is_nan());
        for (byte, number) in [
            (0x00, 0.0),
            (0x01, 0.000_015_258_789),
            (0x3c, 1.0),
            (0x3d, 1.25),
            (0x7b, 57_344.0),
            (0x7c, f32::INFINITY),
            (0xc2, -3.0),
        ] {
            assert_eq!(E5M2(byte).to_f32().to_bits(), f32::to_bits(number), "E5M2 {byte:#04x}");
        }
        assert!(E5M2(0x7e).to_f32().is_nan());
    }
}
