//! Group norm on a GPU, alone or with the silu that follows it (`cuda/group_norm.cu`).

use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, CudaView, DriverError, LaunchConfig, PushKernelArg as _};

use super::epilogue::PACK_BYTES;
use super::modules::{Element, Module, kernel};

/// Of a block; `group_norm.cu` counts on it.
const THREADS: u32 = 512;
/// An image of so many bytes is normed in parts, by two kernels: one block for a group would leave most of a GPU idle for long.
const LARGE_BYTES: usize = 8 << 20;
/// Of a part, unless that would be more parts than a block can look over.
const PART_BYTES: usize = 64 << 10;
const MAX_PARTS: usize = 256;
/// Neighbouring channels that a thread takes at once, where a group has as many.
const TOGETHER: [usize; 3] = [8, 4, 2];

/// Group norm (Wu and He 2018) over (batch, channels, places), or (batch, places, channels).
#[derive(Clone, Copy, Debug)]
pub struct GroupNorm {
    pub groups: usize,
    pub eps: f32,
    /// Whether x·sigmoid(x) follows.
    pub silu: bool,
    pub channels_last: bool,
}

impl GroupNorm {
    /// `weight`, `bias`: a number a channel. Returns the shape of `input`; statistics are f32.
    ///
    /// # Errors
    /// The driver's.
    ///
    /// # Panics
    /// When the channels are not whole groups, or `input` not whole images.
    pub fn run<T: Element>(
        self,
        stream: &Arc<CudaStream>,
        input: &CudaView<'_, T>,
        (weight, bias): (&CudaView<'_, T>, &CudaView<'_, T>),
        places: usize,
    ) -> Result<CudaSlice<T>, DriverError> {
        let Self { groups, eps, silu, channels_last } = self;
        let channels = weight.len();
        assert!(bias.len() == channels && channels.is_multiple_of(groups), "{channels} channels in {groups} groups");
        assert!(input.len().is_multiple_of((channels * places).max(1)), "whole images");
        if let Some(parts) = self.parts::<T>(channels, places).filter(|_| !input.is_empty()) {
            return self.run_in_parts(stream, input, (weight, bias), places, parts);
        }
        // SAFETY: the kernel below writes every value.
        let out = unsafe { stream.alloc::<T>(input.len())? };
        if !input.is_empty() {
            let name = if channels_last { "group_norm_last" } else { "group_norm" };
            let function = kernel(stream.context(), Module::GroupNorm, &format!("{name}_{}", T::NAME))?;
            let batch = input.len() / (channels * places);
            let grid_dim = (groups as u32, batch as u32, 1);
            let [channels, groups, places] = [channels, groups, places].map(|side| side as i32);
            let silu = i32::from(silu);
            let mut launch = stream.launch_builder(&function);
            launch.arg(input).arg(weight).arg(bias).arg(&out);
            launch.arg(&channels).arg(&groups).arg(&places).arg(&eps).arg(&silu);
            let config = LaunchConfig { grid_dim, block_dim: (THREADS, 1, 1), shared_mem_bytes: 0 };
            // SAFETY: the arguments are those of `group_norm_*` and `group_norm_last_*`; the lengths are checked above, and it goes by them.
            unsafe { launch.launch(config)? };
        }
        Ok(out)
    }

    /// Into how many parts an image goes; of each group, where the channels are first. `None`: it is normed at once. The batch changes nothing.
    fn parts<T: Element>(&self, channels: usize, places: usize) -> Option<usize> {
        let bytes = channels * places * size_of::<T>();
        if bytes < LARGE_BYTES {
            return None;
        }
        let parts = (bytes / PART_BYTES).min(MAX_PARTS);
        if !self.channels_last {
            return Some(parts.div_ceil(self.groups));
        }
        // A thread has channels of one group, and each block all of them.
        let in_group = channels / self.groups;
        let together = TOGETHER.into_iter().find(|together| in_group.is_multiple_of(*together)).unwrap_or(1);
        let together = together.min(PACK_BYTES / size_of::<T>());
        let threads = THREADS as usize;
        (channels / together <= threads && self.groups <= threads && parts <= places).then_some(parts)
    }

    fn run_in_parts<T: Element>(
        self,
        stream: &Arc<CudaStream>,
        input: &CudaView<'_, T>,
        (weight, bias): (&CudaView<'_, T>, &CudaView<'_, T>),
        places: usize,
        parts: usize,
    ) -> Result<CudaSlice<T>, DriverError> {
        let Self { groups, eps, silu, channels_last } = self;
        let channels = weight.len();
        let batch = input.len() / (channels * places);
        // SAFETY: the first kernel below writes every sum, two numbers for each part, and the second every value.
        let sums = unsafe { stream.alloc::<f32>(2 * batch * groups * parts)? };
        // SAFETY: as above.
        let out = unsafe { stream.alloc::<T>(input.len())? };
        let last = if channels_last { "_last" } else { "" };
        let named = |name: &str| kernel(stream.context(), Module::GroupNorm, &format!("{name}{last}_{}", T::NAME));
        let grid_dim = if channels_last { (parts, batch, 1) } else { (parts, groups, batch) };
        let grid_dim = (grid_dim.0 as u32, grid_dim.1 as u32, grid_dim.2 as u32);
        let config = LaunchConfig { grid_dim, block_dim: (THREADS, 1, 1), shared_mem_bytes: 0 };
        let [channels, groups, places] = [channels, groups, places].map(|side| side as i32);
        let function = named("group_sums")?;
        let mut launch = stream.launch_builder(&function);
        launch.arg(input).arg(&sums).arg(&channels).arg(&groups).arg(&places);
        // SAFETY: the arguments are those of `group_sums_*`; the lengths were checked by `run`, and it goes by them.
        unsafe { launch.launch(config)? };
        let silu = i32::from(silu);
        let function = named("group_norm_part")?;
        let mut launch = stream.launch_builder(&function);
        launch.arg(input).arg(weight).arg(bias).arg(&sums).arg(&out);
        launch.arg(&channels).arg(&groups).arg(&places).arg(&eps).arg(&silu);
        // SAFETY: the arguments are those of `group_norm_part_*`, and as above.
        unsafe { launch.launch(config)? };
        Ok(out)
    }
}
