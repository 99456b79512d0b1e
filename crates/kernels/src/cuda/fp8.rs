//! 8-bit values (e4m3) on a GPU: rounded with a scale for each token, made whole, and what follows a product of them.
//!
//! candle-core 0.11.1 asks candle-kernels for casts by names that it does not have (huggingface/candle#3886), and would take seven kernels
//! where one is enough.

use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, CudaView, DeviceRepr, DriverError, LaunchConfig, PushKernelArg as _};
use half::bf16;

use super::modules::{Element, Module, kernel};

/// Of a block; `fp8.cu` counts on eight warps.
const THREADS: u32 = 256;
/// Blocks that make values whole: each takes more than one share where there are more.
const MAX_BLOCKS: usize = 4096;

/// Rounds each token's values to e4m3, by a scale that brings its largest magnitude to 448.
///
/// `input`: (tokens, `width`). Returns (tokens, `width`) in e4m3, and the scales (tokens,).
///
/// # Errors
/// The driver's.
///
/// # Panics
/// When `E` is not one byte, or `input` is not whole tokens.
pub fn round_tokens<T: Element, E: DeviceRepr>(
    stream: &Arc<CudaStream>,
    input: &CudaView<'_, T>,
    width: usize,
) -> Result<(CudaSlice<E>, CudaSlice<f32>), DriverError> {
    assert_eq!(size_of::<E>(), 1, "e4m3 has a byte");
    assert!(width > 0 && input.len().is_multiple_of(width), "whole tokens");
    let tokens = input.len() / width;
    // SAFETY: the kernel below writes every value of both.
    let (bits, scales) = unsafe { (stream.alloc::<E>(input.len())?, stream.alloc::<f32>(tokens)?) };
    if tokens > 0 {
        let function = kernel(stream.context(), Module::Fp8, &format!("round_tokens_{}", T::NAME))?;
        let width = width as i32;
        let mut launch = stream.launch_builder(&function);
        launch.arg(input).arg(&bits).arg(&scales).arg(&width);
        let config = LaunchConfig { grid_dim: (tokens as u32, 1, 1), block_dim: (THREADS, 1, 1), shared_mem_bytes: 0 };
        // SAFETY: the arguments are those of `round_tokens_*`, a block a token, and the slices are as long as it says.
        unsafe { launch.launch(config)? };
    }
    Ok((bits, scales))
}

/// What makes a product of 8-bit values a layer's output.
pub struct Finish<'a, T> {
    /// One for each token.
    pub token_scales: &'a CudaView<'a, f32>,
    /// Of the weight: one, or one for each of its rows.
    pub weight_scales: &'a CudaView<'a, f32>,
    /// One for each row of the weight.
    pub bias: &'a CudaView<'a, T>,
}

impl<T: Element> Finish<'_, T> {
    /// `product`: (tokens, rows), bf16. Returns (product · `token_scales` · `weight_scales`) in f32, rounded to `T`, plus `bias`.
    ///
    /// # Errors
    /// The driver's.
    ///
    /// # Panics
    /// When the lengths do not fit each other.
    pub fn apply(&self, stream: &Arc<CudaStream>, product: &CudaView<'_, bf16>) -> Result<CudaSlice<T>, DriverError> {
        let tokens = self.token_scales.len();
        let width = self.bias.len();
        assert_eq!(product.len(), tokens * width, "a value for each token and row");
        assert!([1, width].contains(&self.weight_scales.len()), "a scale for all, or one for each row");
        // SAFETY: the kernel below writes every value.
        let out = unsafe { stream.alloc::<T>(product.len())? };
        if !product.is_empty() {
            let function = kernel(stream.context(), Module::Fp8, &format!("finish_{}", T::NAME))?;
            let scale_stride = i32::from(self.weight_scales.len() == width);
            let width = width as i32;
            let mut launch = stream.launch_builder(&function);
            launch
                .arg(product)
                .arg(self.token_scales)
                .arg(self.weight_scales)
                .arg(&scale_stride)
                .arg(self.bias)
                .arg(&out)
                .arg(&width);
            let grid_dim = (tokens as u32, (width as u32).div_ceil(4 * THREADS), 1);
            let config = LaunchConfig { grid_dim, block_dim: (THREADS, 1, 1), shared_mem_bytes: 0 };
            // SAFETY: the arguments are those of `finish_*`, blocks (token, part of its columns), and the lengths are checked above.
            unsafe { launch.launch(config)? };
        }
        Ok(out)
    }
}

/// Makes e4m3 values whole; exact in each format.
///
/// # Errors
/// The driver's.
///
/// # Panics
/// When `E` is not one byte.
pub fn widen<E: DeviceRepr, T: Element>(stream: &Arc<CudaStream>, bits: &CudaView<'_, E>) -> Result<CudaSlice<T>, DriverError> {
    assert_eq!(size_of::<E>(), 1, "e4m3 has a byte");
    // SAFETY: the kernel below writes every value.
    let out = unsafe { stream.alloc::<T>(bits.len())? };
    if !bits.is_empty() {
        let function = kernel(stream.context(), Module::Fp8, &format!("widen_{}", T::NAME))?;
        let count = bits.len();
        let blocks = count.div_ceil(THREADS as usize).min(MAX_BLOCKS) as u32;
        let mut launch = stream.launch_builder(&function);
        launch.arg(bits).arg(&out).arg(&count);
        let config = LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (THREADS, 1, 1), shared_mem_bytes: 0 };
        // SAFETY: the arguments are those of `widen_*`, which goes by `count` and not by the grid.
        unsafe { launch.launch(config)? };
    }
    Ok(out)
}
