//! A tensor in its file, read piece by piece and converted on its way.

use bytemuck::Pod;
use candle_core::{DType, Device, Tensor, WithDType};
use half::slice::HalfFloatSliceExt as _;
use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::TensorInfo;

use super::EngineError;
use super::float_formats::{E4M3, E5M2};
use super::tensor_file::TensorFile;

/// Values that a thread reads at once. In f32 256 KiB: still in the processor's cache when they are moved on to the tensor. To read straight
/// into the tensor is no faster, for its memory would have to be zeroed first.
const PIECE: usize = 64 << 10;

/// What 8-bit weights with scales have next to them, however these are stored (`ComfyUI`, `LightX2V`).
const SCALES: [&str; 4] = [".scale_weight", ".weight_scale", ".scale_input", "scaled_fp8"];

/// A tensor in its file.
pub(super) struct Stored<'a> {
    pub(super) file: &'a TensorFile,
    pub(super) info: &'a TensorInfo,
}

impl TensorFile {
    /// A tensor where it lies.
    pub(super) fn stored(&self, name: &str) -> Option<Stored<'_>> {
        Some(Stored { file: self, info: self.info(name)? })
    }
}

/// Whether weights, adapters and embeddings may be kept in this format.
pub(super) fn is_read(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::F8_E4M3 | Dtype::F8_E5M2)
}

/// What [`is_read`] allows, for messages.
pub(super) const READ_FORMATS: &str = "F64, F32, F16, BF16, F8_E4M3 and F8_E5M2";

/// Refuses 8-bit weights with scales: without these they are other weights.
///
/// # Errors
/// [`EngineError::Checkpoint`] with the name of a scale.
pub(super) fn check_scales(file: &TensorFile) -> Result<(), EngineError> {
    let mut names = file.tensors().map(|(name, _)| name);
    let scale = names.find(|name| SCALES.iter().any(|scale| name.ends_with(scale)) || scales_8_bits(file, name));
    let Some(name) = scale else { return Ok(()) };
    let problem = format!("{name} scales 8-bit weights, which is read of Qwen-Image-Edit alone; convert it to F16");
    Err(EngineError::Checkpoint { path: file.path().to_owned(), problem })
}

/// Whether its name stands next to that of an 8-bit weight, as `….weight_scale_inv` (`DeepSeek`, Qwen) or `….weight.scale`.
fn scales_8_bits(file: &TensorFile, name: &str) -> bool {
    let is_8_bits = |name: &str| file.info(name).is_some_and(|info| matches!(info.dtype, Dtype::F8_E4M3 | Dtype::F8_E5M2));
    name.rsplit_once('.')
        .is_some_and(|(module, last)| last.contains("scale") && (is_8_bits(module) || is_8_bits(&format!("{module}.weight"))))
}

/// What is wrong with a tensor of another format.
pub(super) fn unread(name: &str, dtype: Dtype) -> String {
    format!("{name} is stored as {dtype:?}; supported are {READ_FORMATS}: convert it")
}

impl Stored<'_> {
    /// How many values it has.
    pub(super) fn count(&self) -> usize {
        self.info.shape.iter().product()
    }

    /// What is wrong with a format that weights do not come in.
    pub(super) fn unsupported(&self) -> EngineError {
        self.wrong(format!("has a tensor as {:?}; supported are {READ_FORMATS}", self.info.dtype))
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

    /// Whether it holds neither NaN nor infinity as f32. Takes no more memory than a buffer, however large it is.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub(super) fn is_finite(&self) -> Result<bool, EngineError> {
        let mut finite = true;
        self.widened(|piece| finite &= piece.iter().all(|number| number.is_finite()))?;
        Ok(finite)
    }

    /// Its only element, of any format of values; none where it has several, or is no number.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(super) fn scalar(&self) -> Result<Option<f64>, EngineError> {
        let mut bytes = [0; 8];
        let (from, to) = self.info.data_offsets;
        if self.count() != 1 || to - from > bytes.len() {
            return Ok(None);
        }
        self.file.read_at(self.info, 0, &mut bytes[..to - from])?;
        let [a, b, c, d, ..] = bytes;
        Ok(match self.info.dtype {
            Dtype::F64 => Some(f64::from_le_bytes(bytes)),
            Dtype::F32 => Some(f32::from_le_bytes([a, b, c, d]).into()),
            Dtype::F16 => Some(f16::from_le_bytes([a, b]).into()),
            Dtype::BF16 => Some(bf16::from_le_bytes([a, b]).into()),
            Dtype::F8_E4M3 => Some(E4M3(a).to_f32().into()),
            Dtype::F8_E5M2 => Some(E5M2(a).to_f32().into()),
            Dtype::I64 => Some(i64::from_le_bytes(bytes) as f64),
            Dtype::U64 => Some(u64::from_le_bytes(bytes) as f64),
            Dtype::I32 => Some(i32::from_le_bytes([a, b, c, d]).into()),
            Dtype::U32 => Some(u32::from_le_bytes([a, b, c, d]).into()),
            Dtype::I16 => Some(i16::from_le_bytes([a, b]).into()),
            Dtype::U16 => Some(u16::from_le_bytes([a, b]).into()),
            Dtype::I8 => Some(i8::from_le_bytes([a]).into()),
            Dtype::U8 => Some(a.into()),
            _ => None,
        })
    }

    fn read_as<T: Element>(&self) -> Result<Tensor, EngineError> {
        let mut values: Vec<T> = Vec::with_capacity(self.count());
        if DType::try_from(self.info.dtype).is_ok_and(|kept| kept == T::DTYPE) {
            self.for_each_chunk(|piece: &[T]| values.extend_from_slice(piece))?;
        } else {
            self.widened(|piece| {
                let done = values.len();
                values.resize(done + piece.len(), T::zeroed());
                T::narrow(piece, &mut values[done..]);
            })?;
        }
        Ok(Tensor::from_vec(values, self.info.shape.as_slice(), &Device::Cpu)?)
    }

    /// Its elements as f32, a piece at a time.
    fn widened(&self, each: impl FnMut(&[f32])) -> Result<(), EngineError> {
        match self.info.dtype {
            Dtype::F64 => self.widened_by(each, |piece: &[f64], wide| {
                wide.iter_mut().zip(piece).for_each(|(wide, number)| *wide = *number as f32);
            }),
            Dtype::F32 => self.widened_by(each, f32::widen),
            Dtype::F16 => self.widened_by(each, f16::widen),
            Dtype::BF16 => self.widened_by(each, bf16::widen),
            Dtype::F8_E4M3 => self.widened_by(each, |piece: &[u8], wide| {
                wide.iter_mut().zip(piece).for_each(|(wide, byte)| *wide = E4M3(*byte).to_f32());
            }),
            Dtype::F8_E5M2 => self.widened_by(each, |piece: &[u8], wide| {
                wide.iter_mut().zip(piece).for_each(|(wide, byte)| *wide = E5M2(*byte).to_f32());
            }),
            _ => Err(self.unsupported()),
        }
    }

    fn widened_by<S: Pod>(&self, mut each: impl FnMut(&[f32]), widen: impl Fn(&[S], &mut [f32])) -> Result<(), EngineError> {
        let mut wide = vec![0.0; PIECE.min(self.count())];
        self.for_each_chunk(|piece: &[S]| {
            let wide = &mut wide[..piece.len()];
            widen(piece, wide);
            each(wide);
        })
    }

    /// Its elements as they are kept, a piece at a time.
    fn for_each_chunk<S: Pod>(&self, mut each: impl FnMut(&[S])) -> Result<(), EngineError> {
        let count = self.count();
        let mut piece = vec![S::zeroed(); PIECE.min(count)];
        let mut done = 0;
        while done < count {
            let piece = &mut piece[..PIECE.min(count - done)];
            self.file.read_at(self.info, done * size_of::<S>(), bytemuck::cast_slice_mut(piece))?;
            each(piece);
            done += piece.len();
        }
        Ok(())
    }

    fn wrong(&self, problem: String) -> EngineError {
        EngineError::Checkpoint { path: self.file.path().to_owned(), problem }
    }
}

/// What weights are made of; slices have one length.
trait Element: Pod + WithDType {
    fn widen(from: &[Self], into: &mut [f32]);
    /// To the nearest, as candle does it.
    fn narrow(from: &[f32], into: &mut [Self]);
}

impl Element for f32 {
    fn widen(from: &[Self], into: &mut [f32]) {
        into.copy_from_slice(from);
    }

    fn narrow(from: &[f32], into: &mut [Self]) {
        into.copy_from_slice(from);
    }
}

impl Element for f16 {
    fn widen(from: &[Self], into: &mut [f32]) {
        from.convert_to_f32_slice(into);
    }

    fn narrow(from: &[f32], into: &mut [Self]) {
        into.convert_from_f32_slice(from);
    }
}

impl Element for bf16 {
    fn widen(from: &[Self], into: &mut [f32]) {
        from.convert_to_f32_slice(into);
    }

    fn narrow(from: &[f32], into: &mut [Self]) {
        into.convert_from_f32_slice(from);
    }
}
