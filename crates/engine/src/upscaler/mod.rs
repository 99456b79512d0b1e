//! Enlarges images next to an engine, on its device and thread: networks of the ESRGAN family, a `.safetensors` file each.

mod compact;
mod names;
mod rrdb;
pub mod tiles;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Result as CandleResult, Tensor};
use candle_nn::VarBuilder;
use image::{Rgb, RgbImage, imageops};

use self::compact::{Compact, CompactConfig};
use self::names::Spelling;
use self::rrdb::{Rrdb, RrdbConfig};
use self::tiles::{Stretch, Tiles};
use crate::EngineError;
use crate::device_errors::{advise_smaller, classify, classify_memory_error};
use crate::finite::is_finite;
use crate::pixels::to_unit_pixels;
use crate::stored::is_read;
use crate::tensor_file::TensorFile;
use crate::weights::{Named, Shapes, Weights, listed, shapes_of};

/// How often an image can be enlarged.
pub const FACTORS: [u32; 2] = [2, 4];
/// 1.3 GB of a 4-fold network with 64 features in f32.
const TILE_PX: u32 = 256;
/// Real-ESRGAN's own tiles see 10 pixels around them.
const MARGIN_PX: u32 = 32;
/// What brings a checkpoint of torch into a file that is read.
const CONVERT: &str = "convert it once, on a machine where it may do no harm: python -c \"import sys, torch, safetensors.torch as s; \
    w = torch.load(sys.argv[1], map_location='cpu', weights_only=True); w = w.get('params_ema', w.get('params', w)); \
    s.save_file({k: v.contiguous() for k, v in w.items()}, sys.argv[2])\" FILE.pth FILE.safetensors";

/// Enlarges images.
pub struct Upscaler {
    path: PathBuf,
    network: Network,
    architecture: Architecture,
    factor: u32,
    dtype: DType,
    device: Device,
}

enum Network {
    Rrdb(Rrdb),
    Compact(Compact),
}

enum Architecture {
    Rrdb(RrdbConfig),
    Compact(CompactConfig),
}

/// What is known of a file before its tensors are read.
struct Described {
    architecture: Architecture,
    factor: u32,
    spelling: Spelling,
}

impl Upscaler {
    /// Reads the network in `path`, which is kept and computed in `dtype` (f32, f16 or bf16) on `device`. Its sizes are those of its tensors: `RRDBNet`
    /// under the names of basicsr, of ESRGAN's first release or of Real-SR, or `SRVGGNetCompact`.
    ///
    /// # Errors
    /// [`EngineError::Checkpoint`] with the file and what is missing in it, wrong or not supported; a tensor that nothing reads is wrong as well.
    pub fn load(path: &Path, dtype: DType, device: &Device) -> Result<Self, EngineError> {
        let Described { architecture, factor, spelling } = Described::read(path)?;
        let named = Named::open(path, |name| spelling.name(name))?;
        let weights = Weights::of(&[named], (dtype, device))?;
        let network = weights.build(&Arc::default(), |vb| architecture.build(vb));
        let network = network.map_err(|problem| EngineError::Checkpoint { path: path.to_owned(), problem })?;
        Ok(Self { path: path.to_owned(), network, architecture, factor, dtype, device: device.clone() })
    }

    /// How many times as wide and as high an image becomes: one of [`FACTORS`].
    #[must_use]
    pub fn factor(&self) -> u32 {
        self.factor
    }

    /// How far from a pixel of an image those may lie that decide it.
    #[must_use]
    pub fn receptive_px(&self) -> u32 {
        match &self.architecture {
            Architecture::Rrdb(config) => config.receptive_px(),
            Architecture::Compact(config) => config.receptive_px(),
        }
    }

    /// The image, [`Self::factor`] times as wide and as high, in tiles of 256 pixels with a margin of 32. `is_cancelled` is asked before each.
    ///
    /// # Errors
    /// [`EngineError::Request`] for an image without pixels; [`EngineError::NotFinite`] where a pixel is no number; [`EngineError::Cancelled`]; whatever
    /// the device says.
    pub fn upscale(&self, image: &RgbImage, is_cancelled: impl Fn() -> bool) -> Result<RgbImage, EngineError> {
        self.upscale_in(Tiles { side_px: TILE_PX, margin_px: MARGIN_PX }, image, is_cancelled)
    }

    /// As [`Self::upscale`], in other tiles.
    ///
    /// # Errors
    /// As [`Self::upscale`].
    pub fn upscale_in(&self, tiles: Tiles, image: &RgbImage, is_cancelled: impl Fn() -> bool) -> Result<RgbImage, EngineError> {
        let (width, height) = image.dimensions();
        if width == 0 || height == 0 {
            return Err(EngineError::Request { field: "upscale", problem: "the image has no pixels".into() });
        }
        let multiple_px = self.multiple_px();
        let padded = reflected(image, width.next_multiple_of(multiple_px), height.next_multiple_of(multiple_px));
        let tiles = Tiles { margin_px: tiles.margin_px.min(self.receptive_px()), ..tiles };
        let mut enlarged = RgbImage::new(self.factor * width, self.factor * height);
        for down in tiles.stretches(padded.height(), multiple_px) {
            for across in tiles.stretches(padded.width(), multiple_px) {
                if is_cancelled() {
                    return Err(EngineError::Cancelled);
                }
                let tile = self.tile(&padded, down, across)?;
                let left = self.factor * (across.seen.0 + across.kept.0);
                let top = self.factor * (down.seen.0 + down.kept.0);
                imageops::replace(&mut enlarged, &tile, left.into(), top.into());
            }
        }
        Ok(enlarged)
    }

    /// `images`: (B, 3, H, W), 0 to 1, sides multiples of 2 for a network that looks at squares of 2 by 2 pixels. Returns
    /// (B, 3, factor·H, factor·W), around 0 to 1, in the format and on the device of the weights.
    ///
    /// # Errors
    /// When the sides do not fit; those of the device.
    pub fn forward(&self, images: &Tensor) -> CandleResult<Tensor> {
        let images = images.to_dtype(self.dtype)?.to_device(&self.device)?;
        match &self.network {
            Network::Rrdb(network) => network.forward(&images),
            Network::Compact(network) => network.forward(&images),
        }
    }

    fn multiple_px(&self) -> u32 {
        match &self.architecture {
            Architecture::Rrdb(config) => config.multiple_px(),
            Architecture::Compact(_) => 1,
        }
    }

    /// What is kept of one tile.
    fn tile(&self, image: &RgbImage, down: Stretch, across: Stretch) -> Result<RgbImage, EngineError> {
        let seen = imageops::crop_imm(image, across.seen.0, down.seen.0, across.seen.1, down.seen.1).to_image();
        let kept = self.pixels(&seen, down.kept, across.kept);
        let kept = kept.map_err(|error| advise_smaller(classify(classify_memory_error(error.into()))))?;
        let kept = kept.ok_or_else(|| {
            let path = self.path.display();
            EngineError::NotFinite { problem: format!("the upscaler {path} gives pixels that are no numbers; keep it in f32") }
        })?;
        let [width, height] = [across.kept.1, down.kept.1].map(|px| self.factor * px);
        RgbImage::from_raw(width, height, kept).ok_or_else(|| {
            let problem = "a tile has other sides than it must have".into();
            EngineError::Request { field: "upscale", problem }
        })
    }

    /// Bytes of the part of the enlarged image that is kept, (height, width, 3): clamped to 0 to 1, in 255 steps. None: some of it is no number.
    fn pixels(&self, seen: &RgbImage, down: (u32, u32), across: (u32, u32)) -> CandleResult<Option<Vec<u8>>> {
        let (width, height) = seen.dimensions();
        let pixels = to_unit_pixels(seen.as_raw(), width as usize, height as usize, &self.device)?;
        let of = |px: u32| (self.factor * px) as usize;
        let enlarged = self.forward(&pixels)?.squeeze(0)?.to_dtype(DType::F32)?;
        let kept = enlarged.narrow(1, of(down.0), of(down.1))?.narrow(2, of(across.0), of(across.1))?.contiguous()?;
        if !is_finite(&kept)? {
            return Ok(None);
        }
        let bytes = (kept.clamp(0.0, 1.0)? * 255.0)?.round()?.to_dtype(DType::U8)?;
        bytes.permute((1, 2, 0))?.flatten_all()?.to_vec1().map(Some)
    }
}

impl Architecture {
    fn build(&self, vb: &VarBuilder) -> CandleResult<Network> {
        match self {
            Self::Rrdb(config) => Rrdb::new(config, vb).map(Network::Rrdb),
            Self::Compact(config) => Compact::new(config, vb).map(Network::Compact),
        }
    }

    fn factor(&self) -> usize {
        match self {
            Self::Rrdb(config) => config.factor(),
            Self::Compact(config) => config.factor(),
        }
    }
}

/// Looks at names and shapes of a file's tensors, not at their values. Returns how often it enlarges: one of [`FACTORS`].
///
/// # Errors
/// [`EngineError::Checkpoint`] says why it is no upscaler that is supported.
pub fn check(path: &Path) -> Result<u32, EngineError> {
    Described::read(path).map(|described| described.factor)
}

impl Described {
    fn read(path: &Path) -> Result<Self, EngineError> {
        let wrong = |problem: String| EngineError::Checkpoint { path: path.to_owned(), problem };
        let file = TensorFile::open(path).map_err(with_conversion)?;
        let names: Vec<String> = file.tensors().filter(|(_, dtype)| is_read(*dtype)).map(|(name, _)| name).collect();
        let spelling = Spelling::of(&names);
        let found = names.iter().filter_map(|name| Some((spelling.name(name)?, file.info(name)?.shape.clone())));
        let found: Shapes = found.collect();
        let rrdb = RrdbConfig::of(&found).map(Architecture::Rrdb);
        let Some(architecture) = rrdb.or_else(|| CompactConfig::of(&found).map(Architecture::Compact)) else {
            return Err(wrong(
                "holds no upscaler of the ESRGAN family: neither RRDBNet (conv_first.weight or model.0.weight, and its blocks) nor \
                 SRVGGNetCompact (body.0.weight, body.1.weight)"
                    .into(),
            ));
        };
        let Some(factor) = FACTORS.into_iter().find(|factor| *factor as usize == architecture.factor()) else {
            return Err(wrong(format!("enlarges {} times; 2 and 4 are supported", architecture.factor())));
        };
        match differences(&found, &shapes_of(|vb| architecture.build(vb))?) {
            problems if problems.is_empty() => Ok(Self { architecture, factor, spelling }),
            problems => Err(wrong(listed(&problems))),
        }
    }
}

/// What a file has otherwise than the network that it seems to hold.
fn differences(found: &Shapes, asked: &Shapes) -> Vec<String> {
    let mut problems: Vec<String> = asked
        .iter()
        .filter_map(|(name, asked)| match found.get(name) {
            Some(shape) if shape == asked => None,
            Some(shape) => Some(format!("{name} has the shape {shape:?}, and must have {asked:?}")),
            None => Some(format!("{name} {asked:?} is missing")),
        })
        .collect();
    let unread = found.keys().filter(|name| !asked.contains_key(*name));
    problems.extend(unread.map(|name| format!("{name} is no tensor of this network")));
    problems.sort();
    problems
}

/// A checkpoint of torch is what upscalers come as.
fn with_conversion(error: EngineError) -> EngineError {
    match error {
        EngineError::Checkpoint { path, problem } if problem.contains("pickle") => {
            EngineError::Checkpoint { path, problem: format!("{problem}; {CONVERT}") }
        }
        other => other,
    }
}

/// The image with more pixels on the right and below, where it is seen in a mirror that stands in its last pixels.
fn reflected(image: &RgbImage, width: u32, height: u32) -> RgbImage {
    let at = |place: u32, length: u32| if place < length { place } else { (2 * (length - 1)).saturating_sub(place) };
    if image.dimensions() == (width, height) {
        return image.clone();
    }
    RgbImage::from_fn(width, height, |x, y| -> Rgb<u8> { *image.get_pixel(at(x, image.width()), at(y, image.height())) })
}
