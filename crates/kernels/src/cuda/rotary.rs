//! Norm and rotary positions of queries and keys on a GPU in one kernel (`cuda/norm_rope.cu`).

use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, CudaView, DriverError, LaunchConfig, PushKernelArg as _};

use super::modules::{Element, Module, kernel};

/// Of a block; `norm_rope.cu` counts on it.
const THREADS: u32 = 256;
/// Threads that take a row together.
const WARP: usize = 32;

/// Values of (batch, tokens, heads, width).
#[derive(Clone, Copy, Debug)]
pub struct NormRope {
    pub tokens: usize,
    /// How many of them, the first ones of each batch, go by the first of two weights.
    pub first: usize,
    pub heads: usize,
    /// Of a head; even.
    pub width: usize,
    pub eps: f32,
}

impl NormRope {
    /// x/√(mean of x² + eps)·weight of each head (Zhang and Sennrich 2019), rounded to `T`; then neighbours turned by the angles of their token
    /// (Su et al. 2021). `weights`: (width,) each; `cos`, `sin`: (tokens, width/2). Returns the shape of `input`.
    ///
    /// # Errors
    /// The driver's.
    ///
    /// # Panics
    /// When the slices are not as long as the sides say.
    pub fn run<T: Element>(
        self,
        stream: &Arc<CudaStream>,
        input: &CudaView<'_, T>,
        weights: [&CudaView<'_, T>; 2],
        (cos, sin): (&CudaView<'_, f32>, &CudaView<'_, f32>),
    ) -> Result<CudaSlice<T>, DriverError> {
        let Self { tokens, first, heads, width, eps } = self;
        assert!(width.is_multiple_of(2) && tokens > 0 && heads > 0, "heads of {width}");
        assert!(weights.iter().all(|weight| weight.len() == width), "a weight for each value of a head");
        assert!(input.len().is_multiple_of(tokens * heads * width), "whole rows of tokens");
        assert!(cos.len() == tokens * width / 2 && sin.len() == cos.len(), "an angle for each pair of values");
        // SAFETY: the kernel below writes every value.
        let out = unsafe { stream.alloc::<T>(input.len())? };
        if !input.is_empty() {
            let function = kernel(stream.context(), Module::NormRope, &format!("norm_rope_{}", T::NAME))?;
            let rows = input.len() / width;
            let grid_dim = (rows.div_ceil(THREADS as usize / WARP) as u32, 1, 1);
            let rows = rows as i64;
            let [tokens, first, heads, width] = [tokens, first, heads, width].map(|side| side as i32);
            let mut launch = stream.launch_builder(&function);
            launch.arg(input).arg(weights[0]).arg(weights[1]).arg(cos).arg(sin).arg(&out);
            launch.arg(&rows).arg(&tokens).arg(&first).arg(&heads).arg(&width).arg(&eps);
            let config = LaunchConfig { grid_dim, block_dim: (THREADS, 1, 1), shared_mem_bytes: 0 };
            // SAFETY: the arguments are those of `norm_rope_*`; the lengths are checked above, and it goes by them.
            unsafe { launch.launch(config)? };
        }
        Ok(out)
    }
}
