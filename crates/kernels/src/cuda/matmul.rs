//! Products of matrices by cuBLASLt: of 8-bit values, and of halves with what follows them, bias, gelu or residual, before anything is rounded.

use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::c_void;
use std::rc::Rc;
use std::sync::Arc;

use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys;
use cudarc::driver::sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR;
use cudarc::driver::{CudaSlice, CudaStream, CudaView, CudaViewMut, DevicePtr, DevicePtrMut, DeviceRepr, DriverError};
use half::{bf16, f16};

pub use super::descriptions::{ALIGNED_BYTES, Following};
use super::descriptions::{Description, Layout, Preference};
use super::modules::HalfElement;

/// Why there is no product.
#[derive(Debug, thiserror::Error)]
pub enum MatmulError {
    #[error(transparent)]
    Driver(#[from] DriverError),
    #[error(transparent)]
    Cublas(#[from] CublasError),
}

impl MatmulError {
    /// Whether cuBLASLt has no such product, and has written nothing: the same can be done in another way.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Cublas(error) if is_refusal(*error))
    }
}

/// Sides of a product: of a matrix (`columns` x `depth`) with the transpose of another (`rows` x `depth`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sides {
    pub rows: usize,
    pub columns: usize,
    pub depth: usize,
}

impl Sides {
    /// How many values come out.
    #[must_use]
    pub const fn output(self) -> usize {
        self.rows * self.columns
    }
}

/// Values that are multiplied with something behind the product.
pub trait Multiplied: HalfElement {
    const TYPE: sys::cudaDataType;
}

impl Multiplied for f16 {
    const TYPE: sys::cudaDataType = sys::cudaDataType_t::CUDA_R_16F;
}

impl Multiplied for bf16 {
    const TYPE: sys::cudaDataType = sys::cudaDataType_t::CUDA_R_16BF;
}

/// One of several products whose results lie behind each other.
pub struct Factors<'a, T> {
    /// (rows, depth).
    pub weight: &'a CudaView<'a, T>,
    /// (columns, depth).
    pub input: &'a CudaView<'a, T>,
    /// (rows,), where there is a bias.
    pub bias: &'a CudaView<'a, T>,
    /// (columns, rows), where there is a residual.
    pub residual: &'a CudaView<'a, T>,
    pub sides: Sides,
}

/// The same of 8-bit values (e4m3).
pub struct Fp8Factors<'a> {
    /// (rows, depth).
    pub weight: &'a CudaView<'a, u8>,
    /// (columns, depth).
    pub input: &'a CudaView<'a, u8>,
    pub sides: Sides,
    pub scaling: Option<Scaling<'a>>,
}

impl Fp8Factors<'_> {
    fn key(&self, gelu: bool) -> Key {
        let following = match (&self.scaling, gelu) {
            (None, _) => Following::Nothing,
            (Some(_), false) => Following::Bias,
            (Some(_), true) => Following::Gelu,
        };
        (sys::cudaDataType_t::CUDA_R_8F_E4M3, self.sides, following)
    }
}

/// What follows a product of 8-bit values in the same operation.
pub struct Scaling<'a> {
    /// (rows,).
    pub weight_scales: &'a CudaView<'a, f32>,
    /// (columns,).
    pub input_scales: &'a CudaView<'a, f32>,
    /// (rows,).
    pub bias: &'a CudaView<'a, bf16>,
}

/// An address in place of one that is not known yet: where cuBLASLt is asked what it has, it goes by how addresses are aligned alone (cublasLt.h,
/// `CUBLASLT_MATMUL_DESC_BIAS_POINTER`).
const AS_ALIGNED: u64 = ALIGNED_BYTES as u64;

/// What a product is asked for by: its values, sides, and what follows.
type Key = (sys::cudaDataType, Sides, Following);

/// cuBLASLt for one thread and stream.
pub struct Matmul {
    handle: sys::cublasLtHandle_t,
    workspace: CudaSlice<u8>,
    stream: Arc<CudaStream>,
    /// What cuBLASLt advised; to ask again for each would cost more than a small product does. `None`: it has no such product.
    chosen: RefCell<HashMap<Key, Option<sys::cublasLtMatmulAlgo_t>>>,
}

thread_local! {
    /// A stream by its address, which stays its own: what is kept for it keeps the stream. Captured graphs have the workspace's address in them: they
    /// must be gone before their thread ends, as an engine's are.
    static KEPT: RefCell<HashMap<usize, Rc<Matmul>>> = RefCell::default();
}

impl Matmul {
    /// This thread's.
    ///
    /// # Errors
    /// The driver's or cuBLASLt's.
    pub fn of(stream: &Arc<CudaStream>) -> Result<Rc<Self>, MatmulError> {
        KEPT.with_borrow_mut(|kept| match kept.entry(Arc::as_ptr(stream) as usize) {
            Entry::Occupied(kept) => Ok(Rc::clone(kept.get())),
            Entry::Vacant(place) => Ok(Rc::clone(place.insert(Rc::new(Self::new(stream)?)))),
        })
    }

    fn new(stream: &Arc<CudaStream>) -> Result<Self, MatmulError> {
        let workspace = stream.alloc_zeros(workspace_bytes(stream)?)?;
        let handle = result::create_handle()?;
        Ok(Self { handle, workspace, stream: Arc::clone(stream), chosen: RefCell::default() })
    }

    /// What each makes, (columns, rows), behind each other in one piece of memory. All addresses are multiples of [`ALIGNED_BYTES`], those of the results
    /// as well.
    ///
    /// # Errors
    /// The driver's, or cuBLASLt's: [a refusal](MatmulError::is_refusal) when it has no such product.
    ///
    /// # Panics
    /// When slices are not as long as their sides say.
    pub fn multiply<T: Multiplied>(&self, all: &[Factors<'_, T>], following: Following) -> Result<CudaSlice<T>, MatmulError> {
        let keys: Vec<Key> = all.iter().map(|factors| (T::TYPE, factors.sides, following)).collect();
        self.behind_each_other(&keys, |place, algorithm, out| self.multiply_into(&all[place], following, algorithm, out))
    }

    fn multiply_into<T: Multiplied>(
        &self,
        factors: &Factors<'_, T>,
        following: Following,
        algorithm: &sys::cublasLtMatmulAlgo_t,
        out: &mut CudaViewMut<'_, T>,
    ) -> Result<(), CublasError> {
        let Sides { rows, columns, depth } = factors.sides;
        assert!(factors.weight.len() == rows * depth && factors.input.len() == columns * depth, "matrices of their sides");
        assert!(!following.has_bias() || factors.bias.len() == rows, "a bias for each row");
        assert!(!following.has_residual() || factors.residual.len() == rows * columns, "a residual for each value");
        let (bias, _bias_in_use) = factors.bias.device_ptr(&self.stream);
        let description = Description::of_halves(following, bias)?;
        let layouts = layouts(T::TYPE, T::TYPE, factors.sides)?;
        let (weight, _weight_in_use) = factors.weight.device_ptr(&self.stream);
        let (input, _input_in_use) = factors.input.device_ptr(&self.stream);
        let (residual, _residual_in_use) = factors.residual.device_ptr(&self.stream);
        let (out, _out_in_use) = out.device_ptr_mut(&self.stream);
        let residual = if following.has_residual() { residual } else { out };
        // SAFETY: the matrices are as large as their layouts say (checked above), and in use until the stream is done with them.
        unsafe { self.run(&description, &layouts, algorithm, [weight, input, residual, out], following.has_residual()) }
    }

    /// What each makes, (columns, rows), bf16, behind each other in one piece of memory: the product, or with a [`Scaling`] the product times the scales of
    /// its row and its column, plus the bias, or gelu of that, rounded once. Needs a GPU that has such products (compute capability 8.9; with scales 9.0: cuBLASLt's
    /// documentation, "Outer Vector Scaling for FP8 Data Types"); sums are f32. Rows and depth are multiples of 16.
    ///
    /// # Errors
    /// As [`Self::multiply`].
    ///
    /// # Panics
    /// When slices are not as long as sides say.
    pub fn multiply_fp8(&self, all: &[Fp8Factors<'_>], gelu: bool) -> Result<CudaSlice<bf16>, MatmulError> {
        let keys: Vec<Key> = all.iter().map(|factors| factors.key(gelu)).collect();
        self.behind_each_other(&keys, |place, algorithm, out| {
            self.multiply_fp8_into(&all[place], keys[place].2, algorithm, out)
        })
    }

    fn multiply_fp8_into(
        &self,
        factors: &Fp8Factors<'_>,
        following: Following,
        algorithm: &sys::cublasLtMatmulAlgo_t,
        out: &mut CudaViewMut<'_, bf16>,
    ) -> Result<(), CublasError> {
        let Fp8Factors { weight, input, sides, scaling } = factors;
        let Sides { rows, columns, depth } = *sides;
        assert!(weight.len() == rows * depth && input.len() == columns * depth, "matrices of their sides");
        let mut addresses = [0; 3];
        let mut in_use = Vec::new();
        if let Some(Scaling { weight_scales, input_scales, bias }) = scaling {
            assert!(weight_scales.len() == rows && input_scales.len() == columns, "a scale for each row and column");
            assert_eq!(bias.len(), rows, "a bias for each row");
            let all =
                [weight_scales.device_ptr(&self.stream), input_scales.device_ptr(&self.stream), bias.device_ptr(&self.stream)];
            for (place, (address, guard)) in all.into_iter().enumerate() {
                addresses[place] = address;
                in_use.push(guard);
            }
        }
        let description = Description::of_fp8(following, addresses)?;
        let layouts = layouts(sys::cudaDataType_t::CUDA_R_8F_E4M3, sys::cudaDataType_t::CUDA_R_16BF, *sides)?;
        let (weight, _weight_in_use) = weight.device_ptr(&self.stream);
        let (input, _input_in_use) = input.device_ptr(&self.stream);
        let (out, _out_in_use) = out.device_ptr_mut(&self.stream);
        // SAFETY: the matrices are as large as their layouts say (checked above), and in use until the stream is done with them.
        let done = unsafe { self.run(&description, &layouts, algorithm, [weight, input, out, out], false) };
        drop(in_use);
        done
    }

    /// The results of products, which `multiply` writes one after the other: it gets each one's place, what cuBLASLt advised, and where it goes. Nothing
    /// is done where cuBLASLt has one of them not.
    fn behind_each_other<T: DeviceRepr>(
        &self,
        keys: &[Key],
        multiply: impl Fn(usize, &sys::cublasLtMatmulAlgo_t, &mut CudaViewMut<'_, T>) -> Result<(), CublasError>,
    ) -> Result<CudaSlice<T>, MatmulError> {
        let advised = keys.iter().map(|key| self.algorithm(*key)?.ok_or_else(|| not_supported().into()));
        let advised = advised.collect::<Result<Vec<_>, MatmulError>>()?;
        // SAFETY: the products below write every value; with a beta of 0 none is read.
        let mut out = unsafe { self.stream.alloc::<T>(keys.iter().map(|(_, sides, _)| sides.output()).sum())? };
        let mut first = 0;
        for (place, (key, algorithm)) in keys.iter().zip(&advised).enumerate() {
            let behind = first + key.1.output();
            let done = multiply(place, algorithm, &mut out.slice_mut(first..behind));
            // What it refuses though it has advised it is not asked for again.
            if done.is_err_and(is_refusal) {
                self.chosen.borrow_mut().insert(*key, None);
            }
            done?;
            first = behind;
        }
        Ok(out)
    }

    /// `addresses`: of weight, input, residual and output.
    ///
    /// # Safety
    /// They lie on the device, as large as `layouts` says, until the stream is done with them.
    unsafe fn run(
        &self,
        description: &Description,
        [weights, inputs, outputs]: &[Layout; 3],
        algorithm: &sys::cublasLtMatmulAlgo_t,
        [weight, input, residual, out]: [u64; 4],
        adds_residual: bool,
    ) -> Result<(), CublasError> {
        let (workspace, _workspace_in_use) = self.workspace.device_ptr(&self.stream);
        let alpha = 1.0_f32;
        let beta = if adds_residual { 1.0_f32 } else { 0.0 };
        // SAFETY: as the caller says; both factors are f32, as the description has it, and the workspace is as long as is said.
        unsafe {
            result::matmul(
                self.handle,
                description.0,
                std::ptr::from_ref(&alpha).cast(),
                std::ptr::from_ref(&beta).cast(),
                weight as *const c_void,
                weights.0,
                input as *const c_void,
                inputs.0,
                residual as *const c_void,
                outputs.0,
                out as *mut c_void,
                outputs.0,
                std::ptr::from_ref(algorithm),
                workspace as *mut c_void,
                self.workspace.len(),
                self.stream.cu_stream().cast(),
            )
        }
    }

    fn algorithm(&self, key: Key) -> Result<Option<sys::cublasLtMatmulAlgo_t>, MatmulError> {
        if let Some(algorithm) = self.chosen.borrow().get(&key) {
            return Ok(*algorithm);
        }
        let (values, sides, following) = key;
        let is_fp8 = values == sys::cudaDataType_t::CUDA_R_8F_E4M3;
        let description = if is_fp8 {
            Description::of_fp8(following, [AS_ALIGNED; 3])?
        } else {
            Description::of_halves(following, AS_ALIGNED)?
        };
        let output = if is_fp8 { sys::cudaDataType_t::CUDA_R_16BF } else { values };
        let [weights, inputs, outputs] = &layouts(values, output, sides)?;
        let preference = Preference::new(self.workspace.len())?;
        // SAFETY: everything handed over was made above and lives until the call returns.
        let advised = unsafe {
            let description = description.0;
            result::get_matmul_algo_heuristic(self.handle, description, weights.0, inputs.0, outputs.0, outputs.0, preference.0)
        };
        let advised = match advised {
            Ok(advised) => Some(advised.algo),
            Err(error) if is_refusal(error) => None,
            Err(error) => return Err(error.into()),
        };
        self.chosen.borrow_mut().insert(key, advised);
        Ok(advised)
    }
}

impl Drop for Matmul {
    fn drop(&mut self) {
        // SAFETY: made by `new`, and no one uses it any more.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

/// What cuBLASLt answers, at once, of what it has not: which of these it is depends on the version (cuBLAS' documentation, `cublasLtMatmul`).
fn is_refusal(CublasError(status): CublasError) -> bool {
    use sys::cublasStatus_t::{CUBLAS_STATUS_ARCH_MISMATCH, CUBLAS_STATUS_INVALID_VALUE, CUBLAS_STATUS_NOT_SUPPORTED};

    matches!(status, CUBLAS_STATUS_NOT_SUPPORTED | CUBLAS_STATUS_INVALID_VALUE | CUBLAS_STATUS_ARCH_MISMATCH)
}

fn not_supported() -> CublasError {
    CublasError(sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED)
}

/// As NVIDIA recommends by generation (cuBLAS' documentation, `cublasSetWorkspace`).
fn workspace_bytes(stream: &CudaStream) -> Result<usize, DriverError> {
    const MIB: usize = 1 << 20;
    Ok(match stream.context().attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)? {
        ..=8 => 4 * MIB,
        9..=11 => 32 * MIB,
        _ => 12 * MIB,
    })
}

/// In cuBLAS' order, columns first: out (rows, columns) = weight (depth, rows)ᵀ · input (depth, columns).
fn layouts(values: sys::cudaDataType, output: sys::cudaDataType, sides: Sides) -> Result<[Layout; 3], CublasError> {
    let Sides { rows, columns, depth } = sides;
    Ok([Layout::new(values, depth, rows)?, Layout::new(values, depth, columns)?, Layout::new(output, rows, columns)?])
}
