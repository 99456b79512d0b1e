//! Finds NaN and infinity on the device, with one reduction.

use candle_core::{DType, Result, Tensor};

/// Whether every value of `tensor`, of any shape and float format, is finite. Waits for the device.
///
/// # Errors
/// When there is no memory for a copy in f32.
pub(super) fn is_finite(tensor: &Tensor) -> Result<bool> {
    // A finite value times 0 is 0, any other is NaN; so the sum is 0 or NaN, and cannot overflow.
    Ok((tensor.to_dtype(DType::F32)? * 0.0)?.sum_all()?.to_scalar::<f32>()? == 0.0)
}

/// `tensor` within `least` and `most`, (any shape); what is not finite becomes NaN.
///
/// On a GPU a plain clamp gives a bound for a NaN, and on every device one for infinity: both would pass for values.
///
/// # Errors
/// When there is no memory.
pub(super) fn clamp_finite(tensor: &Tensor, least: f64, most: f64) -> Result<Tensor> {
    tensor.clamp(least, most)? + (tensor * 0.0)?
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn tensor(values: &[f32]) -> Tensor {
        Tensor::new(values, &Device::Cpu).expect("a tensor")
    }

    #[test]
    fn one_bad_value_is_found_and_large_ones_are_none() {
        let large = tensor(&[f32::MAX; 7]);
        assert!(is_finite(&large).expect("reads"), "their plain sum would be infinite");
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for place in 0..5 {
                let mut values = [-0.5_f32; 5];
                values[place] = bad;
                assert!(!is_finite(&tensor(&values)).expect("reads"), "{bad} at {place}");
            }
        }
        let overflown = tensor(&[70_000.0]).to_dtype(DType::F16).expect("converts");
        assert!(!is_finite(&overflown).expect("reads"));
    }

    #[test]
    fn a_clamp_hides_nothing() {
        let clamped = clamp_finite(&tensor(&[-3.0, 0.25, 3.0, f32::NAN, f32::INFINITY]), -1.0, 1.0).expect("clamps");
        let values: Vec<f32> = clamped.to_vec1().expect("values");
        assert_eq!(values[..3], [-1.0, 0.25, 1.0]);
        assert!(values[3].is_nan() && values[4].is_nan(), "{values:?}");
    }
}
