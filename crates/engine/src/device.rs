//! Opens the device that generates; what depends on the build, but for the way of weights to a GPU (`loader.rs`), is here.

#[cfg(feature = "cuda")]
mod captured;
#[cfg(feature = "cuda")]
mod channels_last;
#[cfg(feature = "cuda")]
mod convolution;
#[cfg(not(feature = "cuda"))]
mod elsewhere;
#[cfg(feature = "cuda")]
mod epilogue;
#[cfg(feature = "cuda")]
mod fp8;
#[cfg(feature = "cuda")]
mod gated;
#[cfg(feature = "cuda")]
mod gguf;
#[cfg(feature = "cuda")]
mod matmul;
mod memory_order;
#[cfg(feature = "cuda")]
mod modulation;
#[cfg(feature = "cuda")]
mod norm_rope;
#[cfg(feature = "cuda")]
mod own_kernels;

#[cfg(feature = "cuda")]
use std::collections::BTreeSet;
use std::sync::Arc;
#[cfg(feature = "cuda")]
use std::sync::{Mutex, PoisonError};

use atelier_kernels::gguf::BlockFormat;
use candle_core::{DType, Device, Result, Tensor};

#[cfg(feature = "cuda")]
pub(super) use self::channels_last::{doubled_last, joined_last};
#[cfg(feature = "cuda")]
pub(super) use self::convolution::convolution;
#[cfg(not(feature = "cuda"))]
pub(super) use self::elsewhere::{
    add_bias, add_gated, add_gated_modulate, convolution, doubled_last, gated, geglu, joined_last, layer_norm, linear,
    linear_gelu, linears_joined, modulate, norm_rope, opened,
};
#[cfg(feature = "cuda")]
pub(super) use self::epilogue::{add_bias, geglu, opened};
#[cfg(feature = "cuda")]
pub(super) use self::gated::gated;
#[cfg(feature = "cuda")]
pub(super) use self::matmul::{linear, linear_gelu, linears_joined};
pub(super) use self::memory_order::{
    CHANNELS_TOGETHER, convolves_channels_last, fill, is_best_channels_last, is_channels_last, to_channels_last,
    with_channels_first, with_channels_last,
};
#[cfg(feature = "cuda")]
pub(super) use self::modulation::{add_gated, add_gated_modulate, layer_norm, modulate};
#[cfg(feature = "cuda")]
pub(super) use self::norm_rope::norm_rope;
use super::EngineError;

/// Which GPUs a build is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Build {
    Cpu,
    Cuda {
        /// What the kernels were compiled for; none where the compiler asked the machine that built.
        architecture: Option<Architecture>,
        /// The CUDA version whose PTX the kernels are, such as (13, 0): drivers that know only older ones cannot load them.
        cuda: (u32, u32),
        /// Whether it has flash attention, which is machine code: it runs on GPUs of the same first number only (8.0 on 8.9, not on 9.0).
        flash_attention: bool,
    },
}

/// A GPU architecture that kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Architecture {
    /// Compute capability, 8.0 as (8, 0).
    pub compute: (u32, u32),
    pub reach: Reach,
}

/// Which GPUs kernels run on (CUDA programming guide, "Compute Capabilities", feature sets).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Those of the architecture and all newer ones: drivers translate for them.
    Newer,
    /// Those with the same first number that are no older (`sm_121f`).
    Family,
    /// Those of this architecture alone (`sm_90a`).
    Alone,
}

impl Architecture {
    /// Reads `CUDA_COMPUTE_CAP` as candle's build does (`cudaforge`'s `GpuArch::parse`): from 9.0 on it takes what one architecture alone has,
    /// whether or not that was asked for.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim().to_ascii_lowercase();
        let text = text.strip_prefix("sm_").unwrap_or(&text);
        let number: u32 = text.trim_end_matches(['a', 'f']).parse().ok()?;
        let number = if number < 20 { number * 10 } else { number };
        let reach = match text.as_bytes().last()? {
            b'a' => Reach::Alone,
            b'f' => Reach::Family,
            _ if number > 120 => Reach::Family,
            _ if number >= 90 => Reach::Alone,
            _ => Reach::Newer,
        };
        Some(Self { compute: (number / 10, number % 10), reach })
    }

    /// Whether kernels for it run on a GPU of this compute capability.
    #[must_use]
    pub fn runs_on(self, gpu: (u32, u32)) -> bool {
        match self.reach {
            Reach::Newer => gpu >= self.compute,
            Reach::Family => gpu.0 == self.compute.0 && gpu >= self.compute,
            Reach::Alone => gpu == self.compute,
        }
    }
}

/// This build.
#[must_use]
pub fn build() -> Build {
    #[cfg(feature = "cuda")]
    let build = Build::Cuda {
        architecture: option_env!("CUDA_COMPUTE_CAP").and_then(Architecture::parse),
        cuda: atelier_kernels::cuda::modules::cuda_version(),
        flash_attention: cfg!(feature = "flash-attn"),
    };
    #[cfg(not(feature = "cuda"))]
    let build = Build::Cpu;
    build
}

/// The first GPU in a build with the feature `cuda`, the CPU in any other.
///
/// # Errors
/// When the build expects a GPU and none can be opened: generation on the CPU in its place would be a silent fallback.
pub fn open() -> std::result::Result<Device, EngineError> {
    #[cfg(feature = "cuda")]
    atelier_kernels::cuda::libraries::load().map_err(candle_core::Error::msg)?;
    #[cfg(feature = "cuda")]
    let device = one_stream(Device::new_cuda_with_stream(0)?)?;
    // Layers' results follow each other in the same memory, on either device.
    #[cfg(not(feature = "cuda"))]
    atelier_kernels::caching_allocator::turn_on();
    #[cfg(not(feature = "cuda"))]
    let device = Device::Cpu;
    Ok(device)
}

/// All threads share the device's one stream, in which everything happens in its order: nothing else has to keep tensors in order.
#[cfg(feature = "cuda")]
fn one_stream(device: Device) -> Result<Device> {
    let stream = device.as_cuda_device()?.cuda_stream();
    atelier_kernels::cuda::keep_memory(stream.context()).map_err(candle_core::Error::wrap)?;
    atelier_kernels::cuda::trust_one_stream(&stream);
    Ok(device)
}

/// What a model is kept and computed in where no one says otherwise: f16 on a GPU, f32 on a CPU, which has nothing faster.
#[must_use]
pub fn default_dtype(device: &Device) -> DType {
    if device.is_cpu() { DType::F32 } else { DType::F16 }
}

/// # Errors
/// When the device multiplies nothing in this format.
pub fn check_dtype(dtype: DType, device: &Device) -> std::result::Result<(), EngineError> {
    if device.is_cpu() && dtype == DType::BF16 {
        let problem = "is bf16, in which candle multiplies nothing on a CPU; use f32, or f16 with Stable Diffusion".into();
        return Err(EngineError::Request { field: "engine.dtype", problem });
    }
    Ok(())
}

/// Attention (softmax(query·keyᵀ/√D)·value) without a matrix of scores; all (B, tokens, heads, D). `None` where this build has no flash
/// attention, or not for these tensors.
#[cfg(feature = "flash-attn")]
pub(super) fn flash_attention(query: &Tensor, key: &Tensor, value: &Tensor, causal: bool) -> Option<Result<Tensor>> {
    /// The widest head that candle-flash-attn has kernels for.
    const WIDEST: usize = 512;
    let width = query.dim(3).ok()?;
    let is_half = matches!(query.dtype(), DType::F16 | DType::BF16);
    let fits = query.device().is_cuda() && is_half && width.is_multiple_of(8) && width <= WIDEST;
    fits.then(|| candle_flash_attn::flash_attn(query, key, value, (width as f32).sqrt().recip(), causal))
}

#[cfg(all(feature = "cuda", not(feature = "flash-attn")))]
pub(super) fn flash_attention(query: &Tensor, key: &Tensor, value: &Tensor, causal: bool) -> Option<Result<Tensor>> {
    own_kernels::attention(query, key, value, causal)
}

#[cfg(not(feature = "cuda"))]
pub(super) fn flash_attention(_: &Tensor, _: &Tensor, _: &Tensor, _: bool) -> Option<Result<Tensor>> {
    None
}

/// Group norm in one kernel, with the silu that follows it if there is one; `hidden`: (B, channels, ...). `None` where the device has no such kernel.
#[cfg(feature = "cuda")]
pub(super) fn group_norm(
    hidden: &Tensor,
    (weight, bias): (&Tensor, &Tensor),
    groups: usize,
    eps: f64,
    silu: bool,
) -> Option<Result<Tensor>> {
    let norm =
        atelier_kernels::cuda::norm::GroupNorm { groups, eps: eps as f32, silu, channels_last: is_channels_last(hidden) };
    own_kernels::group_norm(norm, hidden, weight, bias)
}

#[cfg(not(feature = "cuda"))]
pub(super) fn group_norm(_: &Tensor, _: (&Tensor, &Tensor), _: usize, _: f64, _: bool) -> Option<Result<Tensor>> {
    None
}

/// How many shapes [`keeping_uploads`] keeps uploads for: some 20 KiB of each, for as long as the process lives.
#[cfg(feature = "cuda")]
const MAX_KEPT_SHAPES: usize = 1024;

/// Does `work` over latents of `shape`. What kernels are told of tensors' sizes and strides goes to a GPU once for each shape, and stays there:
/// else it is hundreds of copies a step.
#[cfg(feature = "cuda")]
pub(super) fn keeping_uploads<R>(device: &Device, shape: &[usize], work: impl FnOnce() -> R) -> R {
    static KEPT: Mutex<BTreeSet<Vec<usize>>> = Mutex::new(BTreeSet::new());
    let Device::Cuda(cuda) = device else { return work() };
    let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    if kept.len() < MAX_KEPT_SHAPES {
        kept.insert(shape.to_vec());
    }
    let keeps = kept.contains(shape);
    drop(kept);
    let _guard = keeps.then(|| cuda.enable_cuda_graph_htod_cache());
    work()
}

#[cfg(not(feature = "cuda"))]
pub(super) fn keeping_uploads<R>(_: &Device, _: &[usize], work: impl FnOnce() -> R) -> R {
    work()
}

/// What is done to some inputs: their result, f32.
pub(super) type Step<'a> = dyn Fn(&[Tensor]) -> Result<Tensor> + 'a;

/// A step that the device was told once.
pub(super) trait Repeated: Send {
    /// What the step makes of `inputs`, which have the shapes and formats of the first ones. At most one step before it is still under way when this
    /// returns.
    fn repeat(&mut self, inputs: &[Tensor]) -> Result<Tensor>;

    /// What it keeps of the device's memory.
    fn bytes(&self) -> usize;
}

/// A step as it was done first.
pub(super) struct FirstTime {
    pub(super) output: Tensor,
    /// The same for other inputs, or why it cannot be repeated.
    pub(super) repeated: std::result::Result<Box<dyn Repeated>, String>,
}

/// Does `step`, and tells the device how to repeat it; `None` where the device has to be told each time. `has_room`: whether the latter may keep so many
/// bytes. Only for who has the device's stream alone, and within [`keeping_uploads`].
#[cfg(feature = "cuda")]
pub(super) fn first_time(
    inputs: &[Tensor],
    step: &Step<'_>,
    has_room: &mut dyn FnMut(usize) -> bool,
) -> Option<Result<FirstTime>> {
    captured::first_time(inputs, step, has_room)
}

#[cfg(not(feature = "cuda"))]
pub(super) fn first_time(_: &[Tensor], _: &Step<'_>, _: &mut dyn FnMut(usize) -> bool) -> Option<Result<FirstTime>> {
    None
}

/// What a device does with 8-bit values (e4m3).
pub(super) trait Fp8Device: Send + Sync {
    /// (T, in), f32, f16 or bf16, of which `first` tokens are one part. Returns them over a scale for each token, as e4m3. A scale brings the token's
    /// largest magnitude to 448, the largest e4m3 number; it is at least 1e-12, so a token of zeros stays one.
    fn round_tokens(&self, input: &Tensor, first: usize) -> Result<Fp8Tokens>;

    /// What each part's layer makes of it: product · scales, plus the bias, and gelu of that where it is asked for, the one with tanh. Returns
    /// (T, out) in the bias's format. It may round in between, the product to bf16 and what is scaled to that format.
    fn multiply(&self, tokens: &Fp8Tokens, layers: [Fp8Layer<'_>; 2], gelu: bool) -> Result<Tensor>;
}

/// Tokens in 8 bits, in two parts.
pub(super) struct Fp8Tokens {
    /// (T, in), e4m3.
    pub(super) bits: Tensor,
    /// (first,), f32.
    pub(super) first_scales: Tensor,
    /// (T - first,), f32.
    pub(super) other_scales: Tensor,
}

/// A layer whose weight is in 8 bits.
#[derive(Clone, Copy)]
pub(super) struct Fp8Layer<'a> {
    /// (out, in), e4m3.
    pub(super) bits: &'a Tensor,
    /// What the products are multiplied by: (out,) or (1,), f32.
    pub(super) scale: &'a Tensor,
    /// (out,).
    pub(super) bias: &'a Tensor,
}

/// What the device does with 8-bit values, `in_one`: with all that follows in the product, where it has that. None on a CPU.
#[cfg(feature = "cuda")]
pub(super) fn fp8_device(device: &Device, in_one: bool) -> Option<Arc<dyn Fp8Device>> {
    let Device::Cuda(cuda) = device else { return None };
    Some(Arc::new(fp8::Gpu::open(cuda, in_one)))
}

#[cfg(not(feature = "cuda"))]
pub(super) fn fp8_device(_: &Device, _: bool) -> Option<Arc<dyn Fp8Device>> {
    None
}

/// Any tensor in the format `dtype`, those of 8-bit values on a GPU as well, for which candle has no cast that works (candle#3886).
pub(super) fn widened(tensor: &Tensor, dtype: DType) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(cuda) = tensor.device()
        && tensor.dtype() == DType::F8E4M3
    {
        return fp8::widened(cuda, &tensor.contiguous()?, dtype);
    }
    tensor.to_dtype(dtype)
}

/// Weights in `blocks` of a GPU, (out, bytes of a row), u8, made whole: (out, in), in the format `dtype`. `None` where they are not on one.
#[cfg(feature = "cuda")]
pub(super) fn unpacked(blocks: &Tensor, format: BlockFormat, dtype: DType) -> Option<Result<Tensor>> {
    let Device::Cuda(cuda) = blocks.device() else { return None };
    Some(gguf::unpacked(cuda, blocks, format, dtype))
}

#[cfg(not(feature = "cuda"))]
pub(super) fn unpacked(_: &Tensor, _: BlockFormat, _: DType) -> Option<Result<Tensor>> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn from_9_0_on_kernels_are_for_one_architecture() {
        let runs = |built: &str, gpu| Architecture::parse(built).expect("an architecture").runs_on(gpu);
        assert!(runs("80", (8, 0)) && runs("80", (8, 9)) && runs("8", (9, 0)) && runs("89", (12, 0)));
        assert!(!runs("80", (7, 5)) && !runs("89", (8, 6)));
        assert!(runs("90", (9, 0)) && runs("sm_90a", (9, 0)) && !runs("90", (10, 0)) && !runs("90", (8, 9)));
        assert!(runs("120", (12, 0)) && !runs("120", (12, 1)));
        assert!(runs("121", (12, 1)) && runs("100f", (10, 3)) && !runs("100f", (12, 0)) && !runs("121", (12, 0)));
        assert_eq!(Architecture::parse("hopper"), None);
    }
}
