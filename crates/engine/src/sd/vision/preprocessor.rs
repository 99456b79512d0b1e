//! Makes a model's pixels out of images of any size, as transformers' image processors of ViT, CLIP and Segformer do with Pillow.

use std::path::Path;

use image::RgbImage;
use serde::Deserialize;

use crate::EngineError;
use crate::json_config::{Fixed, read};
use crate::resample::{Filter, resize_part};
use crate::sd::config::Sides;

/// What none of the processors does by itself.
const FIXED: Fixed = &[("do_pad", &["null", "false"])];

/// What is done with an image, in this order.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Preprocessor {
    resize: Option<(Size, Filter)>,
    /// Height and width of what is cut out of the middle; zeros stand where the image is smaller.
    crop: Option<[u32; 2]>,
    /// What a byte is multiplied by.
    scale: f64,
    /// Subtracted, by channel; then `deviation` divides.
    mean: [f32; 3],
    deviation: [f32; 3],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Size {
    /// Height and width; the sides' ratio is not kept.
    Exact([u32; 2]),
    /// Of the shorter side.
    ShortestEdge(u32),
}

/// `preprocessor_config.json` as transformers writes it; what is left out has the default of its class.
#[derive(Debug, Deserialize)]
struct Written {
    image_processor_type: Option<String>,
    /// What the key was called before.
    feature_extractor_type: Option<String>,
    do_resize: Option<bool>,
    size: Option<WrittenSize>,
    resample: Option<u8>,
    do_center_crop: Option<bool>,
    crop_size: Option<WrittenSize>,
    do_rescale: Option<bool>,
    rescale_factor: Option<f64>,
    do_normalize: Option<bool>,
    image_mean: Option<Channels>,
    image_std: Option<Channels>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(
    untagged,
    expecting = "size and crop_size must be {\"height\": H, \"width\": W}, {\"shortest_edge\": S}, [H, W] or a number"
)]
enum WrittenSize {
    Sides(Sides),
    Named(NamedSides),
    Shortest(ShortestEdge),
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
struct NamedSides {
    height: u32,
    width: u32,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
struct ShortestEdge {
    shortest_edge: u32,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(untagged, expecting = "image_mean and image_std must be 3 numbers or one")]
enum Channels {
    Each([f32; 3]),
    All(f32),
}

/// transformers' processors, by what they mean by a missing key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Vit,
    Clip,
    Segformer,
}

impl Preprocessor {
    /// Reads `preprocessor_config.json` and checks that the images it makes are of height and width `image`; `default_kind`: what it is where it
    /// does not say so.
    ///
    /// # Errors
    /// [`EngineError::Checkpoint`] with what is missing in it or not supported, and what would be.
    pub(crate) fn read(path: &Path, default_kind: Kind, image: [usize; 2]) -> Result<Self, EngineError> {
        let (preprocessor, [height, width]) = Self::of_any_size(path, default_kind)?;
        if [height, width].map(|side| side as usize) == image {
            return Ok(preprocessor);
        }
        let problem = format!("makes images {height} high and {width} wide, but image_size in config.json is {image:?}");
        Err(EngineError::Checkpoint { path: path.to_owned(), problem })
    }

    /// As [`Self::read`] for a network that takes any size. Returns height and width of every image it makes as well.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub(crate) fn of_any_size(path: &Path, default_kind: Kind) -> Result<(Self, [u32; 2]), EngineError> {
        let wrong = |problem: String| EngineError::Checkpoint { path: path.to_owned(), problem };
        let written: Written = read(path, FIXED)?;
        let kind = written.kind(default_kind).map_err(&wrong)?;
        let preprocessor = written.checked(kind).map_err(&wrong)?;
        let Some(made) = preprocessor.output() else {
            return Err(wrong("makes images of several sizes: do_resize to height and width, or do_center_crop".into()));
        };
        Ok((preprocessor, made))
    }

    /// transformers' `CLIPImageProcessor(size=side, crop_size=side)`: the middle of an image whose shorter side becomes `side`.
    pub(crate) fn clip(side: u32) -> Self {
        Self {
            resize: Some((Size::ShortestEdge(side), Filter::Bicubic)),
            crop: Some([side, side]),
            scale: 1.0 / 255.0,
            mean: CLIP_MEAN,
            deviation: CLIP_STD,
        }
    }

    /// Height and width of every image it makes.
    fn output(&self) -> Option<[u32; 2]> {
        match (self.crop, self.resize) {
            (Some(crop), _) => Some(crop),
            (None, Some((Size::Exact(sides), _))) => Some(sides),
            _ => None,
        }
    }

    /// (3, H, W), row by row: what the model sees of an image, neither of whose sides is 0.
    pub(crate) fn pixels(&self, image: &RgbImage) -> Vec<f32> {
        let resized = self.resize.map_or([image.height(), image.width()], |(size, _)| size.of(image));
        let [height, width] = self.crop.unwrap_or(resized);
        let rows = Shown::of(resized[0], height);
        let columns = Shown::of(resized[1], width);
        let filter = self.resize.map_or(Filter::Bicubic, |(_, filter)| filter);
        let shown = resize_part(image, [resized[1], resized[0]], [columns.first..columns.end, rows.first..rows.end], filter);
        let area = height as usize * width as usize;
        let mut pixels = Vec::with_capacity(3 * area);
        for channel in 0..3 {
            let value = |byte: u8| (((f64::from(byte) * self.scale) as f32) - self.mean[channel]) / self.deviation[channel];
            pixels.resize(pixels.len() + area, value(0));
            for (y, x, pixel) in shown.enumerate_pixels().map(|(x, y, pixel)| (y + rows.before, x + columns.before, pixel)) {
                pixels[channel * area + y as usize * width as usize + x as usize] = value(pixel[channel]);
            }
        }
        pixels
    }
}

/// What is seen of one side, and where.
struct Shown {
    /// From here to `end` of the resized side.
    first: u32,
    end: u32,
    /// Empty places in front of it.
    before: u32,
}

impl Shown {
    /// The middle `crop` of `side` (transformers' `center_crop`): what cannot be halved goes to the end of the image, and of what is empty to its
    /// beginning.
    fn of(side: u32, crop: u32) -> Self {
        let offset = (i64::from(side) - i64::from(crop)).div_euclid(2);
        let first = offset.max(0) as u32;
        Self { first, end: side.min(first.saturating_add(crop)), before: (-offset).max(0) as u32 }
    }
}

impl Size {
    /// Height and width of the resized image (transformers' `get_resize_output_image_size`).
    fn of(self, image: &RgbImage) -> [u32; 2] {
        let short = match self {
            Self::Exact(sides) => return sides,
            Self::ShortestEdge(short) => short,
        };
        let [height, width] = [image.height(), image.width()].map(u64::from);
        let long = u64::from(short) * height.max(width) / height.min(width);
        let long = u32::try_from(long).unwrap_or(u32::MAX);
        if width <= height { [long, short] } else { [short, long] }
    }
}

impl Written {
    fn kind(&self, default_kind: Kind) -> Result<Kind, String> {
        match self.image_processor_type.as_deref().or(self.feature_extractor_type.as_deref()) {
            Some("ViTImageProcessor" | "ViTImageProcessorFast" | "ViTImageProcessorPil" | "ViTFeatureExtractor") => {
                Ok(Kind::Vit)
            }
            Some("CLIPImageProcessor" | "CLIPImageProcessorFast" | "CLIPImageProcessorPil" | "CLIPFeatureExtractor") => {
                Ok(Kind::Clip)
            }
            Some(
                "SegformerImageProcessor"
                | "SegformerImageProcessorFast"
                | "SegformerImageProcessorPil"
                | "SegformerFeatureExtractor",
            ) => Ok(Kind::Segformer),
            Some(other) => Err(format!(
                "image_processor_type is {other:?}; supported: \"ViTImageProcessor\", \"CLIPImageProcessor\", \"SegformerImageProcessor\""
            )),
            None => Ok(default_kind),
        }
    }

    fn checked(self, kind: Kind) -> Result<Preprocessor, String> {
        let is_clip = kind == Kind::Clip;
        let default_size = match kind {
            Kind::Vit => Size::Exact([224, 224]),
            Kind::Clip => Size::ShortestEdge(224),
            Kind::Segformer => Size::Exact([512, 512]),
        };
        let size = self.size.map_or(Ok(default_size), |size| size.resized(is_clip))?;
        let filter = match self.resample.unwrap_or(if is_clip { 3 } else { 2 }) {
            1 => Filter::Lanczos,
            2 => Filter::Bilinear,
            3 => Filter::Bicubic,
            other => return Err(format!("resample is {other}; supported: 1 (Lanczos), 2 (bilinear), 3 (bicubic)")),
        };
        let crop = self.crop_size.map_or(Ok(Size::Exact([224, 224])), |size| size.resized(false))?;
        let crop = match crop {
            Size::Exact(sides) => sides,
            Size::ShortestEdge(_) => return Err("crop_size must be height and width".into()),
        };
        let standard = match kind {
            Kind::Vit => ([0.5; 3], [0.5; 3]),
            Kind::Clip => (CLIP_MEAN, CLIP_STD),
            Kind::Segformer => (IMAGENET_MEAN, IMAGENET_STD),
        };
        let mean = self.image_mean.map_or(standard.0, Channels::each);
        let deviation = self.image_std.map_or(standard.1, Channels::each);
        if deviation.iter().any(|deviation| *deviation <= 0.0) {
            return Err(format!("image_std is {deviation:?}; it divides, so every number must be above 0"));
        }
        let normalizes = self.do_normalize.unwrap_or(true);
        let rescales = self.do_rescale.unwrap_or(true);
        Ok(Preprocessor {
            resize: self.do_resize.unwrap_or(true).then_some((size, filter)),
            crop: self.do_center_crop.unwrap_or(is_clip).then_some(crop),
            scale: if rescales { self.rescale_factor.unwrap_or(1.0 / 255.0) } else { 1.0 },
            mean: if normalizes { mean } else { [0.0; 3] },
            deviation: if normalizes { deviation } else { [1.0; 3] },
        })
    }
}

/// transformers' `IMAGENET_DEFAULT_MEAN` and `IMAGENET_DEFAULT_STD`.
const IMAGENET_MEAN: [f32; 3] = [0.485, 0.456, 0.406];
const IMAGENET_STD: [f32; 3] = [0.229, 0.224, 0.225];
/// transformers' `OPENAI_CLIP_MEAN` and `OPENAI_CLIP_STD`.
const CLIP_MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const CLIP_STD: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];

impl WrittenSize {
    /// `shortest`: whether one number is that of the shorter side.
    fn resized(self, shortest: bool) -> Result<Size, String> {
        let size = match self {
            Self::Sides(Sides::Square(side)) if shortest => Size::ShortestEdge(side as u32),
            Self::Sides(sides) => Size::Exact([sides.height() as u32, sides.width() as u32]),
            Self::Named(NamedSides { height, width }) => Size::Exact([height, width]),
            Self::Shortest(ShortestEdge { shortest_edge }) => Size::ShortestEdge(shortest_edge),
        };
        match size {
            Size::Exact([0, _] | [_, 0]) | Size::ShortestEdge(0) => Err("size and crop_size must be 1 or more".into()),
            size => Ok(size),
        }
    }
}

impl Channels {
    fn each(self) -> [f32; 3] {
        match self {
            Self::Each(each) => each,
            Self::All(number) => [number; 3],
        }
    }
}
