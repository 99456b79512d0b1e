//! Step `preprocess`: opens the images that a job starts from and brings them to the size that is generated.

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use image::{Rgb, RgbImage};
use serde::Deserialize;

use super::context::{
    ControlImage, Decoded, EditFiles, EditInputs, Fetched, GenerateInputs, Inputs, JobContext, StartFiles, TryOnFiles,
    TryOnInputs,
};
use super::opening::{Alpha, Opening, grey};
use super::{Step, StepName};
use crate::job::outcome::JobError;
use crate::job::task::control::Detector;
use crate::job::task::edit::Edit;
use crate::job::task::tryon::Resolution;
use crate::job::task::{EditSidePx, Size};
use atelier_engine::InitImage;
use atelier_engine::canny::canny;
use atelier_engine::flow::references::size;
use atelier_engine::qwen::sizes::fitting;
use atelier_engine::resample::{Filter, resize};

/// Both sides of what is generated are multiples of this: a latent pixel is 8, and two by two of them are one token.
const MULTIPLE_PX: u32 = 16;
/// Pixels of an edit's result, unless job or manifest say otherwise (diffusers' `QwenImageEditPlusPipeline`).
const EDIT_PX: u32 = 1024 * 1024;

/// Settings of section `workflow.preprocess`.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Preprocess {
    /// The person's image is scaled until its short side is the job's resolution; false: it is only made smaller, to 1080p.
    pub resize_to_resolution: bool,
    /// false: person and garments are stretched to 9:16, or to 16:9 where the person's image is wider than high.
    pub maintain_aspect_ratio: bool,
    /// Pixels of one input image at most.
    pub max_pixels: u64,
    /// Pixels at most of all input images of a job together that are kept as large as they are: those of IP-Adapters, or of an edit.
    pub max_pixels_together: u64,
    /// What becomes of transparent parts.
    pub alpha: Alpha,
    /// Of the model, whose manifest says it: the short side of what is generated, whatever a job's resolution is.
    #[serde(skip)]
    pub max_short_side_px: Option<u32>,
    /// Of the model, likewise: pixels of an edit's result whose job gives no size.
    #[serde(skip)]
    pub edit_px: Option<u32>,
    /// Of the model, likewise: without `edit_px`, whether such a result is as large as the model is shown the first image.
    #[serde(skip)]
    pub edit_keeps_size: bool,
}

/// Step `preprocess`; a job without images passes through.
pub struct PreprocessStep(pub Preprocess);

#[async_trait]
impl Step for PreprocessStep {
    fn name(&self) -> StepName {
        StepName::Preprocess
    }

    async fn run(&self, context: &mut JobContext<'_>) -> Result<(), JobError> {
        let settings = self.0;
        let files = context.take_fetched()?;
        // Unpacking and scaling takes as long as a denoising step: others must not wait for it.
        context.inputs = Inputs::Decoded(match files {
            Fetched::Generate(generate, GenerateInputs { loras, embeddings, start, controls, image_prompts }) => {
                let size = generate.size;
                let start = match start {
                    Some(files) => Some(opened(move || settings.start(&files, size)).await?),
                    None => None,
                };
                let detectors: Vec<Option<Detector>> = generate.controls.iter().map(|control| control.detect).collect();
                let controls = opened(move || settings.controls(&controls, &detectors, size)).await?;
                let image_prompts = opened(move || settings.image_prompts(&image_prompts)).await?;
                Decoded::Generate(generate, GenerateInputs { loras, embeddings, start, controls, image_prompts })
            }
            Fetched::TryOn(tryon, files) => {
                let resolution = tryon.resolution;
                Decoded::TryOn(tryon, opened(move || settings.open(&files, resolution)).await?)
            }
            Fetched::Edit(edit, files) => {
                let Edit { width, height, .. } = *edit;
                Decoded::Edit(edit, opened(move || settings.edit(files, width, height)).await?)
            }
        });
        Ok(())
    }
}

async fn opened<T: Send + 'static>(open: impl FnOnce() -> Result<T, JobError> + Send + 'static) -> Result<T, JobError> {
    let opened = tokio::task::spawn_blocking(open).await;
    opened.unwrap_or_else(|error| Err(JobError::Internal { problem: format!("the images could not be opened: {error}") }))
}

impl Preprocess {
    fn opening(self) -> Opening {
        Opening { max_pixels: self.max_pixels, alpha: self.alpha }
    }

    /// Opens what a generation starts from, in the job's `size` whatever its own ratio is: diffusers stretches it too.
    fn start(self, files: &StartFiles, size: Size) -> Result<InitImage, JobError> {
        let size_px = (size.width_px(), size.height_px());
        let opening = self.opening();
        let rgb = scaled(&opening.image(&files.image, "init_image")?, size_px);
        let mask = files.mask.as_ref().map(|path| opening.mask(path, "mask_image")).transpose()?;
        // Resized in colour and then made grey, as diffusers' VaeImageProcessor does: the other order rounds otherwise.
        Ok(InitImage { rgb, mask: mask.map(|mask| grey(&scaled(&mask, size_px))) })
    }

    /// Opens what ControlNets look at, in the job's `size`; one of `detectors` an image. What is detected is so in that size, where a line is as
    /// wide as those that a ControlNet was trained on.
    fn controls(self, files: &[PathBuf], detectors: &[Option<Detector>], size: Size) -> Result<Vec<ControlImage>, JobError> {
        let opening = self.opening();
        let images = files.iter().zip(detectors).enumerate().map(|(index, (path, detector))| {
            let image = opening.image(path, &format!("controlnets[{index}].image"))?;
            let sent = scaled(&image, (size.width_px(), size.height_px()));
            let detected = detector.map(|Detector::Canny { low, high }| {
                let edges = canny(&sent, low.get(), high.get());
                RgbImage::from_fn(sent.width(), sent.height(), |x, y| Rgb([edges.get_pixel(x, y).0[0]; 3]))
            });
            Ok(ControlImage { sent, detected })
        });
        images.collect()
    }

    /// Opens what IP-Adapters look at, as large as it is: an image encoder makes its own size of it.
    fn image_prompts(self, files: &[Vec<PathBuf>]) -> Result<Vec<Vec<RgbImage>>, JobError> {
        let mut opened = Together::new(self);
        let each = files.iter().enumerate().map(|(index, files)| {
            let images = files.iter().enumerate();
            images.map(|(place, path)| opened.image(path, &format!("ip_adapters[{index}].images[{place}]"))).collect()
        });
        each.collect()
    }

    /// # Errors
    /// [`JobError::Input`] names the image that is at fault.
    fn open(self, files: &TryOnFiles, resolution: Resolution) -> Result<TryOnInputs, JobError> {
        let opening = self.opening();
        let person = opening.image(&files.person, "person")?;
        let mask = files.mask.as_ref().map(|path| opening.mask(path, "mask")).transpose()?;
        if let Some(mask) = &mask
            && mask.dimensions() != person.dimensions()
        {
            let (width, height) = person.dimensions();
            let (mask_width, mask_height) = mask.dimensions();
            let problem = format!("must be as large as person, {width} x {height}, got {mask_width} x {mask_height}");
            return Err(JobError::Input { field: "mask".into(), problem, cause: None });
        }
        let (width_px, height_px) = self.size(person.dimensions(), resolution);
        let garments = files.garments.iter().enumerate().map(|(index, path)| {
            let garment = opening.image(path, &format!("garments[{index}]"))?;
            Ok(self.fitted(&garment, (width_px, height_px)))
        });
        Ok(TryOnInputs {
            garments: garments.collect::<Result<_, JobError>>()?,
            person: scaled(&person, (width_px, height_px)),
            mask: mask.map(|mask| grey(&scaled(&mask, (width_px, height_px)))),
        })
    }

    /// Opens the images of an edit. The engine brings each to the sizes in which the model looks at it.
    fn edit(self, files: EditFiles, width: Option<EditSidePx>, height: Option<EditSidePx>) -> Result<EditInputs, JobError> {
        let EditFiles { loras, images: files } = files;
        let mut opened = Together::new(self);
        let images = files.iter().enumerate().map(|(index, path)| opened.image(path, &format!("images[{index}]")));
        let images: Vec<RgbImage> = images.collect::<Result<_, _>>()?;
        let (first_width, first_height) = images.first().map_or((1, 1), RgbImage::dimensions);
        let (fitted_width, fitted_height) = match self.edit_px {
            None if self.edit_keeps_size => size(first_width, first_height, MULTIPLE_PX),
            area => fitting(area.unwrap_or(EDIT_PX), first_width, first_height),
        };
        let width_px = width.map_or(fitted_width, EditSidePx::get);
        let height_px = height.map_or(fitted_height, EditSidePx::get);
        Ok(EditInputs { loras, images, width_px, height_px })
    }

    /// (width, height) of what is generated.
    fn size(self, (width, height): (u32, u32), resolution: Resolution) -> (u32, u32) {
        let short_px = if self.resize_to_resolution {
            resolution.short_side_px()
        } else {
            width.min(height).min(Resolution::P1080.short_side_px())
        };
        let short_px = short_px.min(self.max_short_side_px.unwrap_or(u32::MAX));
        let (wide, high) = match (self.maintain_aspect_ratio, width > height) {
            (true, _) => (width, height),
            (false, true) => (16, 9),
            (false, false) => (9, 16),
        };
        let side = |part: u32| {
            let px = u64::from(part) * u64::from(short_px) / u64::from(wide.min(high));
            (px as u32 / MULTIPLE_PX * MULTIPLE_PX).max(MULTIPLE_PX)
        };
        (side(wide), side(high))
    }

    /// A garment within what is generated; it is never made larger, for that shows nothing more of it.
    fn fitted(self, garment: &RgbImage, (width_px, height_px): (u32, u32)) -> RgbImage {
        if !self.maintain_aspect_ratio {
            return scaled(garment, (width_px, height_px));
        }
        let width = f64::from(garment.width());
        let height = f64::from(garment.height());
        let scale = (f64::from(width_px) / width).min(f64::from(height_px) / height).min(1.0);
        let side = |px: f64| ((px * scale).round() as u32).max(MULTIPLE_PX);
        scaled(garment, (side(width), side(height)))
    }
}

/// Images that are all in memory at once.
struct Together {
    opening: Opening,
    max_pixels: u64,
    pixels: u64,
}

impl Together {
    fn new(settings: Preprocess) -> Self {
        Self { opening: settings.opening(), max_pixels: settings.max_pixels_together, pixels: 0 }
    }

    /// # Errors
    /// As [`Opening::image`], and where this image makes too many pixels of them all.
    fn image(&mut self, path: &Path, field: &str) -> Result<RgbImage, JobError> {
        let image = self.opening.image(path, field)?;
        self.pixels += u64::from(image.width()) * u64::from(image.height());
        if self.pixels <= self.max_pixels {
            return Ok(image);
        }
        let problem = format!(
            "makes {} pixels with the images before it; those of a job may have {} together (workflow.preprocess.max_pixels_together): \
             send smaller images, or fewer",
            self.pixels, self.max_pixels
        );
        Err(JobError::Input { field: field.to_owned(), problem, cause: None })
    }
}

/// By Lanczos, as diffusers resizes images and masks.
fn scaled(image: &RgbImage, (width_px, height_px): (u32, u32)) -> RgbImage {
    resize(image, width_px, height_px, Filter::Lanczos)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULT_VALUE: Preprocess = Preprocess {
        resize_to_resolution: true,
        maintain_aspect_ratio: true,
        max_pixels: 40_000_000,
        max_pixels_together: 120_000_000,
        alpha: Alpha::White,
        max_short_side_px: None,
        edit_px: None,
        edit_keeps_size: false,
    };

    #[test]
    fn the_persons_ratio_decides_and_sides_are_multiples_of_sixteen() {
        for (person, resolution, size) in [
            ((768, 1024), Resolution::P720, (720, 960)),
            ((1080, 1920), Resolution::P480, (480, 848)),
            ((3000, 2000), Resolution::P1080, (1616, 1072)),
            ((100, 101), Resolution::P480, (480, 480)),
        ] {
            assert_eq!(DEFAULT_VALUE.size(person, resolution), size, "{person:?}");
        }
    }

    #[test]
    fn without_resizing_the_size_stays_up_to_1080p() {
        let own = Preprocess { resize_to_resolution: false, ..DEFAULT_VALUE };
        assert_eq!(own.size((500, 700), Resolution::P480), (496, 688));
        assert_eq!(own.size((4000, 3000), Resolution::P480), (1440, 1072));
    }

    #[test]
    fn a_small_model_generates_small_images() {
        let small = Preprocess { max_short_side_px: Some(96), ..DEFAULT_VALUE };
        assert_eq!(small.size((768, 1024), Resolution::P720), (96, 128));
        let own = Preprocess { resize_to_resolution: false, ..small };
        assert_eq!(own.size((64, 80), Resolution::P480), (64, 80));
    }

    #[test]
    fn without_its_ratio_a_image_fills_the_frame() {
        let stretched = Preprocess { maintain_aspect_ratio: false, ..DEFAULT_VALUE };
        assert_eq!(stretched.size((500, 700), Resolution::P720), (720, 1280));
        assert_eq!(stretched.size((700, 500), Resolution::P480), (848, 480));
        assert_eq!(stretched.fitted(&RgbImage::new(100, 40), (720, 1280)).dimensions(), (720, 1280));
    }

    #[test]
    fn images_that_are_kept_as_they_are_may_have_so_many_pixels_together() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("image.png");
        RgbImage::new(40, 30).save(&file).expect("writes");
        let files = [vec![file.clone(), file.clone()], vec![file.clone()]];
        let within = Preprocess { max_pixels_together: 3 * 1200, ..DEFAULT_VALUE };
        assert_eq!(within.image_prompts(&files).expect("images").iter().map(Vec::len).collect::<Vec<_>>(), [2, 1]);
        let fewer = Preprocess { max_pixels_together: 3 * 1200 - 1, ..DEFAULT_VALUE };
        let error = fewer.image_prompts(&files).expect_err("refused");
        let says = "makes 3600 pixels with the images before it; those of a job may have 3599 together";
        assert!(
            matches!(&error, JobError::Input { field, problem, .. } if field == "ip_adapters[1].images[0]" && problem.starts_with(says)),
            "{error}"
        );
        let error =
            fewer.edit(EditFiles { loras: Vec::new(), images: vec![file; 3] }, None, None).map(drop).expect_err("refused");
        assert!(matches!(&error, JobError::Input { field, .. } if field == "images[2]"), "{error}");
    }

    #[test]
    fn a_garment_is_fitted_and_never_enlarged() {
        assert_eq!(DEFAULT_VALUE.fitted(&RgbImage::new(2000, 1000), (720, 960)).dimensions(), (720, 360));
        assert_eq!(DEFAULT_VALUE.fitted(&RgbImage::new(100, 40), (720, 960)).dimensions(), (100, 40));
    }
}
