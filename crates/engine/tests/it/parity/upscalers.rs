//! Enlarged images against spandrel's of the same files (`tests/oracle/upscalers.py`).

use std::path::PathBuf;

use atelier_engine::upscaler::{Upscaler, check};
use candle_core::{DType, Tensor};
use image::RgbImage;

use super::qwen_text::image;
use super::{PIXEL, Reference, RelativeError, STAGE, Stage, values};
use crate::device;

/// As in the oracle's script: (file, whose reference it has, factor).
pub(crate) const NETWORKS: [(&str, &str, u32); 7] = [
    ("x4", "x4", 4),
    ("x4_first_release", "x4", 4),
    ("x4_real_sr", "x4", 4),
    ("x2", "x2", 2),
    ("x2_first_release", "x2_first_release", 2),
    ("compact_x4", "compact_x4", 4),
    ("compact_x2", "compact_x2", 2),
];
const IMAGES: usize = 2;

pub(crate) fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("../../tests/fixtures/upscalers/{name}.safetensors"))
}

pub(crate) fn upscaler(name: &str, dtype: DType) -> Upscaler {
    Upscaler::load(&file(name), dtype, &device()).expect("the fixture loads")
}

pub(crate) fn input(index: usize) -> RgbImage {
    image(Reference::open(&file("expected")).get(&format!("input/{index}")))
}

/// (1, 3, H, W), 0 to 1; a row and a column more where a side is odd, seen in the mirror.
fn pixels(image: &RgbImage) -> Tensor {
    let (width, height) = image.dimensions();
    let [wide, high] = [width, height].map(|px| px.next_multiple_of(2));
    let at = |place: u32, length: u32| if place < length { place } else { length - 2 };
    let even = RgbImage::from_fn(wide, high, |x, y| *image.get_pixel(at(x, width), at(y, height)));
    let values: Vec<f32> = even.as_raw().iter().map(|byte| f32::from(*byte) / 255.0).collect();
    let rows = Tensor::from_vec(values, (high as usize, wide as usize, 3), &device()).expect("a tensor");
    rows.permute((2, 0, 1)).and_then(|planes| planes.unsqueeze(0)?.contiguous()).expect("planes")
}

/// What `upscaler` makes of the image at once, in the reference's sides.
fn at_once(upscaler: &Upscaler, name: &str, image: &RgbImage, reference: &Tensor) -> Tensor {
    // A network that looks at single pixels sees no mirror.
    let seen = if name == "x2" { pixels(image) } else { unpadded(image) };
    let enlarged = upscaler.forward(&seen).and_then(|enlarged| enlarged.squeeze(0)).expect("an image");
    let (_, height, width) = reference.dims3().expect("planes");
    enlarged.narrow(1, 0, height).and_then(|rows| rows.narrow(2, 0, width)?.contiguous()).expect("its own pixels")
}

fn unpadded(image: &RgbImage) -> Tensor {
    let (width, height) = image.dimensions();
    let own = pixels(image).narrow(2, 0, height as usize).and_then(|rows| rows.narrow(3, 0, width as usize)?.contiguous());
    own.expect("its own pixels")
}

#[test]
fn parity_of_upscalers() {
    let expected = Reference::open(&file("expected"));
    let mut stage = Stage::new("upscalers");
    for (name, reference, factor) in NETWORKS {
        assert_eq!(check(&file(name)).expect("its tensors agree"), factor, "{name}");
        let upscaler = upscaler(name, DType::F32);
        assert_eq!(upscaler.factor(), factor, "{name}");
        for index in 0..IMAGES {
            let reference = expected.get(&format!("{reference}/{index}/pixels"));
            stage.compare(&format!("{name}, {index}"), &at_once(&upscaler, name, &input(index), reference), reference);
        }
    }
    stage.finish(STAGE);
}

#[test]
fn enlarged_images_are_spandrels() {
    let expected = Reference::open(&file("expected"));
    for (name, reference, factor) in NETWORKS {
        let upscaler = upscaler(name, DType::F32);
        for index in 0..IMAGES {
            let given = input(index);
            let theirs = image(expected.get(&format!("{reference}/{index}/image")));
            let ours = upscaler.upscale(&given, || false).expect("an image");
            assert_eq!(ours.dimensions(), (factor * given.width(), factor * given.height()), "{name}");
            assert_eq!(ours.dimensions(), theirs.dimensions(), "{name}");
            let worst = ours.iter().zip(theirs.iter()).map(|(ours, theirs)| ours.abs_diff(*theirs)).max();
            assert!(worst.is_some_and(|worst| worst <= PIXEL), "{name}, {index}: {worst:?} of 255");
        }
    }
}

/// On the whole no further from f32 than twice what torch is: both round at every layer, each in its own order.
#[test]
fn parity_of_upscalers_in_half_precision() {
    let expected = Reference::open(&file("expected"));
    let mut stage = Stage::new("upscalers, half / torch's");
    for name in ["x4", "x2", "x2_first_release", "compact_x4", "compact_x2"] {
        let of = |kind: &str| values(expected.get(&format!("{name}/0/{kind}")));
        let exact = of("pixels");
        let mean = |other: &[f64]| exact.iter().zip(other).map(|(one, other)| (one - other).abs()).sum::<f64>();
        let upscaler = upscaler(name, DType::F16);
        let reference = expected.get(&format!("{name}/0/pixels"));
        let ours = at_once(&upscaler, name, &input(0), reference);
        stage.note(name, mean(&values(&ours)) / mean(&of("half")));
    }
    stage.finish(RelativeError(2.0));
}
