//! What follows a product or a convolution on a GPU, in one pass: bias and residual in place, GEGLU, or any gate (`cuda/epilogue.cu`).

use std::sync::Arc;

use cudarc::driver::{
    CudaFunction, CudaSlice, CudaStream, CudaView, CudaViewMut, DriverError, LaunchConfig, PushKernelArg as _,
};

use super::gated::name;
use super::modules::{Element, Module, kernel};
use crate::elementwise::Gate;

/// Of a block; `grid.cuh` counts on it.
const THREADS: u32 = 256;
/// A thread takes 16 bytes, and more where there are more of them than these blocks have threads.
const MAX_BLOCKS: usize = 1 << 16;
/// What values are moved by.
pub const PACK_BYTES: usize = 16;

/// What is added to values of (..., channels, places), or of (..., places, channels).
pub struct Addition<'a, T> {
    /// A number a channel: of all images, or of each its own.
    pub bias: &'a CudaView<'a, T>,
    /// As many as there are values.
    pub residual: Option<&'a CudaView<'a, T>>,
    pub places: usize,
    /// How many, where they are last.
    pub channels_last: Option<usize>,
}

impl<T: Element> Addition<'_, T> {
    /// Makes each value residual + (bias + value), in f32 and rounded once, as `convolution::Begin` has it on a CPU.
    ///
    /// # Errors
    /// The driver's.
    ///
    /// # Panics
    /// When `values` are not whole channels of these biases, or the residual is of another length.
    pub fn add_to(&self, stream: &Arc<CudaStream>, values: &mut CudaViewMut<'_, T>) -> Result<(), DriverError> {
        let Self { bias, residual, places, channels_last } = self;
        let count = values.len();
        let biases = bias.len();
        assert!(count.is_multiple_of((biases * places).max(1)), "{count} values of {biases} channels with {places} places");
        assert!(residual.is_none_or(|residual| residual.len() == count), "a residual for each value");
        if count == 0 {
            return Ok(());
        }
        let function = named::<T>(stream, "add_bias")?;
        let nothing = 0_u64;
        let numbers = count as i64;
        assert!(channels_last.is_none_or(|channels| channels > 0 && biases.is_multiple_of(channels)), "biases of all channels");
        let [places, biases, channels] = [*places, biases, channels_last.unwrap_or(0)].map(|side| side as i32);
        let mut launch = stream.launch_builder(&function);
        launch.arg(&mut *values).arg(*bias);
        match residual {
            Some(residual) => launch.arg(*residual),
            None => launch.arg(&nothing),
        };
        launch.arg(&numbers).arg(&places).arg(&biases).arg(&channels);
        // SAFETY: the arguments are those of `add_bias_*`; the lengths are checked above, and it goes by them.
        unsafe { launch.launch(grid::<T>(count))? };
        Ok(())
    }
}

/// GEGLU (Shazeer 2020) with the exact gelu. `both`: (rows, 2·width), values before gates, without their `bias` (2·width). Returns
/// (rows, width).
///
/// # Errors
/// The driver's.
///
/// # Panics
/// When `both` is not whole rows of values and gates.
pub fn geglu<T: Element>(
    stream: &Arc<CudaStream>,
    both: &CudaView<'_, T>,
    bias: &CudaView<'_, T>,
) -> Result<CudaSlice<T>, DriverError> {
    assert!(bias.len().is_multiple_of(2) && both.len().is_multiple_of(bias.len().max(1)), "rows of values and gates");
    // SAFETY: the kernel below writes every value.
    let out = unsafe { stream.alloc::<T>(both.len() / 2)? };
    if !out.is_empty() {
        let function = named::<T>(stream, "geglu")?;
        let rows = (both.len() / bias.len()) as i64;
        let width = (bias.len() / 2) as i32;
        let mut launch = stream.launch_builder(&function);
        launch.arg(both).arg(bias).arg(&out).arg(&rows).arg(&width);
        // SAFETY: the arguments are those of `geglu_*`, and the lengths follow from those of the slices.
        unsafe { launch.launch(grid::<T>(out.len()))? };
    }
    Ok(out)
}

/// Each value times what `gate` makes of its gate, in f32 and rounded once. Both are as long.
///
/// # Errors
/// The driver's.
///
/// # Panics
/// When they are not as long.
pub fn open<T: Element>(
    stream: &Arc<CudaStream>,
    gate: Gate,
    gates: &CudaView<'_, T>,
    values: &CudaView<'_, T>,
) -> Result<CudaSlice<T>, DriverError> {
    assert_eq!(gates.len(), values.len(), "a gate for each value");
    // SAFETY: the kernel below writes every value.
    let out = unsafe { stream.alloc::<T>(values.len())? };
    if !out.is_empty() {
        let function = named::<T>(stream, &format!("open_{}", name(gate)))?;
        let count = values.len() as i64;
        let mut launch = stream.launch_builder(&function);
        launch.arg(values).arg(gates).arg(&out).arg(&count);
        // SAFETY: the arguments are those of `open_*`, and the lengths are equal.
        unsafe { launch.launch(grid::<T>(out.len()))? };
    }
    Ok(out)
}

fn named<T: Element>(stream: &Arc<CudaStream>, name: &str) -> Result<CudaFunction, DriverError> {
    kernel(stream.context(), Module::Epilogue, &format!("{name}_{}", T::NAME))
}

/// For kernels that go over so many values by packs of 16 bytes.
pub(super) fn grid<T>(count: usize) -> LaunchConfig {
    let packs = (count * size_of::<T>()).div_ceil(PACK_BYTES);
    let blocks = packs.div_ceil(THREADS as usize).clamp(1, MAX_BLOCKS);
    LaunchConfig { grid_dim: (blocks as u32, 1, 1), block_dim: (THREADS, 1, 1), shared_mem_bytes: 0 }
}
