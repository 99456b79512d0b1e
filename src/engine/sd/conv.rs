//! The 3x3 convolution, which is most of the work: on the CPU one matrix product over shifted copies of the picture.

use candle_core::{Result, Tensor};
use candle_nn::{Conv2d, Conv2dConfig, Module, VarBuilder, conv2d};

const KERNEL: usize = 3;
/// Shifted copies hold at most this many numbers (4 MiB in f32, to stay in the cache); larger pictures are done in bands of rows.
const MAX_COLUMNS: usize = 1 << 20;

/// A 3x3 convolution with a border of zeros that keeps the size, or halves it with `stride` 2.
pub(super) struct Conv3x3 {
    conv: Conv2d,
}

impl Conv3x3 {
    pub(super) fn new(in_channels: usize, out_channels: usize, stride: usize, vb: VarBuilder) -> Result<Self> {
        let config = Conv2dConfig { padding: 1, stride, ..Conv2dConfig::default() };
        Ok(Self { conv: conv2d(in_channels, out_channels, KERNEL, config, vb)? })
    }

    /// The same as [`Conv2d`] with stride 1. Candle's CPU kernel reorders weights and picture number by number on every
    /// call, which takes longer than the product itself.
    fn forward_on_cpu(&self, picture: &Tensor) -> Result<Tensor> {
        let (batch, channels, height, width) = picture.dims4()?;
        let kernel = self.conv.weight().flatten_from(1)?;
        let padded = picture.transpose(0, 1)?.contiguous()?.pad_with_zeros(2, 1, 1)?.pad_with_zeros(3, 1, 1)?;
        let band = (MAX_COLUMNS / (channels * KERNEL * KERNEL * batch * width)).clamp(1, height);
        let mut bands = Vec::with_capacity(height.div_ceil(band));
        for top in (0..height).step_by(band) {
            let rows = band.min(height - top);
            let mut taps = Vec::with_capacity(KERNEL * KERNEL);
            for (row, column) in (0..KERNEL).flat_map(|row| (0..KERNEL).map(move |column| (row, column))) {
                let tap = padded.narrow(2, top + row, rows)?.narrow(3, column, width)?.contiguous()?;
                taps.push(tap.reshape((channels, 1, batch * rows * width))?);
            }
            let columns = Tensor::cat(&taps, 1)?.flatten_to(1)?;
            let mut product = kernel.matmul(&columns)?;
            if let Some(bias) = self.conv.bias() {
                product = product.broadcast_add(&bias.unsqueeze(1)?)?;
            }
            bands.push(product.reshape((kernel.dim(0)?, batch, rows, width))?);
        }
        let joined = if bands.len() == 1 { bands.swap_remove(0) } else { Tensor::cat(&bands, 2)? };
        joined.transpose(0, 1)?.contiguous()
    }
}

impl Module for Conv3x3 {
    /// `picture`: (B, in, H, W). Returns (B, out, H, W), or half the sides rounded up.
    fn forward(&self, picture: &Tensor) -> Result<Tensor> {
        if self.conv.config().stride == 1 && picture.device().is_cpu() {
            self.forward_on_cpu(picture)
        } else {
            self.conv.forward(picture)
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use candle_nn::VarMap;

    use super::*;

    #[test]
    fn bands_of_rows_join_to_what_candle_computes() -> Result<()> {
        let variables = VarMap::new();
        let vb = VarBuilder::from_varmap(&variables, DType::F32, &Device::Cpu);
        let conv = Conv3x3::new(128, 8, 1, vb)?;
        let picture = Tensor::randn(0.0_f32, 1.0, (2, 128, 40, 24), &Device::Cpu)?;
        assert!(picture.elem_count() * KERNEL * KERNEL > MAX_COLUMNS, "one band would prove nothing");
        let difference = (conv.forward(&picture)? - conv.conv.forward(&picture)?)?;
        assert!(difference.abs()?.max_all()?.to_scalar::<f32>()? < 1e-5);
        Ok(())
    }
}
