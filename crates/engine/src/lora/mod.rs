//! LoRA files (Hu et al. 2021, arXiv 2106.09685) and their relatives: read, checked, and merged into an overlay over the base tensors.

mod delta;
mod dora;
mod keys;
mod parts;

use std::collections::{BTreeMap, HashMap};

use candle_core::safetensors::Load;
use candle_core::{DType, Device, Tensor};
use safetensors::SafeTensors;

use self::delta::Delta;
use self::keys::Targets;
use self::parts::{Change, Parts};
use super::finite::is_finite;
use super::json_config::{AdapterConfig, adapter_configs};
use super::tensor_file::not_safetensors;
use super::weights::{Shapes, Tensors, is_float};

/// What is wrong with a LoRA file.
#[derive(Debug, thiserror::Error)]
pub enum LoraError {
    #[error("{0}")]
    NotSafetensors(String),
    #[error("holds no matrices; is it the right file?")]
    Empty,
    #[error("{key} belongs to a {kind}; supported are LoRA, LoCon, LoHa, LoKr, DoRA and whole differences")]
    OtherKind { key: String, kind: &'static str },
    #[error("{count} of {total} keys match nothing in the model: {}; was it trained on another model?", first.join(", "))]
    Unmatched { first: Vec<String>, count: usize, total: usize },
    #[error("{module} has no {missing}; the file is incomplete")]
    Incomplete { module: String, missing: &'static str },
    #[error("{module} has both {first} and {second}; the file is broken")]
    Mixed { module: String, first: &'static str, second: &'static str },
    #[error("belongs to another model: {module} adapts {found}, the model has {expected:?} there")]
    Shape { module: String, found: String, expected: Vec<usize> },
    #[error(
        "{module} would be changed by more than a down and an up matrix, which 8-bit weights cannot be; use it with whole ones"
    )]
    NotBeside { module: String },
    #[error("{key} holds NaN or infinity; train it again")]
    NotFinite { key: String },
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

/// Reads the bytes of a `.safetensors` file, which are untrusted, and drops what it has read; `shapes` are those of a model's tensors,
/// by names such as `unet.conv_in.weight`. For what only asks whether a model would take a file: the fuzz targets.
///
/// # Errors
/// What is wrong with the file.
pub fn check(bytes: &[u8], shapes: impl IntoIterator<Item = (String, Vec<usize>)>) -> Result<(), LoraError> {
    Lora::parse(bytes, &shapes.into_iter().collect(), &Device::Cpu).map(drop)
}

/// A checked adapter, ready to be merged.
pub(super) struct Lora {
    changes: Vec<Change>,
    adapters: HashMap<String, AdapterConfig>,
}

impl Lora {
    /// Reads the bytes of a `.safetensors` file, which are untrusted, for the model whose tensors have `shapes`.
    pub(super) fn parse(bytes: &[u8], shapes: &Shapes, device: &Device) -> Result<Self, LoraError> {
        let content = SafeTensors::deserialize(bytes);
        let content = content.map_err(|error| LoraError::NotSafetensors(not_safetensors(bytes, &error)))?;
        let targets = Targets::new(shapes.keys());
        let mut modules: BTreeMap<String, Parts> = BTreeMap::new();
        let mut unmatched = Vec::new();
        for (key, view) in content.iter() {
            if let Some(kind) = keys::other_kind(key) {
                return Err(LoraError::OtherKind { key: key.to_owned(), kind });
            }
            let found = keys::split(key).and_then(|(module, part)| Some((module, part, targets.weight(module)?)));
            let Some((module, part, target)) = found.filter(|_| is_float(view.dtype())) else {
                unmatched.push(key.to_owned());
                continue;
            };
            let tensor = finite(key, view.load(device)?.to_dtype(DType::F32)?)?;
            let parts = modules.entry(target.to_owned()).or_insert_with(|| Parts::of(module));
            parts.tensors.insert(part, tensor);
        }
        if !unmatched.is_empty() {
            unmatched.sort();
            let (count, total) = (unmatched.len(), content.len());
            return Err(LoraError::Unmatched { first: unmatched.into_iter().take(3).collect(), count, total });
        }
        if modules.is_empty() {
            return Err(LoraError::Empty);
        }
        let mut changes = Vec::with_capacity(modules.len());
        for (target, parts) in modules {
            changes.extend(parts.changes(&target, shapes)?);
        }
        Ok(Self { changes, adapters: metadata(bytes) })
    }

    /// What its tensors take on the device.
    pub(super) fn bytes(&self) -> usize {
        self.changes.iter().map(Change::bytes).sum()
    }

    /// Changes every tensor it adapts: those in `overlay`, or copies of those in `base`, which become f32.
    pub(super) fn merge(&self, scale: f64, base: &Tensors, overlay: &mut Tensors) -> Result<(), LoraError> {
        for change in &self.changes {
            let Some(weight) = overlay.get(&change.target).or_else(|| base.get(&change.target)) else { continue };
            let merged = self.apply(change, &weight.to_dtype(DType::F32)?, scale)?;
            overlay.insert(change.target.clone(), merged);
        }
        Ok(())
    }

    /// The tensor `target`, f32, changed by all that this adapter has for it.
    pub(super) fn changed(&self, target: &str, weight: Tensor, scale: f64) -> Result<Tensor, LoraError> {
        self.of(target).try_fold(weight, |weight, change| self.apply(change, &weight, scale))
    }

    /// Down (rank, in) and up (out, rank) matrices whose product is added to the weight `target`, alpha and scale in the latter.
    ///
    /// # Errors
    /// When what the adapter does to it is no such product.
    pub(super) fn beside(&self, target: &str, scale: f64) -> Result<Vec<(Tensor, Tensor)>, LoraError> {
        let pair = |change: &Change| match (&change.delta, &change.direction) {
            (Delta::LowRank { down, up, mid: None }, None) => {
                Ok((down.flatten_from(1)?, (up.flatten_from(1)? * (scale * self.scaling(change)))?))
            }
            _ => Err(LoraError::NotBeside { module: target.trim_end_matches(".weight").to_owned() }),
        };
        self.of(target).map(pair).collect()
    }

    fn of(&self, target: &str) -> impl Iterator<Item = &Change> {
        self.changes.iter().filter(move |change| change.target == target)
    }

    fn apply(&self, change: &Change, weight: &Tensor, scale: f64) -> Result<Tensor, LoraError> {
        let scaling = self.scaling(change);
        let delta = change.delta.weight(weight.dims())?;
        match &change.direction {
            None => Ok((weight + (delta * (scale * scaling))?)?),
            Some(direction) => Ok(direction.merge(weight, &(delta * scaling)?, scale)?),
        }
    }

    /// alpha/rank: alpha from the file's header, from its own entry, or (none) the rank.
    fn scaling(&self, change: &Change) -> f64 {
        let Some(rank) = change.delta.rank().map(|rank| rank as f64) else { return 1.0 };
        let (component, module) = change.target.split_once('.').unwrap_or_default();
        let Some(adapter) = self.adapters.get(component) else { return change.alpha.map_or(1.0, |alpha| alpha / rank) };
        let module = module.trim_end_matches(".weight");
        let differs = adapter.alpha_pattern.iter().find(|(name, _)| module.ends_with(name.as_str()));
        let alpha = differs.map(|(_, alpha)| *alpha).or(adapter.lora_alpha).or(change.alpha).unwrap_or(rank);
        if adapter.use_rslora { alpha / rank.sqrt() } else { alpha / rank }
    }
}

fn finite(key: &str, tensor: Tensor) -> Result<Tensor, LoraError> {
    if is_finite(&tensor)? { Ok(tensor) } else { Err(LoraError::NotFinite { key: key.to_owned() }) }
}

/// The adapters' PEFT configuration in the header, by component; most files have none.
fn metadata(bytes: &[u8]) -> HashMap<String, AdapterConfig> {
    const KEY: &str = "lora_adapter_metadata";
    let header = SafeTensors::read_metadata(bytes).ok();
    let entry = header.as_ref().and_then(|(_, header)| header.metadata().as_ref()?.get(KEY));
    entry.map(|text| adapter_configs(text)).unwrap_or_default()
}
