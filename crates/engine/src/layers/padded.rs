//! Convolutions of few channels, which tensor cores take with zeros beside them.

use candle_core::{DType, Result, Tensor};

use super::Conv;
use crate::device::{CHANNELS_TOGETHER, is_best_channels_last, to_channels_last, with_channels_first, with_channels_last};

/// A convolution that never changes. On a GPU, in 16 bits, its channels are filled up with zeros to as many as tensor cores take: what is convolved otherwise
/// has to be brought into another order, and what comes out back again.
pub(crate) struct PaddedConv {
    conv: Conv,
    out_channels: usize,
}

impl PaddedConv {
    pub(crate) fn of(conv: Conv) -> Result<Self> {
        let weight = conv.0.weight();
        let (out_channels, in_channels, kernel, _) = weight.dims4()?;
        let is_of_use = kernel > 1 && weight.device().is_cuda() && matches!(weight.dtype(), DType::F16 | DType::BF16);
        let Some(bias) = conv.0.bias().filter(|_| is_of_use && !is_best_channels_last(weight)) else {
            return Ok(Self { conv, out_channels });
        };
        let more = |channels: usize| channels.next_multiple_of(CHANNELS_TOGETHER) - channels;
        let padded = weight.pad_with_zeros(0, 0, more(out_channels))?.pad_with_zeros(1, 0, more(in_channels))?;
        let bias = bias.pad_with_zeros(0, 0, more(out_channels))?;
        let conv = Conv::of(to_channels_last(&padded)?, bias, conv.0.config().stride)?;
        Ok(Self { conv, out_channels })
    }

    /// As [`Conv::forward`].
    pub(crate) fn forward(&self, images: &Tensor) -> Result<Tensor> {
        let more = self.conv.0.weight().dim(1)? - images.dim(1)?;
        if more == 0 {
            return self.conv.forward(images)?.narrow(1, 0, self.out_channels);
        }
        let padded = with_channels_last(images)?.contiguous()?.pad_with_zeros(3, 0, more)?;
        self.conv.forward(&with_channels_first(&padded)?)?.narrow(1, 0, self.out_channels)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Error};

    use super::*;
    use crate::device::open;

    #[test]
    fn few_channels_are_convolved_as_they_are_alone() -> Result<()> {
        let device = open().map_err(Error::wrap)?;
        for (in_channels, out_channels) in [(3, 16), (8, 3), (4, 5), (8, 8)] {
            let draw = |shape: &[usize]| Tensor::randn(0.0_f32, 1.0, shape, &Device::Cpu)?.to_dtype(DType::F16);
            let weight = draw(&[out_channels, in_channels, 3, 3])?;
            let bias = draw(&[out_channels])?;
            let images = draw(&[2, in_channels, 6, 5])?;
            let wide = |tensor: &Tensor| tensor.to_dtype(DType::F32);
            let exact = Conv::of(wide(&weight)?, wide(&bias)?, 1)?.forward(&wide(&images)?)?;
            let dtype = if device.is_cpu() { DType::F32 } else { DType::F16 };
            let on = |tensor: &Tensor| tensor.to_device(&device)?.to_dtype(dtype);
            let padded = PaddedConv::of(Conv::of(on(&weight)?, on(&bias)?, 1)?)?;
            let ours = wide(&padded.forward(&on(&images)?)?.to_device(&Device::Cpu)?)?;
            assert_eq!(ours.dims(), exact.dims());
            let off = (ours - &exact)?.abs()?.max_all()?.to_scalar::<f32>()?;
            let largest = exact.abs()?.max_all()?.to_scalar::<f32>()?;
            // A unit in the last place of halves.
            assert!(off <= largest / 1024.0, "{in_channels} {out_channels}: off by {off} of {largest}");
        }
        Ok(())
    }
}
