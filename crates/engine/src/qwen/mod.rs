//! Qwen-Image and Qwen-Image-Edit in diffusers' layout: a text, and references where there are any, to an image.

mod block;
pub mod checkpoint;
pub mod config;
mod diagnosis;
pub mod engine;
mod files;
mod fingerprint;
pub mod guidance;
mod layout;
mod linear;
pub(crate) mod modulated;
pub mod modulation;
pub mod packing;
pub mod pipeline;
pub mod precision;
pub mod references;
pub mod rope;
pub mod sizes;
pub mod text;
pub mod text_config;
pub mod transformer;
pub mod vae;
mod vae_blocks;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device};

use self::checkpoint::ImageCheckpoint;
use self::files::TransformerFiles;
use self::fingerprint::Fingerprint;
use self::modulation::ConditioningCache;
use self::precision::Precision;
use self::references::Reference;
use self::sizes::Areas;
use self::transformer::Transformer;
use self::vae::Autoencoder;
use super::graphs::{Graphs, module_number};
use super::preview::Previewer;
use super::recent::Recent;
use super::weights::Weights;
use super::{EngineError, LoraFile};

/// Which weights the transformer has.
#[derive(Debug, Clone, Default)]
pub struct Variant {
    /// One file in place of the checkpoint's own transformer: 8-bit weights, usually.
    pub file: Option<PathBuf>,
    /// Merged into whole weights, kept next to 8-bit ones.
    pub loras: Vec<LoraFile>,
    /// Whether the weights, or one of the LoRAs, were distilled to a few steps (Lightning): that takes a schedule of its own.
    pub distilled: bool,
}

impl Variant {
    /// The names of its files, as a message has them.
    fn sources(&self) -> String {
        let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let file = self.file.as_deref().map_or_else(|| "its own transformer".to_owned(), name);
        let loras = self.loras.iter().map(|lora| format!(" with {} at scale {}", name(&lora.path), lora.scale));
        loras.fold(file, |sources, lora| sources + &lora)
    }
}

/// A loaded checkpoint, from the text encoder's hidden states on. The stages of a generation are methods of their own:
/// [`encode_reference`](Self::encode_reference), [`denoise`](Self::denoise), [`decode`](Self::decode).
pub struct QwenImage {
    checkpoint: ImageCheckpoint,
    distilled: bool,
    /// What the transformer was read from, for messages: its file and LoRAs, by name.
    sources: String,
    areas: Areas,
    precision: Precision,
    device: Device,
    /// Of the layers that are read for each schedule.
    files: TransformerFiles,
    transformer: Transformer,
    /// Of the transformer's tensors.
    module: u64,
    /// Of the looks of all transformers that share the autoencoder.
    graphs: Arc<Graphs>,
    conditionings: ConditioningCache,
    vae: Arc<Autoencoder>,
    previewer: Previewer,
    /// Nothing where it is another model's.
    vae_bytes: u64,
    references: Recent<Fingerprint, Reference>,
}

impl QwenImage {
    /// Loads transformer, autoencoder and schedule out of `directory`.
    ///
    /// Resident at full size are 13.6 billion weights of the transformer (27.2 GB in bf16, 13.6 GB in 8 bits) and the autoencoder
    /// (0.5 GB in f32); the 6.8 billion that only depend on time are read when a schedule is used first.
    ///
    /// # Errors
    /// [`EngineError::Checkpoint`] names the file and what is missing or not supported, [`EngineError::Lora`] a LoRA's fault.
    pub fn load(directory: &Path, variant: &Variant, precision: Precision, device: Device) -> Result<Self, EngineError> {
        let checkpoint = ImageCheckpoint::read(directory)?;
        let weights = Weights::read(directory, &["vae"], (DType::F32, &device))?;
        let vae = weights.build(&Arc::default(), |vb| Autoencoder::new(&checkpoint.vae, &vb.pp("vae")));
        let vae = vae.map_err(|problem| EngineError::Checkpoint { path: directory.join("vae"), problem })?;
        let graphs = Arc::new(Graphs::new(false, &device, None));
        Self::with(checkpoint, variant, precision, device, (Arc::new(vae), weights.bytes(), graphs))
    }

    /// The same checkpoint with another variant's transformer; the autoencoder is shared.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn low_rank(&self, variant: &Variant) -> Result<Self, EngineError> {
        let shared = (Arc::clone(&self.vae), 0, Arc::clone(&self.graphs));
        let other = Self::with(self.checkpoint.clone(), variant, self.precision, self.device.clone(), shared)?;
        Ok(other.with_areas(self.areas))
    }

    fn with(
        checkpoint: ImageCheckpoint,
        variant: &Variant,
        precision: Precision,
        device: Device,
        (vae, vae_bytes, graphs): (Arc<Autoencoder>, u64, Arc<Graphs>),
    ) -> Result<Self, EngineError> {
        let config = &checkpoint.transformer;
        let own = checkpoint.directory.join("transformer");
        let files = TransformerFiles::open(config, &own, variant.file.as_deref(), &variant.loras, (precision, &device))?;
        let transformer = Transformer::new(config, &files)?;
        Ok(Self {
            checkpoint,
            distilled: variant.distilled,
            sources: variant.sources(),
            areas: Areas::default(),
            precision,
            device,
            files,
            transformer,
            module: module_number(),
            graphs,
            conditionings: ConditioningCache::default(),
            vae,
            previewer: Previewer::default(),
            vae_bytes,
            references: Recent::new(references::KEPT, |_, _| 1),
        })
    }

    /// Looks at images in these sizes from now on.
    #[must_use]
    pub fn with_areas(self, areas: Areas) -> Self {
        Self { areas, ..self }
    }

    /// Keeps its looks in these graphs from now on.
    #[must_use]
    pub(super) fn with_graphs(self, graphs: Arc<Graphs>) -> Self {
        Self { graphs, ..self }
    }

    /// Bytes of the tensors that stay on the device.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.files.resident_bytes() + self.vae_bytes
    }

    /// Forgets the references that were encoded.
    pub fn forget(&mut self) {
        self.references.forget();
    }

    #[must_use]
    pub fn checkpoint(&self) -> &ImageCheckpoint {
        &self.checkpoint
    }
}
