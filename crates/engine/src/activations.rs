//! What stands between layers, value by value: our own kernels on the CPU in f32, candle's on any other device.

use atelier_kernels::elementwise::{self, Gate};
use candle_core::{D, Result, Tensor};
use candle_nn::ops::sigmoid;

use super::device;
use super::layers::{Linear, is_ours, with_values};

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

/// [`geglu`] of what `linear` makes of `input`, (B, T, in).
pub(super) fn geglu_of(linear: &Linear, input: &Tensor) -> Result<Tensor> {
    if input.device().is_cuda() {
        if let Some([values, gates]) = linear.halves()?
            && let Some(done) = at_once(Gate::Gelu, &[([&values, &gates], input)])
        {
            return done;
        }
        let (both, bias) = linear.before_bias(input)?;
        if let Some(gated) = bias.and_then(|bias| device::geglu(&both, bias)) {
            return gated;
        }
    }
    geglu(&linear.forward(input)?)
}

/// A gated layer: what the first makes of `input`, times what `gate` makes of what the second makes of it. `input`: (..., in). Returns (..., out).
pub(super) fn gated(gate: Gate, [values, gates]: [&Linear; 2], input: &Tensor) -> Result<Tensor> {
    if let Some(done) = at_once(gate, &[([values, gates], input)]) {
        return done;
    }
    opened(gate, &gates.forward(input)?, &values.forward(input)?)
}

/// [`gated`] of two behind each other, each with what it gets, (1, T, in). Returns (1, the tokens of both, out).
pub(super) fn gated_joined(gate: Gate, both: [([&Linear; 2], &Tensor); 2]) -> Result<Tensor> {
    if let Some(done) = at_once(gate, &both) {
        return done;
    }
    let [values, gates] = [0, 1].map(|part| Linear::joined(both.map(|(layers, input)| (layers[part], input)), false));
    opened(gate, &gates?, &values?)
}

/// `None` where a weight is not whole, or there is no kernel for them.
fn at_once(gate: Gate, layers: &[([&Linear; 2], &Tensor)]) -> Option<Result<Tensor>> {
    let operands = layers.iter().map(|(layers, input)| Some([layers[0].operands(input)?, layers[1].operands(input)?]));
    device::gated(&operands.collect::<Option<Vec<_>>>()?, gate)
}

fn opened(gate: Gate, gates: &Tensor, values: &Tensor) -> Result<Tensor> {
    if let Some(done) = device::opened(gate, gates, values) {
        return done;
    }
    match gate {
        Gate::Silu => swiglu(gates, values),
        Gate::Gelu => gates.gelu_erf()? * values,
        // Candle's gelu is the one with tanh.
        Gate::GeluTanh => gates.gelu()? * values,
    }
}

/// `SwiGLU` (Shazeer 2020): silu of `gate` times `values`, both of one shape.
fn swiglu(gate: &Tensor, values: &Tensor) -> Result<Tensor> {
    if !is_ours(gate) || gate.dims() != values.dims() {
        return gate.silu()? * values;
    }
    let output = with_values([Some(gate), Some(values), None, None], |[gate, values, ..]| elementwise::swiglu(gate, values))?;
    Tensor::from_vec(output, gate.shape(), gate.device())
}

/// x·sigmoid(1.702·x), CLIP's own approximation of gelu.
pub(super) fn quick_gelu(hidden: &Tensor) -> Result<Tensor> {
    if is_ours(hidden) { changed(hidden, elementwise::quick_gelu) } else { hidden * sigmoid(&(hidden * 1.702)?)? }
}

/// x·sigmoid(x).
pub(super) fn silu(hidden: &Tensor) -> Result<Tensor> {
    if is_ours(hidden) { changed(hidden, elementwise::silu) } else { hidden.silu() }
}

/// x where it is above 0, else x·`slope`, which is above 0 and below 1.
pub(super) fn leaky_relu(hidden: &Tensor, slope: f64) -> Result<Tensor> {
    if !is_ours(hidden) {
        return hidden.maximum(&(hidden * slope)?);
    }
    let slope = slope as f32;
    changed(hidden, |values| values.iter_mut().filter(|value| **value < 0.0).for_each(|value| *value *= slope))
}

fn changed(hidden: &Tensor, change: impl FnOnce(&mut [f32])) -> Result<Tensor> {
    let mut values = with_values([Some(hidden), None, None, None], |[hidden, ..]| hidden.to_vec())?;
    change(&mut values);
    Tensor::from_vec(values, hidden.shape(), hidden.device())
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn they_are_what_candles_are_over_tensors_of_any_layout() -> Result<()> {
        let assert_close = |ours: &Tensor, candles: &Tensor| -> Result<()> {
            assert_eq!(ours.dims(), candles.dims());
            assert!((ours - candles)?.abs()?.max_all()?.to_scalar::<f32>()? < 1e-5);
            Ok(())
        };
        // Turned, and a part of a larger tensor: neither starts at 0 nor lies in order.
        let hidden = Tensor::randn(0.0_f32, 1.0, (3, 552, 40), &Device::Cpu)?.narrow(0, 1, 2)?.transpose(1, 2)?;
        let dense = hidden.contiguous()?;
        assert_close(&silu(&hidden)?, &dense.silu()?)?;
        let other = hidden.narrow(1, 0, 20)?;
        let product = (dense.narrow(1, 20, 20)?.silu()? * dense.narrow(1, 0, 20)?)?;
        assert_close(&swiglu(&hidden.narrow(1, 20, 20)?, &other)?, &product)?;
        assert_close(&leaky_relu(&hidden, 0.2)?, &dense.maximum(&(&dense * 0.2)?)?)?;
        assert_close(&quick_gelu(&hidden)?, &(&dense * sigmoid(&(&dense * 1.702)?)?)?)?;
        let gate = dense.narrow(D::Minus1, 276, 276)?.contiguous()?.gelu_erf()?;
        let product = (dense.narrow(D::Minus1, 0, 276)? * gate)?;
        assert_close(&geglu(&hidden)?, &product)?;
        let bias = Tensor::randn(0.0_f32, 1.0, 552, &Device::Cpu)?;
        let identity = Linear::of(Tensor::eye(552, dense.dtype(), &Device::Cpu)?, Some(bias.clone()));
        assert_close(&geglu_of(&identity, &hidden)?, &geglu(&dense.broadcast_add(&bias)?)?)?;
        let halves = identity.halves()?.expect("a whole weight");
        let layers = halves.each_ref();
        let values = layers[0].forward(&dense)?;
        let gates = layers[1].forward(&dense)?;
        let opened = [(Gate::Gelu, gates.gelu_erf()?), (Gate::GeluTanh, gates.gelu()?), (Gate::Silu, gates.silu()?)];
        for (gate, open) in opened {
            let exact = (&values * open)?;
            assert_close(&gated(gate, layers, &hidden)?, &exact)?;
            let parts = [dense.narrow(0, 0, 1)?, dense.narrow(0, 1, 1)?];
            let joined = gated_joined(gate, parts.each_ref().map(|part| (layers, part)))?;
            assert_close(&joined, &Tensor::cat(&[exact.narrow(0, 0, 1)?, exact.narrow(0, 1, 1)?], 1)?)?;
        }
        Ok(())
    }
}
