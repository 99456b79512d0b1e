//! A checkpoint's tensors, resident and never changed, and the view of them through an overlay of changed ones.

pub(super) mod joint;
pub(super) mod laid_out;

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device, Result, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};
use safetensors::Dtype;

use super::EngineError;
use super::device::{is_best_channels_last, to_channels_last};
use super::json_config::shards;
use super::loader::read_all;
use super::original_names::canonical;
use super::packed::{is_beside, whole_shape};
use super::single_file::{SingleFile, as_transformers_has_them};
use super::stored::{Stored, check_scales, is_read, unread};
use super::tensor_file::{PACKED, TensorFile};

/// Tensors by name; the name begins with the component: `unet.conv_in.weight`.
pub(super) type Tensors = HashMap<String, Tensor>;
/// Their shapes, by the same names.
pub(super) type Shapes = HashMap<String, Vec<usize>>;

/// What the names of a component's weight files begin with.
const STEMS: [&str; 2] = ["diffusion_pytorch_model", "model"];
const PICKLES: &str =
    "pickles (.bin, .ckpt, .pt) are not read, for they can run code: save the model with safe_serialization=True";

/// The base tensors of a checkpoint, all of one format, on the device.
pub(super) struct Weights {
    tensors: Arc<Tensors>,
    dtype: DType,
    device: Device,
}

impl Weights {
    /// Reads the weight files of these components under `directory`, or the one file of a packed checkpoint; `dtype`: what they are
    /// kept in.
    pub(super) fn read(
        directory: &Path,
        components: &[&str],
        (dtype, device): (DType, &Device),
    ) -> std::result::Result<Self, EngineError> {
        let packed = directory.join(PACKED);
        let mut files = Vec::new();
        if packed.is_file() {
            files.push(Named::open(&packed, |name| {
                let is_asked_for = components.iter().any(|component| name.split('.').next() == Some(component));
                is_asked_for.then(|| name.to_owned())
            })?);
        } else {
            for component in components {
                for file in component_files(&directory.join(component))? {
                    files.push(Named::open(&file, |name| Some(canonical(&format!("{component}.{name}"))))?);
                }
            }
        }
        Self::of(&files, (dtype, device))
    }

    /// Reads the one file that holds all of a checkpoint under the names of its first release.
    pub(super) fn read_single_file(
        file: &Path,
        names: &SingleFile,
        (dtype, device): (DType, &Device),
    ) -> std::result::Result<Self, EngineError> {
        let opened = TensorFile::open(file)?;
        check_scales(&opened)?;
        let refused = opened.tensors().find_map(|(name, _)| names.refused(&name));
        let named = Named::of(opened, |name| names.name(name))?;
        let problem = refused.or_else(|| names.missing(named.names.iter().map(|(ours, _)| ours.as_str())));
        if let Some(problem) = problem {
            return Err(EngineError::Checkpoint { path: file.to_owned(), problem });
        }
        let read = Self::of(&[named], (dtype, device))?;
        Ok(Self { tensors: Arc::new(as_transformers_has_them(&read.tensors)?), ..read })
    }

    /// `tensors`: all of them in the format `dtype`, on the device.
    pub(super) fn from_tensors(tensors: Tensors, (dtype, device): (DType, &Device)) -> Self {
        Self { tensors: Arc::new(tensors), dtype, device: device.clone() }
    }

    pub(super) fn of(files: &[Named], (dtype, device): (DType, &Device)) -> std::result::Result<Self, EngineError> {
        let (names, stored): (Vec<&String>, Vec<Stored<'_>>) = files.iter().flat_map(Named::stored).unzip();
        let tensors = names.into_iter().cloned().zip(read_all(&stored, dtype, device)?).collect();
        Ok(Self { tensors: Arc::new(tensors), dtype, device: device.clone() })
    }

    /// What they are kept in, and computed with.
    pub(super) fn dtype(&self) -> DType {
        self.dtype
    }

    pub(super) fn device(&self) -> &Device {
        &self.device
    }

    pub(super) fn tensors(&self) -> &Tensors {
        &self.tensors
    }

    /// Those of the model, whether or not they are packed.
    pub(super) fn shapes(&self) -> Shapes {
        let own = self.tensors.iter().filter(|(name, _)| !joint::is_joint(name));
        own.map(|(name, tensor)| whole_shape(name, tensor)).collect()
    }

    /// Copies in f32 of those whose names begin with `prefix`.
    ///
    /// # Errors
    /// When there is no memory.
    pub(super) fn in_f32(&self, prefix: &str) -> Result<Self> {
        let chosen = self.tensors.iter().filter(|(name, _)| name.starts_with(prefix));
        let copied = chosen.map(|(name, tensor)| Ok((name.clone(), tensor.to_dtype(DType::F32)?)));
        Ok(Self { tensors: Arc::new(copied.collect::<Result<_>>()?), dtype: DType::F32, device: self.device.clone() })
    }

    /// They lie as a GPU takes them best: channels of convolutions last, and [joint](joint) attentions. Shapes and values stay.
    ///
    /// # Errors
    /// When there is no memory.
    pub(super) fn laid_out(self) -> Result<Self> {
        // One by one: what lay otherwise is gone before the next one.
        let turned = Arc::unwrap_or_clone(self.tensors)
            .into_iter()
            .map(|(name, tensor)| Ok((name, if is_best_channels_last(&tensor) { to_channels_last(&tensor)? } else { tensor })));
        let mut tensors = turned.collect::<Result<_>>()?;
        joint::join(&mut tensors)?;
        Ok(Self { tensors: Arc::new(tensors), ..self })
    }

    /// Bytes of all of them.
    pub(super) fn bytes(&self) -> u64 {
        let own = self.tensors.iter().filter(|(name, _)| !joint::is_joint(name)).map(|(_, tensor)| tensor);
        own.map(|tensor| (tensor.elem_count() * tensor.dtype().size_in_bytes()) as u64).sum()
    }

    /// Builds a module from the base tensors, those in `overlay` in their place.
    ///
    /// Tensors that are missing or have another shape than the module asks for are an error that lists them all.
    pub(super) fn build<M>(
        &self,
        overlay: &Arc<Tensors>,
        module: impl FnOnce(&VarBuilder) -> Result<M>,
    ) -> std::result::Result<M, String> {
        let problems = Arc::default();
        let view = View { base: self.tensors.clone(), overlay: overlay.clone(), problems: Arc::clone(&problems) };
        let builder = VarBuilder::from_backend(Box::new(view), self.dtype, self.device.clone());
        let module = module(&builder);
        let problems = std::mem::take(&mut *problems.lock().unwrap_or_else(PoisonError::into_inner));
        match module {
            _ if !problems.is_empty() => Err(listed(&problems)),
            Ok(module) => Ok(module),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// Base and overlay as one source of tensors; notes what does not fit, so that all of it can be reported at once.
struct View {
    base: Arc<Tensors>,
    overlay: Arc<Tensors>,
    problems: Arc<Mutex<Vec<String>>>,
}

impl SimpleBackend for View {
    fn get(&self, shape: Shape, name: &str, _: Init, dtype: DType, device: &Device) -> Result<Tensor> {
        let problem = match self.overlay.get(name).or_else(|| self.base.get(name)) {
            Some(tensor) if tensor.shape() == &shape => return Ok(tensor.clone()),
            // Old VAEs keep the linear layers of their attention as 1x1 convolutions.
            Some(tensor) if tensor.dims().strip_suffix(&[1, 1]) == Some(shape.dims()) => return tensor.reshape(shape),
            Some(tensor) => format!("{name} has the shape {:?}, config.json says {:?}", tensor.dims(), shape.dims()),
            None => format!("{name} {:?} is missing", shape.dims()),
        };
        self.problems.lock().unwrap_or_else(PoisonError::into_inner).push(problem);
        Tensor::zeros(shape, dtype, device)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        let tensor = self.overlay.get(name).or_else(|| self.base.get(name));
        tensor.cloned().ok_or_else(|| candle_core::Error::msg(format!("{name} is missing")))
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.base.contains_key(name) || self.overlay.contains_key(name)
    }
}

/// The shapes of all tensors that a module asks for, by their names; nothing is read, and nothing takes memory.
///
/// # Errors
/// Those of the module.
pub(super) fn shapes_of<M>(module: impl FnOnce(&VarBuilder) -> Result<M>) -> Result<Shapes> {
    let asked = Arc::default();
    let source = Asked(Arc::clone(&asked));
    module(&VarBuilder::from_backend(Box::new(source), DType::F32, Device::Cpu))?;
    Ok(std::mem::take(&mut *asked.lock().unwrap_or_else(PoisonError::into_inner)))
}

/// A source of zeros, one for all places of a tensor, that notes what it is asked for.
struct Asked(Arc<Mutex<Shapes>>);

impl SimpleBackend for Asked {
    fn get(&self, shape: Shape, name: &str, _: Init, dtype: DType, device: &Device) -> Result<Tensor> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), shape.dims().to_vec());
        Tensor::zeros((), dtype, device)?.broadcast_as(shape)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        Err(candle_core::Error::msg(format!("{name} was asked for without a shape")))
    }

    fn contains_tensor(&self, name: &str) -> bool {
        !is_beside(name) && !joint::is_joint(name)
    }
}

/// The plain weight file of a component, or its shards; or, where there is no plain one, the only variant (`….fp16.safetensors`).
pub(super) fn component_files(directory: &Path) -> std::result::Result<Vec<PathBuf>, EngineError> {
    let wrong = |problem: String| EngineError::Checkpoint { path: directory.to_owned(), problem };
    let entries = std::fs::read_dir(directory).map_err(|error| wrong(error.to_string()))?;
    let mut names: Vec<String> = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    // diffusers takes shards where there is an index, transformers the plain file.
    let index = format!("{}.safetensors.index", STEMS[0]);
    names.sort_by_key(|name| (!name.starts_with(&index), name.clone()));
    // (variant, file), the plain one first: its variant is empty.
    let found: Vec<(&str, &str)> = names.iter().filter_map(|name| Some((variant(name)?, name.as_str()))).collect();
    let variants: BTreeSet<&str> = found.iter().map(|(variant, _)| *variant).collect();
    let variants: Vec<&str> = variants.into_iter().collect();
    let chosen = match variants.as_slice() {
        [] => return Err(wrong(format!("has none of {}.safetensors; {PICKLES}", STEMS.join(".safetensors, ")))),
        ["", ..] => "",
        [only] => only,
        several => {
            return Err(wrong(format!("has the variants {} and no plain file; keep one of them", several.join(", "))));
        }
    };
    let Some((_, name)) = found.iter().find(|(variant, _)| *variant == chosen) else { return Ok(Vec::new()) };
    let path = directory.join(name);
    if path.extension().is_some_and(|extension| extension == "safetensors") {
        return Ok(vec![path]);
    }
    let shards = shards(&path)?;
    if let Some(escapes) = shards.iter().find(|shard| shard.contains(['/', '\\'])) {
        return Err(EngineError::Checkpoint { path, problem: format!("names a file outside of its directory: {escapes}") });
    }
    Ok(shards.iter().map(|shard| directory.join(shard)).collect())
}

/// Builds a module whose tensors are read one by one out of `files` and kept in the format `dtype`: what the module does not ask for is
/// never read. `named`: what the module calls a tensor of the files, if it knows it. Returns the module and its tensors' bytes.
///
/// # Errors
/// Lists the tensors that are missing or have another shape.
pub(super) fn build_from<M>(
    files: &[PathBuf],
    (dtype, device): (DType, &Device),
    named: impl Fn(&str) -> Option<String>,
    module: impl FnOnce(&VarBuilder) -> Result<M>,
) -> std::result::Result<(M, u64), EngineError> {
    let files = files.iter().map(|path| TensorFile::open(path)).collect::<std::result::Result<Vec<_>, _>>()?;
    let mut index = HashMap::new();
    for (place, file) in files.iter().enumerate() {
        check_scales(file)?;
        for (name, _) in file.tensors() {
            if let Some(known) = named(&name) {
                index.insert(known, (place, name));
            }
        }
    }
    let problems = Arc::default();
    let bytes = Arc::new(AtomicU64::new(0));
    let source = OnDemand { files, index, problems: Arc::clone(&problems), bytes: Arc::clone(&bytes) };
    let directory = source.files.first().map(|file| file.path().with_file_name("")).unwrap_or_default();
    let module = module(&VarBuilder::from_backend(Box::new(source), dtype, device.clone()));
    let problems = std::mem::take(&mut *problems.lock().unwrap_or_else(PoisonError::into_inner));
    match module {
        _ if !problems.is_empty() => Err(EngineError::Checkpoint { path: directory, problem: listed(&problems) }),
        module => Ok((module?, bytes.load(Ordering::Relaxed))),
    }
}

/// Files as a source of tensors; notes what does not fit, so that all of it can be reported at once.
struct OnDemand {
    files: Vec<TensorFile>,
    /// Place of the file and name in it, by the module's name.
    index: HashMap<String, (usize, String)>,
    problems: Arc<Mutex<Vec<String>>>,
    bytes: Arc<AtomicU64>,
}

impl SimpleBackend for OnDemand {
    fn get(&self, shape: Shape, name: &str, _: Init, dtype: DType, device: &Device) -> Result<Tensor> {
        let found = self.index.get(name).map(|(file, name)| (&self.files[*file], name));
        let problem = match found.and_then(|(file, name)| Some((file, name, file.info(name)?))) {
            Some((_, name, info)) if !is_read(info.dtype) => unread(name, info.dtype),
            Some((file, name, info)) if info.shape == shape.dims() => {
                self.bytes.fetch_add((shape.elem_count() * dtype.size_in_bytes()) as u64, Ordering::Relaxed);
                if is_float(info.dtype) {
                    return file.load(name, device).map_err(candle_core::Error::wrap)?.to_dtype(dtype);
                }
                return Stored { file, info }.read(dtype).map_err(candle_core::Error::wrap)?.to_device(device);
            }
            Some((_, _, info)) => format!("{name} has the shape {:?}, config.json says {:?}", info.shape, shape.dims()),
            None => format!("{name} {:?} is missing", shape.dims()),
        };
        self.problems.lock().unwrap_or_else(PoisonError::into_inner).push(problem);
        Tensor::zeros(shape, dtype, device)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        Err(candle_core::Error::msg(format!("{name} was asked for without a shape")))
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.index.contains_key(name)
    }
}

/// The variant of a weight file or of an index of shards, empty for a plain one: `model.fp16.safetensors`,
/// `model.safetensors.index.fp16.json`.
fn variant(name: &str) -> Option<&str> {
    let rest = STEMS.iter().find_map(|stem| name.strip_prefix(stem))?;
    if let Some(index) = rest.strip_prefix(".safetensors.index") {
        let variant = index.strip_suffix(".json")?;
        return Some(variant.trim_start_matches('.'));
    }
    let variant = rest.strip_suffix(".safetensors")?;
    // `-00001-of-00002`, or `.fp16-00001-of-00002`: a shard, which its index names.
    (!variant.contains('-')).then(|| variant.trim_start_matches('.'))
}

/// A file and what the engine calls its tensors.
pub(super) struct Named {
    file: TensorFile,
    /// Our name and the file's, in the order in which they lie there.
    names: Vec<(String, String)>,
}

impl Named {
    /// Those that `named` gives no name are left out.
    pub(super) fn open(path: &Path, named: impl Fn(&str) -> Option<String>) -> std::result::Result<Self, EngineError> {
        let file = TensorFile::open(path)?;
        check_scales(&file)?;
        Self::of(file, named)
    }

    /// As [`Self::open`] of a file in which [`check_scales`] has found none.
    pub(super) fn of(file: TensorFile, named: impl Fn(&str) -> Option<String>) -> std::result::Result<Self, EngineError> {
        let mut names = Vec::new();
        for (name, dtype) in file.tensors() {
            let Some(ours) = named(&name) else { continue };
            if is_read(dtype) {
                names.push((ours, name));
            } else if name.ends_with(".weight") {
                // Other integers are tables that older transformers saved by mistake (`position_ids`).
                return Err(EngineError::Checkpoint { path: file.path().to_owned(), problem: unread(&name, dtype) });
            }
        }
        Ok(Self { file, names })
    }

    /// What the engine calls its tensors.
    pub(super) fn names(&self) -> impl Iterator<Item = &String> {
        self.names.iter().map(|(ours, _)| ours)
    }

    fn stored(&self) -> impl Iterator<Item = (&String, Stored<'_>)> {
        self.names.iter().filter_map(|(ours, name)| {
            let info = self.file.info(name)?;
            Some((ours, Stored { file: &self.file, info }))
        })
    }
}

pub(super) fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16)
}

/// The first few of many problems, on one line.
pub(super) fn listed(problems: &[String]) -> String {
    const SHOWN: usize = 8;
    let shown = problems.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join("; ");
    match problems.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown}; and {more} more"),
    }
}
