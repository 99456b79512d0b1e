//! LoRA files (Hu et al. 2021, arXiv 2106.09685): read, checked, and merged into an overlay over the base tensors.

mod keys;

use std::collections::{BTreeMap, HashMap};

use candle_core::safetensors::Load;
use candle_core::{DType, Device, Tensor};
use safetensors::SafeTensors;

use self::keys::{Role, Targets};
use super::checkpoint::{AdapterConfig, adapter_configs};
use super::weights::{Tensors, is_float, not_safetensors};

/// What is wrong with a LoRA file.
#[derive(Debug, thiserror::Error)]
pub(super) enum LoraError {
    #[error("{0}")]
    NotSafetensors(String),
    #[error("holds no matrices; is it the right file?")]
    Empty,
    #[error("{key} belongs to a {kind}; only LoRA is supported")]
    OtherKind { key: String, kind: &'static str },
    #[error("{count} of {total} keys match nothing in the model: {}; was it trained on another model?", first.join(", "))]
    Unmatched { first: Vec<String>, count: usize, total: usize },
    #[error("{module} has no {missing} matrix; the file is incomplete")]
    Incomplete { module: String, missing: &'static str },
    #[error("belongs to another model: {module} adapts {found}, the model has {expected:?} there")]
    Shape { module: String, found: String, expected: Vec<usize> },
    #[error("{key} holds NaN or infinity; train it again")]
    NotFinite { key: String },
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

/// The two matrices of one module.
struct Pair {
    /// Name of the base tensor.
    target: String,
    /// (rank, in, …), f32.
    down: Tensor,
    /// (out, rank, …), f32.
    up: Tensor,
    alpha: Option<f64>,
}

/// A checked LoRA, ready to be merged.
pub(super) struct Lora {
    pairs: Vec<Pair>,
    adapters: HashMap<String, AdapterConfig>,
}

#[derive(Default)]
struct Parts {
    module: String,
    down: Option<Tensor>,
    up: Option<Tensor>,
    alpha: Option<f64>,
}

impl Lora {
    /// Reads the bytes of a `.safetensors` file, which are untrusted, for the model with the tensors `base`.
    pub(super) fn parse(bytes: &[u8], base: &Tensors, device: &Device) -> Result<Self, LoraError> {
        let content = SafeTensors::deserialize(bytes);
        let content = content.map_err(|error| LoraError::NotSafetensors(not_safetensors(bytes, &error)))?;
        let targets = Targets::new(base.keys());
        let mut modules: BTreeMap<String, Parts> = BTreeMap::new();
        let mut unmatched = Vec::new();
        for (key, view) in content.iter() {
            if let Some(kind) = keys::other_kind(key) {
                return Err(LoraError::OtherKind { key: key.to_owned(), kind });
            }
            let found = keys::split(key).and_then(|(module, role)| Some((module, role, targets.weight(module)?)));
            let Some((module, role, target)) = found.filter(|_| is_float(view.dtype())) else {
                unmatched.push(key.to_owned());
                continue;
            };
            let parts = modules.entry(target.to_owned()).or_default();
            module.clone_into(&mut parts.module);
            let tensor = finite(key, view.load(device)?.to_dtype(DType::F32)?)?;
            match role {
                Role::Down => parts.down = Some(tensor),
                Role::Up => parts.up = Some(tensor),
                Role::Alpha => parts.alpha = tensor.flatten_all()?.to_vec1::<f32>()?.first().copied().map(f64::from),
            }
        }
        if !unmatched.is_empty() {
            unmatched.sort();
            let (count, total) = (unmatched.len(), content.len());
            return Err(LoraError::Unmatched { first: unmatched.into_iter().take(3).collect(), count, total });
        }
        if modules.is_empty() {
            return Err(LoraError::Empty);
        }
        let pairs = modules.into_iter().map(|(target, parts)| pair(target, parts, base)).collect::<Result<_, _>>()?;
        Ok(Self { pairs, adapters: metadata(bytes) })
    }

    /// Adds scale·alpha/rank·up·down to every tensor it adapts: those in `overlay`, or copies of those in `base`.
    pub(super) fn merge(&self, scale: f64, base: &Tensors, overlay: &mut Tensors) -> Result<(), LoraError> {
        for pair in &self.pairs {
            let Some(weight) = overlay.get(&pair.target).or_else(|| base.get(&pair.target)) else { continue };
            let down = pair.down.flatten_from(1)?;
            let up = pair.up.flatten_from(1)?;
            let factor = scale * self.scaling(pair, down.dim(0)? as f64);
            let delta = (up.matmul(&down)?.reshape(weight.shape())? * factor)?;
            let merged = (weight + delta)?;
            overlay.insert(pair.target.clone(), merged);
        }
        Ok(())
    }

    /// alpha/rank: alpha from the file's header, from its own entry, or (none) the rank.
    fn scaling(&self, pair: &Pair, rank: f64) -> f64 {
        let (component, module) = pair.target.split_once('.').unwrap_or_default();
        let Some(adapter) = self.adapters.get(component) else { return pair.alpha.map_or(1.0, |alpha| alpha / rank) };
        let module = module.trim_end_matches(".weight");
        let differs = adapter.alpha_pattern.iter().find(|(name, _)| module.ends_with(name.as_str()));
        let alpha = differs.map(|(_, alpha)| *alpha).or(adapter.lora_alpha).or(pair.alpha).unwrap_or(rank);
        if adapter.use_rslora { alpha / rank.sqrt() } else { alpha / rank }
    }
}

/// Checks that both matrices are there and make up a change of the base tensor's shape.
fn pair(target: String, parts: Parts, base: &Tensors) -> Result<Pair, LoraError> {
    let Parts { module, down, up, alpha } = parts;
    let missing = |missing| LoraError::Incomplete { module: module.clone(), missing };
    let down = down.ok_or_else(|| missing("down (A)"))?;
    let up = up.ok_or_else(|| missing("up (B)"))?;
    let expected = base.get(&target).map(|weight| weight.dims().to_vec()).unwrap_or_default();
    if !fits(down.dims(), up.dims(), &expected) {
        let found = format!("{:?} by {:?}", up.dims(), down.dims());
        return Err(LoraError::Shape { module, found, expected });
    }
    Ok(Pair { target, down, up, alpha })
}

/// Linear layers and convolutions: up (out, rank[, 1, 1]), down (rank, in[, height, width]); a 1x1 convolution may be
/// adapted as a linear layer.
fn fits(down: &[usize], up: &[usize], weight: &[usize]) -> bool {
    let ([rank, down_rest @ ..], [out, up_rank, up_rest @ ..]) = (down, up) else { return false };
    let [weight_out, weight_rest @ ..] = weight else { return false };
    let without_ones = |dims: &[usize]| dims.iter().copied().rev().skip_while(|dim| *dim == 1).collect::<Vec<_>>();
    rank == up_rank
        && out == weight_out
        && *rank > 0
        && up_rest.iter().all(|dim| *dim == 1)
        && without_ones(down_rest) == without_ones(weight_rest)
}

fn finite(key: &str, tensor: Tensor) -> Result<Tensor, LoraError> {
    // Any NaN or infinity makes the sum of x·0 a NaN.
    if (&tensor * 0.0)?.sum_all()?.to_scalar::<f32>()? == 0.0 {
        Ok(tensor)
    } else {
        Err(LoraError::NotFinite { key: key.to_owned() })
    }
}

/// The adapters' PEFT configuration in the header, by component; most files have none.
fn metadata(bytes: &[u8]) -> HashMap<String, AdapterConfig> {
    const KEY: &str = "lora_adapter_metadata";
    let header = SafeTensors::read_metadata(bytes).ok();
    let entry = header.as_ref().and_then(|(_, header)| header.metadata().as_ref()?.get(KEY));
    entry.map(|text| adapter_configs(text)).unwrap_or_default()
}
