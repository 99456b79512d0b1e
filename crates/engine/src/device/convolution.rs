//! Convolutions by cuDNN with what follows them, as an operation over candle's tensors.

use std::cell::RefCell;
use std::collections::HashSet;

use atelier_kernels::cuda::convolution::{Convolution, ConvolutionError, Convolved};
use candle_core::cuda_backend::CudaDType;
use candle_core::{CudaStorage, DType, Error, Result, Shape, Tensor};
use half::{bf16, f16};

use super::memory_order::{convolves_channels_last, to_channels_last, with_channels_first, with_channels_last};
use super::own_kernels::run;

thread_local! {
    /// What cuDNN does not do with the channels last: it is not asked again. Its handles are one thread's as well.
    static REFUSED: RefCell<HashSet<(DType, Convolution)>> = RefCell::default();
}

/// before + (bias + convolution), summed in f32. `images`: (B, in, H, W), `weight`: (out, in, kernel, kernel); `added`: the bias of all images, (out,) or
/// (1, out), or of each, (B, out), and (B, out, H, W) before it; all in the same format. Where the weight's channels lie last, so do those of what comes out.
/// `None` where cuDNN does not take them: on a CPU, or of several formats.
pub(crate) fn convolution(
    images: &Tensor,
    weight: &Tensor,
    stride: usize,
    padding: usize,
    added: Option<(&Tensor, Option<&Tensor>)>,
) -> Option<Result<Tensor>> {
    let is_alike = |tensor: &Tensor| tensor.dtype() == images.dtype() && tensor.device().is_cuda();
    let fits = is_alike(images)
        && is_alike(weight)
        && images.elem_count() > 0
        && added.is_none_or(|(bias, before)| is_alike(bias) && before.is_none_or(is_alike));
    let operands = Operands { images, weight, stride, padding, added };
    match images.dtype() {
        DType::F32 if fits => Some(operands.convolved::<f32>()),
        DType::F16 if fits => Some(operands.convolved::<f16>()),
        DType::BF16 if fits => Some(operands.convolved::<bf16>()),
        _ => None,
    }
}

struct Operands<'a> {
    images: &'a Tensor,
    weight: &'a Tensor,
    stride: usize,
    padding: usize,
    added: Option<(&'a Tensor, Option<&'a Tensor>)>,
}

impl Operands<'_> {
    fn convolved<T: Convolved + CudaDType>(&self) -> Result<Tensor> {
        let sides = self.sides()?;
        if !convolves_channels_last(self.weight) {
            let output = self.run::<T>(sides)?;
            return output.ok_or_else(|| Error::msg("cuDNN refuses images with their channels first"));
        }
        let last = Convolution { channels_last: true, ..sides };
        let is_refused = REFUSED.with_borrow(|refused| refused.contains(&(self.images.dtype(), last)));
        if !is_refused && let Some(output) = self.run::<T>(last)? {
            return with_channels_first(&output);
        }
        if !is_refused {
            tracing::warn!(convolution = ?last, "cuDNN refuses it with the channels last: it takes longer");
            REFUSED.with_borrow_mut(|refused| refused.insert((self.images.dtype(), last)));
        }
        to_channels_last(&self.run::<T>(sides)?.ok_or_else(|| Error::msg("cuDNN refuses images in either order"))?)
    }

    /// With the channels first.
    fn sides(&self) -> Result<Convolution> {
        let (batch, in_channels, height, width) = self.images.dims4()?;
        let (out_channels, weight_channels, kernel, kernel_width) = self.weight.dims4()?;
        let Self { stride, padding, .. } = *self;
        if weight_channels != in_channels || kernel != kernel_width || height.min(width) + 2 * padding < kernel {
            return Err(Error::msg(format!("no convolution of {:?} with {:?}", self.images.dims(), self.weight.dims())));
        }
        let sides =
            Convolution { batch, in_channels, height, width, out_channels, kernel, stride, padding, channels_last: false };
        let (out_height, out_width) = sides.out_sides();
        let shape = [batch, out_channels, out_height, out_width];
        if let Some((bias, before)) = self.added {
            let is_bias = [out_channels, batch * out_channels].contains(&bias.elem_count());
            if !is_bias || before.is_some_and(|before| before.dims() != shape) {
                let before = before.map(Tensor::dims);
                return Err(Error::msg(format!("{:?} and {before:?} cannot be added to {shape:?}", bias.dims())));
            }
        }
        Ok(sides)
    }

    /// (B, out, H, W), or with the channels last; `None` where cuDNN refuses that.
    fn run<T: Convolved + CudaDType>(&self, sides: Convolution) -> Result<Option<Tensor>> {
        let ordered = |images: &Tensor| if sides.channels_last { with_channels_last(images) } else { Ok(images.clone()) };
        let (height, width) = sides.out_sides();
        let shape = if sides.channels_last {
            [sides.batch, height, width, sides.out_channels]
        } else {
            [sides.batch, sides.out_channels, height, width]
        };
        let images = ordered(self.images)?;
        let weight = ordered(self.weight)?;
        // What is not there is not read.
        let bias = self.added.map_or(&weight, |(bias, _)| bias);
        let before = self.added.and_then(|(_, before)| before).map(ordered).transpose()?;
        let tensors = [&images, &weight, bias, before.as_ref().unwrap_or(bias)];
        let mut is_refused = false;
        let output = run(tensors, &Shape::from(&shape), |device, [images, weight, bias, residual]| {
            let added = self.added.map(|_| (bias, before.as_ref().map(|_| residual)));
            let output = sides.run::<T>(&device.cuda_stream(), images, weight, added);
            is_refused = output.as_ref().is_err_and(ConvolutionError::is_refusal);
            Ok(CudaStorage::wrap_cuda_slice(output.map_err(Error::wrap)?, device.clone()))
        });
        if is_refused { Ok(None) } else { output.map(Some) }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::device::is_channels_last;
    use crate::device::own_kernels::tests::{doubles, drawn, furthest};

    fn exact_convolution(images: &Tensor, weight: &Tensor, stride: usize, padding: usize) -> Result<Vec<f64>> {
        let (batch, in_channels, height, width) = images.dims4()?;
        let (out_channels, _, kernel, _) = weight.dims4()?;
        let images = doubles(images)?;
        let weight = doubles(weight)?;
        let out_height = (height + 2 * padding - kernel) / stride + 1;
        let out_width = (width + 2 * padding - kernel) / stride + 1;
        let mut output = Vec::with_capacity(batch * out_channels * out_height * out_width);
        for place in 0..batch * out_channels * out_height * out_width {
            let x = place % out_width;
            let y = place / out_width % out_height;
            let channel = place / (out_width * out_height) % out_channels;
            let image = place / (out_width * out_height * out_channels);
            let mut sum = 0.0;
            for tap in 0..in_channels * kernel * kernel {
                let from = tap / (kernel * kernel);
                let row = tap / kernel % kernel;
                let column = tap % kernel;
                let row = (y * stride + row).wrapping_sub(padding);
                let column = (x * stride + column).wrapping_sub(padding);
                if row < height && column < width {
                    let value = images[((image * in_channels + from) * height + row) * width + column];
                    sum += value * weight[channel * in_channels * kernel * kernel + tap];
                }
            }
            output.push(sum);
        }
        Ok(output)
    }

    /// Half a unit in the last place.
    fn rounding(dtype: DType) -> f64 {
        match dtype {
            DType::F32 => 0.0,
            DType::F16 => 2.0_f64.powi(-11),
            _ => 2.0_f64.powi(-8),
        }
    }

    #[test]
    fn convolutions_sum_in_f32_and_round_once() -> Result<()> {
        let device = crate::device::open().map_err(Error::wrap)?;
        let there = |tensor: &Tensor| tensor.to_device(&device);
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            for (batch, channels, out, side, kernel, stride) in
                [(2, 64, 8, 9, 3, 1), (1, 640, 4, 5, 3, 2), (1, 32, 16, 6, 1, 1), (2, 24, 16, 5, 3, 2)]
            {
                let images = drawn(&[batch, channels, side, side + 1], dtype)?;
                let weight = drawn(&[out, channels, kernel, kernel], dtype)?;
                let plain = exact_convolution(&images, &weight, stride, kernel / 2)?;
                let bias = drawn(&[1, out], dtype)?;
                let images = there(&images)?;
                let weight = there(&weight)?;
                let bias_there = there(&bias)?;
                // Of either order, also where only one of them has the channels last.
                for (images, weight) in [
                    (images.clone(), weight.clone()),
                    (to_channels_last(&images)?, to_channels_last(&weight)?),
                    (images.clone(), to_channels_last(&weight)?),
                    (to_channels_last(&images)?, weight.clone()),
                ] {
                    let run = |added| convolution(&images, &weight, stride, kernel / 2, added).expect("cuDNN");
                    let output = run(None)?;
                    let expects_last = convolves_channels_last(&weight);
                    assert!(kernel == 1 || is_channels_last(&output) == expects_last, "{dtype:?} {channels} to {out}");
                    // As large as the output, and its second half: read from where it lies.
                    let both = drawn(&[2, output.elem_count()], dtype)?;
                    let before = doubles(&both.get(1)?)?;
                    let before_there = there(&both)?.get(1)?.reshape(output.shape())?;
                    let places = output.dim(2)? * output.dim(3)?;
                    let bias = doubles(&bias)?;
                    let with_bias: Vec<f64> =
                        plain.iter().enumerate().map(|(at, value)| value + bias[at / places % out]).collect();
                    let with_both: Vec<f64> = with_bias.iter().zip(&before).map(|(value, before)| value + before).collect();
                    let added = |before| Some((&bias_there, before));
                    let before_last = to_channels_last(&before_there)?;
                    // Twice: the second has its plan from the first.
                    for (ours, exact) in [
                        (output, &plain),
                        (run(None)?, &plain),
                        (run(added(None))?, &with_bias),
                        (run(added(Some(&before_there)))?, &with_both),
                        (run(added(Some(&before_last)))?, &with_both),
                    ] {
                        let off = furthest(&doubles(&ours)?, exact);
                        assert!(
                            off <= rounding(dtype) + 1e-5,
                            "{dtype:?} {channels} to {out}, {kernel} by {stride}: off by {off}"
                        );
                    }
                }
            }
        }
        Ok(())
    }

    #[test]
    fn each_image_may_have_a_bias_of_its_own() -> Result<()> {
        let device = crate::device::open().map_err(Error::wrap)?;
        let images = drawn(&[3, 16, 5, 4], DType::F16)?.to_device(&device)?;
        let weight = drawn(&[8, 16, 3, 3], DType::F16)?.to_device(&device)?;
        let biases = drawn(&[3, 8], DType::F16)?.to_device(&device)?;
        let before = drawn(&[3, 8, 5, 4], DType::F16)?.to_device(&device)?;
        for weight in [to_channels_last(&weight)?, weight] {
            let together = convolution(&images, &weight, 1, 1, Some((&biases, Some(&before)))).expect("cuDNN")?;
            for place in 0..3 {
                let bias = biases.get(place)?;
                let before = before.narrow(0, place, 1)?;
                let added = Some((&bias, Some(&before)));
                let alone = convolution(&images.narrow(0, place, 1)?, &weight, 1, 1, added).expect("cuDNN")?;
                let exact = doubles(&alone)?;
                // Rounded twice, and once.
                let off = furthest(&doubles(&together.narrow(0, place, 1)?)?, &exact);
                assert!(off <= 2.0 * rounding(DType::F16), "image {place}: off by {off}");
            }
        }
        Ok(())
    }

    #[test]
    fn what_does_not_fit_is_refused() -> Result<()> {
        let device = crate::device::open().map_err(Error::wrap)?;
        let zeros = |shape: &[usize], dtype: DType| Tensor::zeros(shape, dtype, &device);
        let images = zeros(&[1, 8, 4, 4], DType::F16)?;
        let weight = zeros(&[8, 8, 3, 3], DType::F16)?;
        let bias = &zeros(&[8], DType::F16)?;
        let run = |bias, before| convolution(&images, &weight, 1, 1, Some((bias, before)));
        let short = zeros(&[4], DType::F16)?;
        let wide = zeros(&[8], DType::F32)?;
        assert!(run(&short, None).expect("cuDNN").is_err());
        assert!(run(bias, Some(bias)).expect("cuDNN").is_err());
        assert!(run(&wide, None).is_none());
        assert!(convolution(&images.to_device(&Device::Cpu)?, &weight, 1, 1, None).is_none());
        Ok(())
    }
}
