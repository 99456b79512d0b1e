//! How time changes the tokens of a flow, on a GPU in one kernel each (`cuda/modulation.cu`).

use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, CudaView, DriverError, LaunchConfig, PushKernelArg as _};

use super::modules::{Element, Module, kernel};

/// Of a block; `modulation.cu` counts on it.
const THREADS: u32 = 256;
/// Where there are more values than these blocks have threads, a thread takes several.
const MAX_BLOCKS: usize = 1 << 16;

/// Rows of (rows, width) in three parts, each of which is changed in its own way.
#[derive(Clone, Copy, Debug)]
pub struct Rows {
    /// Where the second part begins, and where the third does.
    pub ends: [usize; 2],
    pub width: usize,
}

/// A scale and a shift for each part, (width,) each.
pub type Changes<'a, T> = [(&'a CudaView<'a, T>, &'a CudaView<'a, T>); 3];

/// A gate for each part, (width,) each.
pub type Gates<'a, T> = [&'a CudaView<'a, T>; 3];

impl Rows {
    /// (x − mean)/√(variance + eps)·scale + shift of each row. Returns the shape of `input`.
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
        changes: Changes<'_, T>,
        eps: f32,
    ) -> Result<CudaSlice<T>, DriverError> {
        let config = self.row_by_row(input, changes);
        // SAFETY: the kernel below writes every value.
        let out = unsafe { stream.alloc::<T>(input.len())? };
        if !input.is_empty() {
            let function = kernel(stream.context(), Module::Modulation, &format!("modulate_{}", T::NAME))?;
            let [first_end, second_end, width] = self.kernel_arguments();
            let mut launch = stream.launch_builder(&function);
            launch.arg(input);
            for (scale, shift) in changes {
                launch.arg(scale).arg(shift);
            }
            launch.arg(&out).arg(&first_end).arg(&second_end).arg(&width).arg(&eps);
            // SAFETY: the arguments are those of `modulate_*`; the lengths are checked above, and it goes by them.
            unsafe { launch.launch(config)? };
        }
        Ok(out)
    }

    /// `input` + gate·`change`, the product rounded to `T`. Returns the shape of `input`.
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
        gates: Gates<'_, T>,
    ) -> Result<CudaSlice<T>, DriverError> {
        let count = input.len();
        self.check_gated((input, change), gates);
        // SAFETY: the kernel below writes every value.
        let out = unsafe { stream.alloc::<T>(count)? };
        if count > 0 {
            let function = kernel(stream.context(), Module::Modulation, &format!("add_gated_{}", T::NAME))?;
            let blocks = count.div_ceil(THREADS as usize).min(MAX_BLOCKS);
            let config = LaunchConfig { grid_dim: (blocks as u32, 1, 1), block_dim: (THREADS, 1, 1), shared_mem_bytes: 0 };
            let numbers = count as i64;
            let [first_end, second_end] = self.ends.map(|end| (end * self.width) as i64);
            let width = self.width as i32;
            let mut launch = stream.launch_builder(&function);
            launch.arg(input).arg(change);
            for gate in gates {
                launch.arg(gate);
            }
            launch.arg(&out).arg(&numbers).arg(&first_end).arg(&second_end).arg(&width);
            // SAFETY: the arguments are those of `add_gated_*`; the lengths are checked above, and it goes by them.
            unsafe { launch.launch(config)? };
        }
        Ok(out)
    }

    /// [`Self::add_gated`], and [`Self::modulate`] of that.
    ///
    /// # Errors
    /// The driver's.
    ///
    /// # Panics
    /// When the slices are not as long as the sides say.
    pub fn add_gated_modulate<T: Element>(
        self,
        stream: &Arc<CudaStream>,
        (input, change): (&CudaView<'_, T>, &CudaView<'_, T>),
        gates: Gates<'_, T>,
        changes: Changes<'_, T>,
        eps: f32,
    ) -> Result<[CudaSlice<T>; 2], DriverError> {
        let config = self.row_by_row(input, changes);
        self.check_gated((input, change), gates);
        // SAFETY: the kernel below writes every value of both.
        let outputs = unsafe { [stream.alloc::<T>(input.len())?, stream.alloc::<T>(input.len())?] };
        if !input.is_empty() {
            let function = kernel(stream.context(), Module::Modulation, &format!("add_gated_modulate_{}", T::NAME))?;
            let [first_end, second_end, width] = self.kernel_arguments();
            let mut launch = stream.launch_builder(&function);
            launch.arg(input).arg(change);
            for gate in gates {
                launch.arg(gate);
            }
            for (scale, shift) in changes {
                launch.arg(scale).arg(shift);
            }
            launch.arg(&outputs[0]).arg(&outputs[1]).arg(&first_end).arg(&second_end).arg(&width).arg(&eps);
            // SAFETY: the arguments are those of `add_gated_modulate_*`; the lengths are checked above, and it goes by them.
            unsafe { launch.launch(config)? };
        }
        Ok(outputs)
    }

    /// A block for each row.
    fn row_by_row<T: Element>(&self, input: &CudaView<'_, T>, changes: Changes<'_, T>) -> LaunchConfig {
        let width = self.width;
        assert!(width > 0 && input.len().is_multiple_of(width), "whole rows of {width}");
        let fits = changes.iter().all(|(scale, shift)| scale.len() == width && shift.len() == width);
        assert!(fits, "a scale and a shift for each value of a row");
        let rows = input.len() / width;
        LaunchConfig { grid_dim: (rows as u32, 1, 1), block_dim: (THREADS, 1, 1), shared_mem_bytes: 0 }
    }

    fn check_gated<T: Element>(&self, (input, change): (&CudaView<'_, T>, &CudaView<'_, T>), gates: Gates<'_, T>) {
        let width = self.width;
        assert!(width > 0 && input.len().is_multiple_of(width) && change.len() == input.len(), "whole rows of {width}");
        assert!(gates.iter().all(|gate| gate.len() == width), "a gate for each value of a row");
    }

    /// Ends of the parts and the width, as kernels get them.
    fn kernel_arguments(&self) -> [i32; 3] {
        [self.ends[0], self.ends[1], self.width].map(|side| side as i32)
    }
}
