//! Convolutions by cuDNN with what follows them, as an operation over candle's tensors.

use atelier_kernels::cuda::convolution::{Convolution, Convolved};
use candle_core::cuda_backend::CudaDType;
use candle_core::{CudaStorage, DType, Error, Result, Shape, Tensor};
use half::{bf16, f16};

use super::own_kernels::run;

/// before + (bias + convolution), summed in f32. `images`: (B, in, H, W), `weight`: (out, in, kernel, kernel); `added`: the bias of all images, (out,) or
/// (1, out), or of each, (B, out), and (B, out, H, W) before it; all in the same format. `None` where cuDNN does not take them: on a CPU, or of several
/// formats.
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
    match images.dtype() {
        DType::F32 if fits => Some(convolved::<f32>(images, weight, stride, padding, added)),
        DType::F16 if fits => Some(convolved::<f16>(images, weight, stride, padding, added)),
        DType::BF16 if fits => Some(convolved::<bf16>(images, weight, stride, padding, added)),
        _ => None,
    }
}

fn convolved<T: Convolved + CudaDType>(
    images: &Tensor,
    weight: &Tensor,
    stride: usize,
    padding: usize,
    added: Option<(&Tensor, Option<&Tensor>)>,
) -> Result<Tensor> {
    let (batch, in_channels, height, width) = images.dims4()?;
    let (out_channels, weight_channels, kernel, kernel_width) = weight.dims4()?;
    if weight_channels != in_channels || kernel != kernel_width || height.min(width) + 2 * padding < kernel {
        return Err(Error::msg(format!("no convolution of {:?} with {:?}", images.dims(), weight.dims())));
    }
    let convolution = Convolution { batch, in_channels, height, width, out_channels, kernel, stride, padding };
    let (out_height, out_width) = convolution.out_sides();
    let shape = [batch, out_channels, out_height, out_width];
    if let Some((bias, before)) = added {
        let is_bias = [out_channels, batch * out_channels].contains(&bias.elem_count());
        if !is_bias || before.is_some_and(|before| before.dims() != shape) {
            let before = before.map(Tensor::dims);
            return Err(Error::msg(format!("{:?} and {before:?} cannot be added to {shape:?}", bias.dims())));
        }
    }
    // What is not there is not read.
    let bias = added.map_or(weight, |(bias, _)| bias);
    let before = added.and_then(|(_, before)| before);
    run([images, weight, bias, before.unwrap_or(bias)], &Shape::from(&shape), |device, [images, weight, bias, residual]| {
        let added = added.map(|_| (bias, before.map(|_| residual)));
        let output = convolution.run::<T>(&device.cuda_stream(), images, weight, added).map_err(Error::wrap)?;
        Ok(CudaStorage::wrap_cuda_slice(output, device.clone()))
    })
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
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
                [(2, 64, 8, 9, 3, 1), (1, 640, 4, 5, 3, 2), (1, 32, 16, 6, 1, 1)]
            {
                let images = drawn(&[batch, channels, side, side + 1], dtype)?;
                let weight = drawn(&[out, channels, kernel, kernel], dtype)?;
                let plain = exact_convolution(&images, &weight, stride, kernel / 2)?;
                let bias = drawn(&[1, out], dtype)?;
                let images = there(&images)?;
                let weight = there(&weight)?;
                let run = |added| convolution(&images, &weight, stride, kernel / 2, added).expect("cuDNN");
                let output = run(None)?;
                // As large as the output, and its second half: read from where it lies.
                let both = drawn(&[2, output.elem_count()], dtype)?;
                let before = doubles(&both.get(1)?)?;
                let before_there = there(&both)?.get(1)?.reshape(output.shape())?;
                let places = output.dim(2)? * output.dim(3)?;
                let bias_there = there(&bias)?;
                let bias = doubles(&bias)?;
                let with_bias: Vec<f64> = plain.iter().enumerate().map(|(at, value)| value + bias[at / places % out]).collect();
                let with_both: Vec<f64> = with_bias.iter().zip(&before).map(|(value, before)| value + before).collect();
                let added = |before| Some((&bias_there, before));
                // Twice: the second has its plan from the first.
                for (ours, exact) in [
                    (output, &plain),
                    (run(None)?, &plain),
                    (run(added(None))?, &with_bias),
                    (run(added(Some(&before_there)))?, &with_both),
                ] {
                    let off = furthest(&doubles(&ours)?, exact);
                    assert!(off <= rounding(dtype) + 1e-5, "{dtype:?} {channels} to {out}, {kernel} by {stride}: off by {off}");
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
        let added = Some((&biases, None));
        let together = convolution(&images, &weight, 1, 1, added).expect("cuDNN")?;
        for place in 0..3 {
            let bias = biases.get(place)?;
            let added = Some((&bias, None));
            let alone = convolution(&images.narrow(0, place, 1)?, &weight, 1, 1, added).expect("cuDNN")?;
            let exact = doubles(&alone)?;
            // Rounded twice, and once.
            let off = furthest(&doubles(&together.narrow(0, place, 1)?)?, &exact);
            assert!(off <= 2.0 * rounding(DType::F16), "image {place}: off by {off}");
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
