//! Says what each pixel of an image shows, next to an engine, on its device and thread: a Segformer with labels such as clothes.
//!
//! It is a directory in transformers' layout: `config.json`, `preprocessor_config.json` and `model.safetensors`.

mod config;
mod encoder;
mod head;
pub mod mask;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Result as CandleResult, Tensor};
use candle_nn::VarBuilder;
use image::{GrayImage, RgbImage};

use self::config::SegmenterConfig;
use self::encoder::Stage;
use self::head::Head;
use self::mask::Scores;
use crate::EngineError;
use crate::device_errors::{classify, classify_memory_error};
use crate::sd::vision::preprocessor::{Kind, Preprocessor};
use crate::stored::is_read;
use crate::tensor_file::TensorFile;
use crate::weights::{Named, Weights, component_files, listed, shapes_of};

/// transformers' `SegformerForSemanticSegmentation`.
pub struct Segmenter {
    directory: PathBuf,
    labels: Vec<String>,
    preprocessor: Preprocessor,
    /// Height and width of what the network sees.
    sides: [u32; 2],
    network: Network,
    device: Device,
}

struct Network {
    stages: Vec<Stage>,
    head: Head,
}

/// What is known of a segmenter before its weights are read.
struct Described {
    config: SegmenterConfig,
    preprocessor: Preprocessor,
    sides: [u32; 2],
}

impl Segmenter {
    /// Reads the network in `directory`, which is kept and computed in f32 on `device`: it looks at one image a job.
    ///
    /// # Errors
    /// [`EngineError::Checkpoint`] with the file and what is missing in it, wrong or not supported; a tensor that nothing reads is wrong as well.
    pub fn load(directory: &Path, device: &Device) -> Result<Self, EngineError> {
        let Described { config, preprocessor, sides } = Described::read(directory)?;
        let wrong = |problem| EngineError::Checkpoint { path: directory.to_owned(), problem };
        let build = |vb: &VarBuilder| Network::new(&config, vb);
        let shapes = shapes_of(build)?;
        let files = component_files(directory)?;
        let mut unread = Vec::new();
        for file in &files {
            let names = TensorFile::open(file)?;
            let names = names.tensors().filter(|(name, dtype)| is_read(*dtype) && !shapes.contains_key(name));
            unread.extend(names.map(|(name, _)| name));
        }
        if !unread.is_empty() {
            unread.sort();
            return Err(wrong(format!("has tensors that config.json knows nothing of: {}", listed(&unread))));
        }
        let named = files.iter().map(|file| Named::open(file, |name| shapes.contains_key(name).then(|| name.to_owned())));
        let weights = Weights::of(&named.collect::<Result<Vec<_>, _>>()?, (DType::F32, device))?;
        let network = weights.build(&Arc::default(), build).map_err(wrong)?;
        Ok(Self {
            directory: directory.to_owned(),
            labels: config.labels,
            preprocessor,
            sides,
            network,
            device: device.clone(),
        })
    }

    /// The labels it knows, in the order of their places: those of `id2label`.
    #[must_use]
    pub fn labels(&self) -> &[String] {
        &self.labels
    }

    /// For each pixel of an image of any size the place of its label in [`Self::labels`].
    ///
    /// # Errors
    /// [`EngineError::Request`] for an image without pixels; [`EngineError::NotFinite`] where a score is no number; whatever the device says.
    pub fn segment(&self, image: &RgbImage) -> Result<GrayImage, EngineError> {
        let (width, height) = image.dimensions();
        if width == 0 || height == 0 {
            return Err(EngineError::Request { field: "auto_mask", problem: "the image has no pixels".into() });
        }
        let scores = self.scores(image).map_err(|error| classify(classify_memory_error(error.into())))?;
        if scores.values.iter().all(|score| score.is_finite()) {
            return Ok(scores.labels(width, height));
        }
        let directory = self.directory.display();
        Err(EngineError::NotFinite { problem: format!("the segmenter {directory} gives scores that are no numbers") })
    }

    /// What the network sees of an image: (1, 3, H, W).
    ///
    /// # Errors
    /// Those of the device.
    pub fn pixels(&self, image: &RgbImage) -> CandleResult<Tensor> {
        let [height, width] = self.sides.map(|side| side as usize);
        Tensor::from_vec(self.preprocessor.pixels(image), (1, 3, height, width), &Device::Cpu)?.to_device(&self.device)
    }

    /// What each stage of the encoder makes of `pixels` (B, 3, H, W): (B, its channels, its sides).
    ///
    /// # Errors
    /// Those of the device.
    pub fn stages(&self, pixels: &Tensor) -> CandleResult<Vec<Tensor>> {
        let mut found: Vec<Tensor> = Vec::with_capacity(self.network.stages.len());
        for stage in &self.network.stages {
            found.push(stage.forward(found.last().unwrap_or(pixels))?);
        }
        Ok(found)
    }

    /// The scores (logits) of the labels, out of what [`Self::stages`] gives: (B, labels, H, W), of the first stage's sides.
    ///
    /// # Errors
    /// Those of the device.
    pub fn logits(&self, stages: &[Tensor]) -> CandleResult<Tensor> {
        self.network.head.forward(stages)
    }

    fn scores(&self, image: &RgbImage) -> CandleResult<Scores> {
        let logits = self.logits(&self.stages(&self.pixels(image)?)?)?;
        let (_, _, height, width) = logits.dims4()?;
        Ok(Scores { values: logits.flatten_all()?.to_vec1()?, height, width })
    }
}

impl Network {
    fn new(config: &SegmenterConfig, vb: &VarBuilder) -> CandleResult<Self> {
        let encoder = vb.pp("segformer.encoder");
        let stages = config.stages.iter().enumerate().map(|(index, stage)| Stage::new(index, stage, &encoder));
        Ok(Self { stages: stages.collect::<CandleResult<_>>()?, head: Head::new(config, &vb.pp("decode_head"))? })
    }
}

/// Looks at a segmenter's JSON files, not at its weights. Returns its labels.
///
/// # Errors
/// [`EngineError::Checkpoint`] when these cannot be read or are not supported.
pub fn check(directory: &Path) -> Result<Vec<String>, EngineError> {
    Described::read(directory).map(|described| described.config.labels)
}

impl Described {
    fn read(directory: &Path) -> Result<Self, EngineError> {
        let config = SegmenterConfig::read(&directory.join("config.json"))?;
        let path = directory.join("preprocessor_config.json");
        let (preprocessor, sides) = Preprocessor::of_any_size(&path, Kind::Segformer)?;
        let mut shorter = sides[0].min(sides[1]) as usize;
        for (index, stage) in config.stages.iter().enumerate() {
            shorter = stage.side(shorter);
            if shorter < stage.reduction {
                let problem = format!(
                    "makes images of {} x {}, of which stage {index} has {shorter} places a side, fewer than its sr_ratios in config.json, {}",
                    sides[1], sides[0], stage.reduction
                );
                return Err(EngineError::Checkpoint { path, problem });
            }
        }
        Ok(Self { config, preprocessor, sides })
    }
}
