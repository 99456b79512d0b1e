//! How time changes the tokens of a flow, on a GPU in one kernel each (`cuda/modulation.cu`).

use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, CudaView, DriverError, LaunchConfig, PushKernelArg as _};

use super::modules::{Element, Module, kernel};

/// Of a block; `modulation.cu` counts on it.
const THREADS: u32 = 256;
/// Where there are more values than these blocks have threads, a thread takes several.
const MAX_BLOCKS: usize = 1 << 16;

/// Rows of (rows, width), of which the first ones are changed by the first of two, and the others by the second.
#[derive(Clone, Copy, Debug)]
pub struct Rows {
    pub first: usize,
    pub width: usize,
}

impl Rows {
    /// (x − mean)/√(variance + eps)·scale + shift of each row. `changes`: scale and shift, (width,) each. Returns the shape of `input`.
    ///
    /// # Errors
    /// The driver's.
    ///
    /// # Panics
    /// When the slices are not as long as the sides say.
    pub fn modulate<T: Element>(
        self,
        stream: &Arc<CudaStream>,
        input: &CudaView<'_, T>,
        changes: [(&CudaView<'_, T>, &CudaView<'_, T>); 2],
        eps: f32,
    ) -> Result<CudaSlice<T>, DriverError> {
        let Self { first, width } = self;
        assert!(width > 0 && input.len().is_multiple_of(width), "whole rows of {width}");
        assert!(
            changes.iter().all(|(scale, shift)| scale.len() == width && shift.len() == width),
            "a scale and a shift for each"
        );
        // SAFETY: the kernel below writes every value.
        let out = unsafe { stream.alloc::<T>(input.len())? };
        if !input.is_empty() {
            let function = kernel(stream.context(), Module::Modulation, &format!("modulate_{}", T::NAME))?;
            let rows = input.len() / width;
            let config = LaunchConfig { grid_dim: (rows as u32, 1, 1), block_dim: (THREADS, 1, 1), shared_mem_bytes: 0 };
            let [rows, first, width] = [rows, first, width].map(|side| side as i32);
            let mut launch = stream.launch_builder(&function);
            launch.arg(input);
            for (scale, shift) in changes {
                launch.arg(scale).arg(shift);
            }
            launch.arg(&out).arg(&rows).arg(&first).arg(&width).arg(&eps);
            // SAFETY: the arguments are those of `modulate_*`; the lengths are checked above, and it goes by them.
            unsafe { launch.launch(config)? };
        }
        Ok(out)
    }

    /// `input` + gate·`change`, the product rounded to `T`. `gates`: (width,) each. Returns the shape of `input`.
    ///
    /// # Errors
    /// The driver's.
    ///
    /// # Panics
    /// When the slices are not as long as the sides say.
    pub fn add_gated<T: Element>(
        self,
        stream: &Arc<CudaStream>,
        (input, change): (&CudaView<'_, T>, &CudaView<'_, T>),
        gates: [&CudaView<'_, T>; 2],
    ) -> Result<CudaSlice<T>, DriverError> {
        let Self { first, width } = self;
        let count = input.len();
        assert!(width > 0 && count.is_multiple_of(width) && change.len() == count, "whole rows of {width}");
        assert!(gates.iter().all(|gate| gate.len() == width), "a gate for each value of a row");
        // SAFETY: the kernel below writes every value.
        let out = unsafe { stream.alloc::<T>(count)? };
        if count > 0 {
            let function = kernel(stream.context(), Module::Modulation, &format!("add_gated_{}", T::NAME))?;
            let blocks = count.div_ceil(THREADS as usize).min(MAX_BLOCKS);
            let config = LaunchConfig { grid_dim: (blocks as u32, 1, 1), block_dim: (THREADS, 1, 1), shared_mem_bytes: 0 };
            let numbers = count as i64;
            let first = (first * width) as i64;
            let width = width as i32;
            let mut launch = stream.launch_builder(&function);
            launch.arg(input).arg(change).arg(gates[0]).arg(gates[1]);
            launch.arg(&out).arg(&numbers).arg(&first).arg(&width);
            // SAFETY: the arguments are those of `add_gated_*`; the lengths are checked above, and it goes by them.
            unsafe { launch.launch(config)? };
        }
        Ok(out)
    }
}
