//! CUDA's runtime for kernels that are machine code, of which candle-kernels has some for formats that nothing here uses.
//!
//! They register when the process starts. Here they register nowhere, and whoever calls one hears that it is not supported: so the linker needs no
//! library of the runtime. Flash attention of candle's is machine code as well, and needs the real one (the feature `cudart`).

use std::ffi::{c_char, c_int, c_void};

/// `cudaErrorNotSupported`.
const NOT_SUPPORTED: c_int = 801;

macro_rules! nothing {
    ($result:ty, $value:expr, $($name:ident)*) => {
        $(
            // SAFETY: the name is the runtime's; the arguments are not looked at.
            #[unsafe(no_mangle)]
            extern "C" fn $name() -> $result {
                $value
            }
        )*
    };
}

nothing! { *mut c_void, std::ptr::null_mut(), __cudaRegisterFatBinary __cudaRegisterFatBinaryEnd __cudaRegisterFunction __cudaRegisterVar
__cudaUnregisterFatBinary }
nothing! { c_int, NOT_SUPPORTED, __cudaGetKernel __cudaLaunchKernel_ptsz __cudaPopCallConfiguration __cudaPushCallConfiguration
cudaDeviceGetAttribute cudaFree cudaFreeAsync_ptsz cudaFuncGetAttributes cudaFuncSetAttribute cudaGetDevice cudaGetDeviceCount
cudaGetLastError cudaMalloc cudaMallocAsync_ptsz cudaMemsetAsync_ptsz cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags
cudaPeekAtLastError cudaSetDevice cudaStreamSynchronize_ptsz }
nothing! { *const c_char, c"not supported by this build".as_ptr(), cudaGetErrorName cudaGetErrorString }
