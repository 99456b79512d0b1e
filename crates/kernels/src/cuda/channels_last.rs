//! What joins and enlarges images on a GPU whose channels are last (`cuda/channels_last.cu`).

use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, CudaView, DeviceRepr, DriverError, PushKernelArg as _};

use super::epilogue::{PACK_BYTES, grid};
use super::modules::{Module, kernel};

/// The rows of both, one behind the other: (rows, `first_width`) and (rows, `second_width`) to (rows, `first_width` + `second_width`).
///
/// # Errors
/// The driver's.
///
/// # Panics
/// When the slices are not as many rows of these widths, or a row is not whole packs of [`PACK_BYTES`].
pub fn joined<T: DeviceRepr>(
    stream: &Arc<CudaStream>,
    [first, second]: [&CudaView<'_, T>; 2],
    [first_width, second_width]: [usize; 2],
) -> Result<CudaSlice<T>, DriverError> {
    let rows = first.len() / first_width.max(1);
    assert!(first.len() == rows * first_width && second.len() == rows * second_width, "rows of both");
    // SAFETY: the kernel below writes every value.
    let out = unsafe { stream.alloc::<T>(first.len() + second.len())? };
    let [first_packs, second_packs] = [first_width, second_width].map(packs::<T>);
    if !out.is_empty() {
        let function = kernel(stream.context(), Module::ChannelsLast, "join_last")?;
        let rows = rows as i64;
        let mut launch = stream.launch_builder(&function);
        launch.arg(first).arg(second).arg(&out).arg(&rows).arg(&first_packs).arg(&second_packs);
        // SAFETY: the arguments are those of `join_last`; the lengths are checked above, and it goes by them.
        unsafe { launch.launch(grid::<T>(out.len()))? };
    }
    Ok(out)
}

/// Images of twice the height and width by their nearest neighbours: (batch, height, width, channels) to (batch, 2·height, 2·width, channels).
///
/// # Errors
/// The driver's.
///
/// # Panics
/// When the slice has another length, or a place is not whole packs of [`PACK_BYTES`].
pub fn doubled<T: DeviceRepr>(
    stream: &Arc<CudaStream>,
    images: &CudaView<'_, T>,
    [batch, height, width, channels]: [usize; 4],
) -> Result<CudaSlice<T>, DriverError> {
    assert_eq!(images.len(), batch * height * width * channels);
    // SAFETY: the kernel below writes every value.
    let out = unsafe { stream.alloc::<T>(4 * images.len())? };
    let packs = packs::<T>(channels);
    if !out.is_empty() {
        let function = kernel(stream.context(), Module::ChannelsLast, "double_last")?;
        let rows = (2 * batch * height) as i64;
        let width = width as i32;
        let mut launch = stream.launch_builder(&function);
        launch.arg(images).arg(&out).arg(&rows).arg(&width).arg(&packs);
        // SAFETY: the arguments are those of `double_last`; the length is checked above, and it goes by it.
        unsafe { launch.launch(grid::<T>(out.len()))? };
    }
    Ok(out)
}

fn packs<T>(width: usize) -> i32 {
    let bytes = width * size_of::<T>();
    assert!(bytes.is_multiple_of(PACK_BYTES), "{bytes} bytes are no whole packs");
    (bytes / PACK_BYTES) as i32
}
