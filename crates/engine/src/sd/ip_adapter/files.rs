//! The files of an IP-Adapter, as its first release has them (`h94/IP-Adapter`): one with its tensors, and the image encoder's directory.

use std::path::PathBuf;
use std::sync::Arc;

use candle_core::{DType, Device};

use super::IpAdapter;
use super::attentions::{self, Place};
use super::image_encoder::{ImageEncoder, ImageEncoderConfig};
use super::projection::ProjectionConfig;
use super::resampler::ResamplerConfig;
use crate::EngineError;
use crate::graphs::module_number;
use crate::sd::checkpoint::Checkpoint;
use crate::sd::config::UnetConfig;
use crate::tensor_file::TensorFile;
use crate::weights::{Named, Shapes, Weights, listed, shapes_of};

/// An IP-Adapter of a model, as jobs name it.
#[derive(Debug, Clone, PartialEq)]
pub struct IpAdapterFile {
    pub name: String,
    /// One `.safetensors` file with `image_proj.…` and `ip_adapter.…`.
    pub path: PathBuf,
    /// A directory with `config.json` and the weights of a `CLIPVisionModelWithProjection`; adapters may share it.
    pub image_encoder: PathBuf,
}

/// The IP-Adapters of a model, and what they look through.
pub(in crate::sd) struct IpAdapters {
    /// In the order of the settings.
    pub(in crate::sd) loaded: Vec<Loaded>,
    /// Each directory once.
    pub(in crate::sd) encoders: Vec<ImageEncoder>,
}

/// An IP-Adapter that is loaded.
pub(in crate::sd) struct Loaded {
    pub(in crate::sd) name: String,
    pub(in crate::sd) path: PathBuf,
    pub(in crate::sd) net: IpAdapter,
    /// The place of its image encoder.
    pub(in crate::sd) encoder: usize,
    /// Of its tensors, for graphs.
    pub(in crate::sd) module: u64,
    pub(in crate::sd) weights: Weights,
}

/// Weights that look like an IP-Adapter's and are another thing: part of a name, what it is.
const OTHERS: [(&str, &str); 3] = [
    (
        "perceiver_resampler.",
        "is an IP-Adapter FaceID Plus, which looks at embeddings of faces (InsightFace): it is not supported",
    ),
    ("image_proj.proj.3.", "is an IP-Adapter Full Face, whose projection is not supported"),
    ("image_proj.proj.0.", "is an IP-Adapter FaceID, which looks at embeddings of faces (InsightFace): it is not supported"),
];
const SUPPORTED: &str =
    "take ip-adapter_sd15 or ip-adapter-plus_sd15 for Stable Diffusion 1, or ip-adapter_sdxl_vit-h for Stable Diffusion XL";

impl IpAdapterFile {
    /// Looks at settings, names and shapes, not at the tensors.
    ///
    /// # Errors
    /// [`EngineError::Checkpoint`] names the file and why it is no IP-Adapter of this checkpoint.
    pub fn check(&self, checkpoint: &Checkpoint) -> Result<(), EngineError> {
        self.projection(&checkpoint.unet).map(drop)
    }

    /// Which projection it has, where all of it fits the UNet and the image encoder.
    fn projection(&self, unet: &UnetConfig) -> Result<ProjectionConfig, EngineError> {
        let tensors = TensorFile::open(&self.path)?;
        let names: Vec<String> = tensors.tensors().map(|(name, _)| name).collect();
        let shapes = names.iter().filter_map(|name| Some((name.clone(), tensors.info(name)?.shape.clone())));
        let shapes: Shapes = shapes.collect();
        let mut names = names;
        names.sort();
        if let Some((_, problem)) = OTHERS.into_iter().find(|(part, _)| names.iter().any(|name| name.contains(part))) {
            return Err(self.wrong(format!("{problem}; {SUPPORTED}")));
        }
        let Some(projection) = ProjectionConfig::of(&shapes) else {
            let found = listed(&names);
            return Err(self
                .wrong(format!("holds no IP-Adapter (image_proj.… and ip_adapter.…): its tensors are {found}; {SUPPORTED}")));
        };
        let found = (names.iter().filter(|name| name.ends_with(".to_k_ip.weight")).count(), projection.text_channels());
        let places = attentions::of_unet(unet);
        if found != (places.len(), unet.cross_attention_dim) {
            return Err(self.wrong(format!(
                "is for a UNet with {} attentions to texts of {} numbers, and the model's has {} to texts of {}; {SUPPORTED}",
                found.0,
                found.1,
                places.len(),
                unet.cross_attention_dim
            )));
        }
        self.check_names(&names, unet, &places, &projection)?;
        self.check_encoder(&projection)?;
        Ok(projection)
    }

    /// All of its tensors must be read: what is left out would change the images.
    fn check_names(
        &self,
        names: &[String],
        unet: &UnetConfig,
        places: &[Place],
        projection: &ProjectionConfig,
    ) -> Result<(), EngineError> {
        let asked = shapes_of(|vb| IpAdapter::new(unet, projection.clone(), vb))?;
        let unread: Vec<String> = names.iter().filter(|name| !asked.contains_key(*name)).cloned().collect();
        if unread.is_empty() {
            return Ok(());
        }
        let last = places.iter().map(|place| place.number).max().unwrap_or_default();
        let problem = format!(
            "has tensors that match nothing of the model: {}; expected are image_proj.… and ip_adapter.N.to_k_ip.weight and \
             ip_adapter.N.to_v_ip.weight, N being 1, 3 and so on up to {last}",
            listed(&unread)
        );
        Err(self.wrong(problem))
    }

    fn check_encoder(&self, projection: &ProjectionConfig) -> Result<(), EngineError> {
        let encoder = ImageEncoderConfig::read(&self.image_encoder)?;
        let (what, takes, gives) = match projection {
            ProjectionConfig::Plain { embedding, .. } => ("embeddings", *embedding, encoder.embedding),
            ProjectionConfig::Resampler(ResamplerConfig { states, .. }) => ("states", *states, encoder.hidden()),
        };
        if takes == gives {
            return Ok(());
        }
        let directory = self.image_encoder.display();
        Err(self.wrong(format!(
            "takes {what} of {takes} numbers, and those of the image encoder {directory} have {gives}; take the image encoder that it was \
             trained with: models/image_encoder (ViT-H/14) for all but ip-adapter_sdxl, whose is sdxl_models/image_encoder (ViT-bigG/14)"
        )))
    }

    fn wrong(&self, problem: String) -> EngineError {
        EngineError::Checkpoint { path: self.path.clone(), problem }
    }
}

impl IpAdapters {
    /// `kept`: what their tensors are kept in and where.
    ///
    /// # Errors
    /// As [`IpAdapterFile::check`]; lists the tensors that are missing or have another shape.
    pub(in crate::sd) fn read(
        files: &[IpAdapterFile],
        checkpoint: &Checkpoint,
        kept: (DType, &Device),
    ) -> Result<Self, EngineError> {
        let mut read = Self { loaded: Vec::new(), encoders: Vec::new() };
        for file in files {
            let projection = file.projection(&checkpoint.unet)?;
            let known = read.encoders.iter().position(|encoder| encoder.path == file.image_encoder);
            let encoder = known.unwrap_or(read.encoders.len());
            if known.is_none() {
                read.encoders.push(ImageEncoder::read(&file.image_encoder, kept)?);
            }
            let weights = Weights::of(&[Named::open(&file.path, |name| Some(name.to_owned()))?], kept)?;
            let net = weights.build(&Arc::default(), |vb| IpAdapter::new(&checkpoint.unet, projection, vb));
            let net = net.map_err(|problem| file.wrong(problem))?;
            let module = module_number();
            read.loaded.push(Loaded { name: file.name.clone(), path: file.path.clone(), net, encoder, module, weights });
        }
        Ok(read)
    }

    /// Bytes of all their tensors.
    pub(in crate::sd) fn bytes(&self) -> u64 {
        let encoders = self.encoders.iter().map(|encoder| encoder.weights.bytes());
        encoders.chain(self.loaded.iter().map(|loaded| loaded.weights.bytes())).sum()
    }
}
