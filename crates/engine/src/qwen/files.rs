//! The transformer's tensors in its files: checked by their tables, read one by one, changed by LoRAs on their way.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use safetensors::Dtype;

use super::config::TransformerConfig;
use super::layout::{COMPONENT, depends_on_time, shapes};
use super::linear::Linear;
use super::precision::Precision;
use crate::device::widened;
use crate::fp8::Fp8Weight;
use crate::lora::Lora;
use crate::tensor_file::TensorFile;
use crate::weights::{Shapes, component_files, is_float, listed};
use crate::{EngineError, LoraFile};

/// What the names of a transformer in one file may begin with (`ComfyUI`, original releases).
const PREFIXES: [&str; 4] = ["model.diffusion_model.", "diffusion_model.", "transformer.", "model."];
/// What 8-bit weights are multiplied by: `LightX2V` has a number a row (out, 1) or (out,), `ComfyUI` one for all.
const SCALES: [&str; 2] = ["weight_scale", "scale_weight"];

/// Where each tensor of the transformer is.
pub(super) struct TransformerFiles {
    files: Vec<TensorFile>,
    /// Place of the file and name in it, by the full name.
    index: HashMap<String, (usize, String)>,
    loras: Vec<(Lora, f64)>,
    precision: Precision,
    device: Device,
    /// Where weights stay in 8 bits and the device multiplies such values.
    fp8: Option<Fp8Weight>,
}

impl TransformerFiles {
    /// Opens the weight files in `directory`, or `file` in their place, and the LoRAs; checks that all there has to be is there, before
    /// any of it is read.
    ///
    /// # Errors
    /// [`EngineError::Checkpoint`] lists the tensors that are missing or do not fit, [`EngineError::Lora`] says what is wrong with which.
    pub(super) fn open(
        config: &TransformerConfig,
        directory: &Path,
        file: Option<&Path>,
        loras: &[LoraFile],
        (precision, device): (Precision, &Device),
    ) -> Result<Self, EngineError> {
        let paths = match file {
            Some(file) => vec![file.to_owned()],
            None => component_files(directory)?,
        };
        let files = paths.iter().map(|path| TensorFile::open(path)).collect::<Result<Vec<_>, _>>()?;
        let mut index = HashMap::new();
        for (place, file) in files.iter().enumerate() {
            for (name, _) in file.tensors() {
                index.insert(full_name(&name), (place, name));
            }
        }
        let fp8 = if precision.keep_fp8 { Fp8Weight::of(device) } else { None };
        let mut opened = Self { files, index, loras: Vec::new(), precision, device: device.clone(), fp8 };
        let shapes = shapes(config);
        let path = file.map_or_else(|| directory.to_owned(), PathBuf::from);
        opened.check(&shapes).map_err(|problem| EngineError::Checkpoint { path, problem })?;
        for (index, lora) in loras.iter().enumerate() {
            let wrong = |problem: String| EngineError::Lora { index, problem };
            Lora::check(lora, &shapes).map_err(|error| wrong(error.to_string()))?;
            let parsed = Lora::read(lora, &shapes, device).map_err(|error| wrong(error.to_string()))?;
            opened.check_beside(&parsed, &shapes).map_err(wrong)?;
            opened.loras.push((parsed, lora.scale));
        }
        Ok(opened)
    }

    /// The format that is computed in, and the device.
    pub(super) fn kept(&self) -> (DType, Device) {
        (self.precision.compute, self.device.clone())
    }

    /// Bytes of the tensors that a transformer keeps on the device: not those that only depend on time.
    pub(super) fn resident_bytes(&self) -> u64 {
        let kept = self.index.iter().filter(|(name, _)| !depends_on_time(name));
        let bytes = kept.map(|(name, (file, stored))| {
            let values = self.files[*file].info(stored).map_or(0, |info| info.shape.iter().product::<usize>());
            let each = if self.stays_fp8(name) { 1 } else { self.precision.compute.size_in_bytes() };
            (values * each) as u64
        });
        bytes.sum()
    }

    /// Every tensor that there has to be is there, in its shape and in a format that can be read.
    fn check(&self, shapes: &Shapes) -> Result<(), String> {
        let mut problems: Vec<String> = Vec::new();
        for (name, shape) in shapes {
            match self.info(name) {
                None => problems.push(format!("{name} {shape:?} is missing")),
                Some((_, found)) if found != shape.as_slice() => {
                    problems.push(format!("{name} has the shape {found:?}, config.json says {shape:?}"));
                }
                Some((Dtype::F8_E4M3, _)) if shape.len() == 2 => problems.extend(self.check_scale(name, shape[0])),
                Some((dtype, _)) if !is_float(dtype) => {
                    problems
                        .push(format!("{name} is kept as {dtype:?}; supported are F32, F16, BF16 and, of matrices, F8_E4M3"));
                }
                Some(_) => {}
            }
        }
        problems.sort();
        if problems.is_empty() { Ok(()) } else { Err(listed(&problems)) }
    }

    fn check_scale(&self, weight: &str, rows: usize) -> Option<String> {
        let name = self.scale_name(weight)?;
        let (_, shape) = self.info(&name)?;
        let fits = matches!(shape, [] | [1] | [1, 1]) || *shape == [rows] || *shape == [rows, 1];
        (!fits).then(|| format!("{name} has the shape {shape:?}; supported are one number, [{rows}] and [{rows}, 1]"))
    }

    /// What is kept in 8 bits can have a LoRA only next to it.
    fn check_beside(&self, lora: &Lora, shapes: &Shapes) -> Result<(), String> {
        for name in shapes.keys().filter(|name| self.stays_fp8(name)) {
            lora.low_rank(name, 1.0).map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    fn stays_fp8(&self, name: &str) -> bool {
        self.precision.keep_fp8 && self.info(name).is_some_and(|(dtype, _)| dtype == Dtype::F8_E4M3)
    }

    /// The linear layer `name` (without `transformer.`).
    ///
    /// # Errors
    /// When its tensors cannot be read, or there is no memory.
    pub(super) fn linear(&self, name: &str) -> Result<Linear, EngineError> {
        let weight = format!("{COMPONENT}.{name}.weight");
        let bias = self.tensor(&format!("{name}.bias"))?;
        if !self.stays_fp8(&weight) {
            return Ok(Linear::full_precision(self.tensor(&format!("{name}.weight"))?, bias));
        }
        let scale = match self.scale(&weight)? {
            Some(scale) => scale.flatten_all()?,
            None => Tensor::ones(1, DType::F32, &self.device)?,
        };
        let bits = self.stored(&weight)?;
        // A scale for each row: what a GPU can multiply by in the product itself.
        let scale = scale.broadcast_as(bits.dim(0)?)?.contiguous()?;
        let fp8 = self.fp8.clone().filter(|_| Fp8Weight::fits(&bits));
        Ok(Linear::fp8((bits, scale, bias), self.low_rank(&weight)?, fp8))
    }

    /// The whole tensor `name` (without `transformer.`), LoRAs merged, in the format that is computed in.
    ///
    /// # Errors
    /// When it cannot be read, or there is no memory.
    pub(super) fn tensor(&self, name: &str) -> Result<Tensor, EngineError> {
        let name = format!("{COMPONENT}.{name}");
        let stored = self.stored(&name)?;
        if stored.dtype() == self.precision.compute && self.loras.is_empty() {
            return Ok(stored);
        }
        let mut whole = widened(&stored, DType::F32)?;
        if stored.dtype() == DType::F8E4M3
            && let Some(scale) = self.scale(&name)?
        {
            // A number a row, or one for all: both stand before the columns.
            whole = whole.broadcast_mul(&scale.flatten_all()?.unsqueeze(1)?)?;
        }
        for (index, (lora, scale)) in self.loras.iter().enumerate() {
            let changed = lora.changed(&name, whole, *scale);
            whole = changed.map_err(|error| EngineError::Lora { index, problem: error.to_string() })?;
        }
        Ok(whole.to_dtype(self.precision.compute)?)
    }

    /// Down and up matrices of all LoRAs for one weight as one pair.
    fn low_rank(&self, weight: &str) -> Result<Option<(Tensor, Tensor)>, EngineError> {
        let mut down = Vec::new();
        let mut up = Vec::new();
        for (index, (lora, scale)) in self.loras.iter().enumerate() {
            let pairs = lora.low_rank(weight, *scale);
            for (lower, upper) in pairs.map_err(|error| EngineError::Lora { index, problem: error.to_string() })? {
                down.push(lower.to_dtype(self.precision.compute)?);
                up.push(upper.to_dtype(self.precision.compute)?);
            }
        }
        if down.is_empty() {
            return Ok(None);
        }
        Ok(Some((Tensor::cat(&down, 0)?, Tensor::cat(&up, 1)?)))
    }

    fn stored(&self, name: &str) -> Result<Tensor, EngineError> {
        let (file, name) = self.index.get(name).ok_or_else(|| candle_core::Error::msg(format!("{name} is missing")))?;
        self.files[*file].load(name, &self.device)
    }

    fn scale(&self, weight: &str) -> Result<Option<Tensor>, EngineError> {
        let scale = self.scale_name(weight).map(|name| self.stored(&name)).transpose()?;
        Ok(scale.map(|scale| scale.to_dtype(DType::F32)).transpose()?)
    }

    fn scale_name(&self, weight: &str) -> Option<String> {
        let module = weight.strip_suffix("weight")?;
        SCALES.iter().map(|scale| format!("{module}{scale}")).find(|name| self.index.contains_key(name))
    }

    fn info(&self, name: &str) -> Option<(Dtype, &[usize])> {
        let (file, name) = self.index.get(name)?;
        let info = self.files[*file].info(name)?;
        Some((info.dtype, &info.shape))
    }
}

fn full_name(name: &str) -> String {
    let bare = PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix)).unwrap_or(name);
    format!("{COMPONENT}.{bare}")
}
