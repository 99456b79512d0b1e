//! Layer norms, and how time changes the tokens of a flow, on a GPU in one kernel each (`cuda/modulation.cu`).

use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, CudaView, DriverError, LaunchConfig, PushKernelArg as _};

use super::modules::{Element, Module, kernel};

/// Of a block; `modulation.cu` counts on these three.
const THREADS: u32 = 256;
/// Rows of at most so many bytes are a warp's each.
const NARROW_BYTES: usize = 2560;
const WARP: u32 = 32;

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
        let config = self.row_by_row(input);
        self.check_changes(changes);
        // SAFETY: the kernel below writes every value.
        let out = unsafe { stream.alloc::<T>(input.len())? };
        if !input.is_empty() {
            let function = kernel(stream.context(), Module::Modulation, &format!("modulate_{}", T::NAME))?;
            let [first_end, second_end, rows, width] = self.kernel_arguments(input);
            let mut launch = stream.launch_builder(&function);
            launch.arg(input);
            for (scale, shift) in changes {
                launch.arg(scale).arg(shift);
            }
            launch.arg(&out).arg(&first_end).arg(&second_end).arg(&rows).arg(&width).arg(&eps);
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
        let config = self.row_by_row(input);
        self.check_gated((input, change), gates);
        // SAFETY: the kernel below writes every value.
        let out = unsafe { stream.alloc::<T>(input.len())? };
        if !input.is_empty() {
            let function = kernel(stream.context(), Module::Modulation, &format!("add_gated_{}", T::NAME))?;
            let [first_end, second_end, rows, width] = self.kernel_arguments(input);
            let mut launch = stream.launch_builder(&function);
            launch.arg(input).arg(change);
            for gate in gates {
                launch.arg(gate);
            }
            launch.arg(&out).arg(&first_end).arg(&second_end).arg(&rows).arg(&width);
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
        let config = self.row_by_row(input);
        self.check_changes(changes);
        self.check_gated((input, change), gates);
        // SAFETY: the kernel below writes every value of both.
        let outputs = unsafe { [stream.alloc::<T>(input.len())?, stream.alloc::<T>(input.len())?] };
        if !input.is_empty() {
            let function = kernel(stream.context(), Module::Modulation, &format!("add_gated_modulate_{}", T::NAME))?;
            let [first_end, second_end, rows, width] = self.kernel_arguments(input);
            let mut launch = stream.launch_builder(&function);
            launch.arg(input).arg(change);
            for gate in gates {
                launch.arg(gate);
            }
            for (scale, shift) in changes {
                launch.arg(scale).arg(shift);
            }
            launch.arg(&outputs[0]).arg(&outputs[1]);
            launch.arg(&first_end).arg(&second_end).arg(&rows).arg(&width).arg(&eps);
            // SAFETY: the arguments are those of `add_gated_modulate_*`; the lengths are checked above, and it goes by them.
            unsafe { launch.launch(config)? };
        }
        Ok(outputs)
    }

    /// A warp for each row, or a block where rows are wide.
    fn row_by_row<T: Element>(&self, input: &CudaView<'_, T>) -> LaunchConfig {
        let width = self.width;
        assert!(width > 0 && input.len().is_multiple_of(width), "whole rows of {width}");
        let together = if width * size_of::<T>() <= NARROW_BYTES { WARP } else { THREADS };
        let blocks = (input.len() / width).div_ceil((THREADS / together) as usize);
        LaunchConfig { grid_dim: (blocks as u32, 1, 1), block_dim: (THREADS, 1, 1), shared_mem_bytes: 0 }
    }

    fn check_changes<T: Element>(&self, changes: Changes<'_, T>) {
        let fits = changes.iter().all(|(scale, shift)| scale.len() == self.width && shift.len() == self.width);
        assert!(fits, "a scale and a shift for each value of a row");
    }

    fn check_gated<T: Element>(&self, (input, change): (&CudaView<'_, T>, &CudaView<'_, T>), gates: Gates<'_, T>) {
        assert_eq!(change.len(), input.len(), "a change for each value");
        assert!(gates.iter().all(|gate| gate.len() == self.width), "a gate for each value of a row");
    }

    /// Ends of the parts, rows and width, as kernels get them.
    fn kernel_arguments<T: Element>(&self, input: &CudaView<'_, T>) -> [i32; 4] {
        [self.ends[0], self.ends[1], input.len() / self.width, self.width].map(|side| side as i32)
    }
}

/// Layer norm (Ba et al. 2016) of rows of as many values as `weight` and `bias` have. Returns the shape of `input`.
///
/// # Errors
/// The driver's.
///
/// # Panics
/// When the slices are not as long as the sides say.
pub fn layer_norm<T: Element>(
    stream: &Arc<CudaStream>,
    input: &CudaView<'_, T>,
    weight: &CudaView<'_, T>,
    bias: &CudaView<'_, T>,
    eps: f32,
) -> Result<CudaSlice<T>, DriverError> {
    let rows = Rows { ends: [0; 2], width: weight.len() };
    let config = rows.row_by_row(input);
    rows.check_changes([(weight, bias); 3]);
    // SAFETY: the kernel below writes every value.
    let out = unsafe { stream.alloc::<T>(input.len())? };
    if !input.is_empty() {
        let function = kernel(stream.context(), Module::Modulation, &format!("layer_norm_{}", T::NAME))?;
        let [_, _, rows, width] = rows.kernel_arguments(input);
        let mut launch = stream.launch_builder(&function);
        launch.arg(input).arg(weight).arg(bias).arg(&out).arg(&rows).arg(&width).arg(&eps);
        // SAFETY: the arguments are those of `layer_norm_*`; the lengths are checked above, and it goes by them.
        unsafe { launch.launch(config)? };
    }
    Ok(out)
}
