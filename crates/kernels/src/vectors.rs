//! Which vector instructions this processor has, and loops compiled for each of them.

use std::sync::LazyLock;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Vectors {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Portable,
}

/// Asked once; all kernels of a process use the same.
pub(crate) static VECTORS: LazyLock<Vectors> = LazyLock::new(detect);

fn detect() -> Vectors {
    Vectors::all().next().unwrap_or(Vectors::Portable)
}

impl Vectors {
    /// All that this processor has, the widest first.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        #[cfg(target_arch = "x86_64")]
        let special = [
            (Self::Avx512, is_x86_feature_detected!("avx512f")),
            (Self::Avx2, is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")),
        ];
        #[cfg(not(target_arch = "x86_64"))]
        let special: [(Self, bool); 0] = [];
        special.into_iter().filter(|(_, there)| *there).map(|(vectors, _)| vectors).chain([Self::Portable])
    }
}

/// How a product and a sum are rounded: once, where the processor does both in one instruction.
#[derive(Clone, Copy)]
pub(crate) struct Rounding {
    fused: bool,
}

impl Rounding {
    /// a·b + c.
    #[inline(always)]
    pub(crate) fn multiply_add(self, a: f32, b: f32, c: f32) -> f32 {
        if self.fused { a.mul_add(b, c) } else { a * b + c }
    }
}

/// Runs a body, `|rounding| …`, compiled once for each kind of vectors: whatever it calls has to be `#[inline(always)]`.
///
/// A macro, for a closure with one caller is inlined there, whatever its size; one that all kinds share was not, and lost their instructions.
macro_rules! vectorised {
    (|$rounding:pat_param| $body:expr) => {
        match *$crate::vectors::VECTORS {
            // SAFETY: the instructions were detected on this processor.
            #[cfg(target_arch = "x86_64")]
            $crate::vectors::Vectors::Avx512 => unsafe { $crate::vectors::avx512(|$rounding| $body) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            $crate::vectors::Vectors::Avx2 => unsafe { $crate::vectors::avx2(|$rounding| $body) },
            $crate::vectors::Vectors::Portable => $crate::vectors::portable(|$rounding| $body),
        }
    };
}
pub(crate) use vectorised;

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
pub(crate) fn avx512<R>(body: impl FnOnce(Rounding) -> R) -> R {
    body(Rounding { fused: true })
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
pub(crate) fn avx2<R>(body: impl FnOnce(Rounding) -> R) -> R {
    body(Rounding { fused: true })
}

pub(crate) fn portable<R>(body: impl FnOnce(Rounding) -> R) -> R {
    body(Rounding { fused: false })
}

/// e to the `x`, to about 2 units in the last place; 0 and infinity are reached at -87 and 88 as the nearest finite number.
/// Range reduction and polynomial: Cephes, `expf`.
#[inline(always)]
pub(crate) fn exp(x: f32, rounding: Rounding) -> f32 {
    const ROUNDER: f32 = 12_582_912.0; // 1.5 * 2^23: a sum with it has no fraction
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.0, 88.0);
    let fma = |a, b, c| rounding.multiply_add(a, b, c);
    let shifted = fma(x, std::f32::consts::LOG2_E, ROUNDER);
    let whole = shifted - ROUNDER;
    let r = fma(whole, -LN2_LOW, fma(whole, -LN2_HIGH, x));
    let mut p = fma(1.987_569_1e-4, r, 1.398_2e-3);
    p = fma(p, r, 8.333_452e-3);
    p = fma(p, r, 4.166_579_6e-2);
    p = fma(p, r, 1.666_666_5e-1);
    p = fma(p, r, 0.5);
    p = fma(p * r, r, r + 1.0);
    let exponent = shifted.to_bits().wrapping_sub(ROUNDER.to_bits()).wrapping_add(127);
    p * f32::from_bits(exponent << 23)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close_to_the_standard_librarys() {
        for step in -8_700..8_800 {
            let x = step as f32 / 100.0;
            let exact = f64::from(x).exp();
            for fused in [false, true] {
                assert!((f64::from(exp(x, Rounding { fused })) - exact).abs() / exact < 3e-7, "{x}");
            }
        }
    }
}
