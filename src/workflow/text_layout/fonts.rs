//! The fonts that a line of text is set in: the one inside the binary, then those of a directory, in the order of their names.

use std::fmt;
use std::fs;
use std::path::Path;
use std::sync::{Arc, LazyLock};

use ab_glyph::{Font as _, FontVec, GlyphId};
use harfrust::Font;

/// DejaVu Sans Bold, cut down to Latin, Greek, Cyrillic, Armenian and Georgian letters, signs and symbols.
/// assets/fonts/README.md says how it was cut down.
const BUILT_IN: &[u8] = include_bytes!("../../../assets/fonts/DejaVuSans-Bold.ttf");
/// What files of fonts end in.
const ENDINGS: [&str; 4] = ["ttf", "otf", "ttc", "otc"];

static BUILT_IN_FACE: LazyLock<Arc<Face>> =
    LazyLock::new(|| Arc::new(Face::new(BUILT_IN.to_vec()).expect("assets/fonts/DejaVuSans-Bold.ttf is a font")));

/// Fonts in the order in which they are asked for a character.
#[derive(Debug, Clone)]
pub struct Fonts(Arc<Vec<Arc<Face>>>);

/// One font, to be shaped with and to be drawn from.
pub(super) struct Face {
    pub(super) shaping: Font,
    pub(super) outlines: FontVec,
}

impl Fonts {
    #[must_use]
    pub fn built_in() -> Self {
        Self(Arc::new(vec![Arc::clone(&BUILT_IN_FACE)]))
    }

    /// The built-in font and those in `directory`: its TrueType and OpenType files, and of a collection the first font.
    ///
    /// # Errors
    /// Names the directory without a font, or the file that is none.
    pub fn load(directory: Option<&Path>) -> Result<Self, String> {
        let Some(directory) = directory else { return Ok(Self::built_in()) };
        let unreadable = |error: std::io::Error| format!("{}: cannot be read ({error})", directory.display());
        let entries = fs::read_dir(directory).map_err(unreadable)?;
        let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>, _>>().map_err(unreadable)?;
        paths.retain(|path| {
            let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
            ENDINGS.iter().any(|known| ending.eq_ignore_ascii_case(known))
        });
        if paths.is_empty() {
            return Err(format!("{}: has no file that ends in .{}", directory.display(), ENDINGS.join(", .")));
        }
        paths.sort();
        let mut faces = vec![Arc::clone(&BUILT_IN_FACE)];
        for path in paths {
            let file = fs::read(&path).map_err(|error| format!("{}: cannot be read ({error})", path.display()))?;
            faces.push(Arc::new(Face::new(file).map_err(|problem| format!("{}: {problem}", path.display()))?));
        }
        Ok(Self(Arc::new(faces)))
    }

    /// Whether there are others than the built-in one.
    pub(super) fn has_more(&self) -> bool {
        self.0.len() > 1
    }

    /// The first font that has all of these characters.
    pub(super) fn with(&self, characters: &str) -> Option<&Arc<Face>> {
        self.0.iter().find(|face| face.sets_all(characters))
    }

    pub(super) fn built_in_face(&self) -> &Arc<Face> {
        &self.0[0]
    }
}

impl fmt::Debug for Face {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Face").finish_non_exhaustive()
    }
}

impl Face {
    fn new(file: Vec<u8>) -> Result<Self, String> {
        let shaping = Font::new(file.clone(), 0).ok_or("is no TrueType or OpenType font")?;
        let outlines = FontVec::try_from_vec_and_index(file, 0).map_err(|_| "is no TrueType or OpenType font")?;
        let has_outlines = (0..outlines.glyph_count()).any(|id| outlines.outline(GlyphId(id as u16)).is_some());
        if !has_outlines {
            return Err("has no outlines, only bitmaps: a line of text has one colour, so a font of outlines is needed".into());
        }
        Ok(Self { shaping, outlines })
    }

    /// Units of the font that are one em.
    pub(super) fn units_per_em(&self) -> f32 {
        f32::from(self.shaping.units_per_em().max(1))
    }

    pub(super) fn sets_all(&self, characters: &str) -> bool {
        characters.chars().all(|character| is_joiner(character) || self.sets(character))
    }

    /// A character that is to be seen has an outline: what is coloured alone is not drawn.
    fn sets(&self, character: char) -> bool {
        let id = self.outlines.glyph_id(character);
        let is_there = id != GlyphId(0);
        // The built-in font has blank signs of its own, such as that of Braille.
        let is_seen = character.is_whitespace() || character == '\u{2800}' || self.outlines.outline(id).is_some();
        is_there && is_seen && !turns(character)
    }
}

/// Controls of direction that make another text of what stands behind them.
fn turns(character: char) -> bool {
    matches!(character, '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}')
}

/// What joins or chooses the forms of its neighbours, and is not seen itself.
pub(super) fn is_joiner(character: char) -> bool {
    matches!(
        character,
        '\u{200C}' | '\u{200D}' | '\u{200E}' | '\u{200F}' | '\u{FE00}'..='\u{FE0F}' | '\u{E0020}'..='\u{E007F}' | '\u{E0100}'..='\u{E01EF}'
    )
}
