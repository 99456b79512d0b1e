//! Images whose channels lie last in memory, as tensor cores convolve them. Their shape stays (B, C, H, W), and any operation reads them right.

use candle_core::{DType, Result, Tensor};

/// What channels come in where they lie last (cuDNN's documentation, "Tensor Core operations": NHWC).
pub(crate) const CHANNELS_TOGETHER: usize = 8;

/// Whether a convolution by this weight, (out, in, kernel, kernel), is best done with the channels last: on a GPU, in 16 bits, of as many channels as that
/// takes. A kernel of 1 lies the same either way.
pub(crate) fn is_best_channels_last(weight: &Tensor) -> bool {
    let [out_channels, in_channels, height, width] = weight.dims() else { return false };
    let has_enough = out_channels.is_multiple_of(CHANNELS_TOGETHER) && in_channels.is_multiple_of(CHANNELS_TOGETHER);
    has_enough && height * width > 1 && weight.device().is_cuda() && matches!(weight.dtype(), DType::F16 | DType::BF16)
}

/// Whether a convolution by this weight has its channels last: it [is best so](is_best_channels_last), and lies so.
pub(crate) fn convolves_channels_last(weight: &Tensor) -> bool {
    is_best_channels_last(weight) && is_channels_last(weight)
}

/// Whether the values of (B, C, H, W) lie as (B, H, W, C) where that is of use: on a GPU, in 16 bits.
pub(crate) fn is_channels_last(images: &Tensor) -> bool {
    let is_of_use = images.device().is_cuda() && matches!(images.dtype(), DType::F16 | DType::BF16);
    is_of_use && images.rank() == 4 && with_channels_last(images).is_ok_and(|images| images.is_contiguous())
}

/// The same values, so that they lie as (B, H, W, C).
pub(crate) fn to_channels_last(images: &Tensor) -> Result<Tensor> {
    with_channels_first(&with_channels_last(images)?.contiguous()?)
}

/// (B, C, H, W) to (B, H, W, C), where it lies.
pub(crate) fn with_channels_last(images: &Tensor) -> Result<Tensor> {
    images.permute((0, 2, 3, 1))
}

/// (B, H, W, C) to (B, C, H, W), where it lies.
pub(crate) fn with_channels_first(images: &Tensor) -> Result<Tensor> {
    images.permute((0, 3, 1, 2))
}

/// Copies `values` to where the values of `place` lie, of the same shape and format: whoever reads there goes on doing so.
pub(crate) fn fill(place: &Tensor, values: &Tensor) -> Result<()> {
    let values = if is_channels_last(place) { with_channels_last(values)? } else { values.clone() };
    as_it_lies(place)?.slice_set(&values.contiguous()?, 0, 0)
}

/// A tensor of any shape with its sides in the order in which its values lie.
pub(super) fn as_it_lies(tensor: &Tensor) -> Result<Tensor> {
    if is_channels_last(tensor) { with_channels_last(tensor) } else { Ok(tensor.clone()) }
}
