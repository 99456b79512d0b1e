//! Classifies images next to an engine, on its device and thread: a ViT with labels, or Stable Diffusion's safety checker.
//!
//! Each is a directory in transformers' layout: `config.json`, whose `architectures` decides, `preprocessor_config.json` and `model.safetensors`.

mod config;
mod head;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Result as CandleResult, Tensor};
use candle_nn::VarBuilder;
use image::RgbImage;

use self::config::{Architecture, ClassifierConfig};
use self::head::Head;
use crate::EngineError;
use crate::device_errors::{classify, classify_memory_error};
use crate::sd::vision::Vision;
use crate::sd::vision::preprocessor::{Kind, Preprocessor};
use crate::stored::is_read;
use crate::tensor_file::TensorFile;
use crate::weights::{Named, Shapes, Weights, component_files, listed, shapes_of};

/// Images that are looked at in one forward pass.
const AT_ONCE: usize = 16;
/// A layer that old ViTs bring along, and that no classifier reads.
const POOLER: &str = "vit.pooler.";

/// Looks at images, and gives each a score for every label.
pub struct Classifier {
    directory: PathBuf,
    labels: Vec<String>,
    /// Height and width of what the model sees.
    image: [usize; 2],
    preprocessor: Preprocessor,
    vision: Vision,
    head: Head,
    dtype: DType,
    device: Device,
}

impl Classifier {
    /// Reads the classifier in `directory`. The vision transformer is kept in `dtype` (f32, f16 or bf16) on `device`; what follows it computes in
    /// f32 on the CPU. Without `preprocessor_config.json` that of a `feature_extractor` next to `directory` counts, as in diffusers' layout.
    ///
    /// # Errors
    /// [`EngineError::Checkpoint`] with the file and what is missing in it, wrong or not supported; a tensor that nothing reads is wrong as well.
    pub fn load(directory: &Path, dtype: DType, device: &Device) -> Result<Self, EngineError> {
        let (config, preprocessor) = read(directory)?;
        let files = component_files(directory)?;
        let names = tensor_names(&files)?;
        let build_vision = |vb: &VarBuilder| build_vision(&config, &names, vb);
        let build_head = |vb: &VarBuilder| Head::new(&config, vb);
        let of_vision = shapes_of(build_vision)?;
        let of_head = shapes_of(build_head)?;
        let wrong = |problem| EngineError::Checkpoint { path: directory.to_owned(), problem };
        let vision = weights(&files, &of_vision, (dtype, device))?.build(&Arc::default(), build_vision).map_err(wrong)?;
        let head = weights(&files, &of_head, (DType::F32, &Device::Cpu))?.build(&Arc::default(), build_head).map_err(wrong)?;
        let unread = names.into_iter().filter(|name| {
            let is_read = of_vision.contains_key(name) || of_head.contains_key(name);
            !is_read && !name.starts_with(POOLER)
        });
        let unread: Vec<String> = unread.collect();
        if !unread.is_empty() {
            return Err(wrong(format!("has tensors that config.json knows nothing of: {}", listed(&unread))));
        }
        Ok(Self {
            directory: directory.to_owned(),
            labels: config.architecture.labels(),
            image: config.vision.image,
            preprocessor,
            vision,
            head,
            dtype,
            device: device.clone(),
        })
    }

    /// The labels it can give, in their order: those of `id2label`, or `unsafe_content` and `special_care`.
    #[must_use]
    pub fn labels(&self) -> &[String] {
        &self.labels
    }

    /// Scores of images of any size: a list an image, label by label in the order of [`Self::labels`].
    ///
    /// A ViT's scores are a softmax: 0 to 1, and they add up to 1. A safety checker's are no probabilities but differences of cosines, rounded to 3
    /// places: the highest of (cosine to a concept - that concept's threshold + 0.01 if the image needs special care). `unsafe_content` is above 0
    /// exactly where diffusers says `has_nsfw_concept`.
    ///
    /// # Errors
    /// [`EngineError::Request`] for an image without pixels; [`EngineError::NotFinite`] where a score is no number, so that it is never taken for a low
    /// one; whatever the device says.
    pub fn classify(&self, images: &[RgbImage]) -> Result<Vec<Vec<f32>>, EngineError> {
        if let Some(place) = images.iter().position(|image| image.width() == 0 || image.height() == 0) {
            return Err(EngineError::Request { field: "images", problem: format!("image {place} has no pixels") });
        }
        let mut scores = Vec::with_capacity(images.len());
        for some in images.chunks(AT_ONCE) {
            scores.extend(self.classify_at_once(some).map_err(|error| classify(classify_memory_error(error.into())))?);
        }
        if scores.iter().flatten().all(|score| score.is_finite()) {
            return Ok(scores);
        }
        let directory = self.directory.display();
        let problem = format!("the classifier {directory} gives scores that are no numbers; keep it in f32, or bf16");
        Err(EngineError::NotFinite { problem })
    }

    fn classify_at_once(&self, images: &[RgbImage]) -> CandleResult<Vec<Vec<f32>>> {
        let [height, width] = self.image;
        let pixels: Vec<f32> = images.iter().flat_map(|image| self.preprocessor.pixels(image)).collect();
        let pixels = Tensor::from_vec(pixels, (images.len(), 3, height, width), &Device::Cpu)?;
        let seen = self.vision.forward(&pixels.to_dtype(self.dtype)?.to_device(&self.device)?)?;
        self.head.scores(&seen.to_device(&Device::Cpu)?.to_dtype(DType::F32)?)
    }
}

/// What a classifier gives scores for.
#[derive(Debug, Clone, PartialEq)]
pub struct Labels {
    /// As [`Classifier::labels`], each with the score above which it counts where nobody has said another: half of a ViT's certainty, and 0 for a safety
    /// checker, where diffusers blackens the image.
    pub labels: Vec<(String, f32)>,
    /// Between which scores are: a ViT's are parts of 1, a safety checker's are differences of cosines.
    pub scores: Range<f32>,
}

/// Looks at a classifier's JSON files, not at its weights.
///
/// # Errors
/// [`EngineError::Checkpoint`] when these cannot be read or are not supported.
pub fn check(directory: &Path) -> Result<Labels, EngineError> {
    let architecture = read(directory)?.0.architecture;
    let (threshold, scores) = if matches!(architecture, Architecture::Vit(_)) { (0.5, 0.0..1.0) } else { (0.0, -2.0..2.0) };
    Ok(Labels { labels: architecture.labels().into_iter().map(|label| (label, threshold)).collect(), scores })
}

fn read(directory: &Path) -> Result<(ClassifierConfig, Preprocessor), EngineError> {
    let config = ClassifierConfig::read(&directory.join("config.json"))?;
    let own = directory.join(PREPROCESSOR);
    // Components of a pipeline share one.
    let shared = directory.with_file_name("feature_extractor").join(PREPROCESSOR);
    let path = if !own.is_file() && shared.is_file() { shared } else { own };
    let default_kind = if matches!(config.architecture, Architecture::Vit(_)) { Kind::Vit } else { Kind::Clip };
    let preprocessor = Preprocessor::read(&path, default_kind, config.vision.image)?;
    Ok((config, preprocessor))
}

const PREPROCESSOR: &str = "preprocessor_config.json";

/// `names`: what the files call their tensors. A vision model of CLIP was one of two modules until transformers 5.
fn build_vision(config: &ClassifierConfig, names: &[String], vb: &VarBuilder) -> CandleResult<Vision> {
    const OUTER: &str = "vision_model";
    const INNER: &str = "vision_model.vision_model";
    match config.architecture {
        Architecture::Vit(_) => Vision::vit(&config.vision, &vb.pp("vit")),
        Architecture::SafetyChecker { .. } => {
            let is_nested = names.iter().any(|name| name.starts_with(INNER));
            Vision::clip(&config.vision, &vb.pp(if is_nested { INNER } else { OUTER }))
        }
    }
}

/// Names of all tensors that may be weights; older transformers saved tables of integers next to them.
fn tensor_names(files: &[PathBuf]) -> Result<Vec<String>, EngineError> {
    let mut names = Vec::new();
    for file in files {
        names.extend(TensorFile::open(file)?.tensors().filter(|(_, dtype)| is_read(*dtype)).map(|(name, _)| name));
    }
    names.sort();
    Ok(names)
}

/// Those of `shapes`.
fn weights(files: &[PathBuf], shapes: &Shapes, (dtype, device): (DType, &Device)) -> Result<Weights, EngineError> {
    let files = files.iter().map(|file| Named::open(file, |name| shapes.contains_key(name).then(|| name.to_owned())));
    let files = files.collect::<Result<Vec<_>, _>>()?;
    Weights::of(&files, (dtype, device))
}
