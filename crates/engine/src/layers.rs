//! The layers that models are made of: our own kernels on the CPU in f32, candle's on any other device.

mod channels_last;
mod linear;
mod padded;

use atelier_kernels::{convolution, elementwise, norm};
use candle_core::{D, DType, Error, Result, Storage, Tensor};
use candle_nn::{Conv2dConfig, Module, VarBuilder};

pub(super) use self::channels_last::{joined, scaled, sum};
pub(super) use self::linear::{Linear, linear, linear_b};
pub(super) use self::padded::PaddedConv;
use super::device::{self, is_channels_last, to_channels_last, with_channels_first, with_channels_last};

/// A convolution with a kernel of 1 or 3 and a border of zeros that keeps the size, or halves it with stride 2.
pub(super) struct Conv(candle_nn::Conv2d);

/// The sides of the kernel are `kernel`: 1 or 3.
pub(super) fn conv(in_channels: usize, out_channels: usize, kernel: usize, stride: usize, vb: VarBuilder) -> Result<Conv> {
    let config = Conv2dConfig { padding: kernel / 2, stride, ..Conv2dConfig::default() };
    candle_nn::conv2d(in_channels, out_channels, kernel, config, vb).map(Conv)
}

impl Conv {
    /// `weight`: (out, in, kernel, kernel); `bias`: (out,).
    pub(super) fn of(weight: Tensor, bias: Tensor, stride: usize) -> Result<Self> {
        let config = Conv2dConfig { padding: weight.dim(3)? / 2, stride, ..Conv2dConfig::default() };
        Ok(Self(candle_nn::Conv2d::new(weight, Some(bias), config)))
    }

    /// `images`: (B, in, H, W). Returns (B, out, H, W), or half the sides rounded up.
    pub(super) fn forward(&self, images: &Tensor) -> Result<Tensor> {
        self.run(images, images.dims4()?, None, None)
    }

    /// `before` (B, out, H, W) + [`Self::forward`].
    pub(super) fn add_to(&self, before: &Tensor, images: &Tensor) -> Result<Tensor> {
        self.run(images, images.dims4()?, None, Some(before))
    }

    /// [`Self::forward`] with what [`Self::raised`] has made in place of the bias: (B, out), or (1, out) for all images.
    pub(super) fn forward_raised(&self, images: &Tensor, raised: &Tensor) -> Result<Tensor> {
        self.run(images, images.dims4()?, Some(raised), None)
    }

    /// The bias + `raise` (R, out), a number for each channel.
    pub(super) fn raised(&self, raise: &Tensor) -> Result<Tensor> {
        self.0.bias().map_or_else(|| Ok(raise.clone()), |bias| raise.broadcast_add(bias))
    }

    /// [`Self::forward`] of the images enlarged to `height` and `width` by their nearest neighbours.
    pub(super) fn forward_enlarged(&self, images: &Tensor, height: usize, width: usize) -> Result<Tensor> {
        let (batch, channels, rows, columns) = images.dims4()?;
        if is_ours(images) && (height, width) == (2 * rows, 2 * columns) {
            return self.run(images, (batch, channels, height, width), None, None);
        }
        self.forward(&channels_last::enlarged(images, height, width)?)
    }

    /// On another device than the CPU, or in another format. `bias`: (out,), (1, out) or (B, out).
    fn elsewhere(&self, images: &Tensor, bias: Option<&Tensor>, before: Option<&Tensor>) -> Result<Tensor> {
        let Conv2dConfig { stride, padding, dilation, groups, .. } = *self.0.config();
        let weight = self.0.weight();
        if let Some(output) = self.of_each_place(images, bias, before)? {
            return Ok(output);
        }
        let following = bias.map(|bias| (bias, before));
        if let Some(output) = device::convolution(images, weight, stride, padding, following) {
            return match (before, following) {
                (Some(before), None) => before + output?,
                _ => output,
            };
        }
        let output = images.conv2d(weight, padding, stride, dilation, groups)?;
        let (_, channels, height, width) = output.dims4()?;
        let images = bias.map_or(1, |bias| bias.elem_count() / channels);
        added(output, (bias, &[images, channels, 1, 1]), before, height * width)
    }

    /// Of images whose channels are last, a kernel of 1 is a linear layer of every place; `None` where it is none, or has a bias for each image.
    fn of_each_place(&self, images: &Tensor, bias: Option<&Tensor>, before: Option<&Tensor>) -> Result<Option<Tensor>> {
        let (out_channels, _, kernel, _) = self.0.weight().dims4()?;
        let has_one_bias = bias.is_none_or(|bias| bias.elem_count() == out_channels);
        if kernel != 1 || self.0.config().stride != 1 || !is_channels_last(images) || !has_one_bias {
            return Ok(None);
        }
        let layer = Linear::of(self.0.weight().flatten_from(1)?, bias.map(Tensor::flatten_all).transpose()?);
        let places = with_channels_last(images)?;
        let output = match before {
            Some(before) => layer.add_to(&with_channels_last(&to_channels_last(before)?)?, &places),
            None => layer.forward(&places),
        };
        with_channels_first(&output?).map(Some)
    }

    /// Whether what comes out has its channels last in memory.
    pub(super) fn is_channels_last(&self) -> bool {
        device::convolves_channels_last(self.0.weight())
    }

    /// `sides`: (B, in, H, W) of what is convolved; twice the images' own height and width where they are enlarged.
    fn run(
        &self,
        images: &Tensor,
        sides: (usize, usize, usize, usize),
        raised: Option<&Tensor>,
        before: Option<&Tensor>,
    ) -> Result<Tensor> {
        let bias = raised.or(self.0.bias());
        let (batch, channels, height, width) = sides;
        let (out_channels, in_channels, kernel, _) = self.0.weight().dims4()?;
        if !is_ours(images) || channels != in_channels {
            return self.elsewhere(images, bias, before);
        }
        let stride = self.0.config().stride;
        let doubled = height != images.dim(2)?;
        let convolution = convolution::Convolution { in_channels, out_channels, height, width, kernel, stride, doubled };
        let (out_height, out_width) = convolution.out_sides();
        let shape = (batch, out_channels, out_height, out_width);
        if let Some(before) = before
            && before.dims4()? != shape
        {
            return Err(Error::msg(format!("{:?} cannot be added to {shape:?}", before.dims())));
        }
        let output = with_values([Some(images), Some(self.0.weight()), bias, before], |[images, weight, values, residual]| {
            let begin = convolution::Begin { bias: bias.map(|_| values), residual: before.map(|_| residual) };
            convolution.run(images, weight, begin)
        })?;
        Tensor::from_vec(output, shape, images.device())
    }
}

/// A group norm, alone or with the silu that follows it.
pub(super) struct GroupNorm {
    norm: candle_nn::GroupNorm,
    weight: Tensor,
    bias: Tensor,
    groups: usize,
    eps: f64,
}

pub(super) fn group_norm(groups: usize, channels: usize, eps: f64, vb: &VarBuilder) -> Result<GroupNorm> {
    let weight = vb.get(channels, "weight")?;
    let bias = vb.get(channels, "bias")?;
    let norm = candle_nn::GroupNorm::new(weight.clone(), bias.clone(), channels, groups, eps)?;
    Ok(GroupNorm { norm, weight, bias, groups, eps })
}

impl GroupNorm {
    /// `hidden`: (B, channels, ...). Returns the same shape.
    pub(super) fn forward(&self, hidden: &Tensor) -> Result<Tensor> {
        if is_ours(hidden) {
            return self.run(hidden, false);
        }
        self.in_one_kernel(hidden, false).unwrap_or_else(|| self.norm.forward(hidden))
    }

    /// silu of [`Self::forward`].
    pub(super) fn forward_silu(&self, hidden: &Tensor) -> Result<Tensor> {
        if is_ours(hidden) {
            return self.run(hidden, true);
        }
        self.in_one_kernel(hidden, true).unwrap_or_else(|| self.norm.forward(hidden)?.silu())
    }

    fn in_one_kernel(&self, hidden: &Tensor, silu: bool) -> Option<Result<Tensor>> {
        device::group_norm(hidden, (&self.weight, &self.bias), self.groups, self.eps, silu)
    }

    fn run(&self, hidden: &Tensor, silu: bool) -> Result<Tensor> {
        if hidden.dim(1)? != self.weight.dim(0)? {
            return Err(Error::msg(format!("a group norm of {:?} channels got {:?}", self.weight.dims(), hidden.dims())));
        }
        let groups = self.groups;
        let eps = self.eps as f32;
        let places = hidden.dims()[2..].iter().product();
        let output = with_values([Some(hidden), Some(&self.weight), Some(&self.bias), None], |[hidden, weight, bias, _]| {
            norm::GroupNorm { weight, bias, groups, eps, silu }.run(hidden, places)
        })?;
        Tensor::from_vec(output, hidden.shape(), hidden.device())
    }
}

/// A layer norm over the last dimension.
pub(super) struct LayerNorm {
    norm: candle_nn::LayerNorm,
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

pub(super) fn layer_norm(channels: usize, eps: f64, vb: &VarBuilder) -> Result<LayerNorm> {
    let weight = vb.get(channels, "weight")?;
    let bias = vb.get(channels, "bias")?;
    let norm = candle_nn::LayerNorm::new(weight.clone(), bias.clone(), eps);
    Ok(LayerNorm { norm, weight, bias, eps })
}

impl LayerNorm {
    /// `hidden`: (..., channels). Returns the same shape.
    pub(super) fn forward(&self, hidden: &Tensor) -> Result<Tensor> {
        if !is_ours(hidden) || hidden.dim(D::Minus1)? != self.weight.dim(0)? {
            let done = device::layer_norm(hidden, &self.weight, &self.bias, self.eps as f32);
            return done.unwrap_or_else(|| self.norm.forward(hidden));
        }
        let eps = self.eps as f32;
        let output = with_values([Some(hidden), Some(&self.weight), Some(&self.bias), None], |[hidden, weight, bias, _]| {
            norm::LayerNorm { weight, bias, eps }.run(hidden)
        })?;
        Tensor::from_vec(output, hidden.shape(), hidden.device())
    }
}

/// Every place's channels to length √C, times what was learned for each.
pub(super) struct ChannelNorm {
    /// (C,), √C in it.
    gamma: Tensor,
}

impl ChannelNorm {
    /// What a length is at least, as torch's `normalize` has it.
    const EPS: f32 = 1e-12;

    /// `gamma`: (C,).
    pub(super) fn of(gamma: &Tensor) -> Result<Self> {
        Ok(Self { gamma: (gamma * (gamma.dim(0)? as f64).sqrt())? })
    }

    /// (B, C, H, W) to the same.
    pub(super) fn forward(&self, hidden: &Tensor) -> Result<Tensor> {
        self.run(hidden, false)
    }

    /// silu of [`Self::forward`].
    pub(super) fn forward_silu(&self, hidden: &Tensor) -> Result<Tensor> {
        self.run(hidden, true)
    }

    fn run(&self, hidden: &Tensor, silu: bool) -> Result<Tensor> {
        let (_, channels, height, width) = hidden.dims4()?;
        if !is_ours(hidden) || self.gamma.dim(0)? != channels {
            let length = hidden.sqr()?.sum_keepdim(1)?.sqrt()?.maximum(f64::from(Self::EPS))?;
            let normed = hidden.broadcast_div(&length)?.broadcast_mul(&self.gamma.reshape((1, channels, 1, 1))?)?;
            return if silu { normed.silu() } else { Ok(normed) };
        }
        let output = with_values([Some(hidden), Some(&self.gamma), None, None], |[hidden, gamma, ..]| {
            norm::ChannelNorm { gamma, eps: Self::EPS, silu }.run(hidden, height * width)
        })?;
        Tensor::from_vec(output, hidden.shape(), hidden.device())
    }
}

/// Each place of (B, C, H, W) as a token: (B, H·W, C).
pub(super) fn to_tokens(images: &Tensor) -> Result<Tensor> {
    if is_channels_last(images) {
        return with_channels_last(images)?.flatten(1, 2);
    }
    transposed(&images.flatten_from(2)?)
}

/// (B, H·W, C) to an image that lies as `like` does, (B, any channels, H, W).
pub(super) fn to_image(tokens: &Tensor, like: &Tensor) -> Result<Tensor> {
    let (batch, _, channels) = tokens.dims3()?;
    let (_, _, height, width) = like.dims4()?;
    if is_channels_last(like) {
        return with_channels_first(&tokens.reshape((batch, height, width, channels))?);
    }
    transposed(tokens)?.reshape((batch, channels, height, width))
}

/// (B, rows, columns) to (B, columns, rows), in order.
pub(super) fn transposed(matrices: &Tensor) -> Result<Tensor> {
    let (batch, rows, columns) = matrices.dims3()?;
    if !is_ours(matrices) {
        return matrices.transpose(1, 2)?.contiguous();
    }
    let output = with_values([Some(matrices), None, None, None], |[values, ..]| elementwise::transpose(values, rows, columns))?;
    Tensor::from_vec(output, (batch, columns, rows), matrices.device())
}

/// `before` + (`bias` + `output`), which nothing else has: (..., channels, `places`). The bias is added in this shape where no kernel does it all.
fn added(output: Tensor, (bias, shape): (Option<&Tensor>, &[usize]), before: Option<&Tensor>, places: usize) -> Result<Tensor> {
    if let Some(done) = bias.and_then(|bias| device::add_bias(&output, bias, before, places)) {
        return done.map(|()| output);
    }
    let output = if let Some(bias) = bias { output.broadcast_add(&bias.reshape(shape)?)? } else { output };
    if let Some(before) = before { before + output } else { Ok(output) }
}

/// Whether our kernels take it.
pub(super) fn is_ours(tensor: &Tensor) -> bool {
    tensor.device().is_cpu() && tensor.dtype() == DType::F32 && tensor.elem_count() > 0
}

/// Gives the tensors' values in their order; nothing for what is `None`.
pub(super) fn with_values<R>(tensors: [Option<&Tensor>; 4], compute: impl FnOnce([&[f32]; 4]) -> R) -> Result<R> {
    let dense = tensors.map(|tensor| tensor.map(Tensor::contiguous).transpose());
    let dense = dense.into_iter().collect::<Result<Vec<_>>>()?;
    let storages: Vec<_> = dense.iter().map(|tensor| tensor.as_ref().map(Tensor::storage_and_layout)).collect();
    let mut values = [&[][..]; 4];
    for (storage, values) in storages.iter().zip(&mut values) {
        let Some((storage, layout)) = storage else { continue };
        let (Storage::Cpu(storage), Some((start, end))) = (&**storage, layout.contiguous_offsets()) else {
            return Err(Error::msg("a layer's tensors have to be on the CPU together"));
        };
        *values = &storage.as_slice::<f32>()?[start..end];
    }
    Ok(compute(values))
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use candle_nn::VarMap;

    use super::*;

    pub(super) fn assert_close(ours: &Tensor, candles: &Tensor) -> Result<()> {
        assert_eq!(ours.dims(), candles.dims());
        assert!((ours - candles)?.abs()?.max_all()?.to_scalar::<f32>()? < 1e-5);
        Ok(())
    }

    /// Turned, and a part of a larger tensor: it neither starts at 0 nor lies in order. (2, 40, 24, 23).
    pub(super) fn out_of_order() -> Result<Tensor> {
        Tensor::randn(0.0_f32, 1.0, (3, 40, 23, 24), &Device::Cpu)?.narrow(0, 1, 2)?.transpose(2, 3)
    }

    #[test]
    fn layers_compute_what_candles_do_from_tensors_of_any_layout() -> Result<()> {
        let variables = VarMap::new();
        let vb = VarBuilder::from_varmap(&variables, DType::F32, &Device::Cpu);
        let image = out_of_order()?;
        let dense = image.contiguous()?;
        for (kernel, stride) in [(3, 1), (3, 2), (1, 1)] {
            let conv = conv(40, 10, kernel, stride, vb.pp(format!("conv{kernel}{stride}")))?;
            let candles = conv.0.forward(&dense)?;
            assert_close(&conv.forward(&image)?, &candles)?;
            assert_close(&conv.add_to(&candles, &image)?, &(&candles * 2.0)?)?;
            let raise = Tensor::randn(0.0_f32, 1.0, (2, 10), &Device::Cpu)?;
            let raised = candles.broadcast_add(&raise.reshape((2, 10, 1, 1))?)?;
            assert_close(&conv.forward_raised(&image, &conv.raised(&raise)?)?, &raised)?;
            let same = candles.broadcast_add(&raise.narrow(0, 1, 1)?.reshape((1, 10, 1, 1))?)?;
            assert_close(&conv.forward_raised(&image, &conv.raised(&raise.narrow(0, 1, 1)?)?)?, &same)?;
        }
        let enlarging = conv(40, 10, 3, 1, vb.pp("enlarging"))?;
        for (height, width) in [(48, 46), (47, 46)] {
            let candles = enlarging.0.forward(&dense.upsample_nearest2d(height, width)?)?;
            assert_close(&enlarging.forward_enlarged(&image, height, width)?, &candles)?;
        }
        let norm = group_norm(5, 40, 1e-5, &vb.pp("norm"))?;
        assert_close(&norm.forward(&image)?, &norm.norm.forward(&dense)?)?;
        assert_close(&norm.forward_silu(&image)?, &norm.norm.forward(&dense)?.silu()?)?;
        let norm = layer_norm(23, 1e-5, &vb.pp("layer_norm"))?;
        assert_close(&norm.forward(&image)?, &norm.norm.forward(&dense)?)?;
        let norm = ChannelNorm::of(&Tensor::randn(0.0_f32, 1.0, 40, &Device::Cpu)?)?;
        let length = dense.sqr()?.sum_keepdim(1)?.sqrt()?;
        let candles = dense.broadcast_div(&length)?.broadcast_mul(&norm.gamma.reshape((1, 40, 1, 1))?)?;
        assert_close(&norm.forward(&image)?, &candles)?;
        assert_close(&norm.forward_silu(&image)?, &candles.silu()?)?;
        let matrices = image.flatten_from(2)?;
        assert_close(&transposed(&matrices)?, &matrices.transpose(1, 2)?.contiguous()?)
    }
}
