//! The image encoder that IP-Adapters look through: transformers' `CLIPVisionModelWithProjection`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Result as CandleResult, Tensor};
use candle_nn::VarBuilder;
use image::RgbImage;
use serde::Deserialize;

use crate::EngineError;
use crate::json_config::read;
use crate::layers::{Linear, linear_b};
use crate::sd::vision::Vision;
use crate::sd::vision::config::{Defaults, VisionConfig, WrittenVision};
use crate::sd::vision::preprocessor::Preprocessor;
use crate::weights::{Named, Weights, component_files, listed, shapes_of};

const ARCHITECTURE: &str = "CLIPVisionModelWithProjection";
/// transformers' default.
const PROJECTION: usize = 512;

/// `config.json`.
#[derive(Debug, Clone)]
pub(super) struct ImageEncoderConfig {
    vision: VisionConfig,
    /// Numbers of an image's embedding.
    pub(super) embedding: usize,
}

#[derive(Deserialize)]
struct Written {
    #[serde(default)]
    architectures: Vec<String>,
    projection_dim: Option<usize>,
    #[serde(flatten)]
    vision: WrittenVision,
}

impl ImageEncoderConfig {
    /// # Errors
    /// [`EngineError::Checkpoint`] with what is missing in it or not supported, and what would be.
    pub(super) fn read(directory: &Path) -> Result<Self, EngineError> {
        let path = directory.join("config.json");
        let written: Written = read(&path, &[])?;
        let wrong = |problem: String| EngineError::Checkpoint { path: path.clone(), problem };
        if written.architectures != [ARCHITECTURE] {
            let found = written.architectures;
            return Err(wrong(format!(
                "architectures is {found:?}; the image encoder of an IP-Adapter is [\"{ARCHITECTURE}\"]"
            )));
        }
        let vision = written.vision.checked(&Defaults::CLIP).map_err(&wrong)?;
        match vision.image {
            [height, width] if height == width => Ok(Self { vision, embedding: written.projection_dim.unwrap_or(PROJECTION) }),
            sides => Err(wrong(format!("image_size is {sides:?}; it must be one number, the side of a square"))),
        }
    }

    /// Numbers of each of its states.
    pub(super) fn hidden(&self) -> usize {
        self.vision.layer.hidden_size
    }
}

/// An image encoder that is loaded.
pub(in crate::sd) struct ImageEncoder {
    pub(in crate::sd) path: PathBuf,
    preprocessor: Preprocessor,
    /// Of the square that it sees.
    side: usize,
    vision: Vision,
    /// Without a bias.
    visual_projection: Linear,
    pub(in crate::sd) weights: Weights,
    device: Device,
}

impl ImageEncoder {
    /// `kept`: what its tensors are kept in and where.
    ///
    /// # Errors
    /// [`EngineError::Checkpoint`] with the file and what is missing in it, wrong or not supported.
    pub(super) fn read(directory: &Path, kept: (DType, &Device)) -> Result<Self, EngineError> {
        let wrong = |problem| EngineError::Checkpoint { path: directory.to_owned(), problem };
        let config = ImageEncoderConfig::read(directory)?;
        let build = |vb: &VarBuilder| modules(&config, vb);
        let shapes = shapes_of(build)?;
        let files = component_files(directory)?;
        let named = files.iter().map(|file| Named::open(file, |name| Some(name.to_owned()))).collect::<Result<Vec<_>, _>>()?;
        let mut unread: Vec<String> =
            named.iter().flat_map(Named::names).filter(|name| !shapes.contains_key(*name)).cloned().collect();
        if !unread.is_empty() {
            unread.sort();
            return Err(wrong(format!("has tensors that config.json knows nothing of: {}", listed(&unread))));
        }
        let weights = Weights::of(&named, kept)?;
        let (vision, visual_projection) = weights.build(&Arc::default(), build).map_err(wrong)?;
        let [side, _] = config.vision.image;
        Ok(Self {
            path: directory.to_owned(),
            preprocessor: Preprocessor::clip(side as u32),
            side,
            vision,
            visual_projection,
            weights,
            device: kept.1.clone(),
        })
    }

    /// Of images of any size: (N, embedding).
    ///
    /// # Errors
    /// Those of the device.
    pub(in crate::sd) fn embeddings(&self, images: &[RgbImage]) -> CandleResult<Tensor> {
        self.visual_projection.forward(&self.vision.forward(&self.pixels(images)?)?)
    }

    /// What comes out of all layers but the last: (N, 1 + patches, hidden).
    ///
    /// # Errors
    /// Those of the device.
    pub(in crate::sd) fn states(&self, images: &[RgbImage]) -> CandleResult<Tensor> {
        self.vision.states(&self.pixels(images)?, 1)
    }

    /// [`Self::states`] of so many images without anything to be seen: zeros where an image's normed values would be.
    ///
    /// # Errors
    /// Those of the device.
    pub(in crate::sd) fn states_of_nothing(&self, images: usize) -> CandleResult<Tensor> {
        let nothing = Tensor::zeros((1, 3, self.side, self.side), self.weights.dtype(), &self.device)?;
        self.vision.states(&nothing, 1)?.repeat((images, 1, 1))
    }

    fn pixels(&self, images: &[RgbImage]) -> CandleResult<Tensor> {
        let pixels: Vec<f32> = images.iter().flat_map(|image| self.preprocessor.pixels(image)).collect();
        let pixels = Tensor::from_vec(pixels, (images.len(), 3, self.side, self.side), &Device::Cpu)?;
        pixels.to_dtype(self.weights.dtype())?.to_device(&self.device)
    }
}

fn modules(config: &ImageEncoderConfig, vb: &VarBuilder) -> CandleResult<(Vision, Linear)> {
    let vision = Vision::clip(&config.vision, &vb.pp("vision_model"))?;
    Ok((vision, linear_b(config.hidden(), config.embedding, false, vb.pp("visual_projection"))?))
}
