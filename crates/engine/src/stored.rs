//! A tensor in its file, read piece by piece and converted on its way.

use bytemuck::Pod;
use candle_core::{DType, Device, Tensor, WithDType};
use half::slice::HalfFloatSliceExt as _;
use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::TensorInfo;

use super::EngineError;
use super::tensor_file::TensorFile;

/// Values that a thread reads at once. In f32 256 KiB: still in the processor's cache when they are moved on to the tensor. To read straight
/// into the tensor is no faster, for its memory would have to be zeroed first.
const PIECE: usize = 64 << 10;

/// A tensor in its file.
pub(super) struct Stored<'a> {
    pub(super) file: &'a TensorFile,
    pub(super) info: &'a TensorInfo,
}

impl Stored<'_> {
    /// How many values it has.
    pub(super) fn count(&self) -> usize {
        self.info.shape.iter().product()
    }

    /// What is wrong with a format that weights do not come in.
    pub(super) fn unsupported(&self) -> EngineError {
        self.wrong(format!("has a tensor as {:?}; supported are F32, F16 and BF16", self.info.dtype))
    }

    /// Reads it, in the format `dtype`, to the CPU.
    ///
    /// # Errors
    /// [`EngineError::Checkpoint`] when it cannot be read, or has a format that weights do not come in.
    pub(super) fn read(&self, dtype: DType) -> Result<Tensor, EngineError> {
        match dtype {
            DType::F16 => self.read_as::<f16>(),
            DType::BF16 => self.read_as::<bf16>(),
            DType::F32 => self.read_as::<f32>(),
            other => Err(self.wrong(format!("is to be kept as {other:?}; supported are F32, F16 and BF16"))),
        }
    }

    fn read_as<T: Number>(&self) -> Result<Tensor, EngineError> {
        let values = match self.info.dtype {
            Dtype::F16 => self.converted::<f16, T>(),
            Dtype::BF16 => self.converted::<bf16, T>(),
            Dtype::F32 => self.converted::<f32, T>(),
            _ => Err(self.unsupported()),
        };
        Ok(Tensor::from_vec(values?, self.info.shape.as_slice(), &Device::Cpu)?)
    }

    fn converted<S: Number, T: Number>(&self) -> Result<Vec<T>, EngineError> {
        let count = self.count();
        let mut piece = vec![S::zeroed(); PIECE.min(count)];
        let mut wide = vec![0.0; piece.len()];
        let mut values = Vec::with_capacity(count);
        while values.len() < count {
            let done = values.len();
            let piece = &mut piece[..PIECE.min(count - done)];
            self.file.read_at(self.info, done * size_of::<S>(), bytemuck::cast_slice_mut(piece))?;
            if S::DTYPE == T::DTYPE {
                values.extend_from_slice(bytemuck::cast_slice(piece));
            } else {
                let wide = &mut wide[..piece.len()];
                S::widen(piece, wide);
                values.resize(done + wide.len(), T::zeroed());
                T::narrow(wide, &mut values[done..]);
            }
        }
        Ok(values)
    }

    fn wrong(&self, problem: String) -> EngineError {
        EngineError::Checkpoint { path: self.file.path().to_owned(), problem }
    }
}

/// What weights are made of; slices have one length.
trait Number: Pod + WithDType {
    fn widen(from: &[Self], into: &mut [f32]);
    /// To the nearest, as candle does it.
    fn narrow(from: &[f32], into: &mut [Self]);
}

impl Number for f32 {
    fn widen(from: &[Self], into: &mut [f32]) {
        into.copy_from_slice(from);
    }

    fn narrow(from: &[f32], into: &mut [Self]) {
        into.copy_from_slice(from);
    }
}

impl Number for f16 {
    fn widen(from: &[Self], into: &mut [f32]) {
        from.convert_to_f32_slice(into);
    }

    fn narrow(from: &[f32], into: &mut [Self]) {
        into.convert_from_f32_slice(from);
    }
}

impl Number for bf16 {
    fn widen(from: &[Self], into: &mut [f32]) {
        from.convert_to_f32_slice(into);
    }

    fn narrow(from: &[f32], into: &mut [Self]) {
        into.convert_from_f32_slice(from);
    }
}
