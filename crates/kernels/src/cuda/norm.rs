//! Group norm on a GPU in one kernel, alone or with the silu that follows it (`cuda/group_norm.cu`).

use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, CudaView, DriverError, LaunchConfig, PushKernelArg as _};

use super::modules::{Element, Module, kernel};

/// Of a block; `group_norm.cu` counts on it.
const THREADS: u32 = 512;

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
}
