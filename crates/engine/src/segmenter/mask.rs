//! From scores to labels, and from labels to a mask.

use image::{GrayImage, Luma};

/// Scores of each label, label by label and row by row: (labels, height, width).
pub(super) struct Scores {
    pub(super) values: Vec<f32>,
    pub(super) height: usize,
    pub(super) width: usize,
}

/// Between which places of a side a pixel of the enlarged one lies, and how far from the first.
struct Between {
    first: usize,
    second: usize,
    share: f32,
}

/// torch's `interpolate(mode="bilinear", align_corners=False)`.
fn between(from: usize, to: u32) -> Vec<Between> {
    let scale = from as f32 / to as f32;
    let places = (0..to).map(|place| {
        let at = (scale * (place as f32 + 0.5) - 0.5).max(0.0);
        let first = (at as usize).min(from - 1);
        Between { first, second: (first + 1).min(from - 1), share: (at - first as f32).clamp(0.0, 1.0) }
    });
    places.collect()
}

impl Scores {
    /// For each pixel of an image of this size the place of the label whose score is highest there, the first of equal ones: transformers'
    /// `post_process_semantic_segmentation`.
    pub(super) fn labels(&self, width_px: u32, height_px: u32) -> GrayImage {
        let rows = between(self.height, height_px);
        let columns = between(self.width, width_px);
        GrayImage::from_fn(width_px, height_px, |x, y| {
            let row = &rows[y as usize];
            let column = &columns[x as usize];
            let across = |line: &[f32]| line[column.first] * (1.0 - column.share) + line[column.second] * column.share;
            let mut best = (f32::NEG_INFINITY, 0);
            for (label, plane) in self.values.chunks_exact(self.height * self.width).enumerate() {
                let line = |row: usize| &plane[row * self.width..][..self.width];
                let score = across(line(row.first)) * (1.0 - row.share) + across(line(row.second)) * row.share;
                if score > best.0 {
                    best = (score, label);
                }
            }
            Luma([best.1 as u8])
        })
    }
}

/// 255 where the label of a pixel is among `chosen`, or that of one at most `wider_px` to each side of it, up and down; 0 elsewhere.
///
/// `labels`: for each pixel the place of its label.
#[must_use]
pub fn mask(labels: &GrayImage, chosen: &[usize], wider_px: u32) -> GrayImage {
    let (width, height) = labels.dimensions();
    let own = GrayImage::from_fn(width, height, |x, y| {
        let is_chosen = chosen.contains(&usize::from(labels.get_pixel(x, y).0[0]));
        Luma([if is_chosen { u8::MAX } else { 0 }])
    });
    if wider_px == 0 {
        return own;
    }
    let mut wide = GrayImage::new(width, height);
    for y in 0..height {
        for (x, value) in widened(&(0..width).map(|x| own.get_pixel(x, y).0[0]).collect::<Vec<_>>(), wider_px).enumerate() {
            wide.put_pixel(x as u32, y, Luma([value]));
        }
    }
    for x in 0..width {
        let column: Vec<u8> = (0..height).map(|y| wide.get_pixel(x, y).0[0]).collect();
        for (y, value) in widened(&column, wider_px).enumerate() {
            wide.put_pixel(x, y as u32, Luma([value]));
        }
    }
    wide
}

/// The largest of so many values each way, in 0 and 255.
fn widened(values: &[u8], wider_px: u32) -> impl Iterator<Item = u8> {
    let reach = wider_px as usize;
    // How many before each place are set.
    let mut before = vec![0_usize];
    before.extend(values.iter().scan(0, |count, value| {
        *count += usize::from(*value > 0);
        Some(*count)
    }));
    (0..values.len()).map(move |place| {
        let first = place.saturating_sub(reach);
        let end = (place + reach + 1).min(before.len() - 1);
        if before[end] > before[first] { u8::MAX } else { 0 }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_has_the_chosen_labels_and_so_many_pixels_around_them() {
        let labels = GrayImage::from_fn(9, 7, |x, y| {
            Luma([match (x, y) {
                (4, 3) => 2,
                (0, 6) => 1,
                _ => 0,
            }])
        });
        let set = |mask: &GrayImage| {
            mask.enumerate_pixels().filter(|(.., value)| value.0[0] == 255).map(|(x, y, _)| (x, y)).collect::<Vec<_>>()
        };
        assert_eq!(set(&mask(&labels, &[2], 0)), [(4, 3)]);
        assert_eq!(set(&mask(&labels, &[2, 1], 0)), [(4, 3), (0, 6)]);
        assert!(set(&mask(&labels, &[3], 5)).is_empty());
        let wide = mask(&labels, &[2, 1], 2);
        for (x, y, value) in wide.enumerate_pixels() {
            let near = |(cx, cy): (u32, u32)| x.abs_diff(cx) <= 2 && y.abs_diff(cy) <= 2;
            assert_eq!(value.0[0], if near((4, 3)) || near((0, 6)) { 255 } else { 0 }, "{x}, {y}");
        }
        assert_eq!(set(&mask(&labels, &[2], 100)).len(), 9 * 7);
    }

    #[test]
    fn the_first_of_equal_scores_counts_and_borders_are_not_exceeded() {
        let scores = Scores { values: vec![1.0, 1.0, 1.0, 1.0], height: 1, width: 2 };
        assert!(scores.labels(5, 3).pixels().all(|label| label.0[0] == 0));
        // 0 to 1 and 1 to 0: they are equal in the middle alone.
        let scores = Scores { values: vec![0.0, 1.0, 1.0, 0.0], height: 1, width: 2 };
        assert_eq!(scores.labels(5, 1).as_raw(), &[1, 1, 0, 0, 0]);
    }
}
