//! Measures an image of the bundled model's world without a neural network, as models/train/measure.py specifies it.

use std::collections::BTreeMap;

use atelier_engine::Image;
use serde::Deserialize;

const GRID: usize = 32;

/// `models/tiny-sd/measure.json`: every constant of the measurement.
#[derive(Deserialize)]
pub(crate) struct Spec {
    chroma_threshold: u8,
    min_area_px: usize,
    aspect_weight: f64,
    border_px: usize,
    palette: BTreeMap<String, [u8; 3]>,
    styles: BTreeMap<String, BTreeMap<String, Bound>>,
    templates: BTreeMap<String, Template>,
}

#[derive(Deserialize)]
struct Bound {
    max: Option<f64>,
}

#[derive(Deserialize)]
struct Template {
    aspect: f64,
    rows: Vec<String>,
}

/// What an image shows; `None` where there is no object.
#[derive(Debug, PartialEq)]
pub(crate) struct Seen {
    pub(crate) colour: Option<String>,
    pub(crate) object: Option<String>,
}

/// Of a pixel's three channels, from 0 to 255.
pub(crate) fn luma(rgb: &[u8]) -> f64 {
    0.299 * f64::from(rgb[0]) + 0.587 * f64::from(rgb[1]) + 0.114 * f64::from(rgb[2])
}

impl Spec {
    pub(crate) fn read(&self, image: &Image) -> Seen {
        let width = image.width_px as usize;
        let height = image.height_px as usize;
        let pixels: Vec<[u8; 3]> = image.rgb.chunks_exact(3).map(|rgb| [rgb[0], rgb[1], rgb[2]]).collect();
        let mask: Vec<bool> = pixels.iter().map(|rgb| chroma(*rgb) > self.chroma_threshold).collect();
        let component = largest_component(&mask, width, height);
        if component.iter().filter(|inside| **inside).count() < self.min_area_px {
            return Seen { colour: None, object: None };
        }
        Seen { colour: self.colour(&pixels, &component), object: self.object(&component, width, height) }
    }

    /// The values that styles are recognized by: means over the whole image of chroma and luma, and of luma at its border.
    pub(crate) fn values(&self, image: &Image) -> BTreeMap<String, f64> {
        let width = image.width_px as usize;
        let height = image.height_px as usize;
        let pixels = || image.rgb.chunks_exact(3);
        let count = (width * height) as f64;
        let border = pixels().enumerate().filter(|(index, _)| {
            let x = index % width;
            let y = index / width;
            x.min(width - 1 - x).min(y).min(height - 1 - y) < self.border_px
        });
        let border: Vec<f64> = border.map(|(_, rgb)| luma(rgb)).collect();
        let chroma_sum: f64 = pixels().map(|rgb| f64::from(chroma([rgb[0], rgb[1], rgb[2]]))).sum();
        BTreeMap::from([
            ("mean_chroma".to_owned(), chroma_sum / count),
            ("mean_luma".to_owned(), pixels().map(luma).sum::<f64>() / count),
            ("border_luma".to_owned(), border.iter().sum::<f64>() / border.len() as f64),
        ])
    }

    /// The most that a number may be in a style.
    pub(crate) fn most(&self, style: &str, number: &str) -> f64 {
        self.styles[style][number].max.unwrap()
    }

    pub(crate) fn colour(&self, pixels: &[[u8; 3]], component: &[bool]) -> Option<String> {
        let mut votes: BTreeMap<&String, u64> = BTreeMap::new();
        for (rgb, _) in pixels.iter().zip(component).filter(|(_, inside)| **inside) {
            let distance = |name: &String| {
                let apart = (hue(*rgb) - hue(self.palette[name])).abs();
                apart.min(360.0 - apart)
            };
            let nearest = self.palette.keys().min_by(|left, right| distance(left).total_cmp(&distance(right)))?;
            *votes.entry(nearest).or_default() += u64::from(chroma(*rgb));
        }
        votes.into_iter().max_by_key(|(_, votes)| *votes).map(|(name, _)| name.clone())
    }

    fn object(&self, component: &[bool], width: usize, height: usize) -> Option<String> {
        let (shape, aspect) = silhouette(component, width, height);
        let score = |template: &Template| {
            let bits = template.rows.iter().flat_map(|row| {
                let row = u32::from_str_radix(row, 16).unwrap();
                (0..GRID).map(move |column| row >> (GRID - 1 - column) & 1 == 1)
            });
            let mut both = 0.0;
            let mut either = 0.0;
            for (bit, inside) in bits.zip(&shape) {
                both += f64::from(u8::from(bit && *inside));
                either += f64::from(u8::from(bit || *inside));
            }
            both / either - self.aspect_weight * (aspect / template.aspect).ln().abs()
        };
        let best = self.templates.iter().max_by(|(_, left), (_, right)| score(left).total_cmp(&score(right)));
        best.map(|(name, _)| name.clone())
    }
}

fn chroma(rgb: [u8; 3]) -> u8 {
    let [r, g, b] = rgb;
    r.max(g).max(b) - r.min(g).min(b)
}

/// HSV hue in degrees.
fn hue(rgb: [u8; 3]) -> f64 {
    let top = rgb.into_iter().max();
    let [r, g, b] = rgb.map(f64::from);
    let chroma = f64::from(chroma(rgb)).max(1.0);
    let sixth = if top == Some(rgb[0]) {
        ((g - b) / chroma).rem_euclid(6.0)
    } else if top == Some(rgb[1]) {
        (b - r) / chroma + 2.0
    } else {
        (r - g) / chroma + 4.0
    };
    sixth * 60.0
}

/// The pixels of `free` that are 4-connected to a seed.
fn flood(free: &[bool], width: usize, height: usize, seeds: impl Iterator<Item = usize>) -> Vec<bool> {
    let mut reached = vec![false; free.len()];
    let mut open: Vec<usize> = seeds.filter(|index| free[*index]).collect();
    while let Some(index) = open.pop() {
        if std::mem::replace(&mut reached[index], true) {
            continue;
        }
        let x = index % width;
        let y = index / width;
        let around = [
            (x > 0).then(|| index - 1),
            (x + 1 < width).then(|| index + 1),
            (y > 0).then(|| index - width),
            (y + 1 < height).then(|| index + width),
        ];
        open.extend(around.into_iter().flatten().filter(|next| free[*next] && !reached[*next]));
    }
    reached
}

fn largest_component(mask: &[bool], width: usize, height: usize) -> Vec<bool> {
    let mut best = vec![false; mask.len()];
    let mut most = 0;
    let mut left = mask.to_vec();
    while let Some(seed) = left.iter().position(|inside| *inside) {
        let component = flood(&left, width, height, std::iter::once(seed));
        let size = component.iter().filter(|inside| **inside).count();
        left.iter_mut().zip(&component).for_each(|(left, taken)| *left &= !taken);
        if size > most {
            (best, most) = (component, size);
        }
    }
    best
}

/// The component with its holes filled, sampled on a grid over its bounding box, and the box's width by its height.
fn silhouette(component: &[bool], width: usize, height: usize) -> (Vec<bool>, f64) {
    let outside: Vec<bool> = component.iter().map(|inside| !inside).collect();
    let border = (0..component.len()).filter(|index| {
        let x = index % width;
        let y = index / width;
        x == 0 || y == 0 || x == width - 1 || y == height - 1
    });
    let filled: Vec<bool> = flood(&outside, width, height, border).into_iter().map(|open| !open).collect();
    let rows: Vec<usize> = (0..height).filter(|y| (0..width).any(|x| filled[y * width + x])).collect();
    let columns: Vec<usize> = (0..width).filter(|x| (0..height).any(|y| filled[y * width + x])).collect();
    let top = rows[0];
    let box_height = rows[rows.len() - 1] - rows[0] + 1;
    let left = columns[0];
    let box_width = columns[columns.len() - 1] - columns[0] + 1;
    let at = |index: usize, start: usize, extent: usize| start + ((index as f64 + 0.5) * extent as f64 / GRID as f64) as usize;
    let cells = (0..GRID * GRID).map(|cell| {
        let y = at(cell / GRID, top, box_height);
        let x = at(cell % GRID, left, box_width);
        filled[y * width + x]
    });
    (cells.collect(), box_width as f64 / box_height as f64)
}
