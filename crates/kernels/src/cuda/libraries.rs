//! NVIDIA's libraries, loaded when a GPU is opened and not when the process starts: without them `--version`, `doctor` and `host` still work.
//!
//! candle links them as shared libraries, so a process would end in the dynamic linker where one is missing. This module defines every function of
//! theirs that the program calls, so the linker needs none of them. Each definition jumps to the function in the library that [`load`] has opened.

use std::ffi::{c_int, c_uint, c_void};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, Ordering};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

/// A function of a library, and where it is once that is loaded.
struct Function {
    name: &'static str,
    address: &'static AtomicPtr<c_void>,
}

/// A shared library, and what is called of it.
struct SharedLibrary {
    file: &'static str,
    /// Where it comes from.
    package: &'static str,
    functions: &'static [Function],
}

/// Defines, for each function of a library, one of the same name that jumps to it. Those after `watched` are defined in [`super::arena`], which
/// looks at what is asked for before it goes on to the library's.
macro_rules! shared_library {
    ($table:ident, $file:literal, $package:literal, $($name:ident)* $(; watched $($watched:ident)*)?) => {
        $(
            #[expect(non_snake_case, reason = "NVIDIA's names")]
            mod $name {
                use std::ffi::c_void;
                use std::sync::atomic::AtomicPtr;

                pub(super) static ADDRESS: AtomicPtr<c_void> = AtomicPtr::new(super::not_loaded as *mut c_void);

                // SAFETY: the name is NVIDIA's, and what is defined here is that function: arguments and result stay in their registers.
                #[unsafe(no_mangle)]
                #[unsafe(naked)]
                pub(super) extern "C" fn $name() {
                    std::arch::naked_asm!("jmp qword ptr [rip + {address}]", address = sym ADDRESS)
                }
            }
        )*
        $($(
            #[expect(non_snake_case, reason = "NVIDIA's names")]
            pub(super) mod $watched {
                use std::ffi::c_void;
                use std::sync::atomic::AtomicPtr;

                pub(in super::super) static ADDRESS: AtomicPtr<c_void> = AtomicPtr::new(super::not_loaded as *mut c_void);
            }
        )*)?
        static $table: SharedLibrary = SharedLibrary {
            file: $file,
            package: $package,
            functions: &[
                $(Function { name: stringify!($name), address: &$name::ADDRESS },)*
                $($(Function { name: stringify!($watched), address: &$watched::ADDRESS },)*)?
            ],
        };
    };
}

shared_library! { CUDA_DRIVER, "libcuda.so.1", "NVIDIA's driver",
        cuCtxDestroy_v2 cuCtxGetCurrent cuCtxSetCurrent cuCtxSynchronize cuDeviceGet cuDeviceGetAttribute
        cuDeviceGetDefaultMemPool cuDevicePrimaryCtxRelease_v2 cuDevicePrimaryCtxRetain cuEventCreate cuEventDestroy_v2
        cuEventRecord cuEventSynchronize cuGetErrorString cuGraphDestroy cuGraphExecDestroy cuGraphInstantiateWithFlags cuGraphLaunch
        cuGraphUpload cuLaunchKernel cuMemAlloc_v2 cuMemFreeHost cuMemHostAlloc cuMemFree_v2 cuMemPoolSetAttribute
        cuMemcpyDtoDAsync_v2 cuMemcpyPeerAsync cuMemsetD8Async cuModuleGetFunction cuModuleLoad cuModuleLoadData cuModuleUnload
        cuStreamBeginCapture_v2 cuStreamCreate cuStreamDestroy_v2 cuStreamEndCapture cuStreamIsCapturing cuStreamSynchronize
        cuStreamWaitEvent
        ; watched cuMemAllocAsync cuMemFreeAsync cuMemcpyHtoDAsync_v2 cuMemcpyDtoHAsync_v2
}
shared_library! { CUBLAS, "libcublas.so.13", "CUDA 13",
        cublasCreate_v2 cublasDestroy_v2 cublasDgemmStridedBatched cublasGemmStridedBatchedEx cublasSetStream_v2
}
shared_library! { CUBLAS_LT, "libcublasLt.so.13", "CUDA 13",
        cublasLtCreate cublasLtDestroy cublasLtMatmul cublasLtMatmulAlgoGetHeuristic cublasLtMatmulDescCreate
        cublasLtMatmulDescDestroy cublasLtMatmulDescSetAttribute cublasLtMatmulPreferenceCreate
        cublasLtMatmulPreferenceDestroy cublasLtMatmulPreferenceSetAttribute cublasLtMatrixLayoutCreate
        cublasLtMatrixLayoutDestroy
}
shared_library! { CUDNN, "libcudnn.so.9", "cuDNN 9",
        cudnnConvolutionBiasActivationForward cudnnConvolutionForward cudnnCreate cudnnCreateActivationDescriptor
        cudnnCreateConvolutionDescriptor cudnnCreateFilterDescriptor cudnnCreateTensorDescriptor cudnnDestroy
        cudnnDestroyActivationDescriptor cudnnDestroyConvolutionDescriptor cudnnDestroyFilterDescriptor
        cudnnDestroyTensorDescriptor cudnnGetConvolutionForwardAlgorithm_v7 cudnnGetConvolutionForwardWorkspaceSize
        cudnnSetActivationDescriptor cudnnSetConvolution2dDescriptor cudnnSetConvolutionMathType cudnnSetFilter4dDescriptor cudnnSetStream cudnnSetTensor4dDescriptor
        cudnnSetTensor4dDescriptorEx
}
shared_library! { CURAND, "libcurand.so.10", "CUDA 13",
        curandCreateGenerator curandDestroyGenerator curandGenerateNormal curandGenerateNormalDouble
        curandGenerateUniform curandGenerateUniformDouble curandSetPseudoRandomGeneratorSeed curandSetStream
}

/// In the order that they are needed in: cuBLAS needs cuBLASLt.
static LIBRARIES: [&SharedLibrary; 5] = [&CUDA_DRIVER, &CUBLAS_LT, &CUBLAS, &CURAND, &CUDNN];

/// Opens NVIDIA's libraries, once.
///
/// # Errors
/// Which one cannot be opened, why, and where it comes from.
pub fn load() -> Result<(), &'static str> {
    static LOADED: OnceLock<Result<(), String>> = OnceLock::new();
    LOADED.get_or_init(|| LIBRARIES.iter().try_for_each(|library| library.open())).as_ref().copied().map_err(String::as_str)
}

impl SharedLibrary {
    fn open(&self) -> Result<(), String> {
        // Global, for NVIDIA's libraries look for each other's functions.
        // SAFETY: NVIDIA's libraries may be loaded at any time; a library of this name is NVIDIA's, or stands in for it.
        let library = unsafe { Library::open(Some(self.file), RTLD_NOW | RTLD_GLOBAL) }.map_err(|error| {
            let Self { file, package, .. } = self;
            format!("{file} of {package} cannot be loaded ({error}): install it, or set LD_LIBRARY_PATH to where it is")
        })?;
        for function in self.functions {
            // One that an older library lacks keeps `not_loaded`, which says so when it is called.
            // SAFETY: its address is all that is read of it.
            if let Ok(found) = unsafe { library.get::<*mut c_void>(function.name.as_bytes()) } {
                function.address.store(found.as_raw_ptr(), Ordering::Release);
            }
        }
        // Its functions are called until the process ends.
        std::mem::forget(library);
        Ok(())
    }
}

/// Where a function jumps to that no loaded library has.
extern "C" fn not_loaded() -> ! {
    #[expect(clippy::print_stderr, reason = "there is no way back: it was called as a function that returns something")]
    {
        eprintln!("a function of NVIDIA's libraries was called that is not loaded: they are too old, or no GPU was opened");
    }
    std::process::abort()
}

/// The first function of the driver that anybody calls: loads all of them.
// SAFETY: the name is the driver's, and so are arguments and result.
#[unsafe(no_mangle)]
extern "C" fn cuInit(flags: c_uint) -> c_int {
    /// `CUDA_ERROR_SHARED_OBJECT_INIT_FAILED`.
    const NOT_LOADED: c_int = 303;
    type Init = extern "C" fn(c_uint) -> c_int;
    if load().is_err() {
        return NOT_LOADED;
    }
    // SAFETY: the library is loaded already, and this is its function of that name and type.
    let init = unsafe {
        let library = Library::open(Some(CUDA_DRIVER.file), RTLD_NOW);
        library.and_then(|library| library.get::<Init>(b"cuInit").map(|init| *init))
    };
    init.map_or(NOT_LOADED, |init| init(flags))
}
