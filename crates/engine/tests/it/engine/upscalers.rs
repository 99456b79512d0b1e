//! Upscalers: tiles that nobody sees, files that are refused, and how one is followed and stopped.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;
use std::sync::mpsc;

use atelier_engine::thread::{Companions, EngineThread};
use atelier_engine::upscaler::tiles::Tiles;
use atelier_engine::upscaler::{Upscaler, check};
use atelier_engine::{Engine, EngineError, Generated, QueuedRequest, Watch};
use candle_core::{DType, Device, Tensor};
use image::{Rgb, RgbImage};

use crate::device;
use crate::parity::upscalers::{NETWORKS, file, input, upscaler};

/// Other pixels everywhere.
fn drawn(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| Rgb([x * x + 3 * y, 5 * x + y * y, x * y].map(|value| (value % 251) as u8)))
}

fn at_once(upscaler: &Upscaler, image: &RgbImage) -> RgbImage {
    upscaler.upscale_in(Tiles { side_px: 1024, margin_px: 0 }, image, || false).expect("an image")
}

fn furthest(one: &RgbImage, other: &RgbImage) -> u8 {
    assert_eq!(one.dimensions(), other.dimensions());
    one.iter().zip(other.iter()).map(|(one, other)| one.abs_diff(*other)).max().unwrap_or_default()
}

#[test]
fn tiles_that_see_all_that_decides_a_pixel_are_the_whole_image() {
    // Each network once, and not in its other spellings: a simulated device takes seconds for each.
    for name in ["x4", "x2", "x2_first_release", "compact_x4"] {
        let upscaler = upscaler(name, DType::F32);
        let margin_px = upscaler.receptive_px();
        for (image, side_px) in [(drawn(97, 70), 40), (drawn(90, 7), 64)] {
            let whole = at_once(&upscaler, &image);
            let tiled = upscaler.upscale_in(Tiles { side_px, margin_px }, &image, || false).expect("an image");
            let worst = furthest(&whole, &tiled);
            assert!(worst <= 1, "{name}, tiles of {side_px}: {worst} of 255");
        }
    }
}

#[test]
fn tiles_without_a_margin_show_that_a_margin_is_needed() {
    let upscaler = upscaler("x4", DType::F32);
    let image = drawn(150, 97);
    let cut = upscaler.upscale_in(Tiles { side_px: 40, margin_px: 0 }, &image, || false).expect("an image");
    assert!(furthest(&at_once(&upscaler, &image), &cut) > 1);
}

/// Larger than a tile in both directions; the network decides a pixel by those within 35, and a tile sees 32.
#[test]
fn an_image_of_several_tiles_has_no_seams() {
    let upscaler = upscaler("x4", DType::F32);
    let image = drawn(300, 270);
    let tiled = upscaler.upscale(&image, || false).expect("an image");
    let worst = furthest(&at_once(&upscaler, &image), &tiled);
    assert!(worst <= 1, "{worst} of 255");
}

#[test]
fn images_of_one_pixel_and_of_one_row_are_enlarged() {
    for (name, _, factor) in NETWORKS {
        let upscaler = upscaler(name, DType::F32);
        for (width, height) in [(1, 1), (1, 9), (33, 1)] {
            let enlarged = upscaler.upscale(&drawn(width, height), || false).expect("an image");
            assert_eq!(enlarged.dimensions(), (factor * width, factor * height), "{name}");
        }
        let problem = upscaler.upscale(&RgbImage::new(0, 5), || false).expect_err("nothing to enlarge").to_string();
        assert!(problem.contains("the image has no pixels"), "{problem}");
    }
}

#[test]
fn a_cancelled_image_is_not_finished() {
    let upscaler = upscaler("x4", DType::F32);
    let asked = Cell::new(0);
    let cancelled = upscaler.upscale_in(Tiles { side_px: 16, margin_px: 2 }, &input(1), || {
        asked.set(asked.get() + 1);
        asked.get() > 2
    });
    assert!(matches!(cancelled, Err(EngineError::Cancelled)));
    assert_eq!(asked.get(), 3, "before each tile");
}

fn changed(name: &str, to: &Path, change: impl FnOnce(&mut HashMap<String, Tensor>)) {
    let mut tensors = candle_core::safetensors::load(file(name), &Device::Cpu).expect("the fixture loads");
    change(&mut tensors);
    candle_core::safetensors::save(&tensors, to).expect("writes");
}

/// Header and values are looked at by the same rules.
fn assert_refused(path: &Path, says: &[&str]) {
    let loaded = Upscaler::load(path, DType::F32, &device()).err().expect("it is refused").to_string();
    assert_eq!(check(path).expect_err("it is refused").to_string(), loaded);
    for words in says {
        assert!(loaded.contains(words), "{words:?} is not in {loaded:?}");
    }
}

#[test]
fn what_is_no_upscaler_is_refused_in_words() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("x4.safetensors");
    let without = |name: &'static str| move |tensors: &mut HashMap<String, Tensor>| drop(tensors.remove(name).expect("there"));
    changed("x4", &path, without("params_ema.body.1.rdb3.conv5.bias"));
    assert_refused(&path, &["body.1.rdb3.conv5.bias [8] is missing"]);
    changed("x4_first_release", &path, without("model.1.sub.2.weight"));
    assert_refused(&path, &["conv_body.weight [8, 8, 3, 3] is missing"]);
    changed("x4", &path, |tensors| {
        let hr = tensors["params_ema.conv_hr.weight"].narrow(0, 0, 7).expect("a part").contiguous().expect("a tensor");
        tensors.insert("params_ema.conv_hr.weight".into(), hr);
    });
    assert_refused(&path, &["conv_hr.weight has the shape [7, 8, 3, 3], and must have [8, 8, 3, 3]"]);
    // ESRGAN+ has a convolution more in each block.
    changed("x4_first_release", &path, |tensors| {
        let more = Tensor::zeros((4, 8, 1, 1), DType::F16, &Device::Cpu).expect("a tensor");
        tensors.insert("model.1.sub.0.RDB1.conv1x1.weight".into(), more);
    });
    assert_refused(&path, &["model.1.sub.0.RDB1.conv1x1.weight is no tensor of this network"]);
    // Two doublings of squares of 2 by 2 pixels are 2 times, and one is none.
    changed("x2", &path, |tensors| tensors.retain(|name, _| !name.starts_with("conv_up2")));
    assert_refused(&path, &["enlarges 1 times; 2 and 4 are supported"]);
    changed("compact_x4", &path, |tensors| tensors.retain(|name, _| name != "body.1.weight"));
    assert_refused(&path, &["holds no upscaler of the ESRGAN family", "RRDBNet", "SRVGGNetCompact"]);
    fs::copy(file("../classifiers/vit/model"), &path).expect("copies");
    assert_refused(&path, &["holds no upscaler of the ESRGAN family"]);
}

#[test]
fn a_pth_file_is_refused_with_how_to_convert_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("RealESRGAN_x4plus.pth");
    for beginning in [b"PK\x03\x04".as_slice(), b"\x80\x02}q\x00."] {
        fs::write(&path, [beginning, &[0; 64]].concat()).expect("writes");
        assert_refused(&path, &["is a pickle", "python -c \"import sys, torch", "FILE.pth FILE.safetensors"]);
    }
}

#[test]
fn pixels_that_are_no_numbers_are_an_error() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("x4.safetensors");
    changed("x4", &path, |tensors| {
        let bias = Tensor::new(&[f32::NAN, 0.0, 0.0], &Device::Cpu).expect("a tensor");
        tensors.insert("params_ema.conv_last.bias".into(), bias);
    });
    let upscaler = Upscaler::load(&path, DType::F32, &device()).expect("its tensors agree");
    let error = upscaler.upscale(&input(0), || false).expect_err("it is no image");
    assert!(matches!(&error, EngineError::NotFinite { problem } if problem.contains("x4.safetensors")), "{error}");
}

struct NoEngine;

impl Engine for NoEngine {
    fn warm_up(&mut self) -> Result<(), EngineError> {
        Ok(())
    }

    fn generate_together(&mut self, _: &[QueuedRequest]) -> Result<Vec<Generated>, EngineError> {
        Err(EngineError::Gone)
    }
}

#[test]
fn the_engines_thread_enlarges_by_name_and_can_be_stopped() {
    let thread = EngineThread::start_with_companions(|| {
        let upscalers = BTreeMap::from([("x2".to_owned(), upscaler("x2", DType::F32))]);
        Ok((NoEngine, Companions { upscalers, ..Companions::default() }))
    });
    let thread = thread.expect("it starts");
    let upscaled = |name: &str, watch: Watch| {
        let (sender, receiver) = mpsc::channel();
        thread.upscale(name, input(0), watch, move |result| drop(sender.send(result)));
        receiver.recv().expect("an answer")
    };
    let image = upscaled("x2", Watch::new(|_| ())).expect("an image");
    assert!(image == upscaler("x2", DType::F32).upscale(&input(0), || false).expect("an image"));
    let stopped = Watch::new(|_| ());
    stopped.cancel();
    assert!(matches!(upscaled("x2", stopped), Err(EngineError::Cancelled)));
    let missing = upscaled("x4", Watch::new(|_| ())).expect_err("there is none").to_string();
    assert_eq!(missing, "no upscaler x4 was loaded next to the model");
}
