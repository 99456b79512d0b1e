//! Guidance by a second look with another text.

use candle_core::{D, DType, Result, Tensor};

/// `negative + scale·(positive − negative)`, every token then redelivered to the length it has in `positive` (diffusers'
/// `QwenImageEditPlusPipeline`). All (1, T, values); computed in f32.
///
/// # Errors
/// When the shapes differ, or there is no memory.
pub fn guided(positive: &Tensor, negative: &Tensor, scale: f64) -> Result<Tensor> {
    let positive = positive.to_dtype(DType::F32)?;
    let negative = negative.to_dtype(DType::F32)?;
    let towards = ((&positive - &negative)? * scale)?;
    let combined = (negative + towards)?;
    let length = |tokens: &Tensor| tokens.sqr()?.sum_keepdim(D::Minus1)?.sqrt();
    combined.broadcast_mul(&length(&positive)?.div(&length(&combined)?)?)
}
