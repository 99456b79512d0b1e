//! Which tiles an image is enlarged in, so that memory does not grow with it.

/// How an image is cut. What a tile sees of its surroundings is cut off again: a margin of all that decides a pixel gives the same image as no cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tiles {
    /// Of the square that a tile contributes, in pixels of the image that is enlarged.
    pub side_px: u32,
    /// What it sees around that, as far as the image goes.
    pub margin_px: u32,
}

/// A stretch of one side of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stretch {
    /// What is looked at: its first pixel, and how many.
    pub(super) seen: (u32, u32),
    /// What of that is kept, from its own beginning on.
    pub(super) kept: (u32, u32),
}

impl Tiles {
    /// Those of one side of an image, in order. `multiple_px`: all of them are multiples of it where `length_px` is.
    pub(super) fn stretches(self, length_px: u32, multiple_px: u32) -> Vec<Stretch> {
        let side_px = self.side_px.next_multiple_of(multiple_px).max(multiple_px);
        let margin_px = self.margin_px.next_multiple_of(multiple_px);
        let starts = (0..length_px).step_by(side_px as usize);
        let stretches = starts.map(|start| {
            let end = start.saturating_add(side_px).min(length_px);
            let first = start.saturating_sub(margin_px);
            let last = end.saturating_add(margin_px).min(length_px);
            Stretch { seen: (first, last - first), kept: (start - first, end - start) }
        });
        stretches.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_the_image_once() {
        for (length_px, side_px, margin_px, multiple_px) in
            [(1, 256, 32, 1), (600, 256, 32, 1), (512, 256, 10, 2), (514, 255, 31, 2), (9, 2, 100, 1), (8, 0, 0, 2)]
        {
            let stretches = Tiles { side_px, margin_px }.stretches(length_px, multiple_px);
            let mut next = 0;
            for Stretch { seen: (first, seen), kept: (from, kept) } in stretches {
                assert_eq!(first + from, next, "each begins where the one before has ended");
                assert!(from + kept <= seen && first + seen <= length_px && kept > 0);
                assert!(
                    from >= margin_px.min(first + from)
                        && first.is_multiple_of(multiple_px)
                        && seen.is_multiple_of(multiple_px)
                );
                next += kept;
            }
            assert_eq!(next, length_px);
        }
    }
}
