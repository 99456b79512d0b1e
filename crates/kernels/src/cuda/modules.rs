//! Our kernels in PTX, loaded once for each context.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::{CudaContext, CudaFunction, CudaModule, DeviceRepr, DriverError};
use cudarc::nvrtc::Ptx;
use half::{bf16, f16};

/// The CUDA version whose PTX the kernels are, ours and candle's, 13.0 as (13, 0): a driver that knows only older ones cannot load them.
///
/// # Panics
/// Never: the build script has read it.
#[must_use]
pub fn cuda_version() -> (u32, u32) {
    let parts = env!("ATELIER_CUDA_VERSION").split_once('.');
    let number = |text: &str| text.parse().expect("nvcc's version has numbers");
    parts.map(|(major, minor)| (number(major), number(minor))).expect("nvcc's version has two numbers")
}

/// Values that kernels read and write.
pub trait Element: DeviceRepr {
    /// As the kernels' names end.
    const NAME: &'static str;
}

impl Element for f32 {
    const NAME: &'static str = "f32";
}

impl Element for f16 {
    const NAME: &'static str = "f16";
}

impl Element for bf16 {
    const NAME: &'static str = "bf16";
}

/// Values that tensor cores multiply.
pub trait HalfElement: Element {}

impl HalfElement for f16 {}
impl HalfElement for bf16 {}

/// A file of `cuda/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Module {
    ChannelsLast,
    Epilogue,
    /// Of heads of this width.
    Flash(usize),
    Fp8,
    Gated,
    Gguf,
    GroupNorm,
    Modulation,
    NormRope,
}

macro_rules! flash {
    ($given:expr, $($width:literal)*) => {
        match $given {
            $($width => include_str!(concat!(env!("OUT_DIR"), "/flash_", $width, ".ptx")),)*
            _ => panic!("there is no kernel for heads of this width"),
        }
    };
}

impl Module {
    const fn ptx(self) -> &'static str {
        match self {
            Self::ChannelsLast => include_str!(concat!(env!("OUT_DIR"), "/channels_last.ptx")),
            Self::Epilogue => include_str!(concat!(env!("OUT_DIR"), "/epilogue.ptx")),
            Self::Flash(width) => flash!(width, 16 32 40 64 80 96 128 160),
            Self::Gated => include_str!(concat!(env!("OUT_DIR"), "/gated.ptx")),
            Self::Gguf => include_str!(concat!(env!("OUT_DIR"), "/gguf.ptx")),
            Self::GroupNorm => include_str!(concat!(env!("OUT_DIR"), "/group_norm.ptx")),
            Self::Modulation => include_str!(concat!(env!("OUT_DIR"), "/modulation.ptx")),
            Self::NormRope => include_str!(concat!(env!("OUT_DIR"), "/norm_rope.ptx")),
            Self::Fp8 => include_str!(concat!(env!("OUT_DIR"), "/fp8.ptx")),
        }
    }
}

/// A context by its address, which stays its own: every loaded module keeps its context.
type Loaded = HashMap<(usize, Module), Arc<CudaModule>>;

static LOADED: Mutex<Option<Loaded>> = Mutex::new(None);

/// # Errors
/// The driver's, when it cannot translate the module or the module has no such kernel.
pub(super) fn kernel(context: &Arc<CudaContext>, module: Module, name: &str) -> Result<CudaFunction, DriverError> {
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    let loaded = loaded.get_or_insert_default();
    let key = (Arc::as_ptr(context) as usize, module);
    let module = match loaded.get(&key) {
        Some(module) => module,
        None => loaded.entry(key).or_insert(context.load_module(Ptx::from_src(module.ptx()))?),
    };
    module.load_function(name)
}
