//! Linear layers: our own kernel on the CPU in f32, cuBLASLt on a GPU, candle's products elsewhere.

use atelier_kernels::gemm;
use candle_core::{Result, Tensor};
use candle_nn::{Module, VarBuilder};

use super::{added, is_ours, with_values};
use crate::device;
use crate::packed::PackedWeight;

/// A linear layer over the last dimension.
pub(crate) struct Linear {
    weight: Weight,
    bias: Option<Tensor>,
}

enum Weight {
    /// Without a bias.
    Whole(candle_nn::Linear),
    Packed(PackedWeight),
}

/// What a layer gets, its weight and its bias.
type Operands<'a> = (&'a Tensor, &'a Tensor, Option<&'a Tensor>);

pub(crate) fn linear(in_features: usize, out_features: usize, vb: VarBuilder) -> Result<Linear> {
    linear_b(in_features, out_features, true, vb)
}

pub(crate) fn linear_b(in_features: usize, out_features: usize, bias: bool, vb: VarBuilder) -> Result<Linear> {
    if let Some(packed) = PackedWeight::of(out_features, in_features, &vb)? {
        let bias = if bias { Some(vb.get(out_features, "bias")?) } else { None };
        return Ok(Linear { weight: Weight::Packed(packed), bias });
    }
    let linear = candle_nn::linear_b(in_features, out_features, bias, vb)?;
    Ok(Linear::of(linear.weight().clone(), linear.bias().cloned()))
}

impl Linear {
    /// `weight`: (out, in); `bias`: (out,).
    pub(crate) fn of(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { weight: Weight::Whole(candle_nn::Linear::new(weight, None)), bias }
    }

    /// The layer of its outputs from `first` on, over the same memory: what several layers would give is then several tensors, and nothing is cut.
    pub(crate) fn rows(&self, first: usize, count: usize) -> Result<Self> {
        let weight = match &self.weight {
            Weight::Whole(unbiased) => Weight::Whole(candle_nn::Linear::new(unbiased.weight().narrow(0, first, count)?, None)),
            Weight::Packed(packed) => Weight::Packed(packed.rows(first, count)?),
        };
        Ok(Self { weight, bias: self.bias.as_ref().map(|bias| bias.narrow(0, first, count)).transpose()? })
    }

    /// The layers of the first and of the second half of its outputs, over the same memory. `None` where the weight is not whole.
    pub(crate) fn halves(&self) -> Result<Option<[Self; 2]>> {
        let Weight::Whole(unbiased) = &self.weight else { return Ok(None) };
        let half = unbiased.weight().dim(0)? / 2;
        Ok(Some([self.rows(0, half)?, self.rows(half, half)?]))
    }

    /// `input`: (..., in). Returns (..., out).
    pub(crate) fn forward(&self, input: &Tensor) -> Result<Tensor> {
        self.run(input, None)
    }

    /// `before` (..., out) + [`Self::forward`].
    pub(crate) fn add_to(&self, before: &Tensor, input: &Tensor) -> Result<Tensor> {
        self.run(input, Some(before))
    }

    /// gelu of [`Self::forward`]: the one with tanh (Hendrycks and Gimpel 2016).
    pub(crate) fn forward_gelu(&self, input: &Tensor) -> Result<Tensor> {
        if let Some(done) = self.operands(input).and_then(device::linear_gelu) {
            return done;
        }
        self.forward(input)?.gelu()
    }

    /// [`Self::forward`] of two layers behind each other, or [`Self::forward_gelu`]. `both`: each with what it gets, (1, T, in). Returns (1, the tokens of
    /// both, out).
    pub(crate) fn joined(both: [(&Self, &Tensor); 2], gelu: bool) -> Result<Tensor> {
        if let [Some(first), Some(second)] = both.map(|(layer, input)| layer.operands(input))
            && let Some(done) = device::linears_joined([first, second], gelu)
        {
            return done;
        }
        let [first, second] = both.map(|(layer, input)| if gelu { layer.forward_gelu(input) } else { layer.forward(input) });
        Tensor::cat(&[first?, second?], 1)
    }

    /// `None` where the weight is not whole.
    pub(crate) fn operands<'a>(&'a self, input: &'a Tensor) -> Option<Operands<'a>> {
        match &self.weight {
            Weight::Whole(unbiased) => Some((input, unbiased.weight(), self.bias.as_ref())),
            Weight::Packed(_) => None,
        }
    }

    /// [`Self::forward`] without the bias, and the bias, for what adds it by itself.
    pub(crate) fn before_bias(&self, input: &Tensor) -> Result<(Tensor, Option<&Tensor>)> {
        let output = match &self.weight {
            Weight::Whole(unbiased) => unbiased.forward(input)?,
            Weight::Packed(packed) => run_packed(packed, None, input, None)?,
        };
        Ok((output, self.bias.as_ref()))
    }

    fn run(&self, input: &Tensor, before: Option<&Tensor>) -> Result<Tensor> {
        match &self.weight {
            Weight::Whole(unbiased) => run_whole(unbiased, self.bias.as_ref(), input, before),
            Weight::Packed(packed) => run_packed(packed, self.bias.as_ref(), input, before),
        }
    }
}

/// The weight is whole for as long as the product takes. What LoRAs have next to it is added to what is added.
fn run_packed(packed: &PackedWeight, bias: Option<&Tensor>, input: &Tensor, before: Option<&Tensor>) -> Result<Tensor> {
    let layer = |weight: Tensor| candle_nn::Linear::new(weight, None);
    let unbiased = layer(packed.weight(input.dtype())?);
    let Some([down, up]) = packed.low_rank() else { return run_whole(&unbiased, bias, input, before) };
    let lower = run_whole(&layer(down.clone()), None, input, None)?;
    let beside = run_whole(&layer(up.clone()), None, &lower, before)?;
    run_whole(&unbiased, bias, input, Some(&beside))
}

fn run_whole(unbiased: &candle_nn::Linear, bias: Option<&Tensor>, input: &Tensor, before: Option<&Tensor>) -> Result<Tensor> {
    let (out_features, in_features) = unbiased.weight().dims2()?;
    let mut shape = input.dims().to_vec();
    let known = shape.pop() == Some(in_features);
    shape.push(out_features);
    if !(is_ours(input) && known && before.is_none_or(|before| before.dims() == shape)) {
        return device::linear(input, unbiased.weight(), bias, before)
            .unwrap_or_else(|| added(unbiased.forward(input)?, (bias, &[out_features]), before, 1));
    }
    let weight = Some(unbiased.weight());
    let output = with_values([Some(input), weight, bias, before], |[input, weight, values, residual]| {
        let layer = gemm::Linear { weight, bias: bias.map(|_| values), in_features };
        layer.run(input, before.map(|_| residual))
    })?;
    Tensor::from_vec(output, shape, input.device())
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use candle_nn::VarMap;

    use super::*;
    use crate::layers::tests::{assert_close, out_of_order};

    #[test]
    fn layers_compute_what_candles_do_from_tensors_of_any_layout() -> Result<()> {
        let variables = VarMap::new();
        let vb = VarBuilder::from_varmap(&variables, DType::F32, &Device::Cpu);
        let image = out_of_order()?;
        let dense = image.contiguous()?;
        for bias in [true, false] {
            let linear = linear_b(23, 50, bias, vb.pp(format!("linear{bias}")))?;
            let Weight::Whole(unbiased) = &linear.weight else { panic!("a whole weight") };
            let candles = candle_nn::Linear::new(unbiased.weight().clone(), linear.bias.clone()).forward(&dense)?;
            assert_close(&linear.forward(&image)?, &candles)?;
            assert_close(&linear.add_to(&candles, &image)?, &(&candles * 2.0)?)?;
            assert_close(&linear.forward_gelu(&image)?, &candles.gelu()?)?;
            assert_close(&linear.rows(7, 30)?.forward(&image)?, &candles.narrow(3, 7, 30)?)?;
        }
        let tokens = dense.flatten(0, 2)?.unsqueeze(0)?;
        let other = linear(23, 50, vb.pp("other"))?;
        let one = linear(23, 50, vb.pp("one"))?;
        let few = tokens.narrow(1, 3, 5)?;
        let joined = Linear::joined([(&one, &tokens), (&other, &few)], false)?;
        assert_close(&joined, &Tensor::cat(&[one.forward(&tokens)?, other.forward(&few)?], 1)?)
    }
}
