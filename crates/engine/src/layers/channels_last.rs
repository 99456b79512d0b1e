//! What is done to images whose channels may lie last: it leaves them as they lie.

use candle_core::{Result, Tensor};

use crate::device::{self, is_channels_last, to_channels_last, with_channels_first, with_channels_last};

/// Both in the order in which their values lie, and whether the channels are last there: where they are so in one of them.
fn in_one_order(one: &Tensor, other: &Tensor) -> Result<([Tensor; 2], bool)> {
    let is_last = is_channels_last(one) || is_channels_last(other);
    if !is_last {
        return Ok(([one.clone(), other.clone()], false));
    }
    let last = |images: &Tensor| with_channels_last(&to_channels_last(images)?);
    Ok(([last(one)?, last(other)?], true))
}

/// The sum of two images, (B, C, H, W) or (1, C, H, W) the latter.
pub(crate) fn sum(one: &Tensor, other: &Tensor) -> Result<Tensor> {
    let ([one, other], is_last) = in_one_order(one, other)?;
    let sum = one.broadcast_add(&other)?;
    if is_last { with_channels_first(&sum) } else { Ok(sum) }
}

/// `images` times `factor`, (1,); they lie as before.
pub(crate) fn scaled(images: &Tensor, factor: &Tensor) -> Result<Tensor> {
    if is_channels_last(images) {
        return with_channels_first(&with_channels_last(images)?.broadcast_mul(factor)?);
    }
    images.broadcast_mul(factor)
}

/// The channels of both images one behind the other: (B, C, H, W) and (B, D, H, W) to (B, C + D, H, W).
pub(crate) fn joined(one: &Tensor, other: &Tensor) -> Result<Tensor> {
    let ([one, other], is_last) = in_one_order(one, other)?;
    if !is_last {
        return Tensor::cat(&[one, other], 1);
    }
    with_channels_first(&device::joined_last(&one, &other).unwrap_or_else(|| Tensor::cat(&[&one, &other], 3))?)
}

/// (B, C, H, W) at `height` and `width` by the nearest neighbours; it lies as before.
pub(crate) fn enlarged(images: &Tensor, height: usize, width: usize) -> Result<Tensor> {
    if !is_channels_last(images) {
        return images.upsample_nearest2d(height, width);
    }
    let (_, _, rows, columns) = images.dims4()?;
    let doubled =
        if (height, width) == (2 * rows, 2 * columns) { device::doubled_last(&with_channels_last(images)?) } else { None };
    match doubled {
        Some(doubled) => with_channels_first(&doubled?),
        None => to_channels_last(&images.upsample_nearest2d(height, width)?),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Error};

    use super::*;

    fn drawn(shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
        Tensor::randn(0.0_f32, 1.0, shape, &Device::Cpu)?.to_dtype(dtype)?.to_device(device)
    }

    fn values(tensor: &Tensor) -> Result<Vec<f32>> {
        tensor.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
    }

    #[test]
    fn images_with_channels_last_are_moved_as_candle_moves_others() -> Result<()> {
        let device = device::open().map_err(Error::wrap)?;
        for dtype in [DType::F16, DType::BF16] {
            // The last one is no whole packs.
            for (channels, more) in [(8, 24), (40, 16), (16, 12)] {
                let one = drawn(&[2, channels, 3, 5], dtype, &device)?;
                let other = drawn(&[2, more, 3, 5], dtype, &device)?;
                let one_last = to_channels_last(&one)?;
                // The second half of a larger tensor, whose first address is not a multiple of 16 bytes where there are no whole packs.
                let both = Tensor::cat(&[&other, &other], 0)?;
                let other_last = to_channels_last(&both)?.narrow(0, 2, 2)?;
                let factor = drawn(&[1], dtype, &device)?;
                for (name, ours, exact) in [
                    ("joined", joined(&one_last, &other_last)?, Tensor::cat(&[&one, &other], 1)?),
                    ("of two orders", joined(&one_last, &other)?, Tensor::cat(&[&one, &other], 1)?),
                    ("of two others", joined(&one, &other_last)?, Tensor::cat(&[&one, &other], 1)?),
                    ("doubled", enlarged(&other_last, 6, 10)?, other.upsample_nearest2d(6, 10)?),
                    ("enlarged", enlarged(&one_last, 5, 9)?, one.upsample_nearest2d(5, 9)?),
                    ("summed", sum(&one_last, &one)?, (&one + &one)?),
                    ("summed for all", sum(&one_last, &one.narrow(0, 1, 1)?)?, one.broadcast_add(&one.narrow(0, 1, 1)?)?),
                    ("scaled", scaled(&one_last, &factor)?, one.broadcast_mul(&factor)?),
                ] {
                    assert_eq!(is_channels_last(&ours), device.is_cuda(), "{name} {dtype:?} {channels} {more}");
                    assert_eq!(ours.dims(), exact.dims(), "{name}");
                    assert!(values(&ours)? == values(&exact)?, "{name} {dtype:?} {channels} {more}");
                }
            }
        }
        Ok(())
    }
}
