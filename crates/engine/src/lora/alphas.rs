//! How strongly an adapter's matrices act: alpha, which is in the file, in its header, in PEFT's configuration, or in the job.

use std::fs;
use std::path::Path;

use super::LoraError;
use super::delta::Delta;
use super::keys::{is_alpha, is_of_peft};
use crate::AlphaSource;
use crate::adapter_config::{AdapterConfig, AdapterConfigs, PeftType, file_config, header_configs};
use crate::tensor_file::TensorFile;

/// Where diffusers keeps PEFT's configuration in the header.
const HEADER_KEY: &str = "lora_adapter_metadata";
/// An `adapter_config.json` has 1 KB, and a line for each module whose rank differs.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// Whether the file says nothing of its alpha though its trainer wrote it down: PEFT's `save_pretrained` puts it into an
/// `adapter_config.json` next to the file. What is no safetensors file needs none.
#[must_use]
pub fn needs_config(path: &Path) -> bool {
    TensorFile::open(path).is_ok_and(|file| depends_on_config(&file))
}

fn depends_on_config(file: &TensorFile) -> bool {
    let mut keys = file.tensors().map(|(key, _)| key);
    file.note(HEADER_KEY).is_none() && file.tensors().any(|(key, _)| is_of_peft(&key)) && !keys.any(|key| is_alpha(&key))
}

/// What is known of a file's alphas besides those among its tensors.
pub(super) struct Alphas {
    configs: AdapterConfigs,
    /// The job's.
    given: Option<f64>,
}

/// What a module of the file consists of.
pub(super) struct Module<'a> {
    /// Its name in the file.
    pub(super) name: &'a str,
    /// Name of the base tensor.
    pub(super) target: &'a str,
    pub(super) delta: &'a Delta,
    /// The file's own, as a tensor.
    pub(super) alpha: Option<f64>,
    /// Whether it has lengths that were learnt (`DoRA`).
    pub(super) has_lengths: bool,
}

impl Alphas {
    /// # Errors
    /// When they are nowhere, in two places, or cannot be read.
    pub(super) fn read(file: &TensorFile, source: &AlphaSource) -> Result<Self, LoraError> {
        let header = file.note(HEADER_KEY).map(header_configs).transpose().map_err(LoraError::Header)?;
        let in_file = header.is_some() || file.tensors().any(|(key, _)| is_alpha(&key));
        match source {
            AlphaSource::File if depends_on_config(file) => Err(LoraError::NoAlpha),
            AlphaSource::File => Ok(Self { configs: header.unwrap_or_default(), given: None }),
            AlphaSource::Given(_) | AlphaSource::Config(_) if in_file => Err(LoraError::AlphaTwice),
            AlphaSource::Given(alpha) => Ok(Self { configs: AdapterConfigs::new(), given: Some(*alpha) }),
            AlphaSource::Config(path) => Ok(Self { configs: read_config(path)?, given: None }),
        }
    }

    /// What the product of the module's matrices is multiplied by: alpha/rank, of rank-stabilized LoRA alpha/√rank.
    ///
    /// # Errors
    /// When the configuration contradicts the matrices.
    pub(super) fn scaling(&self, module: &Module<'_>) -> Result<f64, LoraError> {
        let (component, name) = module.target.split_once('.').unwrap_or_default();
        let rank = module.delta.rank().map(|rank| rank as f64);
        match (self.configs.get(component).or_else(|| self.configs.get("")), rank) {
            (Some(config), _) => configured(config, module, name.trim_end_matches(".weight")),
            (None, None) if self.given.is_some() && matches!(module.delta, Delta::Kronecker(..)) => {
                let problem =
                    "its factors have no rank that alpha could be divided by: name PEFT's configuration as config_url";
                Err(LoraError::Contradiction { module: module.name.to_owned(), problem: problem.into() })
            }
            (None, Some(rank)) => Ok(module.alpha.or(self.given).map_or(1.0, |alpha| alpha / rank)),
            (None, None) => Ok(1.0),
        }
    }
}

/// `name`: the module's, without the component's.
fn configured(config: &AdapterConfig, module: &Module<'_>, name: &str) -> Result<f64, LoraError> {
    let contradicts = |problem: String| LoraError::Contradiction { module: module.name.to_owned(), problem };
    let peft_type = match module.delta {
        Delta::LowRank { .. } => PeftType::Lora,
        Delta::Hadamard(..) => PeftType::Loha,
        Delta::Kronecker(..) => PeftType::Lokr,
        // PEFT has no such kinds, so its configuration says nothing of them.
        Delta::Full(_) | Delta::Rows { .. } => return Ok(1.0),
    };
    if config.peft_type != peft_type {
        return Err(contradicts(format!(
            "its matrices are a {peft_type:?}'s, the configuration is a {:?}'s",
            config.peft_type
        )));
    }
    if module.alpha.is_some() {
        return Err(contradicts("it has an alpha of its own and one in the configuration".into()));
    }
    if config.use_dora != module.has_lengths {
        let has = if module.has_lengths { "a lora_magnitude_vector" } else { "no lora_magnitude_vector" };
        return Err(contradicts(format!("it has {has}, the configuration says use_dora: {}", config.use_dora)));
    }
    // Transformers 5 leaves `text_model` out of the names that PEFT sees.
    let bare = name.strip_prefix("text_model.").unwrap_or(name);
    let (rank, alpha) = config.rank_and_alpha(&[name, bare]).map_err(LoraError::Header)?;
    if let Some(found) = module.delta.rank()
        && found != rank
    {
        return Err(contradicts(format!("its matrices have the rank {found}, the configuration says {rank}")));
    }
    let rank = rank as f64;
    Ok(if config.use_rslora { alpha / rank.sqrt() } else { alpha / rank })
}

fn read_config(path: &Path) -> Result<AdapterConfigs, LoraError> {
    let unreadable = |error: std::io::Error| LoraError::Config(format!("cannot be read: {error}"));
    let bytes = fs::metadata(path).map_err(unreadable)?.len();
    if bytes > MAX_CONFIG_BYTES {
        return Err(LoraError::Config(format!("has {bytes} bytes; at most {MAX_CONFIG_BYTES} are allowed")));
    }
    file_config(&fs::read_to_string(path).map_err(unreadable)?).map_err(LoraError::Config)
}
