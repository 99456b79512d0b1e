//! What cuBLASLt is told of a product: its matrices, what follows it, and what it may use.

use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys;
use cudarc::cublaslt::sys::cublasLtMatmulDescAttributes_t::{
    CUBLASLT_MATMUL_DESC_A_SCALE_MODE, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, CUBLASLT_MATMUL_DESC_B_SCALE_MODE,
    CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, CUBLASLT_MATMUL_DESC_BIAS_POINTER, CUBLASLT_MATMUL_DESC_EPILOGUE,
    CUBLASLT_MATMUL_DESC_FAST_ACCUM, CUBLASLT_MATMUL_DESC_TRANSA,
};
use cudarc::cublaslt::sys::cublasLtMatmulPreferenceAttributes_t::{
    CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
};

/// What all addresses are multiples of, in bytes.
pub const ALIGNED_BYTES: usize = 16;

/// What follows a product, in f32: gelu(product + bias), or residual + product + bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Following {
    Nothing,
    Bias,
    /// With the bias before it; the one with tanh (Hendrycks and Gimpel 2016).
    Gelu,
    Residual,
    BiasAndResidual,
}

impl Following {
    pub(super) const fn has_bias(self) -> bool {
        matches!(self, Self::Bias | Self::Gelu | Self::BiasAndResidual)
    }

    pub(super) const fn has_residual(self) -> bool {
        matches!(self, Self::Residual | Self::BiasAndResidual)
    }

    const fn epilogue(self) -> sys::cublasLtEpilogue_t {
        match self {
            Self::Nothing | Self::Residual => sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_DEFAULT,
            Self::Bias | Self::BiasAndResidual => sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS,
            Self::Gelu => sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_GELU_BIAS,
        }
    }
}

/// A matrix in cuBLAS' order, without gaps.
pub(super) struct Layout(pub(super) sys::cublasLtMatrixLayout_t);

impl Layout {
    pub(super) fn new(values: sys::cudaDataType, rows: usize, columns: usize) -> Result<Self, CublasError> {
        result::create_matrix_layout(values, rows as u64, columns as u64, rows as i64).map(Self)
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: made by `new`, and no one uses it any more.
        let _ = unsafe { result::destroy_matrix_layout(self.0) };
    }
}

/// The transpose of the first matrix times the second: the only order that 8-bit values are multiplied in.
pub(super) struct Description(pub(super) sys::cublasLtMatmulDesc_t);

impl Description {
    fn new() -> Result<Self, CublasError> {
        let sums = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let factors = sys::cudaDataType_t::CUDA_R_32F;
        let description = Self(result::create_matmul_desc(sums, factors)?);
        // `CUBLAS_OP_T`, which cudarc has with cuBLAS alone.
        description.set(CUBLASLT_MATMUL_DESC_TRANSA, &1_i32)?;
        Ok(description)
    }

    /// Addresses: the scales of weight and input, and the bias, where something follows.
    pub(super) fn of_fp8(following: Following, [weight_scales, input_scales, bias]: [u64; 3]) -> Result<Self, CublasError> {
        let description = Self::of_halves(following, bias)?;
        // Hopper sums 8-bit products twice as fast where not every partial sum is brought to f32, as LightX2V's kernels do.
        description.set(CUBLASLT_MATMUL_DESC_FAST_ACCUM, &1_i8)?;
        if following != Following::Nothing {
            let by_row_and_column = sys::cublasLtMatmulMatrixScale_t::CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F as i32;
            description.set(CUBLASLT_MATMUL_DESC_A_SCALE_MODE, &by_row_and_column)?;
            description.set(CUBLASLT_MATMUL_DESC_B_SCALE_MODE, &by_row_and_column)?;
            description.set(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, &weight_scales)?;
            description.set(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, &input_scales)?;
        }
        Ok(description)
    }

    /// `bias`: an address, where there is one.
    pub(super) fn of_halves(following: Following, bias: u64) -> Result<Self, CublasError> {
        let description = Self::new()?;
        let epilogue = following.epilogue() as u32;
        description.set(CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue)?;
        if following.has_bias() {
            description.set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias)?;
        }
        Ok(description)
    }

    /// The value is of the attribute's own type (cublasLt.h, `cublasLtMatmulDescAttributes_t`).
    fn set<T>(&self, attribute: sys::cublasLtMatmulDescAttributes_t, value: &T) -> Result<(), CublasError> {
        // SAFETY: cuBLASLt refuses a size that is not the attribute's, and copies the value.
        unsafe { result::set_matmul_desc_attribute(self.0, attribute, std::ptr::from_ref(value).cast(), size_of::<T>()) }
    }
}

impl Drop for Description {
    fn drop(&mut self) {
        // SAFETY: made by `new`, and no one uses it any more.
        let _ = unsafe { result::destroy_matmul_desc(self.0) };
    }
}

pub(super) struct Preference(pub(super) sys::cublasLtMatmulPreference_t);

impl Preference {
    pub(super) fn new(workspace_bytes: usize) -> Result<Self, CublasError> {
        let preference = Self(result::create_matmul_pref()?);
        preference.set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace_bytes)?;
        // Parts of a sum would be rounded to the output's format before they are added up.
        let in_f32 = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
        preference.set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &in_f32)?;
        // It would count on 256 bytes.
        for attribute in [
            CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
            CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
            CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
            CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
        ] {
            preference.set(attribute, &(ALIGNED_BYTES as u32))?;
        }
        Ok(preference)
    }

    /// The value is of the attribute's own type (cublasLt.h, `cublasLtMatmulPreferenceAttributes_t`).
    fn set<T>(&self, attribute: sys::cublasLtMatmulPreferenceAttributes_t, value: &T) -> Result<(), CublasError> {
        // SAFETY: cuBLASLt refuses a size that is not the attribute's, and copies the value.
        unsafe { result::set_matmul_pref_attribute(self.0, attribute, std::ptr::from_ref(value).cast(), size_of::<T>()) }
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: made by `new`, and no one uses it any more.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}
