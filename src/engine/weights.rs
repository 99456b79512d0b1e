//! A checkpoint's tensors, resident and never changed, and the view of them through an overlay of changed ones.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::safetensors::Load;
use candle_core::{DType, Device, Result, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};
use safetensors::{Dtype, SafeTensors};

use super::EngineError;

/// Tensors by name; the name begins with the component: `unet.conv_in.weight`.
pub(super) type Tensors = HashMap<String, Tensor>;

/// Names of a component's weight file, in the order they are looked for.
const FILE_NAMES: [&str; 2] = ["diffusion_pytorch_model.safetensors", "model.safetensors"];
/// Components that hold tensors.
const COMPONENTS: [&str; 3] = ["text_encoder", "unet", "vae"];
/// Nothing here encodes pictures.
const UNUSED: [&str; 2] = ["vae.encoder.", "vae.quant_conv."];
/// What the VAE's attention was called before diffusers 0.17.
const OLD_NAMES: [(&str, &str); 4] =
    [(".query.", ".to_q."), (".key.", ".to_k."), (".value.", ".to_v."), (".proj_attn.", ".to_out.0.")];

/// The base tensors of a checkpoint, f32, on the device.
pub(super) struct Weights {
    tensors: Arc<Tensors>,
    device: Device,
}

impl Weights {
    /// Reads the weight file of every component under `folder`.
    pub(super) fn read(folder: &Path, device: &Device) -> std::result::Result<Self, EngineError> {
        let mut tensors = Tensors::new();
        for component in COMPONENTS {
            read_component(&folder.join(component), component, device, &mut tensors)?;
        }
        Ok(Self { tensors: Arc::new(tensors), device: device.clone() })
    }

    pub(super) fn tensors(&self) -> &Tensors {
        &self.tensors
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
        let builder = VarBuilder::from_backend(Box::new(view), DType::F32, self.device.clone());
        let module = module(&builder);
        let problems = std::mem::take(&mut *problems.lock().unwrap_or_else(PoisonError::into_inner));
        match module {
            _ if !problems.is_empty() => Err(listed(&problems)),
            Ok(module) => Ok(module),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// Base and overlay as one source of tensors; notes what does not fit, so that all of it can be told at once.
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
        self.base.contains_key(name)
    }
}

fn read_component(
    folder: &Path,
    component: &str,
    device: &Device,
    tensors: &mut Tensors,
) -> std::result::Result<(), EngineError> {
    let checkpoint = |path: &Path, problem: String| EngineError::Checkpoint { path: path.to_owned(), problem };
    let file = FILE_NAMES.iter().map(|name| folder.join(name)).find(|path| path.is_file()).ok_or_else(|| {
        let remedy = "pickles (.bin, .ckpt) are not read: save the model with safe_serialization=True";
        checkpoint(folder, format!("has none of {}; {remedy}", FILE_NAMES.join(", ")))
    })?;
    let bytes = std::fs::read(&file).map_err(|error| checkpoint(&file, error.to_string()))?;
    let content = SafeTensors::deserialize(&bytes).map_err(|error| checkpoint(&file, not_safetensors(&bytes, &error)))?;
    for (name, view) in content.iter() {
        let name = format!("{component}.{name}");
        // Integers are tables that older transformers saved by mistake (`position_ids`).
        if UNUSED.iter().any(|unused| name.starts_with(unused)) || !is_float(view.dtype()) {
            continue;
        }
        let tensor = view.load(device).and_then(|tensor| tensor.to_dtype(DType::F32))?;
        tensors.insert(canonical(&name), tensor);
    }
    Ok(())
}

/// One name for what different versions of diffusers and transformers call differently.
fn canonical(name: &str) -> String {
    if name.starts_with("vae.") {
        return OLD_NAMES.iter().fold(name.to_owned(), |name, (old, new)| name.replace(old, new));
    }
    match name.strip_prefix("text_encoder.") {
        // Transformers 5 leaves the prefix out.
        Some(bare) if !bare.starts_with("text_model.") => format!("text_encoder.text_model.{bare}"),
        _ => name.to_owned(),
    }
}

pub(super) fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16)
}

/// Why bytes are no safetensors file, and what to do.
pub(super) fn not_safetensors(bytes: &[u8], error: &safetensors::SafeTensorError) -> String {
    const ZIP: &[u8] = b"PK";
    const PICKLE_PROTOCOL: u8 = 0x80;
    if bytes.starts_with(ZIP) || bytes.first() == Some(&PICKLE_PROTOCOL) {
        "is a pickle, which can run code when it is read; save it as .safetensors".into()
    } else {
        format!("is not a whole safetensors file ({error}); upload it again")
    }
}

/// The first few of many problems, on one line.
fn listed(problems: &[String]) -> String {
    const SHOWN: usize = 8;
    let shown = problems.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join("; ");
    match problems.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown}; and {more} more"),
    }
}
