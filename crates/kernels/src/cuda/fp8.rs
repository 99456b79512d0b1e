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

/// Tokens in two parts, each of which may have a weight of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parts {
    /// How many tokens are the first part.
    pub first: usize,
    pub tokens: usize,
}

impl Parts {
    /// Scales that no token has, between those of both parts, so that the second's begin at a multiple of 16 bytes.
    #[must_use]
    pub const fn gap(self) -> usize {
        if self.first == self.tokens { 0 } else { self.first.next_multiple_of(4) - self.first }
    }

    fn kernel_arguments(self) -> [i32; 2] {
        [self.first, self.gap()].map(|number| number as i32)
    }
}

/// Rounds each token's values to e4m3, by a scale that brings its largest magnitude to 448.
///
/// `input`: (tokens, width). Returns (tokens, width) in e4m3, and the scales, (tokens + [`Parts::gap`],): those of the first part, the gap, and those of
/// the second.
///
/// # Errors
/// The driver's.
///
/// # Panics
/// When `E` is not one byte, or `input` is not whole tokens.
pub fn round_tokens<T: Element, E: DeviceRepr>(
    stream: &Arc<CudaStream>,
    input: &CudaView<'_, T>,
    parts: Parts,
) -> Result<(CudaSlice<E>, CudaSlice<f32>), DriverError> {
    assert_eq!(size_of::<E>(), 1, "e4m3 has a byte");
    let Parts { first, tokens } = parts;
    assert!(first <= tokens && input.len().is_multiple_of(tokens.max(1)), "whole tokens");
    // SAFETY: the kernel below writes every value of the first.
    let bits = unsafe { stream.alloc::<E>(input.len())? };
    // SAFETY: and every one of these that is read.
    let scales = unsafe { stream.alloc::<f32>(tokens + parts.gap())? };
    if let Some(width) = input.len().checked_div(tokens) {
        let function = kernel(stream.context(), Module::Fp8, &format!("round_tokens_{}", T::NAME))?;
        let width = width as i32;
        let [first, gap] = parts.kernel_arguments();
        let mut launch = stream.launch_builder(&function);
        launch.arg(input).arg(&bits).arg(&scales).arg(&width).arg(&first).arg(&gap);
        let config = LaunchConfig { grid_dim: (tokens as u32, 1, 1), block_dim: (THREADS, 1, 1), shared_mem_bytes: 0 };
        // SAFETY: the arguments are those of `round_tokens_*`, a block a token, and the slices are as long as it says.
        unsafe { launch.launch(config)? };
    }
    Ok((bits, scales))
}

/// Scales and bias of a weight (rows, depth).
pub struct Dequantization<'a, T> {
    /// One, or one for each row.
    pub scales: &'a CudaView<'a, f32>,
    /// One for each row.
    pub bias: &'a CudaView<'a, T>,
}

/// What makes products of 8-bit values the output of layers.
pub struct Finish<'a, T> {
    /// As [`round_tokens`] gives them.
    pub token_scales: &'a CudaView<'a, f32>,
    /// Of each part's weight.
    pub weights: [Dequantization<'a, T>; 2],
    pub parts: Parts,
    /// Whether gelu follows, the one with tanh (Hendrycks and Gimpel 2016).
    pub gelu: bool,
}

impl<T: Element> Finish<'_, T> {
    /// `product`: (tokens, rows), bf16. Returns (product · `token_scales` · scales) in f32, rounded to `T`, plus the bias; or gelu of that.
    ///
    /// # Errors
    /// The driver's.
    ///
    /// # Panics
    /// When the lengths do not fit each other.
    pub fn apply(&self, stream: &Arc<CudaStream>, product: &CudaView<'_, bf16>) -> Result<CudaSlice<T>, DriverError> {
        let tokens = self.parts.tokens;
        let rows = self.weights[0].bias.len();
        assert_eq!(product.len(), tokens * rows, "a value for each token and row");
        assert_eq!(self.token_scales.len(), tokens + self.parts.gap(), "a scale for each token");
        for Dequantization { scales, bias } in &self.weights {
            assert!(bias.len() == rows && [1, rows].contains(&scales.len()), "a scale for all, or one for each row");
        }
        // SAFETY: the kernel below writes every value.
        let out = unsafe { stream.alloc::<T>(product.len())? };
        if !product.is_empty() {
            let function = kernel(stream.context(), Module::Fp8, &format!("finish_{}", T::NAME))?;
            let [weight, other] = &self.weights;
            let [stride, other_stride] = self.weights.each_ref().map(|weight| i32::from(weight.scales.len() == rows));
            let [first, gap] = self.parts.kernel_arguments();
            let width = rows as i32;
            let gelu = i32::from(self.gelu);
            let mut launch = stream.launch_builder(&function);
            launch.arg(product).arg(self.token_scales);
            launch.arg(weight.scales).arg(&stride).arg(weight.bias);
            launch.arg(other.scales).arg(&other_stride).arg(other.bias);
            launch.arg(&out).arg(&first).arg(&gap).arg(&width).arg(&gelu);
            let grid_dim = (tokens as u32, (rows as u32).div_ceil(4 * THREADS), 1);
            let config = LaunchConfig { grid_dim, block_dim: (THREADS, 1, 1), shared_mem_bytes: 0 };
            // SAFETY: the arguments are those of `finish_*`, blocks (token, part of its columns), and the lengths are checked above.
            unsafe { launch.launch(config)? };
        }
        Ok(out)
    }
}

/// 8-bit values as the bytes that they are.
///
/// # Panics
/// When `E` is not one byte.
#[must_use]
pub fn bytes<E: DeviceRepr>(values: &CudaSlice<E>) -> CudaView<'_, u8> {
    assert_eq!(size_of::<E>(), 1, "e4m3 has a byte");
    // SAFETY: every byte is a number, and there are as many.
    unsafe { values.transmute::<u8>(values.len()) }.expect("as many bytes as values")
}

/// Makes e4m3 values whole; exact in each format.
///
/// # Errors
/// The driver's.
pub fn widen<T: Element>(stream: &Arc<CudaStream>, bits: &CudaView<'_, u8>) -> Result<CudaSlice<T>, DriverError> {
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
