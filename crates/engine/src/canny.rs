//! Canny's edge detector (Canny 1986), bit for bit as OpenCV's `cv2.Canny` has it: what ControlNets for edges were trained on.
//!
//! The order of its integers is that of OpenCV's `modules/imgproc/src/canny.cpp` with an aperture of 3 and without `L2gradient`: no blur, Sobel over a
//! replicated border, of several channels the one whose gradient is largest, suppression by the tangents of 22.5 and 67.5 degrees, hysteresis over
//! eight neighbours. The crate `imageproc` blurs first and takes lengths in floating point, so its edges are others.

use image::{GrayImage, RgbImage};

/// The tangent of 22.5 degrees in units of 1/2^15.
const TANGENT_22: i32 = 13_573;
const SHIFT: u32 = 15;
/// A gradient is as long as its two parts together, at most: four times 255 each.
pub const MAX_LENGTH: u32 = 2_040;

/// A pixel's place in hysteresis.
const NONE: u8 = 0;
const WEAK: u8 = 1;
const EDGE: u8 = 255;

/// The gradient at a pixel, in its strongest channel.
#[derive(Clone, Copy, Default)]
struct Gradient {
    x: i32,
    y: i32,
}

impl Gradient {
    fn length(self) -> i32 {
        self.x.abs() + self.y.abs()
    }
}

/// Edges of an image: 255 on one, 0 elsewhere. Gradients longer than `high` begin an edge, those longer than `low` go on with one; both 0 to
/// [`MAX_LENGTH`] in units of the image's values, `low` not above `high`.
#[must_use]
pub fn canny(image: &RgbImage, low: u32, high: u32) -> GrayImage {
    let width = image.width() as usize;
    let height = image.height() as usize;
    let gradients = gradients(image, width, height);
    let mut map = vec![NONE; width * height];
    let mut begun = Vec::new();
    for y in 0..height {
        for x in 0..width {
            let length = gradients[y * width + x].length();
            if length > low as i32 && is_ridge(&gradients, (x, y), (width, height)) {
                let place = y * width + x;
                map[place] = WEAK;
                if length > high as i32 {
                    map[place] = EDGE;
                    begun.push((x, y));
                }
            }
        }
    }
    while let Some((x, y)) = begun.pop() {
        for near_y in y.saturating_sub(1)..(y + 2).min(height) {
            for near_x in x.saturating_sub(1)..(x + 2).min(width) {
                let place = near_y * width + near_x;
                if map[place] == WEAK {
                    map[place] = EDGE;
                    begun.push((near_x, near_y));
                }
            }
        }
    }
    map.iter_mut().filter(|place| **place == WEAK).for_each(|place| *place = NONE);
    GrayImage::from_raw(image.width(), image.height(), map).unwrap_or_else(|| GrayImage::new(image.width(), image.height()))
}

/// Sobel's derivatives over three by three pixels; beyond the border the last pixel goes on.
fn gradients(image: &RgbImage, width: usize, height: usize) -> Vec<Gradient> {
    let values = image.as_raw();
    let mut gradients = Vec::with_capacity(width * height);
    for y in 0..height {
        let rows = [y.saturating_sub(1), y, (y + 1).min(height - 1)].map(|row| &values[3 * width * row..3 * width * (row + 1)]);
        for x in 0..width {
            let columns = [x.saturating_sub(1), x, (x + 1).min(width - 1)];
            let strongest = (0..3).map(|channel| sobel(rows, columns.map(|column| 3 * column + channel)));
            // Of equal ones the first.
            gradients.push(
                strongest.reduce(|best, next| if next.length() > best.length() { next } else { best }).unwrap_or_default(),
            );
        }
    }
    gradients
}

fn sobel(rows: [&[u8]; 3], columns: [usize; 3]) -> Gradient {
    let [above, own, below] = rows.map(|row| columns.map(|column| i32::from(row[column])));
    Gradient {
        x: above[2] - above[0] + 2 * (own[2] - own[0]) + below[2] - below[0],
        y: below[0] - above[0] + 2 * (below[1] - above[1]) + below[2] - above[2],
    }
}

/// Whether no neighbour in the direction of its gradient has a longer one; beyond the border there is none.
fn is_ridge(gradients: &[Gradient], (x, y): (usize, usize), (width, height): (usize, usize)) -> bool {
    let Gradient { x: across, y: down } = gradients[y * width + x];
    let length = across.abs() + down.abs();
    let at = |right: isize, below: isize| {
        let near_x = x.checked_add_signed(right).filter(|x| *x < width);
        let near_y = y.checked_add_signed(below).filter(|y| *y < height);
        near_x.zip(near_y).map_or(0, |(x, y)| gradients[y * width + x].length())
    };
    let steep = down.abs() << SHIFT;
    let tangent = across.abs() * TANGENT_22;
    if steep < tangent {
        length > at(-1, 0) && length >= at(1, 0)
    } else if steep > tangent + (across.abs() << (SHIFT + 1)) {
        length > at(0, -1) && length >= at(0, 1)
    } else {
        let side = if (across ^ down) < 0 { -1 } else { 1 };
        length > at(-side, -1) && length > at(side, 1)
    }
}

#[cfg(test)]
mod tests {
    use image::{Luma, Rgb};
    use proptest::prelude::*;

    use super::*;

    /// Where a bright square begins there is one line of edge, on the side that OpenCV takes.
    #[test]
    fn an_edge_is_one_pixel_wide_and_hangs_together() {
        let square =
            RgbImage::from_fn(12, 9, |x, y| Rgb([if (3..9).contains(&x) && (2..7).contains(&y) { 200 } else { 20 }; 3]));
        let edges = canny(&square, 100, 200);
        let marked = edges.enumerate_pixels().filter(|(.., pixel)| **pixel == Luma([255])).count();
        assert!((14..=26).contains(&marked), "{marked}");
        assert!(
            canny(&RgbImage::from_pixel(12, 9, Rgb([77; 3])), 0, 0).iter().all(|value| *value == 0),
            "a plain image has none"
        );
        assert!(canny(&square, MAX_LENGTH, MAX_LENGTH).iter().all(|value| *value == 0), "nothing is longer than the longest");
    }

    proptest! {
        #[test]
        fn every_size_is_taken_and_a_lower_threshold_loses_nothing(
            width in 1_u32..20, height in 1_u32..20, seed in any::<u32>(), low in 0_u32..400, more in 0_u32..400,
        ) {
            let image = RgbImage::from_fn(width, height, |x, y| {
                let value = (x.wrapping_mul(2_654_435_761) ^ y.wrapping_mul(40_503) ^ seed).wrapping_mul(2_246_822_519) >> 24;
                Rgb([value as u8, (value >> 1) as u8, seed as u8])
            });
            let strict = canny(&image, low, low + more);
            let loose = canny(&image, low / 2, low + more / 2);
            prop_assert!(strict.iter().zip(loose.iter()).all(|(strict, loose)| strict <= loose));
            prop_assert!(strict.iter().all(|value| *value == 0 || *value == 255));
        }
    }
}
