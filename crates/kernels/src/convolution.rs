//! What a convolution is: its measures, and what its sums begin with. `convolve` runs it.

/// A convolution's measures. `kernel` is 1 or 3; the border is of zeros and `kernel / 2` wide.
#[derive(Clone, Copy, Debug)]
pub struct Convolution {
    pub in_channels: usize,
    pub out_channels: usize,
    /// Of the images that are convolved.
    pub height: usize,
    pub width: usize,
    pub kernel: usize,
    pub stride: usize,
    /// Whether the images are given at half of `height` and `width`, both even, and each of their values counts for 2x2; for kernels of 3
    /// and stride 1.
    pub doubled: bool,
}

/// What the sums of a convolution begin with.
#[derive(Clone, Copy, Default)]
pub struct Begin<'a> {
    /// (out), or (B, out): of each image its own.
    pub bias: Option<&'a [f32]>,
    /// (B, out, H', W').
    pub residual: Option<&'a [f32]>,
}

impl Convolution {
    /// Sides of the result, rounded up.
    #[must_use]
    pub fn out_sides(&self) -> (usize, usize) {
        (self.height.div_ceil(self.stride), self.width.div_ceil(self.stride))
    }

    /// (height, width) of the images as they are given.
    pub(crate) fn given_sides(&self) -> (usize, usize) {
        if self.doubled { (self.height / 2, self.width / 2) } else { (self.height, self.width) }
    }
}

impl Begin<'_> {
    /// Writes `values` and what they begin with. `channel`: of all images' channels; `at`: where `out` is in the result.
    #[inline(always)]
    pub(crate) fn put(&self, out: &mut [f32], values: &[f32], channel: usize, at: usize) {
        let bias = self.bias.map_or(0.0, |bias| bias[channel % bias.len()]);
        if let Some(residual) = self.residual {
            let residual = &residual[at..at + out.len()];
            out.iter_mut().zip(values).zip(residual).for_each(|((out, number), before)| *out = before + (bias + number));
        } else {
            out.iter_mut().zip(values).for_each(|(out, number)| *out = bias + number);
        }
    }
}
