//! A module built out of a GGUF file: its tensors are read one by one, and weights of layers stay in their blocks.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device, Error, Result, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};

use super::EngineError;
use super::gguf_file::{Format, GgufFile, GgufTensor, without_leading_ones};
use super::packed::unpacked_name;
use super::weights::listed;

/// As [`build_from`](super::weights::build_from) out of one GGUF file, whose layers' weights stay packed.
///
/// # Errors
/// [`EngineError::Checkpoint`] when it is no whole GGUF file, or of another model: lists the tensors that are missing or have another shape.
pub(super) fn build_from_gguf<M>(
    file: &Path,
    (dtype, device): (DType, &Device),
    named: impl Fn(&str) -> Option<String>,
    module: impl FnOnce(&VarBuilder) -> Result<M>,
) -> std::result::Result<(M, u64), EngineError> {
    let file = Arc::new(GgufFile::open(file)?);
    let index = file.tensors().keys().filter_map(|name| Some((named(name)?, name.clone()))).collect();
    let problems = Arc::default();
    let bytes = Arc::new(AtomicU64::new(0));
    let source = Source { file: Arc::clone(&file), index, problems: Arc::clone(&problems), bytes: Arc::clone(&bytes) };
    let module = module(&VarBuilder::from_backend(Box::new(source), dtype, device.clone()));
    let problems = std::mem::take(&mut *problems.lock().unwrap_or_else(PoisonError::into_inner));
    if problems.is_empty() {
        Ok((module?, bytes.load(Ordering::Relaxed)))
    } else {
        Err(file.of_another_model(&listed(&problems)))
    }
}

/// A file as a source of tensors; notes what does not fit, so that all of it can be reported at once.
struct Source {
    file: Arc<GgufFile>,
    /// The file's names by the module's.
    index: HashMap<String, String>,
    problems: Arc<Mutex<Vec<String>>>,
    bytes: Arc<AtomicU64>,
}

impl Source {
    fn tensor(&self, name: &str) -> Option<&GgufTensor> {
        self.file.tensors().get(self.index.get(name)?)
    }

    fn counted(&self, tensor: Tensor) -> Tensor {
        self.bytes.fetch_add((tensor.elem_count() * tensor.dtype().size_in_bytes()) as u64, Ordering::Relaxed);
        tensor
    }
}

impl SimpleBackend for Source {
    fn get(&self, shape: Shape, name: &str, _: Init, dtype: DType, device: &Device) -> Result<Tensor> {
        let problem = match self.tensor(name) {
            Some(tensor) if without_leading_ones(&tensor.shape) == without_leading_ones(shape.dims()) => {
                let whole = self.file.unpacked(tensor, (dtype, device)).map_err(Error::wrap)?;
                return Ok(self.counted(whole.reshape(shape)?));
            }
            Some(tensor) => format!("{name} has the shape {:?}, config.json says {:?}", tensor.shape, shape.dims()),
            None => format!("{name} {:?} is missing", shape.dims()),
        };
        self.problems.lock().unwrap_or_else(PoisonError::into_inner).push(problem);
        Tensor::zeros(shape, dtype, device)
    }

    /// Blocks of a weight.
    fn get_unchecked(&self, name: &str, _: DType, device: &Device) -> Result<Tensor> {
        let tensor = unpacked_name(name).and_then(|(weight, _)| self.tensor(weight));
        let tensor = tensor.ok_or_else(|| Error::msg(format!("{name} was asked for without a shape")))?;
        Ok(self.counted(self.file.packed(tensor, device).map_err(Error::wrap)?))
    }

    fn contains_tensor(&self, name: &str) -> bool {
        match unpacked_name(name) {
            Some((weight, format)) => {
                self.tensor(weight).is_some_and(|tensor| tensor.format == Format::Blocks(format) && tensor.shape.len() == 2)
            }
            None => self.index.contains_key(name),
        }
    }
}
