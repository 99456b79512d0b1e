//! Sets one line of text: in fonts that have its characters, shaped, in the order in which it is read.

pub mod fonts;
mod shaped;

use std::sync::Arc;

use ab_glyph::{Font as _, Glyph, OutlinedGlyph, PxScale, ScaleFont as _, point};
use icu_normalizer::ComposingNormalizerBorrowed;
use image::{Rgb, RgbImage};

use self::fonts::Fonts;
use self::shaped::{Placed, shape};

/// Text that can be set: composed (NFC), every character in one of the fonts, at least one of them visible.
#[derive(Debug, Clone)]
pub struct TextLayout {
    text: String,
    fonts: Fonts,
    glyphs: Arc<[Placed]>,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TextLayoutError {
    #[error(
        "has a character that {} cannot set: U+{:04X} {character:?}; the built-in font sets Latin, Greek, Cyrillic, Armenian \
         and Georgian letters, signs and symbols; for others `workflow.watermark.fonts` names a directory with fonts that have them",
        if *of_directory { "neither the built-in font nor those of `workflow.watermark.fonts`" } else { "the built-in font" },
        u32::from(*character)
    )]
    Character { character: char, of_directory: bool },
    #[error("has no visible character")]
    Blank,
}

/// How much of each pixel the letters cover: `alpha` is (height, width), row by row, 0 nothing to 1 all.
#[derive(Debug, Clone, PartialEq)]
pub struct Mask {
    pub width_px: usize,
    pub height_px: usize,
    /// From the start of the baseline to the mask's left and top edge; above the baseline is negative.
    pub left_px: i32,
    pub top_px: i32,
    pub alpha: Vec<f32>,
}

impl Mask {
    /// Writes the letters in the colour `ink`, the baseline starting at (`left_px`, `baseline_px`). What is outside of the image is cut off.
    pub fn write(&self, image: &mut RgbImage, (left_px, baseline_px): (u32, u32), ink: Rgb<u8>) {
        let top = i64::from(baseline_px) + i64::from(self.top_px);
        for (index, alpha) in self.alpha.iter().enumerate() {
            let x = i64::from(left_px) + (index % self.width_px) as i64;
            let y = top + (index / self.width_px) as i64;
            let place = u32::try_from(x).ok().zip(u32::try_from(y).ok());
            let Some(pixel) = place.and_then(|(x, y)| image.get_pixel_mut_checked(x, y)) else { continue };
            for (channel, ink) in pixel.0.iter_mut().zip(ink.0) {
                *channel = (f32::from(*channel) * (1.0 - alpha) + f32::from(ink) * alpha).round() as u8;
            }
        }
    }
}

impl TextLayout {
    /// # Errors
    /// Names the first character that no font has.
    pub fn new(text: &str, fonts: &Fonts) -> Result<Self, TextLayoutError> {
        let text = ComposingNormalizerBorrowed::new_nfc().normalize(text).into_owned();
        let glyphs = shape(&text, fonts)?;
        let layout = Self { text, fonts: fonts.clone(), glyphs: glyphs.into() };
        if layout.glyphs(32.0).is_empty() { Err(TextLayoutError::Blank) } else { Ok(layout) }
    }

    /// The text in the built-in font, with a box in place of each character that it lacks; `None` where nothing is visible.
    #[must_use]
    pub fn lossy(text: &str) -> Option<Self> {
        let fonts = Fonts::built_in();
        let text = ComposingNormalizerBorrowed::new_nfc().normalize(text);
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        Self::new(&text.replace(|c: char| fonts.with(c.encode_utf8(&mut [0; 4])).is_none(), "□"), &fonts).ok()
    }

    /// The longest start of the text that is at most `width_px` wide, with an ellipsis where something was left out.
    #[must_use]
    pub fn cut_to(&self, width_px: f32, line_px: f32) -> Self {
        let characters: Vec<char> = self.text.chars().collect();
        let shorter = (1..characters.len()).rev().chain([0]).filter_map(|keep| {
            let start: String = characters[..keep].iter().collect();
            Self::new(&(start.trim_end().to_owned() + "…"), &self.fonts).ok()
        });
        let mut last = None;
        let fits = std::iter::once(self.clone()).chain(shorter).find(|text| {
            last = Some(text.clone());
            text.width_px(line_px) <= width_px
        });
        fits.or(last).unwrap_or_else(|| self.clone())
    }

    /// The whole text in lines that are at most `width_px` wide, broken between words. A word that is wider ends in an ellipsis.
    #[must_use]
    pub fn in_lines(&self, width_px: f32, line_px: f32) -> Vec<Self> {
        let mut lines: Vec<Self> = Vec::new();
        for word in self.text.split_whitespace() {
            let longer = lines.last().and_then(|line| Self::new(&format!("{} {word}", line.text), &self.fonts).ok());
            match longer.filter(|longer| longer.width_px(line_px) <= width_px) {
                Some(longer) => {
                    lines.pop();
                    lines.push(longer);
                }
                None => lines.extend(Self::new(word, &self.fonts).map(|word| word.cut_to(width_px, line_px))),
            }
        }
        lines
    }

    /// Width and height of the ink when a line is `line_px` high.
    #[must_use]
    pub fn size_px(&self, line_px: f32) -> (f32, f32) {
        let bounds = bounds(&self.glyphs(line_px));
        (bounds.width(), bounds.height())
    }

    /// Width of the ink when a line is `line_px` high.
    #[must_use]
    pub fn width_px(&self, line_px: f32) -> f32 {
        self.size_px(line_px).0
    }

    /// Generates the letters, cropped to their ink.
    #[must_use]
    pub fn mask(&self, line_px: f32) -> Mask {
        let glyphs = self.glyphs(line_px);
        let bounds = bounds(&glyphs);
        let width_px = bounds.width() as usize;
        let height_px = bounds.height() as usize;
        let mut alpha = vec![0.0_f32; width_px * height_px];
        for glyph in &glyphs {
            let left = (glyph.px_bounds().min.x - bounds.min.x) as usize;
            let top = (glyph.px_bounds().min.y - bounds.min.y) as usize;
            glyph.draw(|x, y, covered| {
                let x = left + x as usize;
                let y = top + y as usize;
                if x < width_px && y < height_px {
                    let pixel = &mut alpha[y * width_px + x];
                    *pixel = (*pixel + covered).clamp(0.0, 1.0);
                }
            });
        }
        Mask { width_px, height_px, left_px: bounds.min.x as i32, top_px: bounds.min.y as i32, alpha }
    }

    /// Every visible glyph at its place, the baseline starting at (0, 0). A line's height is the built-in font's; the others have an em
    /// of the same size.
    fn glyphs(&self, line_px: f32) -> Vec<OutlinedGlyph> {
        let em_px = em_px(line_px);
        let outlined = self.glyphs.iter().filter_map(|Placed { face, id, x_em, y_em }| {
            let scale = PxScale::from(em_px * face.outlines.height_unscaled() / face.units_per_em());
            let glyph = Glyph { id: *id, scale, position: point(x_em * em_px, -y_em * em_px) };
            face.outlines.as_scaled(scale).outline_glyph(glyph)
        });
        outlined.collect()
    }
}

/// A line with capital letters of this height.
#[must_use]
pub fn line_px_of_capitals(height_px: f32) -> f32 {
    const LINE_PX: f32 = 1_000.0;
    let fonts = Fonts::built_in();
    let capital = fonts.built_in_face().outlines.as_scaled(LINE_PX);
    let drawn = capital.outline_glyph(capital.scaled_glyph('H'));
    height_px * LINE_PX / drawn.map_or(LINE_PX, |glyph| glyph.px_bounds().height())
}

fn em_px(line_px: f32) -> f32 {
    let fonts = Fonts::built_in();
    let face = fonts.built_in_face();
    line_px * face.units_per_em() / face.outlines.height_unscaled()
}

/// What the glyphs cover together, whole pixels.
fn bounds(glyphs: &[OutlinedGlyph]) -> ab_glyph::Rect {
    let bounds = glyphs.iter().map(OutlinedGlyph::px_bounds).reduce(|all, one| ab_glyph::Rect {
        min: point(all.min.x.min(one.min.x), all.min.y.min(one.min.y)),
        max: point(all.max.x.max(one.max.x), all.max.y.max(one.max.y)),
    });
    bounds.unwrap_or_default()
}

#[cfg(test)]
mod tests;
