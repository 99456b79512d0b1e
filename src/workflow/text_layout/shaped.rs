//! From characters to glyphs at their places: runs of one direction, one font and one script, each shaped by itself.

use std::ops::Range;
use std::sync::Arc;

use ab_glyph::GlyphId;
use harfrust::{Buffer, BufferFlags, Direction, Script, ShapeOptions, ShaperFont};
use unicode_bidi::BidiInfo;
use unicode_segmentation::UnicodeSegmentation as _;

use super::TextLayoutError;
use super::fonts::{Face, Fonts};

/// A glyph of a font, with its origin in ems from the start of the baseline; up is positive.
#[derive(Debug, Clone)]
pub(super) struct Placed {
    pub(super) face: Arc<Face>,
    pub(super) id: GlyphId,
    pub(super) x_em: f32,
    pub(super) y_em: f32,
}

/// Characters that are shaped together.
struct Run<'text> {
    face: Arc<Face>,
    /// None: what it has belongs to no script, such as digits and signs.
    script: Option<Script>,
    text: &'text str,
}

/// The glyphs from left to right, as the Unicode bidirectional algorithm orders a line of text; its first strong character decides where
/// it begins.
///
/// # Errors
/// Names the first character that no font has.
pub(super) fn shape(text: &str, fonts: &Fonts) -> Result<Vec<Placed>, TextLayoutError> {
    let order = BidiInfo::new(text, None);
    let mut placed = Vec::new();
    let mut pen_em = 0.0;
    for paragraph in &order.paragraphs {
        let levels = order.visual_runs(paragraph, paragraph.range.clone());
        for range in levels.1 {
            let is_rtl = levels.0[range.start].is_rtl();
            let mut runs = runs(&text[range as Range<usize>], fonts)?;
            if is_rtl {
                runs.reverse();
            }
            for run in runs {
                pen_em = run.shape(is_rtl, pen_em, &mut placed);
            }
        }
    }
    Ok(placed)
}

/// Runs in the order of the text. What belongs to no script of its own, such as a blank, stays with what stands before it where that
/// font has it; else words would be torn apart.
fn runs<'text>(text: &'text str, fonts: &Fonts) -> Result<Vec<Run<'text>>, TextLayoutError> {
    let mut runs: Vec<Run<'text>> = Vec::new();
    let mut start = 0;
    for cluster in text.graphemes(true) {
        let end = start + cluster.len();
        let own = script(cluster);
        let going_on = runs.last_mut().filter(|run| {
            (own.is_none() || run.script.is_none_or(|script| own == Some(script))) && stays(run, own, cluster, fonts)
        });
        if let Some(run) = going_on {
            run.script = own.or(run.script);
            run.text = &text[start - run.text.len()..end];
        } else {
            let face = Arc::clone(fonts.with(cluster).ok_or_else(|| missing(cluster, fonts))?);
            runs.push(Run { face, script: own, text: &text[start..end] });
        }
        start = end;
    }
    Ok(runs)
}

/// Whether the cluster is set in the run's font: where that is the first font to have it, or where it has no script next to letters.
fn stays(run: &Run<'_>, own: Option<Script>, cluster: &str, fonts: &Fonts) -> bool {
    let belongs_to_run = own.is_none() && run.script.is_some();
    run.face.sets_all(cluster) && (belongs_to_run || fonts.with(cluster).is_some_and(|face| Arc::ptr_eq(face, &run.face)))
}

/// The script of the first character that belongs to one.
fn script(cluster: &str) -> Option<Script> {
    let mut buffer = Buffer::new();
    buffer.push_str(cluster);
    buffer.guess_segment_properties();
    buffer.script()
}

/// The first character that no font has, or the first of a cluster whose characters no single font has.
fn missing(cluster: &str, fonts: &Fonts) -> TextLayoutError {
    let mut characters = cluster.chars();
    let alone = characters.clone().find(|character| fonts.with(character.encode_utf8(&mut [0; 4])).is_none());
    let character = alone.or_else(|| characters.next()).unwrap_or(char::REPLACEMENT_CHARACTER);
    TextLayoutError::Character { character, of_directory: fonts.has_more() }
}

impl Run<'_> {
    /// Adds the glyphs from left to right; where the next run begins.
    fn shape(&self, is_rtl: bool, start_em: f32, placed: &mut Vec<Placed>) -> f32 {
        let mut buffer = Buffer::new();
        buffer.push_str(self.text);
        buffer.set_direction(if is_rtl { Direction::RightToLeft } else { Direction::LeftToRight });
        buffer.set_script(self.script);
        buffer.set_flags(BufferFlags::REMOVE_DEFAULT_IGNORABLES | BufferFlags::DO_NOT_INSERT_DOTTED_CIRCLE);
        let font = ShaperFont::new(&self.face.shaping);
        harfrust::shape(&font, &mut buffer, ShapeOptions::default()).expect("a new buffer with a direction and no plan");
        let em = self.face.units_per_em();
        let mut pen_em = start_em;
        for (info, at) in buffer.glyph_infos().iter().zip(buffer.glyph_positions()) {
            placed.push(Placed {
                face: Arc::clone(&self.face),
                id: GlyphId(info.glyph_id as u16),
                x_em: pen_em + at.x_offset as f32 / em,
                y_em: at.y_offset as f32 / em,
            });
            pen_em += at.x_advance as f32 / em;
        }
        pen_em
    }
}
