//! Attention on a GPU without a matrix of scores (`cuda/flash.cu`).

use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, CudaView, DriverError, LaunchConfig, PushKernelArg as _};

use super::modules::{HalfElement, Module, kernel};

/// Head widths that there are kernels for; one between two of them takes the wider, with zeros.
const WIDTHS: [usize; 8] = [16, 32, 40, 64, 80, 96, 128, 160];
/// Of a block.
const THREADS: u32 = 128;
/// Values that are read at once.
const AT_ONCE: usize = 8;

/// Sides of an attention. Tensors are (batch, tokens or places, heads, width).
#[derive(Clone, Copy, Debug)]
pub struct FlashAttention {
    pub batch: usize,
    /// Queries.
    pub tokens: usize,
    /// Keys and values.
    pub places: usize,
    pub heads: usize,
    /// Of a head: see [`Self::takes_width`].
    pub width: usize,
    /// Whether a query sees only the places up to its own.
    pub causal: bool,
    /// Values from one token of the queries to the next, and from one place of keys and values to the next: heads·width, or more where something lies
    /// between. Multiples of 8.
    pub query_stride: usize,
    pub place_stride: usize,
}

impl FlashAttention {
    /// Whether there is a kernel for heads of this width: multiples of 8 up to 160.
    #[must_use]
    pub fn takes_width(width: usize) -> bool {
        width > 0 && width.is_multiple_of(AT_ONCE) && width <= WIDTHS[WIDTHS.len() - 1]
    }

    /// softmax(query·keyᵀ/√width)·value; scores and sums are f32. Each slice begins with its first value and may end with its last. Returns (batch, tokens,
    /// heads, width) without gaps.
    ///
    /// # Errors
    /// The driver's.
    ///
    /// # Panics
    /// When the slices are not as long as the sides say, or there is no kernel for the width.
    pub fn run<T: HalfElement>(
        self,
        stream: &Arc<CudaStream>,
        query: &CudaView<'_, T>,
        key: &CudaView<'_, T>,
        value: &CudaView<'_, T>,
    ) -> Result<CudaSlice<T>, DriverError> {
        let Self { batch, tokens, places, heads, width, causal, query_stride, place_stride } = self;
        let in_row = heads * width;
        let reach = |rows: usize, stride: usize| (batch * rows).checked_sub(1).map_or(0, |before| before * stride + in_row);
        assert!(query.len() >= reach(tokens, query_stride), "queries that end too soon");
        assert!(key.len().min(value.len()) >= reach(places, place_stride), "keys or values that end too soon");
        assert!([query_stride, place_stride].iter().all(|stride| *stride >= in_row && stride.is_multiple_of(AT_ONCE)));
        assert!(Self::takes_width(width) && places > 0, "a kernel for heads of {width}");
        // SAFETY: the kernel below writes every value.
        let out = unsafe { stream.alloc::<T>(batch * tokens * in_row)? };
        if !out.is_empty() {
            let padded = WIDTHS.into_iter().find(|padded| *padded >= width).unwrap_or(width);
            let function = kernel(stream.context(), Module::Flash(padded), &format!("attend_{padded}_{}", T::NAME))?;
            let grid_dim = (tokens.div_ceil(queries_of_block(padded)) as u32, heads as u32, batch as u32);
            let scale = (width as f32).sqrt().recip() * std::f32::consts::LOG2_E;
            let [tokens, places, heads, width] = [tokens, places, heads, width].map(|side| side as i32);
            let [query_stride, place_stride] = [query_stride, place_stride].map(|stride| stride as i32);
            let causal = i32::from(causal);
            let mut launch = stream.launch_builder(&function);
            launch.arg(query).arg(key).arg(value).arg(&out);
            launch.arg(&tokens).arg(&places).arg(&heads).arg(&width).arg(&causal).arg(&scale);
            launch.arg(&query_stride).arg(&place_stride);
            let config = LaunchConfig { grid_dim, block_dim: (THREADS, 1, 1), shared_mem_bytes: 0 };
            // SAFETY: the arguments are those of `attend_*`; the lengths are checked above, and it goes by them.
            unsafe { launch.launch(config)? };
        }
        Ok(out)
    }
}

/// How many queries a block of the kernel for this width takes: `Plan` in `flash.cu` has it so.
const fn queries_of_block(width: usize) -> usize {
    match width {
        80 | 160 => 64,
        _ => 128,
    }
}
