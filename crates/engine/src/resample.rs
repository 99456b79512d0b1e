//! Resizes images byte for byte as Pillow does, for that is how the models' own pipelines prepare what they look at.

use std::f64::consts::PI;
use std::ops::Range;

use image::{RgbImage, imageops};

/// Binary places of a weight (Pillow's `PRECISION_BITS`).
const PRECISION: u32 = 32 - 8 - 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    /// Windowed sinc over three pixels each way.
    Lanczos,
    /// Cubic convolution with a = -0.5, over two pixels each way.
    Bicubic,
    /// A triangle over one pixel each way.
    Bilinear,
}

impl Filter {
    fn support(self) -> f64 {
        match self {
            Self::Lanczos => 3.0,
            Self::Bicubic => 2.0,
            Self::Bilinear => 1.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        const A: f64 = -0.5;
        let distance = x.abs();
        match self {
            Self::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            Self::Bicubic if distance < 1.0 => ((A + 2.0) * distance - (A + 3.0)) * distance * distance + 1.0,
            Self::Bicubic if distance < 2.0 => (((distance - 5.0) * distance + 8.0) * distance - 4.0) * A,
            Self::Bilinear if distance < 1.0 => 1.0 - distance,
            _ => 0.0,
        }
    }
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 { 1.0 } else { (PI * x).sin() / (PI * x) }
}

/// `image` in another size, at least one pixel each way. The filter widens where the image becomes smaller; what lies between both passes has 8
/// bits again (`libImaging/Resample.c`). The width is first, but where the height shrinks by more than twice what the width does: this is how Pillow
/// 13.0 chooses; up to 12 the width is always first.
#[must_use]
pub fn resize(image: &RgbImage, width_px: u32, height_px: u32, filter: Filter) -> RgbImage {
    let width_px = width_px.max(1);
    let height_px = height_px.max(1);
    resize_part(image, [width_px, height_px], [0..width_px, 0..height_px], filter)
}

/// These columns and rows of [`resize`] to width and height: the rest is never made, however large it would be. Neither side of the image is 0.
pub(super) fn resize_part(
    image: &RgbImage,
    [width_px, height_px]: [u32; 2],
    [columns, rows]: [Range<u32>; 2],
    filter: Filter,
) -> RgbImage {
    let wide = |image: &RgbImage| {
        let kept = image.width() == width_px;
        if kept {
            part(image, columns.clone(), 0..image.height())
        } else {
            resize_rows(image, width_px, columns.clone(), filter)
        }
    };
    let high = |image: &RgbImage| {
        let kept = image.height() == height_px;
        if kept { part(image, 0..image.width(), rows.clone()) } else { resize_columns(image, height_px, rows.clone(), filter) }
    };
    let lower = i64::from(image.height()) - i64::from(height_px);
    let narrower = i64::from(image.width()) - i64::from(width_px);
    if lower > 0 && lower > 2 * narrower { wide(&high(image)) } else { high(&wide(image)) }
}

fn part(image: &RgbImage, columns: Range<u32>, rows: Range<u32>) -> RgbImage {
    if columns == (0..image.width()) && rows == (0..image.height()) {
        return image.clone();
    }
    imageops::crop_imm(image, columns.start, rows.start, columns.len() as u32, rows.len() as u32).to_image()
}

/// What one pixel of the result is made of: the first pixel, and the weights of it and those behind it.
struct Taps {
    first: usize,
    weights: Vec<i32>,
}

/// Of the pixels `places` out of `to`.
fn taps(from: u32, to: u32, places: Range<u32>, filter: Filter) -> Vec<Taps> {
    let scale = f64::from(from) / f64::from(to);
    let stretch = scale.max(1.0);
    let support = filter.support() * stretch;
    let taps = places.map(|index| {
        let centre = (f64::from(index) + 0.5) * scale;
        let first = (centre - support + 0.5).max(0.0) as usize;
        let end = ((centre + support + 0.5) as usize).min(from as usize);
        let weights: Vec<f64> = (first..end).map(|place| filter.weight((place as f64 - centre + 0.5) / stretch)).collect();
        let sum: f64 = weights.iter().sum();
        let fixed = weights.iter().map(|weight| (weight / sum * f64::from(1_u32 << PRECISION)).round() as i32);
        Taps { first, weights: fixed.collect() }
    });
    taps.collect()
}

fn clamped(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

fn resize_rows(image: &RgbImage, width_px: u32, columns: Range<u32>, filter: Filter) -> RgbImage {
    let taps = taps(image.width(), width_px, columns, filter);
    let row_bytes = 3 * image.width() as usize;
    let mut bytes = Vec::with_capacity(3 * taps.len() * image.height() as usize);
    for row in image.as_raw().chunks_exact(row_bytes) {
        for Taps { first, weights } in &taps {
            let mut sums = [1 << (PRECISION - 1); 3];
            for (pixel, weight) in row[3 * first..].chunks_exact(3).zip(weights) {
                for (sum, channel) in sums.iter_mut().zip(pixel) {
                    *sum += i32::from(*channel) * weight;
                }
            }
            bytes.extend(sums.map(clamped));
        }
    }
    of_bytes(taps.len() as u32, image.height(), bytes)
}

fn resize_columns(image: &RgbImage, height_px: u32, rows: Range<u32>, filter: Filter) -> RgbImage {
    let row_bytes = 3 * image.width() as usize;
    let mut bytes = Vec::with_capacity(row_bytes * rows.len());
    let count = rows.len() as u32;
    for Taps { first, weights } in taps(image.height(), height_px, rows, filter) {
        let mut sums = vec![1 << (PRECISION - 1); row_bytes];
        for (row, weight) in image.as_raw()[first * row_bytes..].chunks_exact(row_bytes).zip(&weights) {
            for (sum, channel) in sums.iter_mut().zip(row) {
                *sum += i32::from(*channel) * weight;
            }
        }
        bytes.extend(sums.into_iter().map(clamped));
    }
    of_bytes(image.width(), count, bytes)
}

fn of_bytes(width_px: u32, height_px: u32, bytes: Vec<u8>) -> RgbImage {
    RgbImage::from_raw(width_px, height_px, bytes).unwrap_or_else(|| RgbImage::new(width_px, height_px))
}
