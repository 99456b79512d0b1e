//! Step `watermark`: signs an image with a line of text that stays legible on dark and on light.

use std::path::PathBuf;

use async_trait::async_trait;
use serde::Deserialize;

use crate::job::Job;
use crate::job::outcome::JobError;
use crate::job::task::{Anchor, Task, Watermark, WatermarkSize};
use crate::workflow::context::JobContext;
use crate::workflow::text_layout::fonts::Fonts;
use crate::workflow::text_layout::{Mask, TextLayout, line_px_of_capitals};
use crate::workflow::{Step, StepName};
use atelier_engine::Image;

/// Height of a line of text as a part of the image's shorter side: 32 px on 512 px.
const LINE_OF_SHORT_SIDE: f32 = 1.0 / 16.0;
/// Below this the letters cannot be distinguished.
const SMALLEST_LINE_PX: f32 = 11.0;
const DEFAULT_SMALLEST_LINE_PX: f32 = 13.0;
const MARGIN_OF_SHORT_SIDE: f32 = 1.0 / 40.0;
const SMALLEST_MARGIN_PX: f32 = 3.0;
const OUTLINE_OF_LINE: f32 = 1.0 / 18.0;
/// Relative luminance of the ground from which dark letters are easier to read than white ones.
const LIGHT_GROUND: f32 = 0.36;

/// Settings of section `workflow.watermark`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// A directory with fonts for characters that the built-in one lacks.
    pub fonts: Option<PathBuf>,
    /// Of a job that says nothing about it.
    pub size: Option<WatermarkSize>,
}

/// What watermarks are set with.
#[derive(Debug, Clone)]
pub struct TextStyle {
    pub fonts: Fonts,
    /// Of a job that says nothing about it; none: as large as suits the image and the text.
    pub size: Option<WatermarkSize>,
}

impl TextStyle {
    /// # Errors
    /// Names the directory or the file that cannot be used as `workflow.watermark.fonts`.
    pub fn load(settings: &Settings) -> Result<Self, String> {
        Ok(Self { fonts: Fonts::load(settings.fonts.as_deref())?, size: settings.size })
    }
}

/// Step `watermark`; a job without a watermark passes through.
pub struct WatermarkStep(pub TextStyle);

#[async_trait]
impl Step for WatermarkStep {
    fn name(&self) -> StepName {
        StepName::Watermark
    }

    fn check(&self, job: &Job) -> Result<(), JobError> {
        check_job(job, &self.0)
    }

    async fn run(&self, context: &mut JobContext<'_>) -> Result<(), JobError> {
        let Some(watermark) = &context.job.watermark else { return Ok(()) };
        context.images.iter_mut().try_for_each(|image| draw(image, watermark, &self.0))
    }
}

/// Refuses a job whose watermark cannot be drawn, as far as it is known before generating.
///
/// # Errors
/// Those of [`check`].
pub fn check_job(job: &Job, text_style: &TextStyle) -> Result<(), JobError> {
    let Some(watermark) = &job.watermark else { return Ok(()) };
    match &job.task {
        Task::Generate(generate) => check(watermark, text_style, generate.size.width_px(), generate.size.height_px()),
        // The person's image decides the size.
        Task::TryOn(_) => check_text(&watermark.text, text_style),
        Task::Edit(edit) => match (edit.width, edit.height) {
            (Some(width), Some(height)) => check(watermark, text_style, width.get(), height.get()),
            _ => check_text(&watermark.text, text_style),
        },
    }
}

/// Refuses a job with a watermark where no step would draw it: an image is not stored unsigned.
///
/// # Errors
/// [`JobError::Invalid`] for the field `watermark`.
pub(super) fn check_absent(job: &Job) -> Result<(), JobError> {
    if job.watermark.is_none() {
        return Ok(());
    }
    let problem = "is drawn by no step here: `workflow.steps` of the function's configuration has no `watermark`".into();
    Err(JobError::Invalid { field: "watermark".into(), problem })
}

/// Refuses a text that cannot be set, with its field's name.
///
/// # Errors
/// [`JobError::Invalid`] names the character.
pub fn check_text(text: &str, text_style: &TextStyle) -> Result<(), JobError> {
    text_layout(text, text_style).map(|_| ())
}

/// Refuses what [`draw`] would refuse on an image of this size, so that it is known before generating.
///
/// # Errors
/// [`JobError::Invalid`] when a character cannot be set or the text is too long for the image.
pub fn check(watermark: &Watermark, text_style: &TextStyle, width_px: u32, height_px: u32) -> Result<(), JobError> {
    let size = watermark.size.or(text_style.size);
    line_px(&text_layout(&watermark.text, text_style)?, size, width_px, height_px).map(|_| ())
}

/// Draws `watermark` on `image`: letters in white (on dark) or near black (on light) with a thin outline in the other.
///
/// # Errors
/// Those of [`check`].
pub fn draw(image: &mut Image, watermark: &Watermark, text_style: &TextStyle) -> Result<(), JobError> {
    let stamp = Stamp::new(watermark, text_style, image.width_px, image.height_px)?;
    let light_ground = stamp.mean_luminance(image) > LIGHT_GROUND;
    let (letters, outline) = if light_ground { (16.0, 255.0) } else { (255.0, 16.0) };
    let opacity = watermark.opacity.get() as f32;
    stamp.for_each_pixel(&mut image.rgb, image.width_px, |rgb, letter, outlined| {
        // `letter` of the pixel is ink, the rest of `outlined` is outline: linear in the opacity, so never less visible.
        let ink = letters * letter + outline * (outlined - letter);
        for channel in rgb {
            *channel = (f32::from(*channel) * (1.0 - opacity * outlined) + opacity * ink).round() as u8;
        }
    });
    Ok(())
}

/// The letters and their outline at their place on an image.
struct Stamp {
    left_px: usize,
    top_px: usize,
    width_px: usize,
    /// Coverage of each pixel by the letters, and by letters and outline together; (height, width), row by row.
    letters: Vec<f32>,
    outlined: Vec<f32>,
}

impl Stamp {
    fn new(watermark: &Watermark, text_style: &TextStyle, width_px: u32, height_px: u32) -> Result<Self, JobError> {
        let text = text_layout(&watermark.text, text_style)?;
        let line_px = line_px(&text, watermark.size.or(text_style.size), width_px, height_px)?;
        let outline_px = outline_px(line_px);
        let pad = pad_px(outline_px);
        let letters = padded(&text.mask(line_px), pad);
        let outlined = outlined(&letters, outline_px);
        let margin = margin_px(width_px, height_px) as usize;
        let (x, y) = parts(watermark.position);
        let place =
            |side: u32, inner: usize, part: usize| margin + (side as usize).saturating_sub(2 * margin + inner) * part / 2;
        Ok(Self {
            left_px: place(width_px, letters.width_px, x),
            top_px: place(height_px, letters.height_px, y),
            width_px: letters.width_px,
            letters: letters.alpha,
            outlined,
        })
    }

    fn for_each_pixel(&self, rgb: &mut [u8], image_width_px: u32, mut each: impl FnMut(&mut [u8], f32, f32)) {
        let rows = rgb.chunks_exact_mut(3 * image_width_px as usize).skip(self.top_px);
        let coverage = self.letters.chunks_exact(self.width_px).zip(self.outlined.chunks_exact(self.width_px));
        for (row, (letters, outlined)) in rows.zip(coverage) {
            let pixels = row.chunks_exact_mut(3).skip(self.left_px);
            for (pixel, (letter, outlined)) in pixels.zip(letters.iter().zip(outlined)) {
                each(pixel, *letter, *outlined);
            }
        }
    }

    fn mean_luminance(&self, image: &Image) -> f32 {
        let rows = image.rgb.chunks_exact(3 * image.width_px as usize).skip(self.top_px);
        let rows = rows.take(self.letters.len() / self.width_px);
        let pixels = rows.flat_map(|row| row.chunks_exact(3).skip(self.left_px).take(self.width_px));
        let (sum, count) = pixels.fold((0.0, 0.0), |(sum, count), rgb| (sum + luminance(rgb), count + 1.0));
        sum / f32::max(count, 1.0)
    }
}

fn text_layout(text: &str, text_style: &TextStyle) -> Result<TextLayout, JobError> {
    TextLayout::new(text, &text_style.fonts).map_err(|error| invalid(error.to_string()))
}

fn invalid(problem: String) -> JobError {
    JobError::Invalid { field: "watermark.text".into(), problem }
}

/// Height of the line. `size` is kept to; without it the image's size decides, and a long text is set smaller.
fn line_px(text: &TextLayout, size: Option<WatermarkSize>, width_px: u32, height_px: u32) -> Result<f32, JobError> {
    let margin = 2.0 * margin_px(width_px, height_px);
    let short_side_px = width_px.min(height_px) as f32;
    let room = (width_px as f32 - margin, height_px as f32 - margin);
    let needs = |line_px: f32| {
        let (ink_width_px, ink_height_px) = text.size_px(line_px);
        let outline_px = 2.0 * pad_px(outline_px(line_px)) as f32;
        (ink_width_px + outline_px, ink_height_px + outline_px)
    };
    if let Some(size) = size {
        let line_px = line_px_of_capitals(short_side_px * size.get() as f32);
        let (needed_width_px, needed_height_px) = needs(line_px);
        if line_px >= SMALLEST_LINE_PX && fits((needed_width_px, needed_height_px), room) {
            return Ok(line_px);
        }
        let size = size.get();
        return Err(invalid(if line_px < SMALLEST_LINE_PX {
            format!(
                "cannot be read on an image of {width_px}x{height_px} px at watermark.size {size}: ask for a larger size or image"
            )
        } else {
            format!(
                "does not fit on an image of {width_px}x{height_px} px at watermark.size {size}: it needs {}x{} px; shorten it, or ask \
                 for a smaller size or a larger image",
                needed_width_px + margin,
                needed_height_px + margin
            )
        }));
    }
    // Twice the line leaves room for stacked accents and the outline.
    let default_px = (short_side_px * LINE_OF_SHORT_SIDE).max(DEFAULT_SMALLEST_LINE_PX).min(room.1 / 2.0);
    let mut line_px = default_px.min(default_px * room.0 / needs(default_px).0.max(1.0));
    while line_px >= SMALLEST_LINE_PX && !fits(needs(line_px), room) {
        line_px -= 0.25;
    }
    if line_px >= SMALLEST_LINE_PX {
        return Ok(line_px);
    }
    let least_px = needs(SMALLEST_LINE_PX).0 + margin;
    Err(invalid(format!(
        "does not fit legibly on an image of {width_px}x{height_px} px: it needs {least_px} px in width; shorten it or ask for a \
         larger image"
    )))
}

fn fits(needed: (f32, f32), room: (f32, f32)) -> bool {
    needed.0 <= room.0 && needed.1 <= room.1
}

fn margin_px(width_px: u32, height_px: u32) -> f32 {
    (width_px.min(height_px) as f32 * MARGIN_OF_SHORT_SIDE).max(SMALLEST_MARGIN_PX).round()
}

fn outline_px(line_px: f32) -> f32 {
    (line_px * OUTLINE_OF_LINE).max(1.0)
}

fn pad_px(outline_px: f32) -> usize {
    outline_px.ceil() as usize
}

/// Halves of the free room left of and above the text.
fn parts(anchor: Anchor) -> (usize, usize) {
    match anchor {
        Anchor::TopLeft => (0, 0),
        Anchor::Top => (1, 0),
        Anchor::TopRight => (2, 0),
        Anchor::Left => (0, 1),
        Anchor::Center => (1, 1),
        Anchor::Right => (2, 1),
        Anchor::BottomLeft => (0, 2),
        Anchor::Bottom => (1, 2),
        Anchor::BottomRight => (2, 2),
    }
}

fn padded(mask: &Mask, pad: usize) -> Mask {
    let width_px = mask.width_px + 2 * pad;
    let height_px = mask.height_px + 2 * pad;
    let mut alpha = vec![0.0; width_px * height_px];
    for (y, row) in mask.alpha.chunks_exact(mask.width_px).enumerate() {
        let start = (y + pad) * width_px + pad;
        alpha[start..start + mask.width_px].copy_from_slice(row);
    }
    Mask { width_px, height_px, alpha, ..*mask }
}

/// The letters grown by a disc of `radius_px` with a soft edge.
fn outlined(letters: &Mask, radius_px: f32) -> Vec<f32> {
    let reach = pad_px(radius_px) as isize;
    let mut brush = Vec::new();
    for (dy, dx) in (-reach..=reach).flat_map(|dy| (-reach..=reach).map(move |dx| (dy, dx))) {
        let strength = (radius_px + 0.5 - (dx as f32).hypot(dy as f32)).clamp(0.0, 1.0);
        if strength > 0.0 {
            brush.push((dy, dx, strength));
        }
    }
    let mut grown = vec![0.0_f32; letters.alpha.len()];
    for (at, alpha) in letters.alpha.iter().enumerate().filter(|(_, alpha)| **alpha > 0.0) {
        let y = at / letters.width_px;
        let x = at % letters.width_px;
        for (dy, dx, strength) in &brush {
            // The padding keeps every brush stroke inside.
            let pixel = &mut grown[y.wrapping_add_signed(*dy) * letters.width_px + x.wrapping_add_signed(*dx)];
            *pixel = pixel.max(alpha * strength);
        }
    }
    grown
}

/// Relative luminance of an sRGB colour as WCAG defines it, 0 black to 1 white.
fn luminance(rgb: &[u8]) -> f32 {
    let weighted = rgb.iter().zip([0.2126, 0.7152, 0.0722]).map(|(channel, weight)| {
        let value = f32::from(*channel) / 255.0;
        let linear = if value <= 0.04045 { value / 12.92 } else { ((value + 0.055) / 1.055).powf(2.4) };
        weight * linear
    });
    weighted.sum()
}

#[cfg(test)]
mod tests;
