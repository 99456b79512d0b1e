//! Gated layers on a GPU as one product each: values times opened gates, of which neither is ever in memory (`cuda/gated.cu`).

use std::sync::Arc;

use cudarc::driver::sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR;
use cudarc::driver::{CudaSlice, CudaStream, CudaView, CudaViewMut, DriverError, LaunchConfig, PushKernelArg as _};

use super::modules::{HalfElement, Module, kernel};
use crate::elementwise::Gate;

/// Of a block, and what it makes.
const THREADS: u32 = 128;
const ROWS: usize = 128;
const COLUMNS: usize = 64;
/// Values that are read at once.
const AT_ONCE: usize = 8;

/// One of several gated layers whose results lie behind each other. Each view begins at a multiple of 16 bytes.
pub struct GatedFactors<'a, T> {
    /// (rows, depth).
    pub input: &'a CudaView<'a, T>,
    /// Of values and of gates, (width, depth) each.
    pub weights: [&'a CudaView<'a, T>; 2],
    /// Of values and of gates, (width,) each.
    pub biases: Option<[&'a CudaView<'a, T>; 2]>,
    pub rows: usize,
    pub depth: usize,
    pub width: usize,
}

/// Whether the kernel multiplies matrices of these sides: both are multiples of 8.
#[must_use]
pub fn takes(depth: usize, width: usize) -> bool {
    depth > 0 && width > 0 && depth.is_multiple_of(AT_ONCE) && width.is_multiple_of(AT_ONCE)
}

/// Whether one product over this depth is to be preferred on this device to cuBLASLt's and a kernel behind it. Its tensor cores are asked by `mma.sync`, which is
/// all that generations 8 and 12 have; those of 9 and 10 are twice as fast by instructions that are cuBLASLt's alone (PTX manual, `wgmma` and `tcgen05`). What
/// it saves of the memory is 8 bytes an output value, whatever the depth: over 320 it may take twice as long as cuBLASLt on an A100, over 1,280 a quarter
/// longer, and over 3,840 a twelfth.
///
/// # Errors
/// The driver's.
pub fn is_preferred(stream: &CudaStream, depth: usize) -> Result<bool, DriverError> {
    const DEEPEST: usize = 2048;
    if depth > DEEPEST {
        return Ok(false);
    }
    Ok(matches!(stream.context().attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?, 8 | 12))
}

/// (input·values' weightᵀ + bias) · gate(input·gates' weightᵀ + bias) of each, (rows, width), behind each other in one piece of memory; sums are f32, and rounded
/// once.
///
/// # Errors
/// The driver's.
///
/// # Panics
/// When slices are not as long as their sides say, or the kernel [does not take them](takes).
pub fn run<T: HalfElement>(
    stream: &Arc<CudaStream>,
    all: &[GatedFactors<'_, T>],
    gate: Gate,
) -> Result<CudaSlice<T>, DriverError> {
    // SAFETY: the kernels below write every value.
    let mut out = unsafe { stream.alloc::<T>(all.iter().map(|factors| factors.rows * factors.width).sum())? };
    let mut first = 0;
    for factors in all {
        let behind = first + factors.rows * factors.width;
        factors.run_into(stream, gate, &mut out.slice_mut(first..behind))?;
        first = behind;
    }
    Ok(out)
}

impl<T: HalfElement> GatedFactors<'_, T> {
    fn run_into(&self, stream: &Arc<CudaStream>, gate: Gate, out: &mut CudaViewMut<'_, T>) -> Result<(), DriverError> {
        let Self { input, weights: [values, gates], biases, rows, depth, width } = self;
        assert!(takes(*depth, *width), "sides of {depth} and {width}");
        assert!(
            input.len() == rows * depth && values.len() == width * depth && gates.len() == values.len(),
            "matrices of their sides"
        );
        assert!(biases.is_none_or(|biases| biases.iter().all(|bias| bias.len() == *width)), "biases for each column");
        if out.is_empty() {
            return Ok(());
        }
        let function = kernel(stream.context(), Module::Gated, &format!("gated_{}_{}", name(gate), T::NAME))?;
        let grid_dim = (rows.div_ceil(ROWS) as u32, width.div_ceil(COLUMNS) as u32, 1);
        let nothing = 0_u64;
        let [rows, depth, width] = [*rows, *depth, *width].map(|side| side as i32);
        let mut launch = stream.launch_builder(&function);
        launch.arg(*input).arg(*values).arg(*gates);
        match biases {
            Some([values, gates]) => launch.arg(*values).arg(*gates),
            None => launch.arg(&nothing).arg(&nothing),
        };
        launch.arg(out).arg(&rows).arg(&depth).arg(&width);
        let config = LaunchConfig { grid_dim, block_dim: (THREADS, 1, 1), shared_mem_bytes: 0 };
        // SAFETY: the arguments are those of `gated_*`; the lengths are checked above, and it goes by them.
        unsafe { launch.launch(config)? };
        Ok(())
    }
}

/// As `gates.cuh` has it.
pub(super) const fn name(gate: Gate) -> &'static str {
    match gate {
        Gate::Gelu => "gelu",
        Gate::GeluTanh => "gelu_tanh",
        Gate::Silu => "silu",
    }
}
