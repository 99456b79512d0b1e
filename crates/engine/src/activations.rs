//! What stands between layers, value by value: our own kernels on the CPU in f32, candle's on any other device.

use atelier_kernels::elementwise;
use candle_core::{D, Result, Tensor};
use candle_nn::ops::sigmoid;

use super::layers::{is_ours, with_values};

/// GEGLU (Shazeer 2020) with the exact gelu. `both`: (B, T, 2·width), values before gates. Returns (B, T, width).
pub(super) fn geglu(both: &Tensor) -> Result<Tensor> {
    let (batch, tokens, double) = both.dims3()?;
    let width = double / 2;
    if !is_ours(both) {
        return both.narrow(D::Minus1, 0, width)? * both.narrow(D::Minus1, width, width)?.gelu_erf()?;
    }
    let output = with_values([Some(both), None, None, None], |[both, ..]| elementwise::geglu(both, width))?;
    Tensor::from_vec(output, (batch, tokens, width), both.device())
}

/// x·sigmoid(1.702·x), CLIP's own approximation of gelu.
pub(super) fn quick_gelu(hidden: &Tensor) -> Result<Tensor> {
    if is_ours(hidden) { changed(hidden, elementwise::quick_gelu) } else { hidden * sigmoid(&(hidden * 1.702)?)? }
}

/// x·sigmoid(x).
pub(super) fn silu(hidden: &Tensor) -> Result<Tensor> {
    if is_ours(hidden) { changed(hidden, elementwise::silu) } else { hidden.silu() }
}

fn changed(hidden: &Tensor, change: impl FnOnce(&mut [f32])) -> Result<Tensor> {
    let mut values = with_values([Some(hidden), None, None, None], |[hidden, ..]| hidden.to_vec())?;
    change(&mut values);
    Tensor::from_vec(values, hidden.shape(), hidden.device())
}
