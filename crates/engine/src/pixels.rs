//! Between images of 8 bits and the tensors that autoencoders take and give.

use candle_core::{DType, Device, Result, Tensor};

use crate::EngineError;

/// Width and height of an image in units of `unit_px` pixels.
///
/// # Errors
/// [`EngineError::Request`] of the field `width` or `height` when that is no multiple of a unit.
pub(crate) fn sides(width_px: u32, height_px: u32, unit_px: usize) -> std::result::Result<[usize; 2], EngineError> {
    let side = |field, px: u32| match px as usize {
        px if px > 0 && px.is_multiple_of(unit_px) => Ok(px / unit_px),
        px => Err(EngineError::Request { field, problem: format!("must be a multiple of {unit_px}, got {px}") }),
    };
    Ok([side("width", width_px)?, side("height", height_px)?])
}

/// `rgb`: (height, width, 3) bytes. Returns (1, 3, height, width), f32 from -1 to 1.
///
/// # Errors
/// When the bytes are not so many, or the device has no room.
pub fn to_pixels(rgb: &[u8], width: usize, height: usize, device: &Device) -> Result<Tensor> {
    planes(rgb.iter().map(|byte| f32::from(*byte) / 127.5 - 1.0).collect(), width, height, device)
}

/// As [`to_pixels`], f32 from 0 to 1: as a ControlNet looks at an image.
///
/// # Errors
/// As [`to_pixels`].
pub(crate) fn to_unit_pixels(rgb: &[u8], width: usize, height: usize, device: &Device) -> Result<Tensor> {
    planes(rgb.iter().map(|byte| f32::from(*byte) / 255.0).collect(), width, height, device)
}

fn planes(values: Vec<f32>, width: usize, height: usize, device: &Device) -> Result<Tensor> {
    Tensor::from_vec(values, (height, width, 3), device)?.permute((2, 0, 1))?.unsqueeze(0)?.contiguous()
}

/// `decoded`: (3, H, W), f32 around -1 to 1. Returns (H, W, 3) bytes: x/2 + 1/2 clamped to 0..1, in 255 steps.
///
/// # Errors
/// When the tensor has another shape or cannot be read back from its device.
pub fn to_rgb8(decoded: &Tensor) -> Result<Vec<u8>> {
    let (_, height, width) = decoded.dims3()?;
    let unit = ((decoded / 2.0)? + 0.5)?.clamp(0.0, 1.0)?;
    let bytes = (unit * 255.0)?.round()?.to_dtype(DType::U8)?;
    bytes.permute((1, 2, 0))?.reshape(height * width * 3)?.to_vec1()
}
