//! Sets one line of text in the font that ships inside the binary.

use std::sync::LazyLock;

use ab_glyph::{Font, FontRef, Glyph, GlyphId, OutlinedGlyph, PxScale, ScaleFont, point};
use icu_normalizer::ComposingNormalizerBorrowed;
use image::{Rgb, RgbImage};

/// DejaVu Sans Bold without what needs shaping (combining marks, Arabic, Hebrew, ...): every character it has can be set by
/// placing one glyph after the other. assets/fonts/README.md says how it was cut down.
static FONT: LazyLock<FontRef<'static>> = LazyLock::new(|| {
    let bytes = include_bytes!("../../assets/fonts/DejaVuSans-Bold.ttf");
    FontRef::try_from_slice(bytes).expect("assets/fonts/DejaVuSans-Bold.ttf is a font")
});

/// Text that can be set: composed (NFC), every character in the font, at least one of them visible.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextLayout(String);

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TextLayoutError {
    #[error(
        "has a character that the built-in font cannot set: U+{:04X} {character:?}; it sets Latin, Greek, Cyrillic, Armenian \
         and Georgian letters, signs and symbols, but no emoji, no right-to-left or complex scripts and no loose accents",
        u32::from(*character)
    )]
    Character { character: char },
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
    /// Names the first character that the font lacks.
    pub fn new(text: &str) -> Result<Self, TextLayoutError> {
        let text = ComposingNormalizerBorrowed::new_nfc().normalize(text).into_owned();
        if let Some(character) = text.chars().find(|c| FONT.glyph_id(*c) == GlyphId(0)) {
            return Err(TextLayoutError::Character { character });
        }
        let visible = text.chars().any(|c| FONT.outline(FONT.glyph_id(c)).is_some());
        if visible { Ok(Self(text)) } else { Err(TextLayoutError::Blank) }
    }

    /// The text with a box in place of each character that the font lacks; `None` where nothing is visible.
    #[must_use]
    pub fn lossy(text: &str) -> Option<Self> {
        let text = ComposingNormalizerBorrowed::new_nfc().normalize(text);
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        Self::new(&text.replace(|c| FONT.glyph_id(c) == GlyphId(0), "□")).ok()
    }

    /// The longest start of the text that is at most `width_px` wide, with an ellipsis where something was left out.
    #[must_use]
    pub fn cut_to(&self, width_px: f32, line_px: f32) -> Self {
        let characters: Vec<char> = self.0.chars().collect();
        let shorter = |keep: usize| Self(characters[..keep].iter().collect::<String>().trim_end().to_owned() + "…");
        let cut = (1..characters.len()).rev().map(shorter).find(|text| text.width_px(line_px) <= width_px);
        if self.width_px(line_px) <= width_px { self.clone() } else { cut.unwrap_or_else(|| shorter(0)) }
    }

    /// The whole text in lines that are at most `width_px` wide, broken between words. A word that is wider ends in an ellipsis.
    #[must_use]
    pub fn in_lines(&self, width_px: f32, line_px: f32) -> Vec<Self> {
        let mut lines: Vec<Self> = Vec::new();
        for word in self.0.split(' ') {
            let longer = lines.last().map(|line| Self(format!("{} {word}", line.0)));
            match longer.filter(|longer| longer.width_px(line_px) <= width_px) {
                Some(longer) => {
                    lines.pop();
                    lines.push(longer);
                }
                None => lines.push(Self(word.to_owned()).cut_to(width_px, line_px)),
            }
        }
        lines
    }

    /// Width of the ink when a line is `line_px` high.
    #[must_use]
    pub fn width_px(&self, line_px: f32) -> f32 {
        let glyphs = self.glyphs(line_px);
        let left = glyphs.iter().map(|glyph| glyph.px_bounds().min.x).fold(f32::MAX, f32::min);
        let right = glyphs.iter().map(|glyph| glyph.px_bounds().max.x).fold(f32::MIN, f32::max);
        (right - left).max(0.0)
    }

    /// Generates the letters, cropped to their ink.
    #[must_use]
    pub fn mask(&self, line_px: f32) -> Mask {
        let glyphs = self.glyphs(line_px);
        let bounds = glyphs.iter().map(OutlinedGlyph::px_bounds).reduce(|all, one| ab_glyph::Rect {
            min: point(all.min.x.min(one.min.x), all.min.y.min(one.min.y)),
            max: point(all.max.x.max(one.max.x), all.max.y.max(one.max.y)),
        });
        let bounds = bounds.unwrap_or_default();
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

    /// Every visible glyph at its place, the baseline starting at (0, 0).
    fn glyphs(&self, line_px: f32) -> Vec<OutlinedGlyph> {
        let font = FONT.as_scaled(PxScale::from(line_px));
        let mut pen_px = 0.0;
        let mut before = None;
        let mut glyphs = Vec::new();
        for id in self.0.chars().map(|c| font.glyph_id(c)) {
            pen_px += before.map_or(0.0, |before| font.kern(before, id));
            let glyph = Glyph { id, scale: font.scale(), position: point(pen_px, 0.0) };
            glyphs.extend(font.outline_glyph(glyph));
            pen_px += font.h_advance(id);
            before = Some(id);
        }
        glyphs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_the_alphabets_and_signs_it_promises() {
        for text in
            ["© Ada Lovelace ™ ® ½ €", "Ζωγραφιά", "Художник Ёж", "Tiếng Việt", "Հայ ქართ", "★ ♥ → ✓ № …", "Å ñ ø ß Ł ş"]
        {
            let mask = TextLayout::new(text).unwrap().mask(24.0);
            assert!(mask.alpha.iter().any(|alpha| *alpha > 0.9), "{text}");
        }
    }

    #[test]
    fn names_the_character_it_cannot_set() {
        for (text, character) in
            [("a😀", '😀'), ("אב", 'א'), ("مرحبا", 'م'), ("你好", '你'), ("हि", 'ह'), ("a\u{202E}b", '\u{202E}')]
        {
            assert_eq!(TextLayout::new(text), Err(TextLayoutError::Character { character }));
        }
        let message = TextLayout::new("a\u{1F600}").unwrap_err().to_string();
        assert!(message.contains("U+1F600 '😀'"), "{message}");
    }

    #[test]
    fn composes_accents_and_refuses_loose_ones() {
        assert_eq!(TextLayout::new("Ame\u{301}lie"), TextLayout::new("Amélie"));
        assert_eq!(TextLayout::new("q\u{301}"), Err(TextLayoutError::Character { character: '\u{301}' }));
    }

    #[test]
    fn refuses_text_without_ink() {
        assert_eq!(TextLayout::new(" \u{A0}\u{2003}"), Err(TextLayoutError::Blank));
        assert_eq!(TextLayout::new(""), Err(TextLayoutError::Blank));
    }

    #[test]
    fn sets_what_it_can_when_asked_to() {
        assert_eq!(TextLayout::lossy("a 😀\nAme\u{301}lie"), Some(TextLayout("a □ Amélie".into())));
        assert_eq!(TextLayout::lossy(" \n"), None);
    }

    #[test]
    fn kerns_pairs() {
        let width = |text| TextLayout::new(text).unwrap().width_px(100.0);
        assert!(width("AVAVAV") < width("AAA") + width("VVV") - 10.0);
    }

    #[test]
    fn breaks_between_words_and_loses_none() {
        let text = TextLayout::new("a lighthouse at dusk and an extraordinarily long word").unwrap();
        let lines = text.in_lines(90.0, 16.0);
        assert!(lines.len() > 3 && lines.iter().all(|line| line.width_px(16.0) <= 90.0), "{lines:?}");
        let cut = lines.iter().filter(|line| line.0.ends_with('…'));
        assert_eq!(cut.count(), 1, "the one word that is too wide: {lines:?}");
        assert_eq!(text.in_lines(1000.0, 16.0), std::slice::from_ref(&text));
        let all: Vec<String> = text.in_lines(200.0, 16.0).into_iter().map(|line| line.0).collect();
        assert_eq!(all.join(" "), text.0);
    }

    #[test]
    fn cuts_with_an_ellipsis() {
        let text = TextLayout::new("a lighthouse at dusk").unwrap();
        assert_eq!(text.cut_to(1000.0, 16.0), text);
        let cut = text.cut_to(80.0, 16.0);
        assert!(cut.0.ends_with('…') && cut.width_px(16.0) <= 80.0 && cut.0.chars().count() > 5, "{cut:?}");
        assert_eq!(text.cut_to(0.0, 16.0).0, "…");
    }
}
