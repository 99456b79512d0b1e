//! Queries and keys of flows on their way to attention: normed by head, then turned by the places of their tokens.

use candle_core::{DType, Result, Tensor};
use candle_nn::ops::rms_norm;
use candle_nn::rotary_emb::rope_i;

use super::device;

/// Cosines and sines of the angles of each token: (T, head width / 2) each, f32.
pub(super) type Angles<'a> = (&'a Tensor, &'a Tensor);

/// `hidden`: (B, T, heads·D); `norm`: (D,), the weights of a root mean square norm with `eps`. Neighbours among a head's values are turned (Su et al.
/// 2021). Norms and turns are f32, and rounded to the format of `hidden`. Returns the same shape.
///
/// # Errors
/// When the shapes do not fit, or there is no memory.
pub(super) fn normed_and_turned(hidden: &Tensor, norm: &Tensor, heads: usize, eps: f32, angles: Angles<'_>) -> Result<Tensor> {
    joined_normed_and_turned(hidden, (hidden.dim(1)?, [norm; 2]), heads, eps, angles)
}

/// The same of tokens whose first ones have other weights than those behind them.
///
/// # Errors
/// When the shapes do not fit, or there is no memory.
pub(super) fn joined_normed_and_turned(
    hidden: &Tensor,
    (first, norms): (usize, [&Tensor; 2]),
    heads: usize,
    eps: f32,
    (cos, sin): Angles<'_>,
) -> Result<Tensor> {
    if let Some(turned) = device::norm_rope(hidden, (first, norms), heads, eps, (cos, sin)) {
        return turned;
    }
    let (batch, tokens, width) = hidden.dims3()?;
    let normed = |place: usize, count: usize, norm: &Tensor| {
        let part = hidden.narrow(1, place, count)?.reshape((batch, count, heads, width / heads))?;
        rms_norm(&part.contiguous()?, norm, eps)
    };
    let by_head = match tokens - first {
        0 => normed(0, tokens, norms[0])?,
        others => Tensor::cat(&[normed(0, first, norms[0])?, normed(first, others, norms[1])?], 1)?,
    };
    let by_head = by_head.transpose(1, 2)?.contiguous()?.to_dtype(DType::F32)?;
    let turned = rope_i(&by_head, cos, sin)?.to_dtype(hidden.dtype())?;
    turned.transpose(1, 2)?.reshape((batch, tokens, width))
}
