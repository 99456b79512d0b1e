//! Step `postprocess`: what was not to be changed is put back, and the result is set next to the person where that is wanted.

use async_trait::async_trait;
use image::{GrayImage, Rgb, RgbImage, imageops};
use serde::Deserialize;

use super::context::{Decoded, Inputs, JobContext, TryOnInputs};
use super::text_layout::TextLayout;
use super::text_layout::fonts::Fonts;
use super::{Step, StepName};
use crate::content_credentials::manifest::Changed;
use crate::job::outcome::JobError;
use atelier_engine::Image;

/// Over so much of the short side the person's own pixels turn into generated ones, inwards from the edge of the mask.
const SOFT_EDGE_OF_SHORT_SIDE: f32 = 1.0 / 120.0;

const PAPER: Rgb<u8> = Rgb([255; 3]);
const INK: Rgb<u8> = Rgb([64, 66, 78]);
/// Of a comparison: the gap is one part of so many of its height, a label's line likewise.
const GAP_OF_HEIGHT: u32 = 32;
const LABEL_OF_HEIGHT: u32 = 24;
const MIN_GAP_PX: u32 = 4;
/// Smaller letters cannot be read.
const MIN_LABEL_PX: u32 = 12;

/// Settings of section `workflow.postprocess`.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Postprocess {
    /// Behind the results stand as many images more: the person, and the result next to it.
    pub create_comparison: bool,
    /// Where a job has a mask: outside of it every pixel is the person's own, scaled but not generated.
    pub paste_back: bool,
}

/// Step `postprocess`; a job of task generate passes through.
pub struct PostprocessStep(pub Postprocess);

#[async_trait]
impl Step for PostprocessStep {
    fn name(&self) -> StepName {
        StepName::Postprocess
    }

    async fn run(&self, context: &mut JobContext<'_>) -> Result<(), JobError> {
        let Inputs::Decoded(Decoded::TryOn(_, inputs)) = &context.inputs else { return Ok(()) };
        let TryOnInputs { person, mask, .. } = inputs;
        if let Some(mask) = mask.as_ref().filter(|_| self.0.paste_back) {
            let shares = shares(mask);
            for image in &mut context.images {
                paste_back(image, person, &shares);
            }
            context.own_pixels = 0..context.images.len();
            context.changed = Changed::within(mask);
        }
        if self.0.create_comparison {
            let beside = context.images.iter().map(|image| side_by_side(person, image)).collect::<Result<Vec<_>, _>>()?;
            context.images.extend(beside);
            let first = if context.own_pixels.is_empty() { context.images.len() / 2 } else { 0 };
            context.own_pixels = first..context.images.len();
        }
        Ok(())
    }
}

/// How much of each pixel is generated, 0 to 1: nothing outside of the mask, all of it well within.
fn shares(mask: &GrayImage) -> Vec<f32> {
    let radius = (mask.width().min(mask.height()) as f32 * SOFT_EDGE_OF_SHORT_SIDE).max(0.5);
    let soft = imageops::blur(mask, radius);
    let shares = mask.as_raw().iter().zip(soft.as_raw()).map(|(hard, soft)| {
        // The blurred mask is a half at the edge.
        let within = (f32::from(*soft) / 255.0 - 0.5) * 2.0;
        if *hard < 128 { 0.0 } else { within.clamp(0.0, 1.0) }
    });
    shares.collect()
}

fn paste_back(image: &mut Image, person: &RgbImage, shares: &[f32]) {
    let pixels = image.rgb.chunks_exact_mut(3).zip(person.as_raw().chunks_exact(3));
    for ((generated, own), share) in pixels.zip(shares) {
        for (generated, own) in generated.iter_mut().zip(own) {
            let generate = f32::from(*generated);
            let kept = f32::from(*own);
            *generated = (kept + (generate - kept) * share).round() as u8;
        }
    }
}

/// The person and the result next to each other, a gap between them, and above each what it is.
fn side_by_side(person: &RgbImage, image: &Image) -> Result<Image, JobError> {
    let Image { width_px, height_px, rgb, seed } = image;
    let Some(result) = RgbImage::from_raw(*width_px, *height_px, rgb.clone()) else {
        return Err(JobError::Internal { problem: format!("{width_px}x{height_px} px do not have {} bytes", rgb.len()) });
    };
    let tallest_px = person.height().max(*height_px);
    let gap_px = (tallest_px / GAP_OF_HEIGHT).max(MIN_GAP_PX);
    let line_px = (tallest_px / LABEL_OF_HEIGHT).max(MIN_LABEL_PX);
    let top_px = line_px + line_px / 2;
    let mut sheet = RgbImage::from_pixel(person.width() + gap_px + width_px, top_px + tallest_px, PAPER);
    for (half, label, left_px) in [(person, "before", 0), (&result, "after", person.width() + gap_px)] {
        imageops::replace(&mut sheet, half, left_px.into(), top_px.into());
        let text = TextLayout::new(label, &Fonts::built_in())
            .map_err(|error| JobError::Internal { problem: format!("the label {error}") })?;
        let text = text.cut_to(half.width() as f32, line_px as f32);
        text.mask(line_px as f32).write(&mut sheet, (left_px + line_px / 4, line_px), INK);
    }
    Ok(Image { width_px: sheet.width(), height_px: sheet.height(), rgb: sheet.into_raw(), seed: *seed })
}

#[cfg(test)]
mod tests {
    use image::Luma;

    use super::*;

    #[test]
    fn outside_of_the_mask_every_pixel_is_the_persons_own() {
        let person = RgbImage::from_fn(64, 48, |x, y| Rgb([x as u8 * 3, y as u8 * 5, 77]));
        let mask = GrayImage::from_fn(64, 48, |x, _| Luma([if x < 32 { 0 } else { 255 }]));
        let mut image = Image { width_px: 64, height_px: 48, rgb: vec![200; 64 * 48 * 3], seed: 1 };
        paste_back(&mut image, &person, &shares(&mask));
        let at = |x: usize, y: usize| &image.rgb[(y * 64 + x) * 3..][..3];
        for (x, y) in [(0, 0), (31, 0), (31, 47), (10, 20)] {
            assert_eq!(at(x, y), person.get_pixel(x as u32, y as u32).0, "{x}, {y}");
        }
        assert_eq!(at(63, 20), [200; 3]);
        assert_ne!(at(32, 20), [200; 3], "the edge is soft");
    }

    #[test]
    fn a_comparison_is_the_person_and_the_result_with_a_gap_and_labels() {
        let person = RgbImage::from_pixel(96, 128, Rgb([1, 2, 3]));
        let image = Image { width_px: 96, height_px: 128, rgb: vec![9; 96 * 128 * 3], seed: 5 };
        let sheet = side_by_side(&person, &image).unwrap();
        assert_eq!((sheet.width_px, sheet.height_px, sheet.seed), (96 + 4 + 96, 18 + 128, 5));
        let sheet = RgbImage::from_raw(sheet.width_px, sheet.height_px, sheet.rgb).unwrap();
        let paper = PAPER;
        for y in [18, 80, 145] {
            let row = [95, 96, 99, 100, 195].map(|x| *sheet.get_pixel(x, y));
            assert_eq!(row, [Rgb([1, 2, 3]), paper, paper, Rgb([9; 3]), Rgb([9; 3])], "row {y}");
        }
        let inked = |from: u32, to: u32| (0..18).any(|y| (from..to).any(|x| sheet.get_pixel(x, y).0[0] < 120));
        assert!(inked(0, 96) && inked(100, 196) && !inked(96, 100), "a label above each, and none between");
    }
}
